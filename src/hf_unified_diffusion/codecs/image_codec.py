"""Pictures and continuous tokens, over any autoencoder of diffusers for single pictures."""

import torch
from diffusers.models.autoencoders.vae import AutoencoderMixin, DiagonalGaussianDistribution
from jaxtyping import Float
from torch import Tensor

# Where an autoencoder's config says how many resolutions it has (AutoencoderDC and AutoencoderTiny; AutoencoderKL).
RESOLUTIONS = ("encoder_block_out_channels", "block_out_channels")


class ImageCodec:
    """Pixels to one token per square of a picture and back.

    Tokens are the autoencoder's latents with zero mean and unit variance: ours has that folded into its weights, of
    others the shift and scale that their config names are applied.

    Attributes:
        vae: `AutoencoderDC`, `AutoencoderTiny`, `AutoencoderKL` or one like them.
        downsampling: pixels along the side of the square that a token stands for.
        width: numbers in a token.

    Raises:
        ValueError: for an autoencoder that is none of single RGB pictures.

    Usage:
        codec = ImageCodec(AutoencoderDC.from_pretrained(folder))
        pixels = codec.decode(codec.encode(pixels), 256, 256)
    """

    def __init__(self, vae: AutoencoderMixin):
        config = vae.config
        resolutions = next((config[name] for name in RESOLUTIONS if name in config), None)
        if resolutions is None or config.get("in_channels") != 3:
            raise ValueError(
                f"vae must be an autoencoder of RGB pictures whose config has one of {list(RESOLUTIONS)}, "
                f"got {type(vae).__name__} with in_channels={config.get('in_channels')}"
            )
        self.vae = vae
        self.downsampling: int = 2 ** (len(resolutions) - 1)
        self.width: int = config["latent_channels"]

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens of a picture.

        Raises:
            ValueError: unless height and width are positive multiples of `downsampling`.

        Usage: `rows, columns = codec.grid(512, 384)`
        """
        for name, size in (("height", height), ("width", width)):
            if isinstance(size, bool) or not isinstance(size, int) or size < 1 or size % self.downsampling:
                raise ValueError(f"{name} must be a positive multiple of {self.downsampling}, got {size!r}")
        return height // self.downsampling, width // self.downsampling

    def encode(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch tokens width"]:
        """Tokens of pictures in [-1, 1], row after row, float32; a distribution gives its mean.

        Raises:
            ValueError: for another shape or dtype, or a size that `downsampling` does not divide.

        Usage: `tokens = codec.encode(pixels)`
        """
        if pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.is_floating_point():
            raise ValueError(
                f"pixels must be float (batch, 3, height, width), got {pixels.dtype} {tuple(pixels.shape)}"
            )
        self.grid(*pixels.shape[2:])
        (latents,) = self.vae.encode(pixels.to(self.vae.device, self.vae.dtype), return_dict=False)
        if isinstance(latents, DiagonalGaussianDistribution):
            latents = latents.mode()
        shift, scale = self._shift_and_scale()
        return ((latents.float() - shift) * scale).flatten(2).transpose(1, 2)

    def decode(
        self, tokens: Float[Tensor, "batch tokens width"], height: int, width: int
    ) -> Float[Tensor, "batch 3 height width"]:
        """Pictures in [-1, 1] from their tokens, float32.

        Raises:
            ValueError: for sizes that `downsampling` does not divide, or tokens of another shape or dtype.

        Usage: `pixels = codec.decode(tokens, height=512, width=512)`
        """
        rows, columns = self.grid(height, width)
        if tokens.ndim != 3 or tokens.shape[1:] != (rows * columns, self.width) or not tokens.is_floating_point():
            raise ValueError(
                f"tokens of {height} x {width} pixels must be float (batch, {rows * columns}, {self.width}), "
                f"got {tokens.dtype} {tuple(tokens.shape)}"
            )
        shift, scale = self._shift_and_scale()
        latents = tokens.transpose(1, 2).unflatten(2, (rows, columns)).float() / scale + shift
        (pixels,) = self.vae.decode(latents.to(self.vae.device, self.vae.dtype), return_dict=False)
        return pixels.float().clamp(-1, 1)

    def _shift_and_scale(self) -> tuple[Tensor | float, Tensor | float]:
        """What turns latents z into tokens (z - shift) * scale; a config names it for all channels, or for each."""
        config, device = self.vae.config, self.vae.device
        shift, scale = config.get("shift_factor") or 0.0, config.get("scaling_factor") or 1.0
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is None or std is None:
            return shift, scale
        per_channel = torch.tensor([mean, std], device=device)[:, :, None, None]
        return per_channel[0], scale / per_channel[1]
