"""When each viseme is seen in a track: dynamic programming against the visemes' poses."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Float64

from ..contracts import TimedLabel
from .avatar_codec import resampled
from .visemes import VISEMES, poses, timed_phonemes, timed_visemes

ALIGNED_HZ = 100.0


def aligned_visemes(
    coefficients: Float32[np.ndarray, "frames 52"], frame_rate_hz: float, labels: Sequence[str]
) -> list[TimedLabel]:
    """The times at which visemes, known in their order, are seen in a track; to 10 ms, without gaps.

    The borders are those that make the sum of squared distances from the poses least.

    Raises:
        ValueError: no or unknown labels, or more of them than the track has 1/100 s.

    Usage: `aligned_visemes(track.coefficients, 20, ["sil", "PP", "aa", "sil"])`
    """
    unknown = sorted(set(labels) - set(VISEMES))
    if unknown or not labels:
        raise ValueError(f"labels must be one or more of {VISEMES}, got {unknown or 'none'}")
    table = poses()
    moving = table.any(axis=0)
    frames = resampled(coefficients, frame_rate_hz, ALIGNED_HZ)[:, moving].astype(np.float64)
    if len(frames) < len(labels):
        raise ValueError(f"a track of {len(frames)} frames of 10 ms cannot show {len(labels)} visemes")
    wanted = table[[VISEMES.index(label) for label in labels]][:, moving]
    distance = np.square(frames[:, None] - wanted[None]).sum(axis=2)
    edges = np.concatenate([[0], cheapest_path(distance), [len(frames)]]) / ALIGNED_HZ
    return [TimedLabel(label, *map(float, edges[i : i + 2])) for i, label in enumerate(labels)]


def cheapest_path(distance: Float64[np.ndarray, "frames states"]) -> list[int]:
    """The frames at which states 1, 2, ... begin, when every state in turn takes one frame or more, at least cost."""
    frames, states = distance.shape
    cost = np.full(states, np.inf)
    cost[0] = distance[0, 0]
    entered = np.zeros((frames, states), dtype=bool)
    for t in range(1, frames):
        before = np.concatenate([[np.inf], cost[:-1]])
        entered[t] = before < cost
        cost = np.minimum(before, cost) + distance[t]
    starts, state = [], states - 1
    for t in range(frames - 1, 0, -1):
        if entered[t, state] and state:
            starts.append(t)
            state -= 1
    return starts[::-1]


def seen_ends(
    coefficients: Float32[np.ndarray, "frames 52"],
    frame_rate_hz: float,
    phonemes: Sequence[str],
    nominal_ends_s: Sequence[float],
) -> list[float]:
    """Where phonemes end by what the face shows: nominal ends, moved as the visemes are moved.

    Raises:
        ValueError: as `aligned_visemes` and `timed_visemes`.

    Usage: `seen_ends(track, 20, ["m", "ɑ"], [0.2, 0.4])`
    """
    expected = timed_visemes(phonemes, nominal_ends_s)
    seen = aligned_visemes(coefficients, frame_rate_hz, [viseme.label for viseme in expected])
    nominal_edges = [0.0, *(viseme.end_s for viseme in expected)]
    seen_edges = [0.0, *(viseme.end_s for viseme in seen)]
    nominal = [phoneme.end_s for phoneme in timed_phonemes(phonemes, nominal_ends_s)]
    return np.interp(nominal, nominal_edges, seen_edges).tolist()
