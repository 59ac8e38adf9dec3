"""Pearson's test with fixed seeds: are these categories drawn with these probabilities?"""

import math

import torch
from torch import Tensor


def fits(drawn: Tensor, probs: Tensor) -> bool:
    """Whether Pearson's statistic stays below what a true hypothesis exceeds once in ten thousand.

    Categories expected fewer than five times count as one; impossible ones must not occur.
    """
    expected = probs.double() * drawn.numel()
    counts = torch.bincount(drawn.flatten(), minlength=len(probs)).double()
    if counts[expected == 0].any():
        return False
    rare = expected < 5
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
    used = expected > 0
    statistic = ((counts - expected)[used] ** 2 / expected[used]).sum().item()
    return statistic < _bound(int(used.sum()) - 1)


def _bound(degrees: int) -> float:
    """The 0.9999 quantile of chi-square, by Wilson and Hilferty's cube-root approximation."""
    shrink = 2 / (9 * degrees)
    return degrees * (1 - shrink + 3.72 * math.sqrt(shrink)) ** 3
