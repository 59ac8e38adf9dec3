"""The fine-tuning stories, on tiny networks: held-out loss falls, only what should train does, a run resumes."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_unified_diffusion import ArrowQuantConfig, UnifiedDiffusionModel, UnifiedDiffusionTextPipeline
from hf_unified_diffusion.training.run import TrainingRun
from hf_unified_diffusion.training.run_log import read_records
from tests.tiny import tiny_tokenizer
from tests.training.tiny_training import lively_model

pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
EXAMPLES = Path(__file__).parents[2] / "examples"
LINES = [
    f"The {noun} sat on the {place}, and saw that it was good." for noun in ["cat", "dog", "hen"] for place in "ab"
]
LORA = ["--use_lora", "--lora_rank", "2", "--lora_target_modules", "q_proj"]


@pytest.fixture(scope="module")
def main():
    return runpy.run_path(str(EXAMPLES / "finetune_text.py"))["main"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A network with room for LoRA, 4-bit codes of it, and a tokenizer."""
    folder = tmp_path_factory.mktemp("checkpoint")
    shape = {"hidden_size": 64, "intermediate_size": 256, "num_key_value_heads": 2}
    lively = lively_model(258, **shape)
    with torch.no_grad():
        for name, parameter in lively.named_parameters():
            parameter.mul_(1.0 if "norm" in name else 0.15)
    lively.save_pretrained(folder / "dense")
    model = UnifiedDiffusionModel.from_pretrained(folder / "dense", quantization_config=ArrowQuantConfig(bits=4))
    model.save_pretrained(folder / "int4")
    for kind in ("dense", "int4"):
        tiny_tokenizer().save_pretrained(folder / kind)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The same documents as text, Parquet, and a folder with two splits."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "lines.txt").write_text("\n".join(LINES * 20))
    Dataset.from_dict({"text": LINES * 20}).to_parquet(str(folder / "both" / "train.parquet"))
    Dataset.from_dict({"text": LINES * 2}).to_parquet(str(folder / "both" / "validation.parquet"))
    return folder


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def arguments(checkpoint: Path, out: Path, *more: object) -> list[str]:
    given = {
        "output_dir": out,
        "model_name_or_path": checkpoint,
        "block_size": 24,
        "per_device_train_batch_size": 4,
        "max_steps": 12,
        "eval_steps": 6,
        "learning_rate": 0.02,
        "warmup_steps": 2,
        "evaluation_rows": 4,
        "validation_split_percentage": 10,
    }
    return [str(text) for name, value in given.items() for text in (f"--{name}", value)] + [str(text) for text in more]


def losses(out: Path, name: str) -> list[float]:
    key = f"validation/{name}/nats_per_token"
    return [record[key] for record in read_records(out / "log.jsonl") if key in record]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("dense", []),
        ("dense", LORA),
        ("int4", [*LORA, "--quantization", "arrowquant"]),
        ("dense", [*LORA, "--quantization", "bitsandbytes"]),
    ],
    ids=["full", "lora", "qlora_arrowquant", "qlora_bitsandbytes"],
)
def test_held_out_loss_falls(main, checkpoint, data, tmp_path, kind, options):
    before = UnifiedDiffusionModel.from_pretrained(checkpoint / kind)
    source = ["--train_file", data / "lines.txt"]
    run = main(arguments(checkpoint / kind, tmp_path / "run", *source, *options))
    for name in ("causal", "canvas"):
        first, last = losses(tmp_path / "run", name)
        assert last < first
    share = sum(p.numel() for p in run.parameters) / sum(p.numel() for p in before.parameters())
    if not options:
        after = UnifiedDiffusionModel.from_pretrained(tmp_path / "run" / "model")
        assert not torch.equal(after.token_embedding.weight, before.token_embedding.weight)
        return
    assert share < 0.02 and all("lora_" in n for n, p in run.model.named_parameters() if p.requires_grad)
    pipe = UnifiedDiffusionTextPipeline.from_pretrained(checkpoint / kind)
    ids = torch.arange(1, 9)[None]
    plain = pipe.transformer(ids).logits
    pipe.load_lora_weights(tmp_path / "run" / "model")
    adapted = pipe.transformer(ids).logits
    assert not torch.allclose(adapted, plain, atol=1e-3)
    if kind == "dense" and "bitsandbytes" not in options:
        torch.testing.assert_close(adapted, run.model.eval()(ids).logits)


def test_a_resumed_run_is_the_unbroken_one(main, checkpoint, data, tmp_path, capsys, monkeypatch):
    how = ["--dataset_name", data / "both", *LORA, "--streaming", "--max_train_samples", 60]
    how += ["--validation_prompt", "The cat"]
    whole = main(arguments(checkpoint / "dense", tmp_path / "whole", *how))
    assert "'The cat" in capsys.readouterr().out
    stopped = tmp_path / "stopped"
    half = [*arguments(checkpoint / "dense", stopped, *how), "--save_steps", "5"]
    original = TrainingRun.step

    def step(self, rate, progress):
        if self.progress.step == 8:
            raise KeyboardInterrupt
        return original(self, rate, progress)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "step", step)
        with pytest.raises(KeyboardInterrupt):
            main(half)
    resumed = main([*half, "--resume_from_checkpoint"])
    assert [record["step"] for record in read_records(stopped / "log.jsonl")] == list(range(1, 13))
    expected = {n: p for n, p in whole.model.named_parameters() if "lora_" in n}
    found = {n: p for n, p in resumed.model.named_parameters() if "lora_" in n}
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    ("more", "rule"),
    [
        ([], "give either dataset_name or train_file"),
        (["--train_file", "a.csv"], "train_file must end in one of"),
        (["--train_file", "a.txt", "--quantization", "int3"], "quantization must be one of"),
        (["--train_file", "a.txt", "--quantization", "arrowquant"], "set use_lora"),
    ],
)
def test_bad_input(main, checkpoint, tmp_path, more, rule):
    with pytest.raises(ValueError, match=rule):
        main(arguments(checkpoint / "dense", tmp_path, *more))


def test_a_new_modality_trains_its_head_alone(checkpoint, tmp_path):
    rise = np.add.outer(np.sin(np.arange(96) / 9), np.cos(np.arange(128) / 7)).astype(np.float32)
    np.savez(tmp_path / "surface.npz", height=rise)
    given = {"data_file": tmp_path / "surface.npz", "output_dir": tmp_path / "run", "max_train_steps": 30}
    given |= {"model_name_or_path": checkpoint / "dense", "patch_size": 4, "sequence_length": 8, "modality": "height"}
    found = runpy.run_path(str(EXAMPLES / "train_new_modality.py"))["main"](
        [text for name, value in given.items() for text in (f"--{name}", str(value))]
    )
    assert found[-1] < 0.7 * found[0]
    before = UnifiedDiffusionModel.from_pretrained(checkpoint / "dense").state_dict()
    model = UnifiedDiffusionModel.from_pretrained(tmp_path / "run" / "model")
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all("height" in name for name in after.keys() - before.keys())
    assert model.checkpoint_facts["supported_modalities"] == ["code", "height", "text"]
    assert json.loads((tmp_path / "run" / "losses.json").read_text()) == found
