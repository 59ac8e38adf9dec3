"""The stories of pictures, on tiny networks: held-out error falls, only what should train does, a run resumes."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image, ImageDraw, ImageOps

from hf_unified_diffusion import UnifiedControlNetModel, UnifiedDiffusionImagePipeline, UnifiedDiffusionModel
from hf_unified_diffusion.training.control_pictures import edges
from hf_unified_diffusion.training.run import TrainingRun
from hf_unified_diffusion.training.run_log import read_records
from tests.codecs.vaes import tiny_dc
from tests.tiny import tiny_tokenizer
from tests.training.tiny_training import TINY_SHAPE, lively_model

pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
EXAMPLES = Path(__file__).parents[2] / "examples"
COLOURS = ("red", "green", "blue", "white", "yellow", "black")
LORA = ["--rank", "2", "--lora_target_modules", "q_proj", "heads.image"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A network with room for LoRA, a tokenizer and an autoencoder of 32 pixels a token."""
    folder = tmp_path_factory.mktemp("checkpoint")
    modalities = {**TINY_SHAPE["modalities"], "image": {"kind": "continuous", "width": 8}}
    shape = {"hidden_size": 64, "intermediate_size": 256, "num_key_value_heads": 2, "modalities": modalities}
    model = lively_model(258, **shape, bos_token_id=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(1.0 if "norm" in name else 0.15)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    tiny_dc(8).save_pretrained(folder / "vae")
    return folder


def drawing(number: int) -> Image.Image:
    """A bar of one of six colours on a grey ground."""
    picture = Image.new("RGB", (80, 64), "grey")
    ImageDraw.Draw(picture).rectangle((8 * (number % 5), 8, 8 * (number % 5) + 30, 56), fill=COLOURS[number % 6])
    return picture


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The same pictures as a folder with captions, and as Parquet with two splits and PNG bytes."""
    folder = tmp_path_factory.mktemp("data")
    lines = []
    for number in range(24):
        name = f"train/{number}.png"
        (folder / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        drawing(number).save(folder / "pictures" / name)
        lines.append(json.dumps({"file_name": f"{number}.png", "text": f"a {COLOURS[number % 6]} bar"}))
    (folder / "pictures" / "train" / "metadata.jsonl").write_text("\n".join(lines))
    for split, numbers in (("train", range(24)), ("validation", range(24, 30))):
        files = [(folder / "pictures" / "train" / f"{n % 24}.png").read_bytes() for n in numbers]
        captions = [[f"a {COLOURS[n % 6]} bar", COLOURS[n % 6]] for n in numbers]
        table = Dataset.from_dict({"png": files, "captions": captions})
        table.to_parquet(str(folder / "parquet" / f"{split}.parquet"))
    return folder


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def arguments(checkpoint: Path, out: Path, *more: object) -> list[str]:
    given = {
        "output_dir": out,
        "pretrained_model_name_or_path": checkpoint,
        "resolution": 64,
        "train_batch_size": 8,
        "max_train_steps": 12,
        "validation_steps": 6,
        "learning_rate": 0.02,
        "lr_warmup_steps": 2,
        "validation_split_percentage": 20,
    }
    return [str(text) for name, value in given.items() for text in (f"--{name}", value)] + [str(text) for text in more]


def errors(out: Path) -> list[float]:
    return [r["validation/clean"] for r in read_records(out / "log.jsonl") if "validation/clean" in r]


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as picture:
        return np.asarray(picture)


@pytest.fixture(scope="module")
def main():
    return runpy.run_path(str(EXAMPLES / "finetune_image_lora.py"))["main"]


@pytest.mark.parametrize(
    "source",
    [
        ["--train_data_dir", "pictures", "--random_flip"],
        ["--dataset_name", "parquet", "--image_column", "png", "--caption_column", "captions"],
    ],
    ids=["folder", "parquet"],
)
def test_lora_lowers_the_held_out_error_and_steers_the_pipeline(main, checkpoint, data, tmp_path, source):
    before = UnifiedDiffusionModel.from_pretrained(checkpoint).state_dict()
    out, where = tmp_path / "run", [source[0], data / source[1], *source[2:]]
    run = main(arguments(checkpoint, out, *where, *LORA, "--validation_prompt", "a red bar"))
    first, *_, last = errors(out)
    assert last < first
    assert sum(p.numel() for p in run.parameters) < 0.02 * sum(value.numel() for value in before.values())
    assert all("lora_" in name for name, p in run.model.named_parameters() if p.requires_grad)
    after = {name.replace(".base_layer", ""): value for name, value in run.model.state_dict().items()}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    shown = [pixels(out / "validation" / f"step_{step}_{i}.png") for step in (0, 12) for i in range(2)]
    assert shown[0].shape == (64, 64, 3) and not np.array_equal(shown[0], shown[2])
    pipe = UnifiedDiffusionImagePipeline.from_pretrained(checkpoint)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(out / "model")
    drawn = pipe("a red bar", height=64, width=64, num_images_per_prompt=2, seed=0).images
    assert np.array_equal(np.asarray(drawn[1]), shown[3])


def test_a_resumed_run_is_the_unbroken_one(main, checkpoint, data, tmp_path, monkeypatch):
    how = ["--dataset_name", data / "parquet", "--image_column", "png", "--caption_column", "captions", *LORA]
    how += ["--streaming", "--max_train_samples", 16, "--checkpointing_steps", 5]
    whole = main(arguments(checkpoint, tmp_path / "whole", *how))
    original = TrainingRun.step

    def step(self, rate, progress):
        if self.progress.step == 8:
            raise KeyboardInterrupt
        return original(self, rate, progress)

    half = arguments(checkpoint, tmp_path / "stopped", *how)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "step", step)
        with pytest.raises(KeyboardInterrupt):
            main(half)
    resumed = main([*half, "--resume_from_checkpoint"])
    assert [record["step"] for record in read_records(tmp_path / "stopped" / "log.jsonl")] == list(range(13))
    expected = {n: p for n, p in whole.model.named_parameters() if "lora_" in n}
    found = {n: p for n, p in resumed.model.named_parameters() if "lora_" in n}
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    ("more", "rule"),
    [
        ([], "give either dataset_name or train_data_dir"),
        (["--train_data_dir", "pictures", "--caption_column", "words"], r"got \['words'\]"),
    ],
)
def test_bad_input(main, checkpoint, data, tmp_path, more, rule):
    more = [data / text if text == "pictures" else text for text in more]
    with pytest.raises(ValueError, match=rule):
        main(arguments(checkpoint, tmp_path / "run", *more))


def test_a_controlnet_learns_edges_and_steers_the_pipeline(checkpoint, data, tmp_path, monkeypatch):
    train = runpy.run_path(str(EXAMPLES / "train_controlnet.py"))["main"]
    given = {
        "task": "edges",
        "output_dir": tmp_path / "run",
        "pretrained_model_name_or_path": checkpoint,
        "train_data_dir": data / "pictures",
        "resolution": 64,
        "num_blocks": 1,
        "train_batch_size": 8,
        "max_train_steps": 20,
        "validation_steps": 10,
        "num_validation_batches": 1,
        "learning_rate": 3e-2,
        "lr_warmup_steps": 2,
        "mixed_precision": "no",
    }
    before = UnifiedDiffusionModel.from_pretrained(checkpoint).state_dict()
    run = train([text for name, value in given.items() for text in (f"--{name}", str(value))])
    first, last = (r["validation/flow"] for r in read_records(tmp_path / "run" / "log.jsonl") if "validation/flow" in r)
    run.controlnet.residuals[0].weight.data.zero_()
    untrained = run.validate()["validation/flow"]
    assert last < first < untrained
    assert all(torch.equal(run.base.state_dict()[name], value) for name, value in before.items())
    controlnet = UnifiedControlNetModel.from_pretrained(tmp_path / "run")
    pipe = UnifiedDiffusionImagePipeline.from_pretrained(checkpoint)
    pipe.set_progress_bar_config(disable=True)
    hint = edges(ImageOps.fit(drawing(0), (64, 64)))
    picture = pipe("a red bar", 64, 64, controlnet=controlnet, control_image=hint, seed=0).images[0]
    assert np.array_equal(np.asarray(picture), pixels(tmp_path / "run" / "validation" / "step_20.png"))
