"""A tiny real network and a tokenizer of bytes, for tests that need a whole checkpoint."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_unified_diffusion import UnifiedDiffusionConfig, UnifiedDiffusionModel

END, MASK = "<|endoftext|>", "<mask>"


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token; the end token is 0, the mask token the last."""
    entries = [END, *sorted(pre_tokenizers.ByteLevel.alphabet()), MASK]
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(entries)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=END, pad_token=END, bos_token=END, mask_token=MASK
    )


def tiny_model(**changes) -> UnifiedDiffusionModel:
    """Random weights, the same each time; `changes` are values of the configuration."""
    torch.manual_seed(0)
    values = {
        "vocab_size": 258,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 64,
        "mask_token_id": 257,
    }
    return UnifiedDiffusionModel(UnifiedDiffusionConfig(**{**values, **changes})).eval()


def save_tiny_checkpoint(folder: Path) -> Path:
    """Save network and tokenizer into one folder."""
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
