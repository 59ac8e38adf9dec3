"""One sequence, several modalities, one trunk."""

import itertools

import pytest
import torch
from torch import Generator

from hf_unified_diffusion.contracts import Segment
from hf_unified_diffusion.modeling.configuration_unified_diffusion import UnifiedDiffusionConfig
from hf_unified_diffusion.modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from tests.modeling.tiny import (
    MASK,
    VOCAB_SIZE,
    assert_same,
    fresh_model,
    noised,
    open_model,
    places,
    random_ids,
    shared_model,
)

HALF = torch.full((2,), 0.5)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=Generator().manual_seed(seed))


def several(**changes):
    """A prompt, a text canvas, audio and an image at their own times and places."""
    return [
        Segment("text", random_ids(2, 4), positions=places(0, 4, 2)),
        Segment("code", noised(random_ids(2, 3, seed=1)), time=HALF, positions=places(4, 7, 2)),
        Segment("audio", changes.get("audio", normal(2, 5, 6)), time=HALF / 2, positions=places(0, 5, 2) / 4),
        Segment("image", normal(2, 4, 4), time=2 * HALF, positions=normal(2, 4, 3).round()),
    ]


def test_a_prediction_for_every_segment():
    out = shared_model()(segments=several())
    assert [tuple(p.shape) for p in out.predictions] == [(2, 4, VOCAB_SIZE), (2, 3, VOCAB_SIZE), (2, 5, 6), (2, 4, 4)]
    assert [tuple(h.shape) for h in out.hidden_states] == [(2, 4, 32), (2, 3, 32), (2, 5, 32), (2, 4, 32)]
    assert torch.equal(out.logits, out.predictions[1])
    assert all(p[..., :MASK].isfinite().all() for p in out.predictions)


def test_order_of_segments_is_irrelevant():
    """Where positions are given and one segment is context, the list's order changes nothing."""
    model, segments = shared_model(), several()
    expected = model(segments=segments).predictions
    for order in itertools.permutations(range(4)):
        found = model(segments=[segments[i] for i in order]).predictions
        for i, prediction in zip(order, found, strict=True):
            assert_same(prediction, expected[i])


def test_canvases_of_all_modalities_see_each_other():
    model = shared_model()
    base = model(segments=several()).predictions
    moved = model(segments=several(audio=normal(2, 5, 6, seed=1))).predictions
    assert torch.equal(base[0], moved[0])
    assert not any(torch.allclose(a, b) for a, b in zip(base[1:], moved[1:], strict=True))


def test_clean_segments_condition_noisy_ones():
    """Text to audio and audio to text: the same network, other times."""
    model, ids, audio = shared_model(), random_ids(2, 4), normal(2, 5, 6)
    speech = model(segments=[Segment("text", ids), Segment("audio", audio, time=HALF)]).predictions[1]
    words = model(segments=[Segment("audio", audio), Segment("text", noised(ids), time=HALF)]).predictions[1]
    other = model(segments=[Segment("text", random_ids(2, 4, seed=3)), Segment("audio", audio, time=HALF)]).predictions[
        1
    ]
    assert speech.shape == audio.shape
    assert words.shape == (2, 4, VOCAB_SIZE)
    assert not torch.allclose(speech, other)


def test_a_modality_is_told_apart():
    """The same tokens as text and as code: equal before training, different after."""
    ids = random_ids(2, 4)
    fresh, trained = fresh_model(), shared_model()
    assert torch.equal(fresh(ids).logits, fresh(ids, modality="code").logits)
    assert not torch.allclose(trained(ids).logits, trained(ids, modality="code").logits)


def test_the_mask_token_is_never_predicted():
    model, ids = shared_model(), noised(random_ids(2, 6))
    for timestep in (None, HALF):
        logits = model(ids, timestep=timestep).logits
        assert (logits[..., MASK] == -torch.inf).all()
        assert logits[..., :MASK].isfinite().all()
        assert (logits.argmax(dim=-1) != MASK).all()


@pytest.mark.parametrize("tied", [True, False])
def test_hiding_the_mask_token_keeps_the_gradient(tied):
    """Its logit carries none, and the other logits are those of a network without a mask token."""
    model, ids = open_model(tie_word_embeddings=tied), random_ids(2, 6)
    free = open_model(tie_word_embeddings=tied, mask_token_id=None)
    expected = free(ids).logits[..., :MASK]
    torch.testing.assert_close(model(ids).logits[..., :MASK], expected)
    model(ids).logits.softmax(dim=-1).square().sum().backward()
    expected.softmax(dim=-1).square().sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, free.get_parameter(name).grad, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("kind", "width"), [("continuous", 9), ("token", None)])
def test_a_new_modality_changes_no_other_output(kind, width, tmp_path):
    model = open_model()
    before = [p.clone() for p in model(segments=several()).predictions]
    model.add_modality("depth", kind=kind, width=width)
    after = model(segments=several()).predictions
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    values = random_ids(2, 3) if kind == "token" else normal(2, 3, width)
    segments = [*several(), Segment("depth", values, time=HALF)]
    predicted = model(segments=segments).predictions[-1]
    assert predicted.shape == (2, 3, VOCAB_SIZE if kind == "token" else width)
    if kind == "continuous":
        assert (predicted == 0).all()  # the mean of normalized data
    model.save_pretrained(tmp_path)
    again = UnifiedDiffusionModel.from_pretrained(tmp_path).eval()
    assert torch.equal(again(segments=segments).predictions[-1], predicted)


def test_a_new_modality_learns_from_the_first_step():
    model = open_model()
    model.add_modality("depth", width=9)
    model(segments=[Segment("depth", normal(2, 3, 9), time=HALF)]).predictions[0].sub(1).square().sum().backward()
    assert model.heads["depth"].weight.grad.abs().max() > 0


def test_sizes_of_the_edge_tier():
    """A new modality costs below 10M parameters, and at least 90% of all are in the trunk."""
    with torch.device("meta"):
        model = UnifiedDiffusionModel(UnifiedDiffusionConfig(mask_token_id=8191))
        before = model.num_parameters()
        assert before < 100e6
        assert model.trunk_share() >= 0.9
        model.add_modality("depth", width=1024)
        model.add_modality("speech", kind="token")
        assert model.num_parameters() - before < 10e6
        assert model.trunk_share() >= 0.9


def trained_alone(model, name, width, steps, rate):
    """Train what belongs to a new modality towards a fixed clean sample; gives how many parameters that is."""
    parts = [model.modality_embedding[name], *model.projections[name].parameters(), *model.heads[name].parameters()]
    model.requires_grad_(False)
    for part in parts:
        part.requires_grad_(True)
    optimizer = torch.optim.AdamW(parts, lr=rate)
    x_0 = normal(2, 3, width, seed=5)
    losses = []
    for _ in range(steps):
        x_t = 0.5 * x_0 + 0.5 * normal(2, 3, width, seed=6)
        loss = (model(segments=[Segment(name, x_t, time=HALF)]).predictions[0] - x_0).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    return sum(part.numel() for part in parts)


@pytest.mark.parametrize("embedded", [False, True])
def test_a_new_modality_of_a_saved_checkpoint_trains_its_head_alone(embedded, tmp_path):
    """Under 10M parameters train, counted, and every other output is bit-equal: tiny, and the embedded checkpoint as
    it is shipped, through whose packed weights gradients flow."""
    if embedded:
        model = UnifiedDiffusionModel.from_pretrained()
    else:
        open_model().save_pretrained(tmp_path / "saved")
        model = UnifiedDiffusionModel.from_pretrained(tmp_path / "saved")
    model.eval().requires_grad_(False)  # torch multiplies frozen weights by another kernel, 5e-7 apart
    widths = {name: spec.get("width") for name, spec in model.config.modalities.items()}
    ids = torch.arange(1, 5).expand(2, -1)
    segments = [Segment("text", ids), Segment("code", ids, time=HALF)]
    continuous = [name for name, width in widths.items() if width is not None]
    segments += [Segment(name, normal(2, 3, widths[name]), time=HALF) for name in continuous]
    with torch.no_grad():
        before = [prediction.clone() for prediction in model(segments=segments).predictions]
        alone = model(ids).logits.clone()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    model.add_modality("depth", width=64)
    trained = trained_alone(model, "depth", 64, *((3, 1e-3) if embedded else (12, 1e-2)))
    assert 0 < trained < 10_000_000
    assert trained == sum(p.numel() for name, p in model.named_parameters() if "depth" in name)
    with torch.no_grad():
        after = model(segments=segments).predictions
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert torch.equal(model(ids).logits, alone)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in weights.items())
