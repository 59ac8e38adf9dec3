"""Laws of the decoder along time: nothing until it is trained, nothing at t = 0, and no row depends on its batch."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Generator

from hf_unified_diffusion import ArrowQuantConfig, UnifiedDiffusionConfig, UnifiedDiffusionModel
from hf_unified_diffusion.contracts import Segment
from hf_unified_diffusion.modeling.local_decoder import KERNEL, LocalDecoder
from hf_unified_diffusion.quantization import quantize_model
from tests.training.tiny_training import lively_model

HIDDEN, WIDTH, FRAMES = 16, 12, 4
SHAPE = {"frames": FRAMES, "channels": 8, "intermediate_size": 24, "num_blocks": 2}
SOUNDS = {"text": {"kind": "token"}, "audio": {"kind": "continuous", "width": WIDTH}}


def lively(module: torch.nn.Module) -> torch.nn.Module:
    """Random weights everywhere, also where training starts from zero."""
    generator = Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def some_inputs(length: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = Generator().manual_seed(seed)
    return tuple(torch.randn(2, length, width, generator=generator) for width in (HIDDEN, WIDTH, WIDTH))


def decoder_model(**changes) -> UnifiedDiffusionModel:
    model = lively_model(258, modalities=SOUNDS, **changes)
    model.add_decoder("audio", **SHAPE)
    return model.eval()


def canvas(length: int = 5) -> Segment:
    values = torch.randn(2, length, WIDTH, generator=Generator().manual_seed(2))
    return Segment("audio", values, time=torch.tensor([0.3, 0.8]))


@torch.no_grad()
def test_it_is_nothing_until_it_is_trained_and_then_only_on_its_canvas():
    model, decoded = lively_model(258, modalities=SOUNDS), decoder_model()
    known = Segment("audio", canvas().values)
    text = Segment("text", torch.tensor([[3, 4, 5]] * 2))
    plain = model(segments=[text, known, canvas()]).predictions
    for network in (decoded, lively(decoded.decoders) and decoded):
        found = network(segments=[text, known, canvas()]).predictions
        assert torch.equal(found[0], plain[0]) and torch.equal(found[1], plain[1])
    assert not torch.allclose(found[2], plain[2])
    hidden, _ = decoded.features([text, known, canvas()])
    assert torch.equal(decoded.estimate(hidden[2], canvas(), decoded=False), plain[2])


def test_a_clean_token_is_left_alone_and_times_may_differ_within_a_row():
    decoder = lively(LocalDecoder(HIDDEN, WIDTH, **SHAPE))
    hidden, estimate, x_t = some_inputs(6)
    assert torch.equal(decoder(hidden, estimate, x_t, torch.zeros(2)), estimate)
    same = decoder(hidden, estimate, x_t, torch.full((2, 6), 0.4))
    torch.testing.assert_close(same, decoder(hidden, estimate, x_t, torch.full((2,), 0.4)))
    times = torch.full((2, 6), 0.4)
    times[:, 2] = 0.0
    assert torch.equal(decoder(hidden, estimate, x_t, times)[:, 2], estimate[:, 2])


def test_no_row_depends_on_what_pads_it():
    decoder = lively(LocalDecoder(HIDDEN, WIDTH, **SHAPE))
    hidden, estimate, x_t = some_inputs(7)
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    whole = decoder(hidden, estimate, x_t, torch.full((2,), 0.5), mask)
    alone = decoder(*(part[1:, :4] for part in (hidden, estimate, x_t)), torch.full((1,), 0.5))
    torch.testing.assert_close(whole[1:, :4], alone)
    torch.testing.assert_close(whole[:1], decoder(hidden[:1], estimate[:1], x_t[:1], torch.full((1,), 0.5)))


def test_frames_see_so_many_neighbours_and_none_beyond():
    decoder = lively(LocalDecoder(HIDDEN, WIDTH, **SHAPE))
    hidden, estimate, x_t = some_inputs(20)
    changed = x_t.clone()
    changed[:, 10] += 1
    before, after = (decoder(hidden, estimate, x, torch.full((2,), 0.5)) for x in (x_t, changed))
    moved = (before != after).unflatten(2, (FRAMES, -1)).flatten(1, 2).any(dim=2)[0].nonzero()[:, 0]
    reach = SHAPE["num_blocks"] * (KERNEL // 2)
    assert moved.tolist() == list(range(40 - reach, 44 + reach))


@pytest.mark.parametrize("bits", [None, 4])
def test_it_is_saved_and_loaded_with_the_weights(tmp_path, bits):
    model = decoder_model()
    lively(model.decoders)
    if bits:
        quantize_model(model, ArrowQuantConfig(bits, 8, modules_to_not_convert=[]))
    model.save_pretrained(tmp_path / "saved")
    again = UnifiedDiffusionModel.from_pretrained(tmp_path / "saved")
    assert again.config.modalities["audio"]["decoder"] == SHAPE
    with torch.no_grad():
        assert torch.equal(*(network(segments=[canvas()]).predictions[0] for network in (model, again)))


def test_a_modality_of_another_width_starts_without_it():
    model = UnifiedDiffusionModel(UnifiedDiffusionConfig(**small_shape(SOUNDS)))
    model.add_decoder("audio", **SHAPE)
    model.resize_modality("audio", 8)
    assert "audio" not in model.decoders and "decoder" not in model.config.modalities["audio"]


def small_shape(modalities: dict) -> dict:
    return {
        "vocab_size": 20,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 16,
        "modalities": modalities,
    }


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"frames": 5}, "must divide its width 12"),
        ({"channels": 0}, "has positive"),
        ({"num_blocks": 1.0}, "has positive"),
        ({"num_blocks": 10**9}, "no number of its shape is above"),
        ({"kernel": 3}, "has positive"),
    ],
)
def test_what_does_not_fit_is_refused(shape, message):
    wrong = {"audio": {"kind": "continuous", "width": WIDTH, "decoder": {**SHAPE, **shape}}}
    with pytest.raises(StrictDataclassError, match=message):
        UnifiedDiffusionConfig(modalities=wrong)


def test_tokens_of_text_have_none():
    with pytest.raises(StrictDataclassError, match="decoder of a continuous modality"):
        UnifiedDiffusionConfig(modalities={"text": {"kind": "token", "decoder": SHAPE}})
    with pytest.raises(ValueError, match="name must be a continuous modality"):
        decoder_model().add_decoder("text", **SHAPE)
