"""Muon in batches takes the steps of torch's."""

import pytest
import torch

from hf_unified_diffusion.training.batched_muon import BatchedMuon, orthogonalized

SHAPES = [(8, 12), (12, 8), (8, 12), (6, 6), (8, 12)]


def stepped(make, steps: int):
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    optimizer = make(matrices)
    for _ in range(steps):
        for matrix in matrices:
            matrix.grad = torch.randn(matrix.shape, generator=generator)
        optimizer.step()
    return matrices, optimizer


def test_steps_are_those_of_torch():
    settings = {"lr": 0.02, "weight_decay": 0.1}
    ours, _ = stepped(lambda p: BatchedMuon(p, **settings), steps=4)
    theirs, _ = stepped(lambda p: torch.optim.Muon(p, adjust_lr_fn="match_rms_adamw", **settings), steps=4)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=2e-3, rtol=0)  # bfloat16, added up in another order


@pytest.mark.parametrize("shape", [(3, 8, 20), (2, 20, 8)])
def test_singular_values_come_near_one_and_vectors_stay(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = orthogonalized(matrices, (3.4445, -4.7750, 2.0315), 5, 1e-7).float()
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.4 and values.max() < 1.4
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    inner = left.mT @ found @ right.mT
    torch.testing.assert_close(inner, torch.diag_embed(inner.diagonal(dim1=1, dim2=2)), atol=0.05, rtol=0)


def test_a_matrix_without_a_gradient_stays_and_state_comes_back():
    matrices, optimizer = stepped(lambda p: BatchedMuon(p, lr=0.01), steps=2)
    again = BatchedMuon(matrices, lr=0.01)
    again.load_state_dict(optimizer.state_dict())
    for matrix in matrices:
        torch.testing.assert_close(again.state[matrix], optimizer.state[matrix])
    before = matrices[0].detach().clone()
    matrices[0].grad = None
    again.step()
    assert torch.equal(matrices[0], before)
