"""Our network in diffusers' LLaDA2Pipeline, and a masked language model of another family under our scheduler."""

import pytest
import torch
from diffusers import BlockRefinementScheduler, LLaDA2Pipeline
from transformers import BertConfig, BertForMaskedLM

from hf_unified_diffusion import MaskedDiffusionScheduler, Segment
from hf_unified_diffusion.pipelines.diffusion_core import diffuse
from hf_unified_diffusion.pipelines.llada2 import LLaDA2Network, llada2_denoiser

BLOCK = 4


@torch.no_grad()
def test_the_pipeline_commits_what_our_network_finds_likeliest(model, tokenizer):
    """One step a block, at temperature 0: each block is the argmax given the blocks before it."""
    pipe = LLaDA2Pipeline(LLaDA2Network(model, BLOCK), BlockRefinementScheduler(), tokenizer)
    pipe.set_progress_bar_config(disable=True)
    prompt = torch.randint(1, 200, (2, 2 * BLOCK), generator=torch.Generator().manual_seed(0))
    options = {"num_inference_steps": 1, "temperature": 0.0, "eos_early_stop": False, "editing_threshold": None}
    found = pipe(input_ids=prompt, gen_length=3 * BLOCK, block_length=BLOCK, output_type="seq", **options).sequences
    known = prompt
    for _ in range(3):
        canvas = torch.full((2, BLOCK), tokenizer.mask_token_id)
        segments = [Segment("text", known), Segment("text", canvas, time=torch.ones(2))]
        known = torch.cat([known, model(segments=segments).predictions[1].argmax(-1)], dim=1)
    assert torch.equal(found, known[:, prompt.shape[1] :])


def test_texts_from_prompts_of_different_lengths(model, tokenizer):
    pipe = LLaDA2Pipeline(LLaDA2Network(model, BLOCK), BlockRefinementScheduler(), tokenizer)
    pipe.set_progress_bar_config(disable=True)
    options = {"block_length": BLOCK, "num_inference_steps": 4, "use_chat_template": False}
    output = pipe(["def f", "import argparse as a"], gen_length=10, **options)
    assert output.sequences.shape == (2, 10)
    assert len(output.texts) == 2
    assert not bool((output.sequences == tokenizer.mask_token_id).any())


def test_what_is_needed_of_the_network_is_stated(model):
    with pytest.raises(ValueError, match="block_length must be at least 1"):
        LLaDA2Network(model, 0)
    with pytest.raises(ValueError, match="modality 'smell'"):
        LLaDA2Network(model, BLOCK, "smell")


@torch.no_grad()
def test_our_scheduler_fills_the_canvas_of_another_family():
    torch.manual_seed(0)
    config = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    network, mask = BertForMaskedLM(config).eval(), 39
    prompt, canvas = torch.arange(6).view(2, 3), torch.full((2, 5), mask)
    denoiser = llada2_denoiser(network, prompt)
    logits = network(torch.cat([prompt, canvas], dim=1)).logits[:, 3:]
    scheduler = MaskedDiffusionScheduler(mask_token_id=mask, temperature=0.0)

    def step(clean, t, x_t):
        return scheduler.step(clean, t, x_t).prev_sample

    for num_steps in (1, 5):
        scheduler.set_timesteps(num_steps)
        filled = diffuse(denoiser, step, canvas, scheduler.timesteps)
        assert not bool((filled == mask).any())
        if num_steps == 1:
            assert torch.equal(filled, logits[..., :mask].argmax(-1))
