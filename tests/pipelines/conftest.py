"""A tiny real network and a tiny real tokenizer, shared by the pipeline tests."""

import argparse
import inspect
import textwrap

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hf_unified_diffusion.modeling.configuration_unified_diffusion import UnifiedDiffusionConfig
from hf_unified_diffusion.modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from hf_unified_diffusion.pipelines.pipeline_code import UnifiedDiffusionCodePipeline
from hf_unified_diffusion.pipelines.pipeline_image import UnifiedDiffusionImagePipeline
from hf_unified_diffusion.pipelines.pipeline_text import UnifiedDiffusionTextPipeline
from hf_unified_diffusion.schedulers.flow_matching import picture_scheduler
from hf_unified_diffusion.schedulers.scheduling_masked_diffusion import MaskedDiffusionScheduler
from tests.codecs.vaes import tiny_dc


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-level BPE learned from the standard library's source code."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=350,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([inspect.getsource(argparse), inspect.getsource(textwrap)], trainer)
    backend.add_special_tokens(["<mask>"])
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=end, bos_token=end, pad_token=end, mask_token="<mask>"
    )


@pytest.fixture(scope="session")
def model(tokenizer):
    """Random, in float64 so that no token hangs on rounding, with weights large enough to care for its input."""
    torch.manual_seed(0)
    config = UnifiedDiffusionConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=256,
        mask_token_id=tokenizer.mask_token_id,
        initializer_range=0.3,
    )
    model = UnifiedDiffusionModel(config).eval().double()
    with torch.no_grad():  # what starts at zero would hide a wrong time or modality
        model.time_embedding.time.weight.normal_(0, 0.3)
        for vector in model.modality_embedding.values():
            vector.normal_(0, 0.3)
        model.heads["image"].weight.normal_(0, 0.2)
    return model


@pytest.fixture
def scheduler(tokenizer):
    return MaskedDiffusionScheduler(mask_token_id=tokenizer.mask_token_id)


@pytest.fixture
def pipe(model, scheduler, tokenizer):
    pipe = UnifiedDiffusionTextPipeline(model, scheduler, tokenizer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def code_pipe(model, scheduler, tokenizer):
    pipe = UnifiedDiffusionCodePipeline(model, scheduler, tokenizer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def vae():
    """32 pixels a token, 128 numbers in it."""
    return tiny_dc(128)


@pytest.fixture
def image_pipe(model, tokenizer, vae):
    pipe = UnifiedDiffusionImagePipeline(model, picture_scheduler(), tokenizer, vae)
    pipe.set_progress_bar_config(disable=True)
    return pipe
