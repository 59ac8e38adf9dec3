"""A training folder becomes a checkpoint that everything loads."""

import json

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from hf_unified_diffusion import ArrowQuantConfig, UnifiedDiffusionTextPipeline
from hf_unified_diffusion.conversion.convert import convert_checkpoint
from hf_unified_diffusion.conversion.export import export_checkpoint
from tests.tiny import save_tiny_checkpoint


def test_the_exported_folder_is_quantized_complete_and_loads_equal(tmp_path):
    source = save_tiny_checkpoint(tmp_path / "trained")
    made = export_checkpoint(source, tmp_path / "out", ArrowQuantConfig(bits=4), ["text", "code"], license="apache-2.0")
    metadata = json.loads((tmp_path / "out" / "metadata.json").read_text())
    assert metadata["model_type"] == "unified_diffusion"
    assert metadata["diffusion_config"]["num_layers"] == made.config.num_hidden_layers
    assert metadata["quantization"]["bit_width"] == 4
    assert metadata["supported_modalities"] == ["code", "text"]
    assert metadata["license"] == "apache-2.0"
    ids = torch.arange(9)[None]
    loaded = AutoModel.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(loaded(ids).logits, made.eval()(ids).logits)
    assert UnifiedDiffusionTextPipeline.from_pretrained(tmp_path / "out")("a", max_new_tokens=4, seed=0).texts[0]
    assert "\n" not in (tmp_path / "out" / "tokenizer.json").read_text()
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (source, tmp_path / "out"))
    assert after("a cat <|endoftext|> sat").input_ids == before("a cat <|endoftext|> sat").input_ids


def test_calibration_decides_the_codes_and_nothing_else(tmp_path):
    source = save_tiny_checkpoint(tmp_path / "trained")
    batches = [{"input_ids": torch.arange(32).view(2, 16)}]
    config = ArrowQuantConfig(bits=4, group_size=32)
    plain = export_checkpoint(source, tmp_path / "plain", config, ["text"]).state_dict()
    made = export_checkpoint(source, tmp_path / "fitted", config, ["text"], batches).state_dict()
    assert {name: value.shape for name, value in made.items()} == {name: value.shape for name, value in plain.items()}
    changed = {name for name in plain if not torch.equal(plain[name], made[name])}
    assert changed and all((".layers." in name or "heads." in name) and "weight" in name for name in changed)
    loaded = AutoModel.from_pretrained(tmp_path / "fitted").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in made.items())


def test_exporting_again_replaces_the_old_folder(tmp_path):
    source = save_tiny_checkpoint(tmp_path / "trained")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "stale.txt").write_text("old")
    export_checkpoint(source, tmp_path / "out", ArrowQuantConfig(bits=8), ["text"])
    assert not (tmp_path / "out" / "stale.txt").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "trained"]


def test_what_was_trained_before_is_kept(tmp_path):
    source = save_tiny_checkpoint(tmp_path / "trained")
    export_checkpoint(source, tmp_path / "one", ArrowQuantConfig(bits=8), ["text"], training={"first": {"step": 1}})
    convert_checkpoint(tmp_path / "one", tmp_path / "dense", "safetensors", bits=32)
    facts = {"training": {"second": {"step": 2}}}
    export_checkpoint(tmp_path / "dense", tmp_path / "two", ArrowQuantConfig(bits=8), ["text", "code"], **facts)
    metadata = json.loads((tmp_path / "two" / "metadata.json").read_text())
    assert metadata["training"] == {"first": {"step": 1}, "second": {"step": 2}}
    assert metadata["supported_modalities"] == ["code", "text"]


def test_a_modality_without_a_head_is_refused(tmp_path):
    source = save_tiny_checkpoint(tmp_path / "trained")
    with pytest.raises(ValueError, match="got \\['smell'\\]"):
        export_checkpoint(source, tmp_path / "out", ArrowQuantConfig(bits=8), ["text", "smell"])
