"""The training stories, each on data of a few kilobytes: what was held out is told better after it than before."""

import io
import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from hf_unified_diffusion import UnifiedDiffusionModel
from hf_unified_diffusion.training.run_log import read_records
from tests.tiny import tiny_tokenizer
from tests.training.tiny_speech import speech_model, write_speech
from tests.training.tiny_training import TINY_SHAPE, lively_model, write_shard

EXAMPLES = Path(__file__).parents[2] / "examples"
SHAPE = {**TINY_SHAPE, "hidden_size": 32, "intermediate_size": 64}
LINES = ("The cat sat on the mat, and saw that it was good. ", "def cat(mat):\n    return mat\n\n")


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Two texts and two pieces of code for each split."""
    folder = tmp_path_factory.mktemp("shards")
    for split in ("train", "validation"):
        for modality, line in zip(("text", "code"), LINES, strict=True):
            write_shard(folder / split / f"{modality}.parquet", [line * 30, line.upper() * 30], modality)
    return folder


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")


def run(name: str, *positional: object, **given: object) -> None:
    """An example as its command line starts it."""
    texts = [*positional, *(text for key, value in given.items() for text in (f"--{key}", value))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, texts)])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


def first_and_last(out: Path, name: str) -> tuple[float, float]:
    """Of what a run logged now and then."""
    values = [record[name] for record in read_records(out / "log.jsonl") if name in record]
    return values[0], values[-1]


def save_checkpoint(folder: Path) -> Path:
    """A network whose answers are not yet sure of anything."""
    model = lively_model(258, **{**SHAPE, "cross_attention_every": 1})
    for name, parameter in model.named_parameters():
        parameter.data.mul_(1.0 if "norm" in name else 0.15)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_the_score_network(shards, tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    out, sizes = tmp_path / "run", {"sequence_length": 24, "train_batch_size": 4, "evaluation_rows": 4}
    folders = {"output_dir": out, "tokenizer": tmp_path / "tokenizer", "shards": shards, "config": json.dumps(SHAPE)}
    steps = {"max_train_steps": 16, "warmup_steps": 2, "evaluation_steps": 16, "learning_rate": 0.01}
    run("train_unified", **folders, **sizes, **steps, mixed_precision="no")
    for modality in ("text", "code"):
        for path in ("causal", "block4", "block16"):
            first, last = first_and_last(out, f"{modality}/{path}/nats_per_token")
            assert last < first - 0.5


@pytest.mark.parametrize("bits", [2, 4])
def test_quantization_aware_distillation(shards, tmp_path, capsys, bits):
    checkpoint = save_checkpoint(tmp_path / "dense")
    sizes = {"sequence_length": 24, "train_batch_size": 4, "evaluation_rows": 4, "calibration_rows": 4}
    given = {"shards": shards, "cache": tmp_path / "tokens", "group_size": 32, "bits": bits, "loss_budget": 9, **sizes}
    gaps = {}
    for steps in (0, 20):
        out = tmp_path / f"rounded-{steps}"
        run("train_quantized", checkpoint, output_dir=out, max_train_steps=steps, learning_rate=3e-3, **given)
        grown = [float(text) for text in re.findall(r"rounded, ([+-]\S+)", capsys.readouterr().out)]
        gaps[steps] = sum(grown) / len(grown)
    assert gaps[20] < gaps[0]
    first = tmp_path / "rounded-20"
    assert UnifiedDiffusionModel.from_pretrained(first).is_quantized
    given |= {"initial_model": first, "output_dir": tmp_path / "on"}
    run("train_quantized", checkpoint, max_train_steps=0, **given)  # goes on from just what was written
    taken = [UnifiedDiffusionModel.from_pretrained(at).checkpoint_facts["training"] for at in (first, tmp_path / "on")]
    assert taken[0] == taken[1] and taken[0][f"int{bits}_distillation"]["step"] == 20
    grown_on = [float(text) for text in re.findall(r"rounded, ([+-]\S+)", capsys.readouterr().out)]
    assert sum(grown_on) / len(grown_on) == pytest.approx(gaps[20], abs=0.02)
    with pytest.raises(ValueError, match="must have .* layers of"):
        run("train_quantized", checkpoint, max_train_steps=0, **{**given, "group_size": 16})


def test_the_memory_conditioner_alone(shards, tmp_path):
    checkpoint, out = save_checkpoint(tmp_path / "dense"), tmp_path / "run"
    lengths = {"passage_length": 24, "memory_length": 12, "rows": 8, "learning_rate": 0.01}
    run("train_memory_conditioner", checkpoint=checkpoint, shards=shards, output_dir=out, minutes=0.05, **lengths)
    for path in ("causal", "hidden"):
        first, last = first_and_last(out, f"right/{path}")
        assert last < first
        without = first_and_last(out, f"none/{path}")
        assert without[0] == without[1]


def test_a_decoder_trains_behind_a_frozen_trunk_and_joins_the_checkpoint(tmp_path):
    checkpoint, out = tmp_path / "checkpoint", tmp_path / "decoder"
    speech_model(258).save_pretrained(checkpoint)
    tiny_tokenizer().save_pretrained(checkpoint)
    speech = write_speech(tmp_path / "speech", {"train": 3})
    shutil.copytree(speech / "train", speech / "validation")  # that it learns, not what it does with other sentences
    shape = {"channels": 16, "intermediate_size": 32, "num_blocks": 1, "pieces": 8, "piece_tokens": 8}
    given = {"checkpoint": checkpoint, "speech": speech, "output_dir": out, "learning_rate": 0.01, "ema_decay": 0.9}
    run("train_decoder", compute_minutes=0.02, max_train_steps=200, **shape, **given)
    first, last = first_and_last(out, "t0.6")
    assert last < 0.7 * first
    run("merge_parts", out / "decoder.safetensors", checkpoint=checkpoint, output_dir=tmp_path / "merged")
    merged = UnifiedDiffusionModel.from_pretrained(tmp_path / "merged")
    assert merged.config.modalities["audio"]["decoder"] == {
        "frames": 4,
        "channels": 16,
        "intermediate_size": 32,
        "num_blocks": 1,
    }
    assert merged.checkpoint_facts["training"]["decoder"]["step"] > 1


def test_the_vocoder(tmp_path):
    speech = write_speech(tmp_path / "speech", {"train": 4, "validation": 1})
    folders = {"train_data_dir": speech / "train", "validation_data_dir": speech / "validation"}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "clip_frames": 24, "train_batch_size": 4, "validation_clips": 4}
    steps = {"max_train_steps": 8, "learning_rate": 3e-3, "warmup_steps": 2}
    run("train_vocoder", output_dir=tmp_path / "run", **folders, **sizes, **steps)
    first, last = first_and_last(tmp_path / "run", "validation/loss")
    assert last < first
    run("train_vocoder", output_dir=tmp_path / "run", export_dir=tmp_path / "rounded", **folders)
    on = {**sizes, **steps, "max_train_steps": 1, "model_name_or_path": tmp_path / "rounded"}
    run("train_vocoder", output_dir=tmp_path / "on", **folders, **{**on, "hidden_size": 64})  # the model's own sizes
    assert first_and_last(tmp_path / "on", "validation/loss")[0] < first


def test_the_image_codec(tmp_path):
    random = np.random.default_rng(0)
    for split, count in (("train", 24), ("validation", 4)):
        files = []
        for _ in range(count):  # smooth pictures of 64 x 64
            small = Image.fromarray(random.integers(0, 256, (5, 5, 3), dtype=np.uint8))
            file = io.BytesIO()
            small.resize((64, 64), Image.Resampling.BICUBIC).save(file, "PNG")
            files.append(file.getvalue())
        (tmp_path / split).mkdir()
        Dataset.from_dict({"png": files}).to_parquet(str(tmp_path / split / "smooth.parquet"))
    folders = {"train_data_dir": tmp_path / "train", "validation_data_dir": tmp_path / "validation"}
    sizes = {"resolution": 32, "large_resolution": 64, "train_batch_size": 4, "validation_pictures": 4}
    steps = {"max_train_steps": 12, "validation_minutes": 1e-9, "warmup_steps": 2, "learning_rate": 2e-3}
    start = {"initialization_pictures": 48, "perceptual_weight": 0, "latent_channels": 4}
    shape = ["--channels", 16, 16, 32, "--encoder_layers", 0, 1, 0, "--decoder_layers", 0, 1, 1]
    run("train_image_codec", *shape, output_dir=tmp_path / "run", **folders, **sizes, **steps, **start)
    first, last = first_and_last(tmp_path / "run", "validation/psnr_db")
    assert last > first
    assert (tmp_path / "run" / "vae" / "config.json").is_file()
