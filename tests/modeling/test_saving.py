"""Save, load, Auto classes: bit-equal."""

import copy
import json

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModel

import hf_unified_diffusion
from hf_unified_diffusion.contracts import Segment
from hf_unified_diffusion.modeling.configuration_unified_diffusion import UnifiedDiffusionConfig
from hf_unified_diffusion.modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from tests.modeling.tiny import MODALITIES, canvas, fresh_model, noised, open_model, random_condition, random_ids


def answers(model):
    time = torch.full((2,), 0.5)
    audio = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0)).to(model.dtype)
    segments = [Segment("text", random_ids(2, 4)), canvas(noised(random_ids(2, 4))), Segment("audio", audio, time=time)]
    with torch.no_grad():
        return model.eval()(segments=segments, condition=random_condition(2)).predictions


@pytest.mark.parametrize("tied", [True, False])
def test_round_trip(tied, tmp_path):
    model = open_model(tie_word_embeddings=tied, use_qk_norm=not tied, attention_bias=not tied)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    for load in (UnifiedDiffusionModel.from_pretrained, AutoModel.from_pretrained):
        again = load(tmp_path)
        assert type(again) is UnifiedDiffusionModel
        assert all(torch.equal(a, b) for a, b in zip(answers(model), answers(again), strict=True))
        assert again.config.to_dict().keys() == model.config.to_dict().keys()


def test_the_file_holds_the_state_and_nothing_else(tmp_path):
    model = open_model()
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def test_nothing_is_missing_and_nothing_is_left_over(tmp_path):
    open_model().save_pretrained(tmp_path)
    _, info = UnifiedDiffusionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_parameters_keep_their_order(tmp_path):
    """Optimizers number parameters: a reloaded network continues a run only if the numbers stay."""
    model = open_model(modalities=dict(reversed(MODALITIES.items())))
    model.save_pretrained(tmp_path)
    again = UnifiedDiffusionModel.from_pretrained(tmp_path)
    assert [name for name, _ in again.named_parameters()] == [name for name, _ in model.named_parameters()]


def test_dtype_survives(tmp_path):
    model = open_model().bfloat16()
    model.save_pretrained(tmp_path)
    again = UnifiedDiffusionModel.from_pretrained(tmp_path, dtype="auto")
    assert again.dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(answers(model), answers(again), strict=True))


def test_a_trunk_from_elsewhere_keeps_the_zero_starts(tmp_path):
    """Loading a checkpoint without times, gates and heads leaves them as they start: without effect."""
    model = fresh_model()
    state = {n: p for n, p in model.state_dict().items() if not n.startswith(("time_embedding", "heads", "modality"))}
    state = {n: p for n, p in state.items() if ".cross_attn." not in n}
    model.save_pretrained(tmp_path, state_dict=state)
    again = UnifiedDiffusionModel.from_pretrained(tmp_path).eval()
    assert torch.equal(again.shared_transformer.layers[1].cross_attn.gate, torch.zeros(1))
    assert not again.time_embedding.time.weight.any()
    assert not any(vector.any() for vector in again.modality_embedding.values())
    ids = random_ids(2, 4)
    assert torch.equal(again(ids).logits, model(ids).logits)


def test_config_round_trip(tmp_path):
    config = open_model().config
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert type(again) is UnifiedDiffusionConfig
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "unified_diffusion"
    assert {**again.to_dict(), "_name_or_path": ""} == {**config.to_dict(), "_name_or_path": ""}


def test_a_deep_copy_is_its_own(tmp_path):
    model = open_model()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.shared_transformer.norm.weight.zero_()
    assert not torch.equal(answers(model)[0], answers(twin)[0])


def test_a_fresh_network_starts_the_same_from_the_same_seed():
    first, second = fresh_model(), fresh_model()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    weight = first.shared_transformer.layers[0].mlp.up_proj.weight
    assert 0.5 * first.config.initializer_range < weight.std() < 1.5 * first.config.initializer_range


def test_the_package_registers_it():
    assert hf_unified_diffusion.UnifiedDiffusionModel is UnifiedDiffusionModel
    assert type(AutoModel.from_config(open_model().config)) is UnifiedDiffusionModel
