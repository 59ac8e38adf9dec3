"""Where and when: rotary positions are relative and sectioned, and times start without a say."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator

from hf_unified_diffusion.contracts import Segment
from hf_unified_diffusion.modeling.embeddings import SectionedRotary, rotate, sinusoids
from tests.modeling.tiny import (
    assert_same,
    canvas,
    fresh_model,
    noised,
    open_model,
    places,
    random_ids,
    shared_model,
    tiny_config,
)

HEAD_DIM = 8
coordinates = st.tuples(*[st.floats(-500, 500, width=32)] * 3)


def rotated(x, position, axes=(0, 1, 0, 2)):
    rotary = SectionedRotary(tiny_config(rope_axes=list(axes)))
    return rotate(x, *rotary(torch.tensor(position).view(1, 1, 3), x.dtype))


def random_head(seed):
    return torch.randn(1, 1, 1, HEAD_DIM, generator=Generator().manual_seed(seed))


@settings(deadline=None)
@given(coordinates)
def test_rotation_keeps_lengths(position):
    x = random_head(0)
    torch.testing.assert_close(rotated(x, position).norm(), x.norm())


@settings(deadline=None)
@given(coordinates, coordinates)
def test_only_differences_of_positions_matter(position, shift):
    query, key = random_head(0), random_head(1)
    here = (rotated(query, position) * rotated(key, (0.0, 0.0, 0.0))).sum()
    moved = tuple(a + b for a, b in zip(position, shift, strict=True))
    there = (rotated(query, moved) * rotated(key, shift)).sum()
    torch.testing.assert_close(here, there, atol=2e-3, rtol=1e-3)


@settings(deadline=None)
@given(st.floats(-500, 500, width=32))
def test_equal_axes_are_one_dimensional_rope(place):
    """Against the formula of RoPE: pair (i, i + d/2) turns by place * theta^(-2i/d)."""
    x = random_head(0)
    angles = torch.tensor(place) * tiny_config().rope_theta ** (-torch.arange(HEAD_DIM // 2) / (HEAD_DIM // 2))
    pair = torch.complex(*x.chunk(2, dim=-1)) * torch.polar(torch.ones_like(angles), angles)
    expected = torch.cat([pair.real, pair.imag], dim=-1)
    torch.testing.assert_close(rotated(x, (place, place, place)), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(rotated(x, (place, place, place)), rotated(x, (place, -3.0, 7.0), axes=(0,)))


def test_each_axis_turns_its_own_frequencies():
    x = random_head(0)
    still = rotated(x, (0.0, 0.0, 0.0))
    moved = [rotated(x, tuple(5.0 * (axis == i) for i in range(3))) != still for axis in range(3)]
    assert (torch.stack(moved).sum(dim=0) == 1).all()  # axes (0, 1, 0, 2) over four frequencies: each by exactly one
    assert moved[0].flatten().tolist() == [True, False, True, False] * 2


def test_text_positions_are_equal_on_all_axes():
    model, ids = shared_model(), random_ids(1, 5)
    flat = places(0, 5)
    assert torch.equal(model(ids).logits, model(ids, position_ids=flat).logits)
    assert torch.equal(model(ids).logits, model(ids, position_ids=flat[..., None].expand(-1, -1, 3)).logits)
    tilted = torch.stack([flat, 2 * flat, flat], dim=-1)
    assert not torch.allclose(model(ids).logits, model(ids, position_ids=tilted).logits)


@settings(deadline=None)
@given(st.floats(0, 2000), st.floats(0, 2000))
def test_sinusoids_tell_times_apart(first, second):
    a, b = (sinusoids(torch.tensor(x), 16) for x in (first, second))
    assert a.abs().max() <= 1
    if abs(first - second) > 1e-2:
        assert not torch.equal(a, b)


def test_time_target_and_guidance_start_without_effect():
    """So that an autoregressive checkpoint starts as itself; each of them is learned from nothing."""
    model, hidden = fresh_model(), noised(random_ids(2, 5))
    plain = model(hidden, timestep=torch.zeros(2)).logits
    whole = {"target_time": torch.full((2,), 0.25), "guidance": torch.full((2,), 3.0)}
    assert torch.equal(plain, model(segments=[canvas(hidden, 0.75, **whole)]).logits)
    model(segments=[canvas(hidden, 0.75, **whole)]).predictions[0][..., :-1].square().sum().backward()
    embedding = model.time_embedding
    for layer in (embedding.time, embedding.target_time, embedding.guidance):
        assert layer.weight.grad.abs().max() > 0


@settings(deadline=None, max_examples=20)
@given(st.sampled_from(["time", "target_time", "guidance"]), st.floats(0, 1, width=16), st.floats(0, 1, width=16))
def test_trained_times_matter_on_a_canvas(field, first, second):
    model, hidden = shared_model(), noised(random_ids(2, 3))
    base = {"time": torch.full((2,), 0.5), "target_time": torch.full((2,), 0.5), "guidance": torch.full((2,), 0.5)}
    outputs = [
        model(segments=[Segment("text", hidden, **base | {field: torch.full((2,), value)})]).logits
        for value in (first, second)
    ]
    assert torch.equal(*outputs) == (first == second) or abs(first - second) < 1e-4


def test_a_time_for_every_token():
    model, hidden = shared_model(), noised(random_ids(2, 4))
    one = model(hidden, timestep=torch.tensor([0.2, 0.9])).logits
    each = canvas(hidden, torch.tensor([0.2, 0.9])[:, None].expand(2, 4))
    assert_same(model(segments=[each]).logits, one)
    mixed = canvas(hidden, torch.tensor([[0.0, 0.2, 0.2, 0.2], [0.9, 0.9, 0.9, 0.9]]))
    moved = model(segments=[mixed]).logits
    assert not torch.allclose(moved[0], one[0])
    assert_same(moved[1], one[1])


def test_bfloat16_keeps_far_positions_apart():
    """Angles are computed in float32: a bf16 model still tells position 1000 from 1001."""
    model = open_model(max_position_embeddings=2048).bfloat16()
    ids = random_ids(1, 2)
    near, far = (model(ids, position_ids=torch.tensor([[0, 1000 + i]])).logits[:, 1].float() for i in (0, 1))
    assert not torch.equal(near, far)
