"""Gradient checkpointing and precision change memory and rounding, not the answer."""

import pytest
import torch

from hf_unified_diffusion.contracts import Segment
from tests.modeling.tiny import MASK, assert_same, canvas, noised, open_model, random_condition, random_ids

IDS, HIDDEN = random_ids(2, 5), noised(random_ids(2, 4, seed=1))


def loss_and_gradients(model, forward):
    model.train().zero_grad()
    loss = sum(p[..., :MASK].square().mean() for p in forward(model))
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def in_one_call(model):
    return model(segments=[Segment("text", IDS), canvas(HIDDEN)], condition=random_condition(2)).predictions


def through_a_cache(model):
    """The gradient flows through the cached keys; the cache grows before the backward pass runs the layers again."""
    first = model(IDS, use_cache=True)
    cache = first.cache
    second = model(segments=[Segment("text", IDS), canvas(HIDDEN)], cache=cache, use_cache=True)
    third = model(segments=[Segment("text", IDS[:, :2]), canvas(HIDDEN)], cache=cache, use_cache=True)
    assert len(cache) == 12
    return [first.logits, *second.predictions, *third.predictions]


@pytest.mark.parametrize("forward", [in_one_call, through_a_cache])
def test_checkpointing_gives_the_same_gradients(forward):
    model = open_model()
    loss, gradients = loss_and_gradients(model, forward)
    model.activation_checkpointing_enable()
    assert model.is_activation_checkpointing
    again, recomputed = loss_and_gradients(model, forward)
    assert torch.equal(loss, again)
    assert gradients.keys() == recomputed.keys()
    for name, gradient in gradients.items():
        assert torch.equal(gradient, recomputed[name]), name


def test_checkpointing_runs_layers_again():
    """Else the test above would compare a thing with itself."""
    model, calls = open_model(), []
    model.shared_transformer.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    loss_and_gradients(model, in_one_call)
    model.activation_checkpointing_enable()
    once = len(calls)
    loss_and_gradients(model, in_one_call)
    assert (once, len(calls) - once) == (1, 2)


def test_every_parameter_learns():
    model = open_model(tie_word_embeddings=False, use_qk_norm=True, attention_bias=True)
    time = torch.full((2,), 0.5)
    extra = {"target_time": time, "guidance": time}
    segments = [
        Segment("text", IDS),
        canvas(HIDDEN, time, **extra),
        Segment("code", HIDDEN, time=time),
        Segment("audio", torch.randn(2, 3, 6), time=time),
        Segment("image", torch.randn(2, 3, 4), time=time),
    ]
    outputs = model(segments=segments, condition=random_condition(2)).predictions
    sum(output[..., :MASK].square().mean() for output in outputs).backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # softmax does not see a shift shared by all keys
    assert [name for name in silent if not name.endswith("k_proj.bias")] == []


def test_bfloat16_is_close_to_float32():
    model = open_model()
    exact = in_one_call(model)
    rounded = in_one_call(model.bfloat16())
    for a, b in zip(exact, rounded, strict=True):
        assert b.dtype == torch.bfloat16
        spread = a[..., :MASK].std()
        assert (a - b.float())[..., :MASK].abs().mean() < 0.05 * spread
        assert (b[..., MASK] == -torch.inf).all()


def test_autocast_is_close_to_float32():
    """With masks of padding too, which attention adds in the dtype it computes in."""
    model = open_model()
    mask = torch.tensor([[True] * 5, [False] * 2 + [True] * 3])
    exact = model(IDS, attention_mask=mask).logits
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(IDS, attention_mask=mask).logits
    spread = exact[..., :MASK].std()
    assert (exact - rounded.float())[mask][..., :MASK].abs().mean() < 0.05 * spread


def test_dropout_acts_in_training_only():
    model = open_model(dropout=0.5)
    assert torch.equal(model(IDS).logits, model(IDS).logits)
    model.train()
    assert not torch.equal(model(IDS).logits, model(IDS).logits)


def test_inference_mode_and_gradient_mode_agree():
    model = open_model()
    with torch.inference_mode():
        expected = model(IDS).logits
    assert_same(model(IDS).logits, expected)
