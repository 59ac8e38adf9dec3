"""From segments to what the trunk needs: positions and roles."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..contracts import Segment
from .attention_rule import EVERYTHING, ContextCache, TokenRoles


def layout(
    segments: Sequence[Segment], order: Sequence[int], cache: ContextCache
) -> tuple[Float[Tensor, "batch length 3"], TokenRoles | None, int, Float[Tensor, "batch"]]:
    """Positions and roles of all tokens in the trunk's order, how many are context, and where the next token goes.

    Default positions go on from segment to segment in the caller's order, counting real tokens only. Roles are None
    where nothing is padded, packed or limited.
    """
    batch, device = segments[0].values.shape[0], segments[0].values.device
    here = cache.next_position
    if here is None:
        here = torch.zeros(batch, device=device)
    positions, end = [], here
    for segment in segments:
        place, here = place_segment(segment, here)
        positions.append(place)
        if segment.is_context:
            end = here
    num_context = sum(s.values.shape[1] for s in segments if s.is_context)
    plain = all(s.mask is None and s.document is None and s.canvas is None and s.reach is None for s in segments)
    roles = None if plain and cache.document is None else roles_of([segments[i] for i in order], len(cache))
    return torch.cat([positions[i] for i in order], dim=1), roles, num_context, end


def place_segment(segment: Segment, start: Float[Tensor, "batch"]) -> tuple[Tensor, Float[Tensor, "batch"]]:
    """Positions (B, n, 3) of a segment that starts at `start`, and the position after it."""
    batch, length = segment.values.shape[:2]
    given = segment.positions
    if given is not None:
        given = given.float()
        given = given[..., None].expand(-1, -1, 3) if given.ndim == 2 else given
        seconds = given[..., 0] if segment.mask is None else given[..., 0].masked_fill(~segment.mask, float("-inf"))
        return given, torch.maximum(start, seconds.amax(dim=1) + 1)
    if segment.mask is None:
        offsets = torch.arange(length, device=start.device, dtype=torch.float32).expand(batch, length)
        count = torch.full_like(start, length)
    else:
        offsets = (segment.mask.cumsum(dim=1) - 1).clamp_min(0).float()
        count = segment.mask.sum(dim=1).float()
    return (start[:, None] + offsets)[..., None].expand(-1, -1, 3), start + count


def roles_of(segments: Sequence[Segment], num_cached: int) -> TokenRoles:
    """The roles of segments that are already in the trunk's order, context first."""
    parts, rank_start = [], num_cached
    for segment in segments:
        batch, length = segment.values.shape[:2]
        zeros = torch.zeros(batch, length, dtype=torch.int64, device=segment.values.device)
        rank = zeros + torch.arange(rank_start, rank_start + length, device=zeros.device)
        document = zeros if segment.document is None else segment.document
        if segment.mask is not None:
            document = document.masked_fill(~segment.mask, -1)
        if segment.is_context:
            parts.append(TokenRoles(document, zeros, rank, rank + 1))
            rank_start += length
        else:
            canvas = zeros + 1 if segment.canvas is None else segment.canvas
            reach = zeros + EVERYTHING if segment.reach is None else segment.reach
            parts.append(TokenRoles(document, canvas, rank, reach))
    return TokenRoles.join(parts)
