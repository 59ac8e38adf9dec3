"""Where the tokens of a picture are; apart from the codec, whose autoencoders need diffusers."""

import torch
from jaxtyping import Float
from torch import Tensor


def image_positions(rows: int, columns: int, start: float) -> Float[Tensor, "tokens 3"]:
    """Where the tokens of a picture are on the axes (seconds, y, x), row after row.

    Args:
        start: number of context tokens before the picture, at which it begins on all axes.

    Usage: `Segment("image", x_t, time=t, positions=image_positions(16, 16, 12).expand(len(x_t), -1, -1))`
    """
    places = torch.cartesian_prod(
        torch.zeros(1), torch.arange(rows, dtype=torch.float32), torch.arange(columns, dtype=torch.float32)
    )
    return places.reshape(-1, 3) + start
