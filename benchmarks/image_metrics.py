"""How close one set of pictures is to another, from their features: KID, density and coverage; and ranks in a list."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from measure import Mean
from torch import Generator, Tensor

NEIGHBOURS = 5
BLOCK = 50  # pictures of each set, for the interval of KID


def kid(x: Float[Tensor, "n width"], y: Float[Tensor, "m width"]) -> float:
    """Kernel Inception distance: the unbiased squared MMD with the kernel (x.y / width + 1)^3 (arXiv:1801.01401).

    Zero in expectation for samples of one distribution, so that it may be negative. Raises ValueError where a set has
    fewer than two rows. Usage: `kid(features_of(network, real), features_of(network, drawn))`
    """
    if min(len(x), len(y)) < 2:
        raise ValueError(f"each set must hold at least 2 pictures, got {len(x)} and {len(y)}")
    x, y, width = x.double(), y.double(), x.shape[1]

    def within(z: Tensor) -> Tensor:
        similar = (z @ z.T / width + 1) ** 3
        return (similar.sum() - similar.trace()) / (len(z) * (len(z) - 1))

    return (within(x) + within(y) - 2 * ((x @ y.T / width + 1) ** 3).mean()).item()


def kid_with_interval(x: Float[Tensor, "n width"], y: Float[Tensor, "m width"], generator: Generator) -> Mean:
    """KID of the whole sets, with the 95% half-width of its mean over disjoint blocks (arXiv:1307.1954).

    The whole sets vary less than the mean over blocks, so that the interval errs to the wide side.
    """
    fewest = min(len(x), len(y))
    blocks = max(2 if fewest >= 4 else 1, fewest // BLOCK)
    parts = [[z[order] for order in torch.randperm(len(z), generator=generator).tensor_split(blocks)] for z in (x, y)]
    spread = Mean.of([kid(a, b) for a, b in zip(*parts, strict=True)])
    return Mean(kid(x, y), spread.half_width, fewest)


def density_and_coverage(
    real: Float[Tensor, "n width"], drawn: Float[Tensor, "m width"], neighbours: int = NEIGHBOURS
) -> tuple[float, float]:
    """Density and coverage (arXiv:2002.09797).

    Density: in how many of the balls around real pictures (to their k-th neighbour) a drawn one lies, over k; near 1
    for the same distribution. Coverage: the share of these balls that hold a drawn picture, in [0, 1].
    Raises ValueError for fewer real pictures than k + 1. Usage: `density, coverage = density_and_coverage(real, drawn)`
    """
    if len(real) <= neighbours:
        raise ValueError(f"there must be more than {neighbours} real pictures, got {len(real)}")
    # distances by differences: those by products miss the 0 of a picture to itself
    exact = "donot_use_mm_for_euclid_dist"
    among_real = torch.cdist(real.double(), real.double(), compute_mode=exact)
    radii = among_real.kthvalue(neighbours + 1, dim=1).values  # the nearest is the picture itself
    inside = torch.cdist(real.double(), drawn.double(), compute_mode=exact) <= radii[:, None]
    return inside.sum().item() / (neighbours * len(drawn)), inside.any(dim=1).double().mean().item()


def ranks(scores: Float[Tensor, "queries choices"], right: Int[Tensor, "queries"]) -> Int[Tensor, "queries"]:
    """How many choices score at least as much as each query's right one, itself left out: ties count against it."""
    own = scores.gather(1, right[:, None])
    return (scores >= own).sum(dim=1) - 1


def recalls(found: Int[Tensor, "queries"], at: Sequence[int]) -> dict[int, Mean]:
    """Share of queries whose right choice is among the first k. Usage: `recalls(ranks(scores, right), (1, 5, 10))`."""
    return {k: Mean.of((found < k).double().tolist()) for k in at}


def derangement(count: int, generator: Generator) -> Int[Tensor, "count"]:
    """A random cycle through all of 0..count-1, so that nothing stays in its place. ValueError for fewer than two."""
    if count < 2:
        raise ValueError(f"count must be at least 2, got {count}")
    order = torch.randperm(count, generator=generator)
    moved = torch.empty_like(order)
    moved[order] = order.roll(1)
    return moved


def ssim(x: Float[Tensor, "batch 3 height width"], y: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch"]:
    """Structural similarity of pictures in [-1, 1], mean over colours (Wang et al. 2004): a Gaussian window of 11.

    1 for equal pictures. Usage: `ssim(rebuilt, original)`
    """
    places = torch.arange(11.0) - 5
    line = torch.exp(-places.square() / (2 * 1.5**2))
    window = (torch.outer(line, line) / line.sum() ** 2).expand(3, 1, 11, 11)

    def blurred(z: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(z, window, groups=3)

    x_mean, y_mean = blurred(x), blurred(y)
    x_var, y_var = blurred(x * x) - x_mean**2, blurred(y * y) - y_mean**2
    covariance = blurred(x * y) - x_mean * y_mean
    c_1, c_2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2  # the range of the pixels is 2
    similar = (2 * x_mean * y_mean + c_1) * (2 * covariance + c_2)
    return (similar / ((x_mean**2 + y_mean**2 + c_1) * (x_var + y_var + c_2))).mean((1, 2, 3))
