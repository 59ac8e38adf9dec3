"""A remembered context gives what the same tokens in one pass give."""

import pytest
import torch

from hf_unified_diffusion.contracts import Segment
from hf_unified_diffusion.pipelines.context_denoiser import ContextDenoiser, forget_last
from hf_unified_diffusion.pipelines.text_writing import remember_rows

LENGTHS = [5, 2, 0]


@pytest.fixture
def ids(model):
    return torch.randint(1, 300, (3, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def canvas(model, ids):
    canvas = ids[:, 8:].clone()
    canvas[:, ::2] = model.config.mask_token_id
    return canvas


def denoiser_of(model):
    return ContextDenoiser(model, "text", model.config.mask_token_id)


def mask_of(lengths, most):
    return torch.arange(most) < torch.tensor(lengths)[:, None]


@torch.no_grad()
def test_cached_equals_uncached(model, ids, canvas):
    t = torch.full((3,), 0.5, dtype=torch.float64)
    whole = model(segments=[Segment("text", ids[:, :8]), Segment("text", canvas, time=t)]).logits
    denoiser = denoiser_of(model)
    denoiser.remember(ids[:, :5])
    denoiser(torch.full((3, 2), model.config.mask_token_id), t)
    denoiser.remember(ids[:, 5:8])
    torch.testing.assert_close(denoiser(canvas, t), whole)
    torch.testing.assert_close(denoiser(canvas, t), whole)
    assert denoiser.num_passes == 3


@torch.no_grad()
def test_next_logits_are_the_causal_ones(model, ids):
    causal = model(ids).logits
    denoiser = denoiser_of(model)
    torch.testing.assert_close(denoiser.read(ids[:, :7]), causal[:, :7])
    torch.testing.assert_close(denoiser.next_logits, causal[:, 6])
    torch.testing.assert_close(denoiser.read(ids[:, 7:]), causal[:, 7:])


@torch.no_grad()
def test_padded_context_gives_each_row_its_own(model, ids, canvas):
    t = torch.full((3,), 0.5, dtype=torch.float64)
    denoiser = denoiser_of(model)
    denoiser.remember(ids[:, :5], mask_of(LENGTHS, 5))
    logits = denoiser(canvas, t)
    for row, length in enumerate(LENGTHS):
        alone = denoiser_of(model)
        if length:
            alone.remember(ids[row : row + 1, :length])
        torch.testing.assert_close(alone(canvas[row : row + 1], t[:1])[0], logits[row])
        if length:
            torch.testing.assert_close(alone.next_logits[0], denoiser.next_logits[row])


@torch.no_grad()
def test_padded_canvas_gives_each_row_its_own(model, ids, canvas):
    """Padding changes neither what real tokens see nor the share of masks that the network is told."""
    t = torch.ones(3, dtype=torch.float64)
    denoiser = denoiser_of(model)
    denoiser.remember(ids[:, :5])
    denoiser.place(real=mask_of([4, 3, 1], 4))
    logits = denoiser(canvas, t)
    for row, length in enumerate([4, 3, 1]):
        alone = denoiser_of(model)
        alone.remember(ids[row : row + 1, :5])
        torch.testing.assert_close(alone(canvas[row : row + 1, :length], t[:1])[0], logits[row, :length])


@torch.no_grad()
@pytest.mark.parametrize("dropped", [[3, 3, 3], [0, 2, 4], [4, 0, 1]])
@pytest.mark.parametrize("padded", [False, True])
def test_forgotten_tokens_leave_no_trace(model, ids, canvas, dropped, padded):
    t = torch.full((3,), 0.5, dtype=torch.float64)
    first = mask_of([5, 3, 4], 5) if padded else None
    lengths = [4 - count for count in dropped]
    denoiser = denoiser_of(model)
    denoiser.read(ids[:, :5], first)
    denoiser.read(ids[:, 5:9])
    forget_last(denoiser.cache, torch.tensor(dropped))
    never = denoiser_of(model)
    never.read(ids[:, :5], first)
    if any(lengths):
        never.read(ids[:, 5 : 5 + max(lengths)], mask_of(lengths, max(lengths)))
    torch.testing.assert_close(denoiser(canvas, t), never(canvas, t))
    torch.testing.assert_close(denoiser.read(ids[:, 9:]), never.read(ids[:, 9:]))
    given = torch.tensor([5, 3, 4] if padded else [5, 5, 5])
    assert len(denoiser.cache) == int((given + torch.tensor(lengths)).max()) + 3


@torch.no_grad()
def test_rows_that_begin_alike_are_read_once(model, ids, canvas):
    """Shared beginnings give what reading each row gives, for the price of the different ones."""
    t = torch.full((3,), 0.5, dtype=torch.float64)
    rows = [ids[0, :5].tolist(), ids[1, :3].tolist(), ids[0, :5].tolist()]
    alone, shared = denoiser_of(model), denoiser_of(model)
    alone.remember(torch.stack([ids[0, :5], ids[1, :5], ids[0, :5]]), mask_of([5, 3, 5], 5))
    remember_rows(shared, rows, 0, ids.device)
    assert shared.num_passes == 1 and shared.cache.keys[0].shape[0] == 3
    torch.testing.assert_close(shared(canvas, t), alone(canvas, t))
    torch.testing.assert_close(shared.next_logits, alone.next_logits)


@torch.no_grad()
def test_rows_with_conditions_of_their_own_are_each_read(model, ids):
    denoiser = ContextDenoiser(model, "text", model.config.mask_token_id, adapter_names=["a", "b", "a"])
    remember_rows(denoiser, [ids[0, :5].tolist()] * 3, 0, ids.device)
    assert denoiser.num_passes == 0 and len(denoiser.cache) == 0


@torch.no_grad()
@pytest.mark.parametrize("cached", [0, 5])
def test_looking_ahead_is_a_canvas_behind_each_prefix(model, ids, cached):
    """One pass gives what a pass for each prefix gives, padded contexts and padded tokens included."""
    size, new, t = 2, ids[:, 5:8], torch.ones(3)
    begun = mask_of(LENGTHS, 5)
    real = mask_of([3, 3, 2], 3)
    whole = denoiser_of(model)
    if cached:
        whole.read(ids[:, :5], begun)
    causal, ahead = whole.read_ahead(new, real, 1, size)
    assert ahead.shape[:3] == (3, 3, size) and len(whole.cache) == cached + 3
    for prefix in (1, 2, 3):
        alone = denoiser_of(model)
        if cached:
            alone.read(ids[:, :5], begun)
        alone.remember(new[:, :prefix], real[:, :prefix])
        expected = alone(torch.full((3, size), model.config.mask_token_id), t)
        rows = real[:, prefix - 1]
        torch.testing.assert_close(ahead[rows, prefix - 1], expected[rows])
        torch.testing.assert_close(causal[rows, prefix - 1], alone.next_logits[rows])
