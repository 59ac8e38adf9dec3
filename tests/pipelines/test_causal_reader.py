"""What the causal path finds likely: the chain rule, the whole row's loss, and a context that is read once."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_unified_diffusion.pipelines.causal_reader import CausalReader

ids = st.lists(st.integers(1, 299), max_size=6)


@torch.no_grad()
@settings(deadline=None, max_examples=25)
@given(read=ids, first=ids, second=ids)
def test_chain_rule(model, read, first, second):
    """The nats of a text are those of its beginning and those of its end behind the beginning."""
    whole = CausalReader(model, "text", read).nats([*first, *second])
    begun = CausalReader(model, "text", read).nats(first)
    ended = CausalReader(model, "text", [*read, *first]).nats(second)
    torch.testing.assert_close(whole, torch.cat([begun, ended]))


@torch.no_grad()
@pytest.mark.parametrize("num_read", [0, 1, 7])
def test_equals_the_loss_of_the_whole_row(model, num_read):
    row = torch.randint(1, 300, (1, 12), generator=torch.Generator().manual_seed(1))
    losses = torch.nn.functional.cross_entropy(model(row).logits[0, :-1].float(), row[0, 1:], reduction="none")
    nats = CausalReader(model, "text", row[0, :num_read].tolist()).nats(row[0, num_read:].tolist())
    torch.testing.assert_close(nats, losses[max(num_read - 1, 0) :])


@torch.no_grad()
def test_what_was_read_is_computed_once(model):
    seen = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(sum(s.values.shape[1] for s in kwargs["segments"])), with_kwargs=True
    )
    reader = CausalReader(model, "text", range(1, 30))
    try:
        again = [reader.nats([5, 6, 7]) for _ in range(2)]
    finally:
        handle.remove()
    assert seen == [29, 3, 3]
    torch.testing.assert_close(*again, rtol=0, atol=0)
