"""Condition tokens reach the sequence through gates that start closed."""

import pytest
import torch

from hf_unified_diffusion.contracts import Condition, Segment
from tests.modeling.tiny import (
    assert_same,
    canvas,
    fresh_model,
    noised,
    open_model,
    random_condition,
    random_ids,
    shared_model,
)

IDS, HALF = noised(random_ids(2, 5)), torch.full((2,), 0.5)


def test_a_new_network_ignores_conditions():
    """The gate is zero and its gradient is not."""
    model = fresh_model()
    condition = random_condition(2)
    conditioned = model(IDS, timestep=HALF, condition=condition).logits
    assert torch.equal(model(IDS, timestep=HALF).logits, conditioned)
    conditioned[..., :-1].square().sum().backward()
    assert model.shared_transformer.layers[1].cross_attn.gate.grad.abs() > 0


def test_an_open_gate_lets_conditions_through():
    model = shared_model()
    plain = model(IDS, timestep=HALF).logits
    first, second = (model(IDS, timestep=HALF, condition=random_condition(2, seed=seed)).logits for seed in (0, 1))
    assert not torch.allclose(plain, first)
    assert not torch.allclose(first, second)
    context = model(IDS, condition=random_condition(2)).logits
    assert not torch.allclose(model(IDS).logits, context)


def test_a_condition_that_is_all_padding_is_none():
    model, condition = shared_model(), random_condition(2)
    mask = torch.tensor([[False] * 3, [True] * 3])
    found = model(IDS, timestep=HALF, condition=Condition(condition.tokens, mask)).logits
    assert_same(found[:1], model(IDS[:1], timestep=HALF[:1]).logits)
    assert_same(found[1:], model(IDS, timestep=HALF, condition=condition).logits[1:])


def test_padding_in_a_condition_has_no_say():
    model, condition = shared_model(), random_condition(2)
    mask = torch.tensor([[True, False, True], [True, True, False]])
    found = model(IDS, timestep=HALF, condition=Condition(condition.tokens, mask)).logits
    other = Condition(condition.tokens.masked_fill(~mask[..., None], 1e4), mask)
    assert torch.equal(found, model(IDS, timestep=HALF, condition=other).logits)
    for row in range(2):
        kept = condition.tokens[row][mask[row]][None]
        own = Condition(kept, torch.ones(1, 2, dtype=torch.bool))
        one = slice(row, row + 1)
        assert_same(found[one], model(IDS[one], timestep=HALF[one], condition=own).logits)


def test_order_of_condition_tokens_is_irrelevant():
    model, first, second = shared_model(), random_condition(2, seed=0), random_condition(2, seed=1)
    there, back = (
        model(IDS, timestep=HALF, condition=joined).logits for joined in (first.join(second), second.join(first))
    )
    assert_same(there, back)


def test_all_segments_read_the_condition():
    model, audio = shared_model(), torch.randn(2, 3, 6)
    segments = [Segment("text", IDS), canvas(IDS), Segment("audio", audio, time=HALF)]
    plain = model(segments=segments).predictions
    steered = model(segments=segments, condition=random_condition(2)).predictions
    assert not any(torch.allclose(a, b) for a, b in zip(plain, steered, strict=True))


def test_no_cross_attention_where_none_is_asked_for():
    model = open_model(cross_attention_every=0)
    assert not any("cross_attn" in name for name in model.state_dict())
    assert torch.equal(model(IDS).logits, model(IDS, condition=random_condition(2)).logits)


def test_strength_scales_what_a_token_adds_and_zero_adds_nothing():
    model, condition = shared_model(), random_condition(2)
    plain = model(IDS, timestep=HALF).logits

    def at(strength):
        steered = Condition(condition.tokens, condition.mask, strength)
        return model(IDS, timestep=HALF, condition=steered).logits

    shape = condition.mask.shape
    assert torch.equal(at(torch.zeros(shape)), plain)
    assert_same(at(torch.ones(shape)), model(IDS, timestep=HALF, condition=condition).logits)
    assert not torch.allclose(at(torch.full(shape, 0.5)), at(torch.ones(shape)))


def test_joined_conditions_keep_their_own_strengths():
    first, second = random_condition(2, seed=0), random_condition(2, seed=1)
    weak = Condition(first.tokens, first.mask, torch.full(first.mask.shape, 0.5))
    assert first.join(second).strength is None
    assert weak.join(second).strength[0].tolist() == [0.5] * 3 + [1.0] * 3
    assert torch.equal(weak.join(second).select(torch.tensor([1])).strength, weak.join(second).strength[1:])


def test_sources_of_conditions_are_saved_and_a_name_is_taken_once(tmp_path):
    model = fresh_model()
    model.add_condition_source("smell", 5)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(loaded.condition_projections["smell"].weight, model.condition_projections["smell"].weight)
    with pytest.raises(ValueError, match="exists"):
        model.add_condition_source("smell", 5)
    with pytest.raises(ValueError, match="positive width"):
        model.add_condition_source("taste", 0)
