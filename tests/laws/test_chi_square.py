"""The test of distributions can fail."""

import torch
from torch import Generator

from tests.chi_square import fits

PROBS = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.0])


def draw(probs):
    return torch.multinomial(probs, 20_000, replacement=True, generator=Generator().manual_seed(0))


def test_what_was_drawn_fits():
    assert fits(draw(PROBS), PROBS)


def test_a_slightly_different_distribution_does_not():
    assert not fits(draw(PROBS + torch.tensor([0.02, 0, 0, -0.02, 0])), PROBS)


def test_an_impossible_category_does_not():
    drawn = draw(PROBS)
    drawn[0] = 4
    assert not fits(drawn, PROBS)
