"""A row's generator belongs to its index and seed alone."""

import pytest
import torch

from hf_unified_diffusion.processes import spawn_generators
from hf_unified_diffusion.processes.randomness import normal, ragged_uniform, uniform

CPU = torch.device("cpu")


def test_a_row_does_not_depend_on_the_batch_size():
    eight = [torch.rand(4, generator=row) for row in spawn_generators(3, 8)]
    one = [torch.rand(4, generator=spawn_generators(3, 1, first=row)[0]) for row in range(8)]
    assert all(torch.equal(a, b) for a, b in zip(eight, one, strict=True))


def test_rows_and_seeds_do_not_share_streams():
    starts = {tuple(torch.rand(2, generator=row).tolist()) for seed in range(40) for row in spawn_generators(seed, 40)}
    assert len(starts) == 1600


@pytest.mark.parametrize("draw", [uniform, normal])
def test_batches_draw_row_by_row(draw):
    batch = draw((3, 5), spawn_generators(1, 3), CPU)
    rows = [draw((1, 5), spawn_generators(1, 1, first=row), CPU) for row in range(3)]
    assert torch.equal(batch, torch.cat(rows))


def test_ragged_rows_draw_what_they_count():
    noise = ragged_uniform([2, 0, 3], spawn_generators(1, 3), CPU)
    assert noise.shape == (5,)
    assert torch.equal(noise[2:], ragged_uniform([3], spawn_generators(1, 1, first=2), CPU))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: spawn_generators(-1, 2), "seed must be at least 0, got -1"),
        (lambda: spawn_generators(0, 0), "count must be at least 1, got 0"),
        (lambda: uniform((3, 2), spawn_generators(0, 2), CPU), r"one per row \(3\), got 2"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
