"""Pipelines are quantized as they load, by diffusers' own config, from a pipeline folder and from a model folder."""

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, PipelineQuantizationConfig

from hf_unified_diffusion import ArrowQuantConfig, UnifiedDiffusionCodePipeline, UnifiedDiffusionTextPipeline
from hf_unified_diffusion.quantization import bits_per_weight, quantize_model
from tests.tiny import save_tiny_checkpoint, tiny_model

QUANTIZATION = ArrowQuantConfig(bits=4, group_size=8)
MAPPING = PipelineQuantizationConfig(quant_mapping={"transformer": QUANTIZATION})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("folders")
    model = save_tiny_checkpoint(root / "model")
    UnifiedDiffusionTextPipeline.from_pretrained(model).save_pretrained(root / "pipeline")
    return {"model": model, "pipeline": root / "pipeline"}


@pytest.mark.parametrize(
    ("kind", "folder"),
    [
        (UnifiedDiffusionTextPipeline, "model"),
        (UnifiedDiffusionCodePipeline, "model"),
        (UnifiedDiffusionTextPipeline, "pipeline"),
        (DiffusionPipeline, "pipeline"),
    ],
)
def test_the_network_is_what_quantizing_it_by_hand_gives(
    folders: dict[str, Path], kind: type[DiffusionPipeline], folder: str, tmp_path: Path
) -> None:
    pipe = kind.from_pretrained(folders[folder], quantization_config=MAPPING)
    by_hand = quantize_model(tiny_model(), QUANTIZATION).state_dict()
    state = pipe.transformer.state_dict()
    assert state.keys() == by_hand.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in by_hand.items())
    text = pipe("abc", max_new_tokens=4, seed=0).texts
    pipe.save_pretrained(tmp_path)
    assert (tmp_path / "transformer" / "model.arrowquant.parquet").is_file()
    reloaded = kind.from_pretrained(tmp_path)
    assert bits_per_weight(reloaded.transformer) == bits_per_weight(pipe.transformer) < 16
    assert reloaded("abc", max_new_tokens=4, seed=0).texts == text


def test_a_mapping_that_leaves_the_network_out_leaves_it_dense(folders: dict[str, Path]) -> None:
    mapping = PipelineQuantizationConfig(quant_mapping={"vae": QUANTIZATION})
    pipe = UnifiedDiffusionTextPipeline.from_pretrained(folders["model"], quantization_config=mapping)
    assert bits_per_weight(pipe.transformer) == 32


def test_a_config_of_transformers_will_do_for_one_model(folders: dict[str, Path]) -> None:
    pipe = UnifiedDiffusionTextPipeline.from_pretrained(folders["model"], quantization_config=QUANTIZATION)
    assert bits_per_weight(pipe.transformer) < 16
