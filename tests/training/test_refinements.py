"""Laws of weights in steps of four bits: each step leaves a tenth or so of the error, in files of limited size."""

import math
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_unified_diffusion.training.refinements import (
    FILE_BYTES,
    added,
    pieces,
    read_refinement,
    refinement_of,
    residual,
    write_refinement,
)


def some_weights(seed: int, scale: float = 1.0) -> dict[str, torch.Tensor]:
    """A matrix that is rounded, one whose columns allow no group, a vector and a number."""
    torch.manual_seed(seed)
    shapes = {"layer.weight": (40, 128), "odd.weight": (5, 7), "norm.weight": (9,), "scale": ()}
    return {name: scale * torch.randn(shape) for name, shape in shapes.items()}


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float((a[name] - b[name]).square().sum()) for name in a))


@pytest.mark.parametrize("with_base", [False, True])
def test_each_step_brings_the_weights_closer(tmp_path, with_base):
    base = some_weights(0) if with_base else None
    moved = some_weights(1, 0.1)
    weights = moved if base is None else {name: base[name] + moved[name] for name in base}
    folders, errors = [], [distance(residual(weights, base), dict.fromkeys(weights, torch.zeros(())))]
    for step in range(3):
        sent = added(base, folders) if folders else base
        folders.append(tmp_path / str(step))
        write_refinement(refinement_of(residual(weights, sent)), folders[-1])
        errors.append(distance(added(base, folders), weights))
    assert all(after < 0.13 * before for before, after in pairwise(errors))
    for name in ("odd.weight", "norm.weight", "scale"):
        torch.testing.assert_close(added(base, folders[:1])[name], weights[name])


def test_a_step_takes_four_bits_and_a_quarter(tmp_path):
    write_refinement(refinement_of({"weight": torch.randn(512, 640)}), tmp_path)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert size < 512 * 640 * 4.25 / 8 + 1000


def test_a_large_matrix_goes_in_pieces_that_fit_and_comes_back_whole(tmp_path):
    part = torch.arange(2 * FILE_BYTES + 4096, dtype=torch.uint8).view(-1, 4096)
    assert all(piece.nbytes <= FILE_BYTES for piece in pieces(part))
    paths = write_refinement({"a.codes": part, "b.plain": torch.ones(3)}, tmp_path)
    assert len(paths) >= 3
    assert all(path.stat().st_size <= FILE_BYTES + 4096 for path in paths)
    found = read_refinement(tmp_path)
    assert torch.equal(found["a.codes"], part)
    assert torch.equal(found["b.plain"], torch.ones(3))


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="weights must have a base or a refinement"):
        added(None, [])
    with pytest.raises(ValueError, match="must have files weights"):
        added(None, [tmp_path])
    write_refinement(refinement_of(some_weights(0)), tmp_path / "a")
    with pytest.raises(ValueError, match="must be of the weights it is added to"):
        added({"layer.weight": torch.zeros(2, 2)}, [tmp_path / "a"])
    file = tmp_path / "a" / "weights-0.safetensors"
    held = load_file(file)
    save_file({name: part for name, part in held.items() if not name.endswith(".scale")}, file)
    with pytest.raises(ValueError, match="must hold codes with their scales"):
        added(None, [tmp_path / "a"])
