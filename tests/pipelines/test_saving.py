"""What is saved and loaded again writes the same."""

import pytest
import torch
from diffusers import DiffusionPipeline

import hf_unified_diffusion
from hf_unified_diffusion.pipelines.pipeline_code import UnifiedDiffusionCodePipeline
from hf_unified_diffusion.pipelines.pipeline_text import UnifiedDiffusionTextPipeline
from hf_unified_diffusion.schedulers.scheduling_masked_diffusion import MaskedDiffusionScheduler

SHORT = {"max_new_tokens": 12, "block_length": 8, "num_inference_steps": 4, "seed": 0}


@pytest.fixture(params=[UnifiedDiffusionTextPipeline, UnifiedDiffusionCodePipeline])
def settled(request, model, tokenizer):
    """A pipeline whose scheduler has settings of its own."""
    scheduler = MaskedDiffusionScheduler(mask_token_id=tokenizer.mask_token_id, temperature=0.6, ordering="margin")
    pipe = request.param(model, scheduler, tokenizer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def assert_same(loaded, settled):
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded) is type(settled)
    settings, expected = (
        {name: value for name, value in each.scheduler.config.items() if not name.startswith("_")}
        for each in (loaded, settled)
    )
    assert settings == expected
    state, expected = loaded.transformer.state_dict(), settled.transformer.state_dict()
    assert state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in state)
    assert loaded("x", **SHORT).texts == settled("x", **SHORT).texts


def test_pipeline_folder(settled, tmp_path):
    settled.save_pretrained(tmp_path)
    assert hf_unified_diffusion.__version__
    assert_same(type(settled).from_pretrained(tmp_path, dtype=torch.float64), settled)
    assert_same(DiffusionPipeline.from_pretrained(tmp_path, dtype=torch.float64), settled)


def test_model_folder(settled, tmp_path):
    for part in (settled.transformer, settled.scheduler, settled.tokenizer):
        part.save_pretrained(tmp_path)
    assert_same(type(settled).from_pretrained(tmp_path), settled)
    half = type(settled).from_pretrained(tmp_path, dtype=torch.float32)
    assert half.transformer.dtype == torch.float32


@pytest.mark.parametrize("kind", [UnifiedDiffusionTextPipeline, UnifiedDiffusionCodePipeline])
def test_embedded_checkpoint(kind):
    pipe = kind.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    output = pipe("def add(a, b):", max_new_tokens=8, num_inference_steps=2, seed=0)
    assert output.texts[0].startswith("def add(a, b):") and output.num_forward_passes <= 2
