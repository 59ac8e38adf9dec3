"""The training script on tiny shards: the twin, resuming, two processes, and the plot of its log."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_unified_diffusion import ArrowQuantConfig, UnifiedDiffusionModel
from hf_unified_diffusion.conversion.export import export_checkpoint
from hf_unified_diffusion.training.quantization_aware import scales_of
from hf_unified_diffusion.training.run_log import append_record, read_records
from tests.tiny import tiny_tokenizer
from tests.training.tiny_training import TINY_SHAPE, write_shard

EXAMPLES = Path(__file__).parents[2] / "examples"
TRAIN = EXAMPLES / "train_unified.py"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """Shards of one long document for each split and modality, and a tokenizer."""
    folder = tmp_path_factory.mktemp("inputs")
    line = "The cat sat on the mat, and saw that it was good. "
    for split in ("train", "validation"):
        write_shard(folder / split / "docs.parquet", [line * 30], "text")
        write_shard(folder / split / "python.parquet", ["def cat(mat):\n    return mat\n\n" * 40], "code")
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    return folder


@pytest.fixture(scope="module")
def main():
    return runpy.run_path(str(TRAIN))["main"]


def arguments(inputs: Path, out: Path, *more: str) -> list[str]:
    """A run of four steps; `more` overrides."""
    given = {
        "output_dir": out,
        "tokenizer": inputs / "tokenizer",
        "shards": inputs,
        "config": json.dumps(TINY_SHAPE),
        "sequence_length": 24,
        "train_batch_size": 2,
        "max_train_steps": 4,
        "warmup_steps": 1,
        "evaluation_rows": 4,
        "evaluation_steps": 3,
        "mixed_precision": "no",
    }
    return [text for name, value in given.items() for text in (f"--{name}", str(value))] + list(more)


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")


def steps(out: Path) -> list[float]:
    return [record["step"] for record in read_records(out / "log.jsonl")]


def test_a_run_logs_each_step_and_ends_with_a_model_and_resumes(main, inputs, tmp_path):
    out = tmp_path / "run"
    main(arguments(inputs, out))
    assert steps(out) == [1, 2, 3, 4]
    first, *_, last = read_records(out / "log.jsonl")
    for record in (first, last):
        for modality in ("text", "code"):
            for path in ("causal", "block4", "block16"):
                assert record[f"{modality}/{path}/nats_per_token"] > 0
                assert record[f"{modality}/{path}/bits_per_byte"] > 0
    assert UnifiedDiffusionModel.from_pretrained(out / "model").config.vocab_size == 258
    main(arguments(inputs, out, "--resume", "--max_train_steps", "6"))
    assert steps(out) == [1, 2, 3, 4, 5, 6]
    assert read_records(out / "log.jsonl")[:4] == [first, *read_records(out / "log.jsonl")[1:3], last]
    finished = (out / "state" / "progress.json").stat().st_mtime_ns
    main(arguments(inputs, out, "--resume", "--max_train_steps", "6"))
    assert (out / "state" / "progress.json").stat().st_mtime_ns == finished


def test_a_rounded_checkpoint_trains_on_between_its_levels_and_keeps_its_answers(main, inputs, tmp_path):
    """Where nothing moves, the pass is the checkpoint's own, nothing is to be learned, and the same codes ship."""
    main(arguments(inputs, tmp_path / "first", "--max_train_steps", "2"))
    quantization = ArrowQuantConfig(4, 16, int8_modules=["embeddings"], modules_to_not_convert=[])
    checkpoint = tmp_path / "checkpoint"
    export_checkpoint(tmp_path / "first" / "model", checkpoint, quantization, ["text", "code"])
    going_on = ("--initial_model", "--teacher", "--quantization_scales")
    rounding = [text for name in going_on for text in (name, str(checkpoint))]
    rounding += ["--quantization_bits", "4", "--quantization_group_size", "16"]

    def codes_after(out: Path, *more: str) -> dict[str, torch.Tensor]:
        given = arguments(inputs, out, "--max_train_steps", "2", *rounding, *more)
        shape = given.index("--config")
        main(given[:shape] + given[shape + 2 :])
        scales = scales_of(UnifiedDiffusionModel.from_pretrained(checkpoint))
        export_checkpoint(out / "model", out / "shipped", quantization, ["text", "code"], scales=scales)
        shipped = UnifiedDiffusionModel.from_pretrained(out / "shipped")
        assert all(torch.equal(scale, scales[name]) for name, scale in scales_of(shipped).items())
        return {name: value for name, value in shipped.state_dict().items() if value.dtype is torch.uint8}

    landed = UnifiedDiffusionModel.from_pretrained(checkpoint).state_dict()
    still = codes_after(tmp_path / "still", "--learning_rate", "0", "--weight_decay", "0")
    assert still
    assert all(torch.equal(value, landed[name]) for name, value in still.items())
    log = read_records(tmp_path / "still" / "log.jsonl")
    divergences = [value for record in log for name, value in record.items() if name.endswith("/loss")]
    assert len(divergences) == 2
    assert all(abs(value) < 1e-5 for value in divergences)
    moved = codes_after(tmp_path / "moved", "--learning_rate", "1e-2", "--ema_decay", "0.1")
    assert any(not torch.equal(value, landed[name]) for name, value in moved.items())

    # rounded where it was trained, and laid out here: the same codes
    there, trained = runpy.run_path(str(EXAMPLES / "quantize_weights.py"))["main"], tmp_path / "moved" / "model"
    own = ("--quantization_scales", str(checkpoint), "--group_size", "16", "--int8_modules", "embeddings")
    there([str(trained), "--output_dir", str(tmp_path / "sent"), "--max_shard_size", "8KB", *own])
    assert len(list((tmp_path / "sent").glob("*.parquet"))) > 1
    export_checkpoint(tmp_path / "sent", tmp_path / "here", quantization, ["text", "code"])
    here = UnifiedDiffusionModel.from_pretrained(tmp_path / "here").state_dict()
    assert all(torch.equal(value, here[name]) for name, value in moved.items())
    with pytest.raises(ValueError, match="takes neither calibration nor scales"):
        export_checkpoint(tmp_path / "sent", tmp_path / "no", quantization, ["text"], scales={})


def losses(out: Path) -> list[tuple[float, ...]]:
    """What a run logged that does not depend on the clock."""
    timed = ("seconds", "positions_per_s", "matmul_share")
    return [
        tuple(value for name, value in sorted(record.items()) if name not in timed and "held_out" not in name)
        for record in read_records(out / "log.jsonl")
    ]


def test_slices_of_a_run_on_packs_are_the_unbroken_run_on_shards(main, inputs, tmp_path):
    """Packs hold the same documents in the same order; a slice ends anywhere and the next goes on from there."""
    pack = runpy.run_path(str(EXAMPLES / "make_pack.py"))["main"]
    folders = ("--tokenizer", str(inputs / "tokenizer"), "--shards", str(inputs), "--cache", str(tmp_path / "tokens"))
    (packed,) = pack([*folders, "--output_dir", str(tmp_path / "packs"), "--pack_mb", "6"])
    assert {path.name for path in packed.iterdir()} >= {"code", "site", "tokenizer", "train", "validation", "pack.json"}
    assert not list(packed.rglob("*.parquet"))

    def given(out: str, *more: str) -> list[str]:
        return arguments(inputs, tmp_path / out, "--max_train_steps", "3", "--evaluation_steps", "9", *more)

    main(given("whole"))
    # the tokens of packs are those of shards, wherever the cache of these is
    from_packs = ("--packs", str(packed), "--tokenizer", str(packed / "tokenizer"), "--slice_minutes", "1e-9")
    main(given("sliced", "--shards", "nowhere", *from_packs))
    assert steps(tmp_path / "sliced") == [1]
    for _ in range(2):
        main(given("sliced", "--shards", "nowhere", "--resume", *from_packs))
    assert losses(tmp_path / "sliced") == losses(tmp_path / "whole")
    whole, sliced = (UnifiedDiffusionModel.from_pretrained(tmp_path / name / "model") for name in ("whole", "sliced"))
    assert all(torch.equal(x, y) for x, y in zip(whole.parameters(), sliced.parameters(), strict=True))


def test_a_model_goes_there_and_what_changed_comes_back(main, inputs, tmp_path):
    """pack_weights and unpack_weights: two steps of four bits each way."""
    send, take = (runpy.run_path(str(EXAMPLES / f"{name}_weights.py"))["main"] for name in ("pack", "unpack"))
    main(arguments(inputs, tmp_path / "a", "--max_train_steps", "1"))
    here = tmp_path / "a" / "model"
    send([str(here), "--output_dir", str(tmp_path / "w0")])
    send([str(here), "--sent", str(tmp_path / "w0"), "--output_dir", str(tmp_path / "w1")])
    take([str(tmp_path / "w0"), str(tmp_path / "w1"), "--output_dir", str(tmp_path / "there")])
    own, sent = (UnifiedDiffusionModel.from_pretrained(folder).state_dict() for folder in (here, tmp_path / "there"))
    assert all((own[name] - sent[name]).norm() <= 0.02 * own[name].norm() for name in own)


def test_a_log_becomes_a_picture(tmp_path, monkeypatch):
    for step in range(1, 5):
        record = {"step": step, "positions": 10 * step, "text/causal": 5 / step, "text/block4/bits_per_byte": 2 / step}
        append_record(tmp_path / "log.jsonl", record if step % 2 else {"step": step, "positions": 10 * step})
    picture = tmp_path / "curves.png"
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setattr(sys, "argv", ["plot_training.py", str(tmp_path), str(picture)])
    runpy.run_path(str(EXAMPLES / "plot_training.py"), run_name="__main__")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_two_processes_train_one_model(main, inputs, tmp_path):
    """Both end with the same weights; the twin's are those of one process with as many rows."""
    twin = ("--canvas", "false", "--modalities", "text")
    by_the_clock = ("--max_train_minutes", "0.01", "--max_train_steps", "40", "--checkpointing_minutes", "0")
    runs = [arguments(inputs, tmp_path / "two", *twin), arguments(inputs, tmp_path / "clock", *by_the_clock)]
    script = Path(__file__).with_name("two_processes.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, script, TRAIN, tmp_path, json.dumps(runs)], check=True, env=environment)
    for number in range(len(runs)):
        ours, theirs = (torch.load(tmp_path / f"weights-{number}-{rank}.pt") for rank in (0, 1))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert steps(tmp_path / "two") == [1, 2, 3, 4]
    assert steps(tmp_path / "clock") == list(range(1, len(steps(tmp_path / "clock")) + 1))

    main(arguments(inputs, tmp_path / "one", *twin, "--train_batch_size", "4"))
    logs = [read_records(tmp_path / name / "log.jsonl") for name in ("two", "one")]
    for two, one in zip(*logs, strict=True):
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)
        assert two["tokens"] == one["tokens"]
        assert set(two) == set(one) >= {"text/causal", "text/loss"}
        assert not any("canvas" in name or "block" in name for name in one)
    held_out = [log[-1]["text/causal/nats_per_token"] for log in logs]
    assert held_out[0] == pytest.approx(held_out[1], rel=1e-3)


def test_dropout_is_the_one_asked_for(main, inputs, tmp_path):
    (run,) = main(arguments(inputs, tmp_path / "run", "--dropout", "0.25", "--max_train_steps", "1"))
    assert {layer.dropout.p for layer in run.model.shared_transformer.layers} == {0.25}
    assert UnifiedDiffusionModel.from_pretrained(tmp_path / "run" / "model").config.dropout == 0.25


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        (("--max_train_steps", "0"), "max_train_steps must be at least 1, got 0"),
        (("--mixed_precision", "fp16"), "mixed_precision must be one of"),
        (("--slice_minutes", "0"), "slice_minutes must be positive, got 0"),
        (("--evaluation_rows", "0"), "evaluation_rows must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_name_the_rule(main, inputs, tmp_path, wrong, rule):
    with pytest.raises(ValueError, match=rule):
        main(arguments(inputs, tmp_path / "run", *wrong))
    assert not (tmp_path / "run").exists()
