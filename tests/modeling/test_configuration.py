"""The configuration takes what it says and nothing else."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from hf_unified_diffusion.modeling.configuration_unified_diffusion import UnifiedDiffusionConfig, check_modality
from tests.modeling.tiny import MODALITIES, VOCAB_SIZE, tiny_config


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", "32"),
        ("hidden_size", 32.0),
        ("hidden_size", True),
        ("vocab_size", None),
        ("tie_word_embeddings", "yes"),
        ("dropout", "0.1"),
        ("modalities", [("text", {"kind": "token"})]),
        ("rope_axes", "012"),
    ],
)
def test_wrong_types(field, value):
    with pytest.raises(StrictDataclassError, match=f"field '{field}'"):
        tiny_config(**{field: value})


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"num_key_value_heads": 3}, "num_attention_heads must be a multiple of num_key_value_heads, got 4 and 3"),
        ({"hidden_size": 0}, "hidden_size must be at least 1, got 0"),
        ({"vocab_size": -5}, "vocab_size must be at least 1, got -5"),
        ({"num_key_value_heads": 0}, "num_key_value_heads must be at least 1, got 0"),
        ({"head_dim": 7}, "head_dim must be even for rotary positions, got 7"),
        ({"time_embedding_size": 15}, "time_embedding_size must be even, got 15"),
        ({"cross_attention_every": -1}, r"cross_attention_every must be 0 \(none\) or more, got -1"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps must be positive, got 0.0"),
        ({"rope_theta": -1.0}, "rope_theta must be positive, got -1.0"),
        ({"rope_axes": [0, 3]}, r"rope_axes must name axes 0, 1 or 2, got \[0, 3\]"),
        ({"rope_axes": []}, r"rope_axes must name axes 0, 1 or 2, got \[\]"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"mask_token_id": VOCAB_SIZE}, f"mask_token_id must be below vocab_size={VOCAB_SIZE}, got {VOCAB_SIZE}"),
        ({"mask_token_id": -1}, f"mask_token_id must be below vocab_size={VOCAB_SIZE}, got -1"),
        ({"modalities": {"text": {"kind": "pixels"}}}, r"must be of a kind in \('token', 'continuous'\), got 'pixels'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_broken_rules(changes, rule):
    with pytest.raises(StrictDataclassError, match=rule):
        tiny_config(**changes)


@pytest.mark.parametrize("heads", [0, -4, 5, 64])
def test_heads_divide_the_width(heads):
    with pytest.raises(
        ValueError, match=f"hidden_size must be a multiple of num_attention_heads .* got 32 and {heads}"
    ):
        tiny_config(num_attention_heads=heads, num_key_value_heads=1)


def test_head_dim_may_be_given():
    assert tiny_config(num_attention_heads=5, num_key_value_heads=5, head_dim=6).head_size == 6
    assert tiny_config().head_dim == 8


@pytest.mark.parametrize(
    ("name", "spec", "rule"),
    [
        ("my modality", {"kind": "token"}, "must be an identifier .* got 'my modality'"),
        ("items", {"kind": "token"}, "no attribute of nn.ModuleDict, got 'items'"),
        ("training", {"kind": "token"}, "no attribute of nn.ModuleDict, got 'training'"),
        ("depth", {}, "must be of a kind in .* got None"),
        ("depth", {"kind": "continuous"}, "'depth' must have a positive width, got None"),
        ("depth", {"kind": "continuous", "width": 0}, "'depth' must have a positive width, got 0"),
        ("depth", {"kind": "continuous", "width": 2.5}, "'depth' must have a positive width, got 2.5"),
    ],
)
def test_bad_modalities(name, spec, rule):
    with pytest.raises(ValueError, match=rule):
        check_modality(name, spec)


def test_dict_round_trip():
    config = tiny_config(use_qk_norm=True, rope_axes=[0, 1])
    again = UnifiedDiffusionConfig(**config.to_dict())
    assert again.to_dict() == config.to_dict()
    assert again.modalities == MODALITIES


def test_defaults_are_not_shared():
    first, second = UnifiedDiffusionConfig(), UnifiedDiffusionConfig()
    first.modalities["text"]["kind"] = "continuous"
    assert second.modalities["text"] == {"kind": "token"}
    assert torch.tensor([spec.get("width", 1) for spec in second.modalities.values()]).min() > 0
