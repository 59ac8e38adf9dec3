"""Pictures that steer what is drawn, as the tokens of a batch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..codecs.image_codec import ImageCodec
from ..codecs.pictures import Picture, read_pictures
from ..codecs.recolouring import in_shades_of
from ..conditioning.energy import check_scale
from ..conditioning.picture_memory import PictureMemory, Recalled
from ..conditioning.remembered import steered_by_memory
from ..contracts import Denoiser
from ..schedulers.flow_matching import FLOW
from .image_inputs import resized
from .text_inputs import per_row


@dataclass(frozen=True)
class RememberedPictures:
    """What steers each row of a batch, and how much; padded with samples of weight 0.

    Attributes:
        latents: tokens of the pictures in the size of what is drawn.
        weights: how likely each is beforehand.
        strength: see `conditioning.remembered`.
    """

    latents: Float[Tensor, "rows pictures tokens width"]
    weights: Float[Tensor, "rows pictures"]
    strength: float

    def steer(self, denoiser: Denoiser, device: torch.device) -> Denoiser:
        """The denoiser, led by the pictures."""
        latents, weights = self.latents.to(device), self.weights.to(device)
        return steered_by_memory(denoiser, latents, weights, self.strength, FLOW)


def gather_remembered(
    given: Sequence[Sequence[Picture]] | None,
    weights: Sequence[Sequence[float]] | None,
    strength: float,
    size: tuple[int, int],
    codec: ImageCodec,
    num_prompts: int,
    repeats: int,
) -> RememberedPictures | None:
    """The pictures of each prompt as tokens, `repeats` rows a prompt; None where there is nothing to remember.

    Raises:
        ValueError: for a strength below 0 or not finite, pictures that cannot be read or are not one list for each
            prompt, or weights that are not one finite number of at least 0 for each picture.
    """
    check_scale("memory_strength", strength)
    if given is None:
        if weights is not None:
            raise ValueError("memory_weights must come with memory_images, got weights alone")
        return None
    rows = [list(row) for row in given if isinstance(row, list | tuple)] if isinstance(given, list | tuple) else []
    if len(rows) != num_prompts or len(rows) != len(given):
        got = f"{len(rows)} lists" if rows else type(given).__name__
        raise ValueError(f"memory_images must be a list of pictures for each of {num_prompts} prompts, got {got}")
    shares = [[1.0] * len(row) for row in rows] if weights is None else [list(row) for row in weights]
    if [len(row) for row in shares] != [len(row) for row in rows]:
        counts = [len(row) for row in rows], [len(row) for row in shares]
        raise ValueError(f"memory_weights must be one for each picture, {counts[0]}, got {counts[1]}")
    for share in (share for row in shares for share in row):
        check_scale("memory_weights", share)
    if strength == 0 or not any(rows):
        return None
    tokens = [_tokens(row, size, codec) for row in rows]
    stacked = _padded_rows(tokens, [torch.tensor(row).float() for row in shares], repeats)
    return RememberedPictures(*stacked, strength)


def recalled_pictures(
    memory: PictureMemory,
    found: Sequence[Recalled],
    strength: float,
    size: tuple[int, int],
    codec: ImageCodec,
    repeats: int,
) -> RememberedPictures | None:
    """What a checkpoint's own memory recalled for each prompt, `repeats` rows a prompt; None where there is nothing.

    Raises:
        ValueError: for a strength below 0 or not finite, or a memory of tokens that are not the codec's.
    """
    check_scale("memory_strength", strength)
    if memory.width != codec.width:
        raise ValueError(f"the memory's tokens must have the codec's {codec.width} numbers, got {memory.width}")
    if strength == 0 or not any(len(recalled.places) for recalled in found):
        return None
    tokens = [_drawn_tokens(memory, recalled, size, codec) for recalled in found]
    return RememberedPictures(*_padded_rows(tokens, [recalled.weights for recalled in found], repeats), strength)


def in_shades_asked_for(
    latents: Float[Tensor, "rows tokens width"], found: Sequence[Recalled], size: tuple[int, int], codec: ImageCodec
) -> Float[Tensor, "rows tokens width"]:
    """What was drawn, in the colours of prompts that recalled nothing, so that no remembered picture could bring them.

    The same number of rows a prompt, one after the other; those of other prompts stay as they are.
    """
    rows = list(latents)
    for i, row in enumerate(rows):
        recalled = found[i * len(found) // len(rows)]
        if recalled.colour is not None and not len(recalled.places):
            picture = in_shades_of(codec.decode(row[None], *size)[0], recalled.colour)
            rows[i] = codec.encode(picture[None])[0].to(row)
    return torch.stack(rows)


def _padded_rows(
    tokens: Sequence[Float[Tensor, "pictures tokens width"]], weights: Sequence[Float[Tensor, "pictures"]], repeats: int
) -> tuple[Float[Tensor, "rows pictures tokens width"], Float[Tensor, "rows pictures"]]:
    """Tokens and weights of all prompts, padded to as many pictures, each `repeats` times."""
    padded = (pad_sequence(list(each), batch_first=True) for each in (tokens, weights))
    latents, likely = (per_row(each, len(tokens) * repeats) for each in padded)
    return latents, likely


def _drawn_tokens(
    memory: PictureMemory, recalled: Recalled, size: tuple[int, int], codec: ImageCodec
) -> Float[Tensor, "some tokens width"]:
    """The tokens of remembered pictures in the colours that were asked for and in the size of what is drawn.

    Pictures that are in other ones go through pixels.
    """
    if not len(recalled.places):
        return torch.zeros(0, math.prod(codec.grid(*size)), memory.width)
    own = (memory.grid[0] * codec.downsampling, memory.grid[1] * codec.downsampling)
    drawn = []
    for one, colour in zip(memory.tokens(recalled.places), recalled.colours, strict=True):
        if colour is None and size == own:
            drawn.append(one[None])
            continue
        picture = codec.decode(one[None], *own)[0].cpu()
        if colour is not None:
            picture = in_shades_of(picture, colour)
        drawn.append(codec.encode(resized(picture, size)[None]).cpu())
    return torch.cat(drawn)


def _tokens(row: Sequence[Picture], size: tuple[int, int], codec: ImageCodec) -> Float[Tensor, "pictures tokens width"]:
    if not row:
        rows, columns = codec.grid(*size)
        return torch.zeros(0, rows * columns, codec.width)
    pictures = read_pictures("memory_images", row)
    # one at a time: as many as are remembered would need as many times the codec's memory
    return torch.cat([codec.encode(resized(picture, size)[None]) for picture in pictures]).cpu()
