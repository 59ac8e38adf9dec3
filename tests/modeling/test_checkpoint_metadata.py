"""Laws of metadata.json: every save writes it, every load checks it, and what it says beyond the model is kept."""

import json
from pathlib import Path

import pytest
import torch

from hf_unified_diffusion import ArrowQuantConfig, UnifiedDiffusionModel, UnifiedDiffusionTextPipeline
from hf_unified_diffusion.modeling.checkpoint_metadata import METADATA_NAME, METADATA_VERSION
from tests.tiny import save_tiny_checkpoint, tiny_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_checkpoint(tmp_path / "checkpoint")


def rewritten(folder: Path, **changes: object) -> None:
    file = folder / METADATA_NAME
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_all_that_requirement_15_names_is_written(folder: Path) -> None:
    metadata = json.loads((folder / METADATA_NAME).read_text())
    assert metadata["model_type"] == "unified_diffusion"
    assert metadata["version"] == METADATA_VERSION
    assert metadata["diffusion_config"] == {"hidden_dim": 32, "num_layers": 2, "num_heads": 2, "intermediate_dim": 64}
    assert set(metadata["scheduler"]) == {"type", "num_train_steps", "num_inference_steps"}
    assert metadata["supported_modalities"] == ["audio", "avatar", "code", "image", "text"]
    assert metadata["consistency_distilled"] is False
    assert metadata["quantization"] == {"method": "none", "bit_width": 32}


@pytest.mark.parametrize(("bits", "effective"), [(4, 32), (8, 32)])
def test_quantization_is_told(folder: Path, tmp_path: Path, bits: int, effective: float) -> None:
    quantization = ArrowQuantConfig(bits, group_size=32)
    model = UnifiedDiffusionModel.from_pretrained(folder, quantization_config=quantization)
    model.save_pretrained(tmp_path / "quantized")
    told = json.loads((tmp_path / "quantized" / METADATA_NAME).read_text())["quantization"]
    assert (told["method"], told["bit_width"]) == ("arrowquant", bits)
    assert bits < told["bits_per_weight"] < effective


def test_facts_survive_a_round_trip_and_what_follows_from_the_model_does_not(folder: Path, tmp_path: Path) -> None:
    rewritten(folder, license="mit", supported_modalities=["text"], parameters=1, trunk_share=2.0)
    UnifiedDiffusionModel.from_pretrained(folder).save_pretrained(tmp_path / "again")
    metadata = json.loads((tmp_path / "again" / METADATA_NAME).read_text())
    assert (metadata["license"], metadata["supported_modalities"]) == ("mit", ["text"])
    assert metadata["parameters"] == sum(p.numel() for p in tiny_model().parameters())
    assert metadata["trunk_share"] < 1


def test_folders_without_it_or_from_before_versions_load(folder: Path) -> None:
    file = folder / METADATA_NAME
    metadata = json.loads(file.read_text())
    del metadata["version"]
    file.write_text(json.dumps(metadata))
    with_it = UnifiedDiffusionModel.from_pretrained(folder)
    file.unlink()
    without = UnifiedDiffusionModel.from_pretrained(folder)
    assert without.checkpoint_facts == {}
    assert all(torch.equal(a, b) for a, b in zip(with_it.parameters(), without.parameters(), strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": METADATA_VERSION + 1}, f"got {METADATA_VERSION + 1}"),
        ({"version": "1"}, "got '1'"),
        ({"version": True}, "got True"),
        ({"model_type": "llama"}, "got 'llama'"),
        ({"diffusion_config": {"hidden_dim": 33}}, "config.json"),
        ({"diffusion_config": None}, "config.json"),
        ({"supported_modalities": ["smell"]}, "supported_modalities must be among"),
        ({"supported_modalities": 3}, "supported_modalities must be among"),
        ({"quantization": {"method": "arrowquant", "bit_width": 4}}, "quantization of metadata.json must be that of"),
        ({"quantization": None}, "quantization of metadata.json must be that of"),
        ({"scheduler": {"type": "ddpm", "num_train_steps": None, "num_inference_steps": 4}}, "type in"),
        ({"scheduler": None}, "type in"),
        ({"scheduler": {"type": "masked_diffusion", "num_train_steps": None, "num_inference_steps": 0}}, "at least 1"),
        ({"scheduler": {"type": "masked_diffusion", "num_train_steps": "9", "num_inference_steps": 4}}, "at least 1"),
        ({"consistency_distilled": "no"}, "consistency_distilled"),
        ({"limits": {"image": 3}}, "limits of metadata.json must be sentences by modality, got {'image': 3}"),
    ],
)
def test_metadata_that_breaks_a_rule_is_refused(folder: Path, changes: dict, message: str) -> None:
    rewritten(folder, **changes)
    with pytest.raises(ValueError, match=message):
        UnifiedDiffusionModel.from_pretrained(folder)


def test_a_quantized_folder_must_say_so(folder: Path, tmp_path: Path) -> None:
    model = UnifiedDiffusionModel.from_pretrained(folder, quantization_config=ArrowQuantConfig(8))
    model.save_pretrained(tmp_path / "int8")
    UnifiedDiffusionModel.from_pretrained(tmp_path / "int8")
    for told in ({"method": "none", "bit_width": 32}, {"method": "arrowquant", "bit_width": 2}):
        rewritten(tmp_path / "int8", quantization=told)
        with pytest.raises(ValueError, match="quantization of metadata.json must be that of"):
            UnifiedDiffusionModel.from_pretrained(tmp_path / "int8")


@pytest.mark.parametrize("steps", [3, 5])
def test_pipelines_take_their_steps_from_it(folder: Path, tmp_path: Path, steps: int) -> None:
    rewritten(folder, scheduler={"type": "masked_diffusion", "num_train_steps": None, "num_inference_steps": steps})
    pipe = UnifiedDiffusionTextPipeline.from_pretrained(folder)
    taken: list[int] = []

    def on_step(pipe: object, step: int, t: object, tensors: dict) -> dict:
        taken.append(step)
        return tensors

    pipe("a", max_new_tokens=8, block_length=None, callback_on_step_end=on_step, seed=0)
    assert len(taken) == steps
    pipe.save_pretrained(tmp_path / "pipeline")  # the scheduler's own file says it from here on
    assert UnifiedDiffusionTextPipeline.from_pretrained(tmp_path / "pipeline").scheduler.num_inference_steps == steps


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b" " * (1 << 21)])
def test_what_is_no_metadata_is_refused(folder: Path, content: bytes) -> None:
    (folder / METADATA_NAME).write_bytes(content)
    with pytest.raises(ValueError, match=r"metadata\.json must be"):
        UnifiedDiffusionModel.from_pretrained(folder)
