"""The transformers task is the diffusers pipeline behind another door."""

import numpy as np
import pytest
import torch
from transformers import pipeline

import hf_unified_diffusion
from hf_unified_diffusion.pipelines.pipeline_speech import UnifiedDiffusionSpeechPipeline
from hf_unified_diffusion.pipelines.pipeline_transformers import UnifiedDiffusionTaskPipeline
from hf_unified_diffusion.schedulers.flow_matching import speech_scheduler
from hf_unified_diffusion.schedulers.scheduling_masked_diffusion import MaskedDiffusionScheduler

SHORT = {"max_new_tokens": 12, "block_length": 8, "num_inference_steps": 4}


@pytest.fixture
def task(model, tokenizer):
    return UnifiedDiffusionTaskPipeline(model=model, tokenizer=tokenizer, device="cpu")


def test_it_writes_what_the_pipelines_write(task, pipe, code_pipe):
    for modality, writer in (("text", pipe), ("code", code_pipe)):
        expected = [{"generated_text": text} for text in writer(["def f(", "x"], seed=1, **SHORT).texts]
        assert task(["def f(", "x"], modality=modality, seed=1, **SHORT) == expected
    assert task("x", seed=1, **SHORT) == [{"generated_text": pipe("x", seed=1, **SHORT).texts[0]}]


def test_it_speaks_what_the_pipeline_speaks(task, model, tokenizer):
    pipe = UnifiedDiffusionSpeechPipeline(model, speech_scheduler(), tokenizer)
    expected = pipe(["Two.", "One fish."], num_inference_steps=2, seed=1).audios
    found = task(["Two.", "One fish."], modality="audio", num_inference_steps=2, seed=1, batch_size=1)
    assert [sorted(each) for each in found] == [["audio", "sampling_rate"]] * 2
    for each, sound in zip(found, expected, strict=True):
        assert each["sampling_rate"] == 24_000
        assert np.abs(each["audio"] - sound).max() < 1e-3


@pytest.mark.parametrize("size", [1, 2, 5])
def test_batch_size_changes_nothing(task, size):
    prompts, suffixes = ["def f(", "x", "return", "a b", "("], ["):", " = 1", "", "c", ")"]
    whole = task(prompts, suffix=suffixes, num_return_sequences=2, seed=1, **SHORT)
    assert len(whole) == 10
    assert task(prompts, suffix=suffixes, num_return_sequences=2, seed=1, batch_size=size, **SHORT) == whole


def test_arguments_of_construction_are_defaults(model, tokenizer):
    task = UnifiedDiffusionTaskPipeline(
        model=model, tokenizer=tokenizer, device="cpu", modality="code", seed=1, **SHORT
    )
    assert task("x") == task("x", modality="code", seed=1)
    assert task("x") != task("x", modality="text")


@pytest.mark.parametrize("kind", [{}, {"dtype": torch.float32}])
def test_saved_and_loaded_by_name(task, tmp_path, kind):
    assert hf_unified_diffusion.__version__  # the import registers the task
    task.scheduler = MaskedDiffusionScheduler(mask_token_id=task.tokenizer.mask_token_id, temperature=0.5)
    task.save_pretrained(tmp_path)
    loaded = pipeline("unified-diffusion", model=str(tmp_path), **kind)
    assert type(loaded) is UnifiedDiffusionTaskPipeline
    assert loaded.scheduler.config.temperature == 0.5
    assert not list(tmp_path.glob("*.py")), "a checkpoint must not carry our source"
    if not kind:
        assert loaded("x", seed=1, **SHORT) == task("x", seed=1, **SHORT)


@pytest.mark.parametrize(
    ("inputs", "arguments", "message"),
    [
        ("x", {"modality": "smell"}, r"modality must be one of \['audio', 'code', 'image', 'text'\], got 'smell'"),
        ("x", {"modality": "image"}, "must hold an autoencoder of diffusers in 'vae' .* got ''"),
        ("", {}, "prompt must not be empty"),
        ([], {}, "inputs must hold at least one string, got an empty list"),
        (3, {}, "inputs must be a string or a list of strings, got int"),
        ("x", {"num_inference_steps": 0}, "num_inference_steps must be an integer of at least 1, got 0"),
        ("x", {"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ("x", {"num_return_sequences": 0}, "num_return_sequences must be an integer of at least 1, got 0"),
        ("x", {"seed": 0, "generator": torch.Generator()}, "give seed or generator, not both"),
    ],
)
def test_bad_input(task, inputs, arguments, message):
    with pytest.raises(ValueError, match=message):
        task(inputs, **arguments)
