"""What breaks a rule is refused with the rule and the value, before any pass."""

import math

import pytest
import torch
from transformers.generation.streamers import BaseStreamer

from hf_unified_diffusion.pipelines.pipeline_code import UnifiedDiffusionCodePipeline
from hf_unified_diffusion.pipelines.pipeline_text import UnifiedDiffusionTextPipeline
from hf_unified_diffusion.schedulers.scheduling_masked_diffusion import MaskedDiffusionScheduler

MASK = 350
HOLES = torch.full((1, 4), MASK)
BAD = [
    ({"prompt": ""}, "prompt must not be empty .* got ''"),
    ({"prompt": ["x", ""]}, "prompt must not be empty .* got ''"),
    ({"prompt": []}, "prompt must hold at least one string, got an empty list"),
    ({"prompt": 3}, "prompt must be a string or a list of strings, got int"),
    ({"prompt": ["x", None]}, "prompt must be a string or a list of strings, got list with NoneType"),
    ({"prompt": b"x"}, "prompt must be a string or a list of strings, got bytes"),
    ({"suffix": 3}, "suffix must be a string or a list of strings, got int"),
    ({"prompt": ["x"] * 3, "suffix": ["y"] * 2}, r"suffix must be one string or as many as the prompts \(3\), got 2"),
    ({"num_inference_steps": 0}, "num_inference_steps must be an integer of at least 1, got 0"),
    ({"num_inference_steps": -4}, "num_inference_steps must be an integer of at least 1, got -4"),
    ({"num_inference_steps": 2.5}, "num_inference_steps must be an integer of at least 1, got 2.5"),
    ({"num_inference_steps": True}, "num_inference_steps must be an integer of at least 1, got True"),
    ({"num_inference_steps": 3}, r"at least the number of blocks, 4 \(128 tokens in blocks of 32\), got 3"),
    ({"max_new_tokens": 0}, "max_new_tokens must be an integer of at least 1, got 0"),
    ({"block_length": 0}, "block_length must be an integer of at least 1, got 0"),
    ({"num_return_sequences": 0}, "num_return_sequences must be an integer of at least 1, got 0"),
    ({"prompt": "x y " * 200}, r"prompt and suffix and the new tokens must fit the context of 256, got \d+ \+ 128"),
    ({"max_new_tokens": 256}, r"must fit the context of 256, got 1 \+ 256"),
    ({"suffix": "a b c " * 50}, r"prompt and suffix and the new tokens must fit the context of 256, got \d+ \+ 128"),
    ({"negative_prompt": "x y " * 200, "guidance_scale": 2.0}, "negative_prompt and the new tokens must fit"),
    ({"negative_prompt": "y"}, "guidance_scale must not be 1 with a negative_prompt, got 1"),
    ({"negative_prompt": ["y", "z"], "guidance_scale": 2.0}, r"negative_prompt must be one string .* \(1\), got 2"),
    ({"guidance_scale": math.nan}, "guidance_scale must be a finite number of at least 0, got nan"),
    ({"guidance_scale": math.inf}, "guidance_scale must be a finite number of at least 0, got inf"),
    ({"guidance_scale": -1.0}, "guidance_scale must be a finite number of at least 0, got -1.0"),
    ({"temperature": -1.0}, "temperature must be finite and at least 0, got -1.0"),
    ({"temperature": math.nan}, "temperature must be finite and at least 0, got nan"),
    ({"top_k": -1}, "top_k must be an integer of at least 0, got -1"),
    ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
    ({"ordering": "best"}, "ordering must be one of .*'confidence'.* got 'best'"),
    ({"entropy_bound": -0.1}, "entropy_bound must be None or finite nats of at least 0, got -0.1"),
    ({"output_type": "pil"}, r"output_type must be one of \['seq', 'text'\], got 'pil'"),
    ({"seed": -1}, "seed must be at least 0, got -1"),
    ({"seed": 1.5}, "seed must be an integer, got 1.5"),
    ({"seed": 0, "generator": torch.Generator()}, "give seed or generator, not both; got seed=0 and a Generator"),
    ({"generator": [torch.Generator()] * 2}, r"generators must have one per row \(1\), got 2"),
    ({"canvas": [[1, MASK]]}, r"canvas must be int64 token ids \(batch, length\), got list"),
    ({"canvas": torch.zeros(1, 4)}, r"canvas must be int64 token ids \(batch, length\), got torch.float32 \(1, 4\)"),
    ({"canvas": HOLES[0]}, r"canvas must be int64 token ids \(batch, length\), got torch.int64 \(4,\)"),
    ({"canvas": HOLES + 1}, r"canvas must hold ids in \[0, 351\)"),
    ({"canvas": HOLES[:, :0]}, r"canvas must hold ids in \[0, 351\), got \(1, 0\)"),
    ({"canvas": HOLES * 0}, "each row of canvas must hold the mask token 350 at least once, got a row without"),
    ({"canvas": HOLES.expand(2, 4)}, r"canvas must have 1 row or as many as the prompts \(1\), got 2"),
    ({"check_drafts": True, "suffix": "y"}, "check_drafts must be False with a suffix or a canvas"),
    ({"context": 3}, "context must be a string or a list of strings, got int"),
    ({"context": ["a", "b"]}, r"context must be one string or as many as the prompts \(1\), got 2"),
    ({"context_scale": 2.0}, "context_scale must be 1 or 0 without a context, got 2.0"),
    ({"context": "a", "context_scale": -1}, "context_scale must be a finite number of at least 0, got -1"),
    ({"context": "a b " * 5000}, "context, prompt and suffix and the new tokens must fit the context"),
    ({"stop": "y", "suffix": "z"}, "stop, end_rules, at_bound must be left out with a suffix or canvas"),
    ({"stop": 3}, "stop must be a string or a list of strings, got int"),
    ({"stop": ""}, "stop must not hold an empty string, got \\[''\\]"),
    ({"prompt": ["x", "y"], "streamer": BaseStreamer()}, "a streamer takes one row, got 2"),
    ({"callback_on_step_end_tensor_inputs": ["latents"]}, r"must be among \['sample', 'logits'\], got \['latents'\]"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_refused(pipe, model, arguments, message):
    handle = model.register_forward_pre_hook(lambda *call: pytest.fail("the network was asked"))
    try:
        with pytest.raises(ValueError, match=message):
            pipe(**{"prompt": "x", **arguments})
    finally:
        handle.remove()


def test_unknown_arguments_are_refused(pipe, code_pipe):
    for each in (pipe, code_pipe):
        with pytest.raises(TypeError, match="num_steps"):
            each("x", num_steps=3)


def test_parts_must_share_the_mask_token(model, tokenizer):
    with pytest.raises(ValueError, match="must share one mask token, got the ids .*'scheduler': 3"):
        UnifiedDiffusionTextPipeline(model, MaskedDiffusionScheduler(mask_token_id=3), tokenizer)


def test_the_network_must_have_the_modality(model, scheduler, tokenizer):
    before = model.config.modalities
    model.config.modalities = {"text": {"kind": "token"}}
    try:
        with pytest.raises(ValueError, match=r"must have the modality 'code', got one with \['text'\]"):
            UnifiedDiffusionCodePipeline(model, scheduler, tokenizer)
    finally:
        model.config.modalities = before
