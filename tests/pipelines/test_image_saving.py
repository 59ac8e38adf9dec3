"""What is saved and loaded again draws the same, by each door."""

import json

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchHeunDiscreteScheduler
from transformers import pipeline

from hf_unified_diffusion import ArrowEngine, Result, UnifiedDiffusionImagePipeline, save_diffusers_model
from hf_unified_diffusion.pipelines.checkpoints import save_image_parts
from hf_unified_diffusion.processes import spawn_generators
from hf_unified_diffusion.schedulers.flow_matching import flow_scheduler

SMALL = {"height": 64, "width": 64, "num_inference_steps": 2, "seed": 0}


def drawn(pipe, prompt="a red apple", **options):
    pipe.set_progress_bar_config(disable=True)
    return [np.array(picture) for picture in pipe(prompt, **{**SMALL, **options}).images]


@pytest.fixture
def settled(image_pipe):
    """A pipeline whose scheduler has settings of its own."""
    image_pipe.scheduler = flow_scheduler(use_dynamic_shifting=False, shift=2.5)
    return image_pipe


@pytest.fixture
def folder(settled, tmp_path):
    """The folder of a model that draws."""
    for part in (settled.transformer, settled.tokenizer):
        part.save_pretrained(tmp_path / "model")
    save_image_parts(tmp_path / "model", settled.scheduler, settled.vae)
    return tmp_path / "model"


def assert_same(loaded, settled):
    assert type(loaded) is UnifiedDiffusionImagePipeline and type(loaded.scheduler) is type(settled.scheduler)
    assert loaded.scheduler.config.shift == settled.scheduler.config.shift
    for part in ("transformer", "vae"):
        state, expected = (getattr(pipe, part).state_dict() for pipe in (loaded, settled))
        assert state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in state)
    assert np.array_equal(drawn(loaded), drawn(settled))


@pytest.mark.parametrize("cls", [DiffusionPipeline, UnifiedDiffusionImagePipeline])
def test_pipeline_folder(settled, tmp_path, cls):
    settled.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert {"transformer", "scheduler", "tokenizer", "vae"} <= index.keys()
    dtypes = {"transformer": torch.float64, "default": torch.float32}
    assert_same(cls.from_pretrained(tmp_path, dtype=dtypes), settled)


def test_model_folder(settled, folder):
    assert_same(UnifiedDiffusionImagePipeline.from_pretrained(folder), settled)
    settled.scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0)
    save_image_parts(folder, settled.scheduler, settled.vae)
    assert_same(UnifiedDiffusionImagePipeline.from_pretrained(folder), settled)
    half = UnifiedDiffusionImagePipeline.from_pretrained(folder, dtype=torch.bfloat16)
    assert half.transformer.dtype == half.vae.dtype == torch.bfloat16
    assert drawn(half)[0].shape == (64, 64, 3)


def test_model_folder_with_parquet_weights(settled, folder):
    save_diffusers_model(settled.vae, folder / "vae", metadata={"license": "apache-2.0"})
    assert not list((folder / "vae").glob("*.safetensors"))
    assert_same(UnifiedDiffusionImagePipeline.from_pretrained(folder), settled)


def test_a_folder_without_an_autoencoder_says_what_is_missing(settled, tmp_path):
    settled.transformer.save_pretrained(tmp_path)
    settled.tokenizer.save_pretrained(tmp_path)
    missing = "the folder of the model must hold an autoencoder of diffusers in 'vae'"
    with pytest.raises(ValueError, match=missing):
        UnifiedDiffusionImagePipeline.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=missing):
        pipeline("unified-diffusion", model=str(tmp_path))("a", modality="image")
    engine = ArrowEngine.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="modality 'image' needs an autoencoder .* got None"):
        engine.diffuse("a", modality="image")
    assert isinstance(engine.diffuse("a", max_new_tokens=1, seed=0), str)
    engine.close()


def test_other_classes_are_refused(folder):
    for name in ("UNet2DModel", "is_torch_available", "no_such", 3, None):
        (folder / "vae" / "config.json").write_text(json.dumps({"_class_name": name}))
        with pytest.raises(
            ValueError, match=f"_class_name of vae/config.json must be of the kind AutoencoderMixin .* got {name!r}"
        ):
            UnifiedDiffusionImagePipeline.from_pretrained(folder)


def test_the_task_draws_in_any_batches_and_saves(settled, folder, tmp_path):
    task = pipeline("unified-diffusion", model=str(folder))
    prompts = ["a red apple", "two fish", "x"]
    expected = drawn(settled, prompts, num_images_per_prompt=2)
    for batch_size in (None, 1, 2):
        answers = task(prompts, modality="image", batch_size=batch_size, num_images_per_prompt=2, **SMALL)
        assert [list(answer) for answer in answers] == [["generated_image"]] * 6
        pictures = np.array([np.array(answer["generated_image"]) for answer in answers], dtype=np.int16)
        assert np.abs(pictures - np.array(expected)).max() <= 1
    assert task("ab", max_new_tokens=4, num_inference_steps=2, seed=0)[0]["generated_text"].startswith("ab")
    task.save_pretrained(tmp_path / "saved")
    again = pipeline("unified-diffusion", model=str(tmp_path / "saved"))
    (answer,) = again("a red apple", modality="image", output_type="np", **SMALL)
    assert np.array_equal((answer["generated_image"] * 255).round(), drawn(settled)[0])


@pytest.fixture
def engine(folder):
    engine = ArrowEngine.from_pretrained(folder)
    yield engine
    engine.close()


def test_the_engine_gives_arrays_of_bytes(settled, engine):
    options = {"height": 64, "width": 64, "num_steps": 2, "seed": 0}
    picture = engine.diffuse("a red apple", modality="image", **options)
    assert picture.dtype == np.uint8 and np.array_equal(picture, drawn(settled)[0])
    several = engine.diffuse(["a red apple", "two fish"], modality="image", guidance_scale=2.0, **options)
    for row, (prompt, found) in enumerate(zip(["a red apple", "two fish"], several, strict=True)):
        alone = drawn(settled, prompt, seed=None, generator=spawn_generators(0, 1, first=row), guidance_scale=2.0)
        assert np.abs(found.astype(np.int16) - alone[0]).max() <= 1
    edited = engine.diffuse("a", modality="image", image=picture, strength=0.0, seed=0)
    assert np.array_equal(edited, drawn(settled, "a", image=picture, strength=0.0)[0])


def test_a_result_has_timings_and_reproduces(engine):
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append(sorted(tensors))
        return tensors

    options = {"modality": "image", "height": 64, "width": 64, "num_steps": 3}
    result = engine.diffuse("ab", return_result=True, callback_on_step_end=callback, **options)
    assert isinstance(result, Result) and result.output.shape == (64, 64, 3) and result.uncertainty == ()
    assert len(result.step_ms) == 3 and all(ms > 0 for ms in result.step_ms)
    assert result.extra == {"num_forward_passes": 6, "adapter": None} and seen == [["latents"]] * 3
    assert np.array_equal(engine.diffuse("ab", seed=result.seed, **options), result.output)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"suffix": "x"}, "suffix must be left out for image, got 'x'"),
        ({"max_new_tokens": 4}, "max_new_tokens must be left out for image, got 4"),
        ({"output_type": "pil"}, "output_type must be left out for image, got 'pil'"),
        ({"height": 65, "width": 64}, "height must be a positive multiple of 32, got 65"),
    ],
)
def test_the_engine_refuses(engine, options, message):
    with pytest.raises(ValueError, match=message):
        engine.diffuse("a", modality="image", **options)
