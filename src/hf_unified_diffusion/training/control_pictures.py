"""Pictures to train a ControlNet on: what a hint keeps of each (its edges), beside the picture itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageFilter
from torch import Generator
from transformers import PreTrainedTokenizerFast

from ..codecs.image_codec import ImageCodec
from ..contracts import Segment
from .captioned_pictures import PictureSource
from .flow_layout import FlowConfig, FlowTarget, latent_layout
from .latent_data import CaptionedLatents
from .layouts import Target


def edges(picture: Image.Image) -> Image.Image:
    """The edges of a picture, white on black (Pillow's 3 x 3 kernel on its grey values).

    Usage: `pipe("a red apple", controlnet=controlnet, control_image=edges(picture))`
    """
    return picture.convert("L").filter(ImageFilter.FIND_EDGES).convert("RGB")


def unchanged(picture: Image.Image) -> Image.Image:
    """The picture itself."""
    return picture


@dataclass(frozen=True)
class HintedPictures:
    """Micro-batches of captioned pictures, each with its edges as the hint, lying where the picture lies.

    Usage: `parts, hint = HintedPictures.of(rows, source, codec, tokenizer, 8, 0.1).batch(0, seed=0)`
    """

    pictures: CaptionedLatents
    hints: CaptionedLatents
    config: FlowConfig

    @classmethod
    def of(
        cls,
        rows: Sequence[Mapping[str, Any]],
        source: PictureSource,
        codec: ImageCodec,
        tokenizer: PreTrainedTokenizerFast,
        size: int,
        caption_dropout: float,
    ) -> "HintedPictures":
        """From rows of a source, `size` of them a micro-batch."""
        both = source.latents(rows, codec, (unchanged, edges))
        tokens = min(size, len(both[0])) * (source.resolution // codec.downsampling) ** 2
        made = [CaptionedLatents(each, tokenizer, tokens, caption_dropout) for each in both]
        return cls(*made, FlowConfig())

    def batch(self, number: int, seed: int) -> tuple[list[tuple[Segment, Target | FlowTarget]], Segment]:
        """Micro-batch `number`: captions and noisy pictures with their targets, and the hints."""
        parts = latent_layout(
            self.pictures.batch(number, seed), self.config, Generator().manual_seed(seed * 1_000_003 + number)
        )
        values = self.hints.batch(number, seed).values
        return parts, Segment("image", values, positions=parts[1][0].positions)
