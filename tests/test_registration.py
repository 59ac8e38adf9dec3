"""Importing the package is all that transformers and diffusers need."""

import json
import subprocess
import sys
from importlib import import_module

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline
from transformers import AutoConfig, AutoModel, AutoTokenizer, pipeline
from transformers.pipelines import PIPELINE_REGISTRY

import hf_unified_diffusion
from hf_unified_diffusion import (
    MaskedDiffusionScheduler,
    UnifiedDiffusionConfig,
    UnifiedDiffusionImagePipeline,
    UnifiedDiffusionJointPipeline,
    UnifiedDiffusionModel,
    UnifiedDiffusionTaskPipeline,
)
from hf_unified_diffusion.pipelines.checkpoints import EMBEDDED_CHECKPOINT
from hf_unified_diffusion.registration import PIPELINES, TASK, register
from hf_unified_diffusion.schedulers.flow_matching import flow_scheduler, speech_scheduler
from tests.codecs.vaes import tiny_dc
from tests.tiny import save_tiny_checkpoint, tiny_model, tiny_tokenizer


@pytest.fixture
def checkpoint(tmp_path):
    return save_tiny_checkpoint(tmp_path / "checkpoint")


def same_weights(left: torch.nn.Module, right: torch.nn.Module) -> bool:
    a, b = left.state_dict(), right.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_every_public_name_is_its_modules_own():
    for name in hf_unified_diffusion.__all__:
        member = getattr(hf_unified_diffusion, name)
        assert member.__name__ == name
        assert getattr(import_module(member.__module__), name) is member
    assert set(hf_unified_diffusion.__all__) <= set(dir(hf_unified_diffusion))


def test_unknown_name():
    with pytest.raises(AttributeError, match="module 'hf_unified_diffusion' has no attribute 'Missing'"):
        _ = hf_unified_diffusion.Missing


def test_registering_again_changes_nothing():
    before = dict(PIPELINE_REGISTRY.supported_tasks[TASK])
    register()
    assert PIPELINE_REGISTRY.supported_tasks[TASK] == before


def test_auto_classes_round_trip(checkpoint):
    assert type(AutoConfig.from_pretrained(checkpoint)) is UnifiedDiffusionConfig
    loaded = AutoModel.from_pretrained(checkpoint)
    assert type(loaded) is UnifiedDiffusionModel
    assert same_weights(loaded, tiny_model())


def test_task_answers_and_copies_no_source_into_what_it_saves(checkpoint, tmp_path):
    task = pipeline(TASK, model=str(checkpoint))
    assert type(task) is UnifiedDiffusionTaskPipeline
    (answer,) = task("def f", modality="code", max_new_tokens=4, num_inference_steps=2, seed=0)
    assert answer["generated_text"].startswith("def f")
    task.save_pretrained(tmp_path / "saved")
    assert not list((tmp_path / "saved").glob("*.py"))
    assert "custom_pipelines" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    reloaded = pipeline(TASK, model=str(tmp_path / "saved"))
    assert same_weights(reloaded.model, task.model)


def test_default_of_the_task_is_the_embedded_checkpoint():
    default = PIPELINE_REGISTRY.check_task(TASK)[1]["default"]
    assert default == {"model": (str(EMBEDDED_CHECKPOINT), None)}


@pytest.mark.parametrize("pipeline_class", PIPELINES)
def test_diffusers_finds_pipelines_and_components(pipeline_class, tmp_path):
    model = tiny_model()
    parts = {"scheduler": MaskedDiffusionScheduler(mask_token_id=model.config.mask_token_id)}
    if pipeline_class is UnifiedDiffusionImagePipeline:
        parts = {"scheduler": flow_scheduler(), "vae": tiny_dc(128)}
    if pipeline_class is UnifiedDiffusionJointPipeline:
        parts["speech_scheduler"] = speech_scheduler()
    written = pipeline_class(transformer=model, tokenizer=tiny_tokenizer(), **parts)
    written.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["transformer"] == ["hf_unified_diffusion", "UnifiedDiffusionModel"]
    ours = pipeline_class is not UnifiedDiffusionImagePipeline
    scheduler = "MaskedDiffusionScheduler" if ours else "FlowMatchEulerDiscreteScheduler"
    assert index["scheduler"] == ["hf_unified_diffusion" if ours else "diffusers", scheduler]
    assert ours or index["vae"] == ["diffusers", "AutoencoderDC"]
    read = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(read) is pipeline_class is getattr(diffusers, pipeline_class.__name__)
    assert same_weights(read.transformer, model)
    assert read.scheduler.to_json_string() == written.scheduler.to_json_string()
    assert read.tokenizer.get_vocab() == written.tokenizer.get_vocab()


def test_a_fresh_process_needs_only_the_import(checkpoint):
    """No trust_remote_code, and the public names stay lazy."""
    program = (
        "import sys, hf_unified_diffusion\n"
        "assert 'UnifiedDiffusionModel' not in vars(hf_unified_diffusion)\n"
        "from transformers import AutoModel\n"
        "print(type(AutoModel.from_pretrained(sys.argv[1])).__name__)"
    )
    command = [sys.executable, "-W", "error", "-c", program, str(checkpoint)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["UnifiedDiffusionModel"]
    assert AutoTokenizer.from_pretrained(checkpoint).mask_token_id == 257
