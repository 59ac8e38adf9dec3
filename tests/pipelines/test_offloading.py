"""accelerate's offloading and transformers' device maps change where weights are, and no answer."""

from pathlib import Path

import pytest
import torch
from accelerate import disk_offload

from hf_unified_diffusion import ArrowQuantConfig, UnifiedDiffusionModel, UnifiedDiffusionTextPipeline
from hf_unified_diffusion.quantization import quantize_model
from tests.tiny import save_tiny_checkpoint, tiny_model, tiny_tokenizer

IDS, TIME = torch.arange(12).view(2, 6), torch.tensor([0.5, 1.0])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("folders")
    save_tiny_checkpoint(root / "dense")
    quantize_model(tiny_model(), ArrowQuantConfig(bits=4, group_size=8)).save_pretrained(root / "packed")
    tiny_tokenizer().save_pretrained(root / "packed")
    return {"dense": root / "dense", "packed": root / "packed"}


@torch.no_grad()
def answer(model: UnifiedDiffusionModel) -> torch.Tensor:
    return model.eval()(IDS, timestep=TIME).logits


def trunk_on_disk() -> dict[str, str]:
    names = [name for name, _ in tiny_model().named_children()]
    return {name: "disk" if name == "shared_transformer" else "cpu" for name in names}


@pytest.mark.parametrize("kind", ["dense", "packed"])
@pytest.mark.parametrize("device_map", ["auto", "cpu"])
def test_a_device_map_gives_the_same_network(folders: dict[str, Path], kind: str, device_map: str) -> None:
    model = UnifiedDiffusionModel.from_pretrained(folders[kind], device_map=device_map)
    assert torch.equal(answer(model), answer(UnifiedDiffusionModel.from_pretrained(folders[kind])))


def test_the_trunk_answers_from_the_disk(folders: dict[str, Path], tmp_path: Path) -> None:
    options = {"device_map": trunk_on_disk(), "offload_folder": tmp_path}
    model = UnifiedDiffusionModel.from_pretrained(folders["dense"], **options)
    assert all(parameter.is_meta for parameter in model.shared_transformer.parameters())
    assert torch.equal(answer(model), answer(UnifiedDiffusionModel.from_pretrained(folders["dense"])))


def test_packed_weights_are_refused_a_place_on_the_disk(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mapped from their file already"):
        UnifiedDiffusionModel.from_pretrained(folders["packed"], device_map=trunk_on_disk(), offload_folder=tmp_path)


@pytest.mark.parametrize("kind", ["dense", "packed"])
def test_a_whole_network_answers_from_the_disk(folders: dict[str, Path], kind: str, tmp_path: Path) -> None:
    model = UnifiedDiffusionModel.from_pretrained(folders[kind])
    expected = answer(model)
    disk_offload(model, str(tmp_path), torch.device("cpu"))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert torch.equal(answer(model), expected)


@pytest.mark.parametrize("kind", ["dense", "packed"])
def test_an_offloaded_pipeline_writes_the_same_text(folders: dict[str, Path], kind: str) -> None:
    pipe = UnifiedDiffusionTextPipeline.from_pretrained(folders[kind])
    pipe.set_progress_bar_config(disable=True)
    options = {"prompt": ["abc", "b"], "max_new_tokens": 8, "block_length": 4, "seed": 0}
    expected = pipe(**options).texts
    pipe.enable_model_cpu_offload(device="cpu")  # the CPU stands for an accelerator
    assert pipe(**options).texts == pipe(**options).texts == expected


@pytest.mark.parametrize("kind", ["dense", "packed"])
@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_the_dtype_is_chosen_at_load_time(folders: dict[str, Path], kind: str, name: str) -> None:
    pipe = UnifiedDiffusionTextPipeline.from_pretrained(folders[kind], **{name: torch.bfloat16})
    assert pipe.transformer.dtype == pipe.dtype == torch.bfloat16
    assert answer(pipe.transformer).dtype == torch.bfloat16
