"""Self-distillation: nothing to learn from oneself, a divergence otherwise, and a script that keeps to its budget."""

import copy
import json
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Generator

from hf_unified_diffusion import UnifiedDiffusionModel
from hf_unified_diffusion.training.distillation import DistillationObjective
from hf_unified_diffusion.training.layouts import block_layout
from hf_unified_diffusion.training.objective import ObjectiveConfig, ScoreNetworkObjective
from tests.tiny import save_tiny_checkpoint
from tests.training.tiny_training import lively_model, random_batch, write_shard

SCRIPT = Path(__file__).parents[2] / "examples" / "train_quantized.py"
MASK = 11


def parts() -> list:
    return block_layout(random_batch(3, 16), 4, MASK, Generator().manual_seed(0))


def test_a_network_has_nothing_to_learn_from_itself() -> None:
    model = lively_model()
    losses = DistillationObjective(model, copy.deepcopy(model), ObjectiveConfig())(parts())
    assert all(abs(value.item()) < 1e-6 for value in losses.values())
    losses["loss"].backward()
    assert all(p.grad.norm().item() < 1e-5 for p in model.parameters() if p.grad is not None)


def test_the_loss_is_the_divergence_and_falls_towards_the_teacher() -> None:
    teacher, model = lively_model(), lively_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=Generator().manual_seed(1)))
    objective = DistillationObjective(model, teacher, ObjectiveConfig(causal_weight=1.0))
    first = objective(parts())
    assert all(value.item() > 1e-3 for value in first.values())
    context = parts()[0][0]
    asked = slice(0, -1)  # the causal path is asked for every next token
    with torch.no_grad():
        wanted, found = (m(context.values).logits[:, asked, :MASK].log_softmax(-1) for m in (teacher, model))
    divergence = (wanted.exp() * (wanted - found)).sum(-1).mean()
    assert torch.allclose(first["causal"], divergence, atol=1e-5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    first["loss"].backward()
    assert all(p.grad is None for p in teacher.parameters())
    optimizer.step()
    assert objective(parts())["loss"] < first["loss"]


def test_what_is_not_taught_is_learned_from_data() -> None:
    """Text keeps to the teacher, code to its documents; with both in one sequence each has its own loss."""
    teacher, model = lively_model(), lively_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=Generator().manual_seed(1)))
    config = ObjectiveConfig(causal_weight=1.0)
    text = parts()
    code = [(replace(segment, modality="code"), target) for segment, target in parts()]
    objective = DistillationObjective(model, teacher, config, taught=["text"])
    taught, learned = DistillationObjective(model, teacher, config), ScoreNetworkObjective(model, config)
    assert objective(text)["loss"] == taught(text)["loss"]
    assert objective(code)["loss"] == learned(code)["loss"]
    mixed = objective([*code[:1], *text[1:]])
    assert set(mixed) == set(taught(text))
    assert mixed["loss"] not in (taught([*code[:1], *text[1:]])["loss"], learned([*code[:1], *text[1:]])["loss"])


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    for split in ("train", "validation"):
        write_shard(
            folder / split / "docs.parquet", ["The cat sat on the mat, and saw that it was good. " * 30], "text"
        )
    save_tiny_checkpoint(folder / "model")
    return folder


@pytest.mark.parametrize(("budget", "written"), [("1000", True), ("-1000", False)])
def test_only_what_meets_the_budget_is_written(
    own_accelerator, inputs, tmp_path, monkeypatch, budget: str, written: bool
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    sizes = {"sequence_length": 24, "train_batch_size": 2, "max_train_steps": 2, "evaluation_rows": 4}
    given = {"output_dir": tmp_path / "out", "shards": inputs, "cache": tmp_path, "modalities": "text", **sizes}
    given |= {"loss_budget": budget, "group_size": 32, "calibration_rows": 4}
    argv = [str(inputs / "model"), *(text for name, value in given.items() for text in (f"--{name}", str(value)))]
    main = runpy.run_path(str(SCRIPT))["main"]
    if not written:
        with pytest.raises(SystemExit, match="nothing is written"):
            main(argv)
        assert not (tmp_path / "out").exists()
        return
    main(argv)
    metadata = json.loads((tmp_path / "out" / "metadata.json").read_text())
    assert metadata["quantization"]["bit_width"] == 2
    assert metadata["training"]["int2_distillation"]["step"] == 2
    logits = UnifiedDiffusionModel.from_pretrained(tmp_path / "out")(torch.arange(9)[None]).logits
    assert not logits.isnan().any()


def test_without_a_budget_it_is_refused(inputs, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit):
        runpy.run_path(str(SCRIPT))["main"]([str(inputs / "model"), "--output_dir", str(tmp_path / "out")])
    assert "--loss_budget" in capsys.readouterr().err
