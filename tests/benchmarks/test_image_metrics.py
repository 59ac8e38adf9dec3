"""KID, density, coverage and ranks: their laws."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from image_metrics import density_and_coverage, derangement, kid, kid_with_interval, ranks, recalls, ssim
from torch import Generator, Tensor


def normal(count: int, seed: int, width: int = 16) -> Tensor:
    return torch.randn(count, width, generator=Generator().manual_seed(seed))


def test_kid_is_the_average_over_pairs() -> None:
    x, y = normal(5, 0, 3), normal(4, 1, 3)

    def mean(pairs: list) -> float:
        return sum((a @ b / 3 + 1).item() ** 3 for a, b in pairs) / len(pairs)

    within = [mean([(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]) for z in (x, y)]
    assert kid(x, y) == pytest.approx(sum(within) - 2 * mean([(a, b) for a in x for b in y]), rel=1e-5)
    assert kid(x, y) == pytest.approx(kid(y, x))


def test_kid_of_one_distribution_is_zero_within_its_interval_and_grows_with_a_shift() -> None:
    found = [kid_with_interval(normal(400, 0), normal(400, 1) + shift, Generator()) for shift in (0.0, 0.3, 0.6)]
    same, near, far = found
    assert abs(same.value) < same.half_width
    assert near.value > near.half_width and far.value > near.value + near.half_width


def test_kid_is_unbiased() -> None:
    values = [kid(normal(10, 2 * seed, 4), normal(10, 2 * seed + 1, 4)) for seed in range(400)]
    mean = sum(values) / len(values)
    spread = torch.tensor(values).std().item() / len(values) ** 0.5
    assert abs(mean) < 3 * spread


def test_one_picture_has_no_kid() -> None:
    with pytest.raises(ValueError, match="at least 2 pictures, got 1 and 3"):
        kid(normal(1, 0), normal(3, 1))


def test_density_and_coverage_are_near_one_for_one_distribution_and_zero_far_away() -> None:
    density, coverage = density_and_coverage(normal(400, 0), normal(400, 1))
    assert density == pytest.approx(1.0, abs=0.15)
    assert coverage > 0.9
    assert density_and_coverage(normal(400, 0), normal(400, 1) + 20) == (0.0, 0.0)


def test_the_real_pictures_themselves_cover_everything() -> None:
    density, coverage = density_and_coverage(normal(50, 0), normal(50, 0), neighbours=5)
    assert (density, coverage) == (pytest.approx(6 / 5), 1.0)  # itself and its five nearest


def test_a_mode_that_is_dropped_lowers_coverage_but_not_density() -> None:
    modes = torch.cat([normal(100, 0), normal(100, 1) + 20])
    density, coverage = density_and_coverage(modes, normal(200, 2))
    assert coverage <= 0.55 and density > 0.8


def test_too_few_real_pictures_are_an_error() -> None:
    with pytest.raises(ValueError, match="more than 5 real pictures, got 5"):
        density_and_coverage(normal(5, 0), normal(9, 1))


def test_an_exact_match_is_found_first_and_a_tie_is_not() -> None:
    scores, own = torch.eye(4), torch.arange(4)
    assert ranks(scores, own).tolist() == [0] * 4
    assert ranks(torch.ones(4, 4), own).tolist() == [3] * 4
    assert recalls(ranks(scores, own), (1,))[1].value == 1


def test_random_scores_give_chance() -> None:
    found = recalls(ranks(normal(600, 0, 150), torch.arange(600) % 150), (1, 5, 10))
    for k, share in found.items():
        assert abs(share.value - k / 150) < 2 * share.half_width


@given(st.integers(2, 40), st.integers(0, 1000))
def test_a_derangement_moves_everything(count: int, seed: int) -> None:
    order = derangement(count, Generator().manual_seed(seed)).tolist()
    assert sorted(order) == list(range(count))
    assert all(i != moved for i, moved in enumerate(order))


def test_structural_similarity_is_1_for_equals_and_falls_with_noise():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 24, 24, generator=generator) * 2 - 1
    noise = torch.randn(x.shape, generator=generator)
    torch.testing.assert_close(ssim(x, x), torch.ones(2))
    little, much = ssim(x, x + 0.1 * noise), ssim(x, x + noise)
    assert (little < 0.999).all()
    assert (much < little - 0.2).all()
    assert (ssim(0.5 + 0.4 * x, 0.5 - 0.4 * x) < 0).all()  # the same brightness, and the opposite structure
