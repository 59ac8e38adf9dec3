"""What a request for pictures may be, checked once at the door, and its rows as tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from ..codecs.image_codec import ImageCodec
from ..codecs.pictures import Pictures, read_masks, read_pictures
from ..codecs.text_codec import TextCodec
from ..conditioning.energy import check_scale
from ..conditioning.guidance import check_interval
from ..contracts import Segment
from .text_inputs import as_texts, check_choice, check_positive, matched, per_row

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass(frozen=True)
class ImageOptions:
    """How to draw, as in `UnifiedDiffusionImagePipeline.__call__`; ValueError where a rule is broken."""

    num_inference_steps: int
    guidance_scale: float
    guidance_interval: tuple[float, float]
    num_images_per_prompt: int
    strength: float
    output_type: str
    num_candidates: int = 1

    def __post_init__(self) -> None:
        check_positive("num_inference_steps", self.num_inference_steps)
        check_positive("num_images_per_prompt", self.num_images_per_prompt)
        check_positive("num_candidates", self.num_candidates)
        check_scale("guidance_scale", self.guidance_scale)
        check_interval(self.guidance_interval)
        check_strength(self.strength)
        check_choice("output_type", self.output_type, OUTPUT_TYPES)


def check_strength(strength: float) -> None:
    """Raise ValueError unless the strength is a number in [0, 1]."""
    is_number = isinstance(strength, int | float) and not isinstance(strength, bool)
    if not (is_number and 0 <= strength <= 1):  # also false for NaN
        raise ValueError(f"strength must be a number in [0, 1], got {strength!r}")


@dataclass(frozen=True)
class GivenPictures:
    """What there is to start from, in the size of what is drawn; one row each, or one for all rows.

    Attributes:
        pixels: in [-1, 1].
        masks: True where to draw anew; None to draw all.
    """

    pixels: Float[Tensor, "pictures 3 height width"]
    masks: Bool[Tensor, "pictures 1 height width"] | None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.pixels.shape[2:]
        return height, width

    def known_tokens(self, downsampling: int) -> Bool[Tensor, "pictures tokens"] | None:
        """The tokens in whose square nothing is to be drawn anew; None without masks."""
        if self.masks is None:
            return None
        return F.max_pool2d(self.masks.float(), downsampling).flatten(1) == 0

    def pasted_around(self, drawn: Float[Tensor, "rows 3 height width"]) -> Float[Tensor, "rows 3 height width"]:
        """What was drawn, in the given pictures where the masks are black; as it is without masks."""
        if self.masks is None:
            return drawn
        given, masks = (per_row(each, len(drawn)).to(drawn.device) for each in (self.pixels, self.masks))
        return torch.where(masks, drawn, given)


def asked_size(height: int | None, width: int | None, codec: ImageCodec, most: int) -> tuple[int, int] | None:
    """Height and width, None where neither is given; ValueError for sizes of which the context has no `most` tokens."""
    if height is None and width is None:
        return None
    if height is None or width is None:
        raise ValueError(f"height and width must be given together, got {height} and {width}")
    rows, columns = codec.grid(height, width)
    if rows * columns >= most:
        raise ValueError(
            f"a picture must have fewer than {most} tokens of {codec.downsampling} x {codec.downsampling} pixels, "
            f"got {height} x {width}"
        )
    return height, width


def gather_pictures(
    image: Pictures | None, mask_image: Pictures | None, size: tuple[int, int] | None, codec: ImageCodec
) -> GivenPictures | None:
    """The given pictures, resized to `size`; without one they must fit by themselves."""
    if image is None:
        if mask_image is not None:
            raise ValueError("mask_image must come with an image, got a mask alone")
        return None
    pictures = read_pictures("image", image)
    masks = None if mask_image is None else read_masks("mask_image", mask_image)
    if masks is not None:
        check_masks(masks, pictures)
    if size is None:
        size = own_size(pictures, codec.downsampling)
    return GivenPictures(
        torch.stack([resized(picture, size) for picture in pictures]),
        None if masks is None else torch.stack([resized(mask.float(), size) >= 0.5 for mask in masks]),
    )


def picture_hints(
    controlnet: Any,
    given: Any,
    size: tuple[int, int],
    codec: ImageCodec,
    positions: Float[Tensor, "rows tokens 3"],
    repeats: int,
) -> list[Segment] | Segment | None:
    """The hints of ControlNets as the tokens of pictures, each token where it lies on the canvas.

    Raises ValueError for pictures that cannot be read, or that are not one or as many as the prompts.
    """
    if (controlnet is None) != (given is None):
        raise ValueError("controlnet and control_image must be given together, got one of them")
    if controlnet is None:
        return None
    if not isinstance(controlnet, list | tuple):
        return picture_hint(given, size, codec, positions, repeats)
    if not isinstance(given, list | tuple) or len(given) != len(controlnet):
        got = len(given) if isinstance(given, list | tuple) else 1
        raise ValueError(f"control_image must be a list of one hint for each of {len(controlnet)}, got {got}")
    return [picture_hint(each, size, codec, positions, repeats) for each in given]


def picture_hint(
    given: Pictures, size: tuple[int, int], codec: ImageCodec, positions: Float[Tensor, "rows tokens 3"], repeats: int
) -> Segment:
    """One hint, a row for each of the batch."""
    pictures, rows = read_pictures("control_image", given), len(positions)
    if len(pictures) not in (1, rows // repeats):
        count = rows // repeats
        raise ValueError(f"control_image must be one picture or as many as the prompts ({count}), got {len(pictures)}")
    tokens = codec.encode(torch.stack([resized(picture, size) for picture in pictures]))
    return Segment("image", per_row(tokens, rows).cpu(), positions=positions)


def check_masks(masks: list[Tensor], pictures: list[Tensor]) -> None:
    """Raise ValueError unless there is one mask or one a picture, of the pictures' size."""
    if len(masks) not in (1, len(pictures)):
        raise ValueError(f"mask_image must be one mask or as many as the images ({len(pictures)}), got {len(masks)}")
    for picture, mask in zip(pictures, masks if len(masks) > 1 else masks * len(pictures), strict=True):
        if mask.shape[1:] != picture.shape[1:]:
            raise ValueError(f"mask_image must be of the size of the image, {in_words(picture)}, got {in_words(mask)}")


def own_size(pictures: list[Tensor], downsampling: int) -> tuple[int, int]:
    """Height and width that all pictures have; ValueError unless they are the same and divide."""
    for picture in pictures:
        height, width = picture.shape[1:]
        if picture.shape != pictures[0].shape or height % downsampling or width % downsampling:
            raise ValueError(
                f"images without height and width must have one size, of multiples of {downsampling}, "
                f"got {in_words(picture)}; with height and width they are resized"
            )
    return height, width


def in_words(picture: Tensor) -> str:
    """Height x width."""
    return f"{picture.shape[1]} x {picture.shape[2]}"


def resized(picture: Float[Tensor, "channels height width"], size: tuple[int, int]) -> Tensor:
    """The picture in another size, by antialiased bicubic interpolation within its own range."""
    if tuple(picture.shape[1:]) == size:
        return picture
    values = F.interpolate(picture[None], size=size, mode="bicubic", antialias=True)[0]
    return values.clamp(picture.min(), picture.max())


@dataclass(frozen=True)
class CaptionRows:
    """The contexts of a batch, the token that begins them included.

    Attributes:
        prompts: the captions as they were asked for, one for all rows of a prompt.
        caption_ids, negative_ids: of each row.
    """

    prompts: list[str]
    caption_ids: list[list[int]]
    negative_ids: list[list[int]]

    def __len__(self) -> int:
        return len(self.caption_ids)


def gather_captions(
    codec: TextCodec,
    prompt: str | Sequence[str] | None,
    negative_prompt: str | Sequence[str] | None,
    count: int,
    repeats: int,
    bos_token_id: int,
) -> CaptionRows:
    """Tokenize the captions, each row `repeats` times; ValueError for wrong types and counts.

    Args:
        count: of the pictures given, 1 without one.
    """
    prompts = [""] * count if prompt is None else as_texts("prompt", prompt)
    if count > 1 and len(prompts) not in (1, count):
        raise ValueError(f"image must be one picture or as many as the prompts ({len(prompts)}), got {count}")
    prompts = prompts * count if len(prompts) == 1 else prompts
    negatives = matched("negative_prompt", negative_prompt, len(prompts)) or [""] * len(prompts)
    encoded = ([[bos_token_id, *ids] for ids in codec.encode(texts)] for texts in (prompts, negatives))
    captions, avoided = ([ids for ids in rows for _ in range(repeats)] for rows in encoded)
    return CaptionRows(prompts, captions, avoided)


def check_room(rows: CaptionRows, num_tokens: int, most: int) -> None:
    """Raise ValueError unless each caption and the picture fit the context."""
    for name, captions in (("prompt", rows.caption_ids), ("negative_prompt", rows.negative_ids)):
        longest = max(map(len, captions))
        if longest + num_tokens > most:
            raise ValueError(
                f"{name} and picture must fit the context of {most} tokens, got {longest} + {num_tokens} tokens"
            )
