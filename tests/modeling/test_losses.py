"""`labels` give the loss that the mathematics asks for."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from hf_unified_diffusion.modeling.autoregressive import whole_vocabulary
from hf_unified_diffusion.modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from hf_unified_diffusion.modeling.token_loss import IGNORED_LABEL, token_loss
from tests.modeling.tiny import MASK, VOCAB_SIZE, noised, open_model, random_ids, shared_model


def test_the_causal_loss_is_llamas():
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    source = LlamaForCausalLM(LlamaConfig(vocab_size=40, **shape))
    model = UnifiedDiffusionModel.from_source(source, whole_vocabulary(40))
    ids = random_ids(3, 9) % 40
    labels = ids.masked_fill(torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < 0.3, IGNORED_LABEL)
    for wanted in (ids, labels):
        torch.testing.assert_close(
            model(ids, labels=wanted).loss, source(ids, labels=wanted).loss, atol=1e-5, rtol=1e-5
        )


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 8), st.integers(2, 60), st.floats(0.05, 1), st.integers(0, 100))
def test_uniform_logits_cost_log_v_per_hidden_token(batch, length, vocab, time, seed):
    """Each hidden token costs log V / t, of `length` tokens in a row; at the expected share of masks that is log V."""
    labels = torch.randint(0, vocab, (batch, length), generator=torch.Generator().manual_seed(seed))
    hidden = torch.rand(labels.shape, generator=torch.Generator().manual_seed(seed)) < time
    loss = token_loss(
        torch.zeros(batch, length, vocab),
        labels.masked_fill(~hidden, IGNORED_LABEL),
        torch.full((batch,), time),
        None,
        None,
    )
    share = hidden.float().mean().item()
    assert loss.item() == pytest.approx(math.log(vocab) * share / time, rel=1e-4, abs=1e-6)


def test_the_loss_is_the_weighted_cross_entropy_of_the_logits():
    model, ids = shared_model(), random_ids(2, 6)
    x_t, time, weight = noised(ids), torch.tensor([0.25, 0.75]), torch.rand(2, 6)
    labels = ids.masked_fill(x_t != MASK, IGNORED_LABEL)
    out = model(x_t, timestep=time, labels=labels)
    nats = -out.logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0].masked_fill(x_t != MASK, 0.0)
    torch.testing.assert_close(out.loss, (nats / time[:, None]).mean())
    given = model(x_t, timestep=time, labels=labels, loss_weight=weight).loss
    torch.testing.assert_close(given, (nats * weight).mean())


def test_a_canvas_without_masks_costs_nothing():
    """At t = 0 the weight 1 / t is infinite and nothing is hidden: the loss is 0 and its gradients are finite."""
    model, ids = open_model(), random_ids(2, 6)
    loss = model(ids, timestep=torch.zeros(2), labels=torch.full_like(ids, IGNORED_LABEL)).loss
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("timestep", [None, 0.5])
def test_padding_does_not_count(side, timestep):
    """The loss of a padded batch is that of its real tokens, whatever the labels say at padding."""
    model, lengths = shared_model(), [6, 4, 2]
    rows = [random_ids(1, n, seed=n) for n in lengths]
    hidden = [noised(row, seed=1) if timestep else row for row in rows]
    ids, labels = torch.zeros(3, 6, dtype=torch.int64), torch.zeros(3, 6, dtype=torch.int64)
    mask = torch.zeros(3, 6, dtype=torch.bool)
    for i, n in enumerate(lengths):
        where = slice(0, n) if side == "right" else slice(6 - n, 6)
        ids[i, where], labels[i, where], mask[i, where] = hidden[i][0], rows[i][0], True
    time = None if timestep is None else torch.full((3,), timestep)
    found = model(ids, timestep=time, attention_mask=mask, labels=labels).loss
    counts = [n if timestep else n - 1 for n in lengths]
    alone = [
        model(x, timestep=None if time is None else time[:1], labels=row).loss * n
        for x, row, n in zip(hidden, rows, counts, strict=True)
    ]
    torch.testing.assert_close(found, sum(alone) / sum(counts), atol=1e-5, rtol=1e-5)


def test_learning_lowers_both_losses():
    """A few steps on one batch: the causal and the canvas loss fall together."""
    model, ids = open_model().train(), random_ids(4, 8)
    x_t, time = noised(ids), torch.full((4,), 0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        labels = ids.masked_fill(x_t != MASK, IGNORED_LABEL)
        pair = model(ids, labels=ids).loss, model(x_t, timestep=time, labels=labels).loss
        optimizer.zero_grad()
        sum(pair).backward()
        optimizer.step()
        losses.append([loss.item() for loss in pair])
    assert all(last < 0.7 * first for first, last in zip(losses[0], losses[-1], strict=True))
    assert losses[-1][0] < F.cross_entropy(torch.zeros(1, VOCAB_SIZE), torch.zeros(1, dtype=torch.int64))
