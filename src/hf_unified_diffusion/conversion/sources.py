"""What can be converted: a checkpoint folder of ours, one of an autoregressive model, a GGUF file."""

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedTokenizerBase

from ..modeling.autoregressive import SOURCE_TYPES, config_from_autoregressive, whole_vocabulary
from ..modeling.checkpoint_metadata import METADATA_NAME
from ..modeling.configuration_unified_diffusion import UnifiedDiffusionConfig
from ..modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from ..modeling.vocabulary import MASK_TOKEN, split_digits, truncate_bpe
from ..schedulers import MaskedDiffusionScheduler

WEIGHT_PATTERNS = ("*.safetensors", "*.safetensors.index.json", "*.parquet", "*.parquet.index.json")
# pre-tokenizers of GGUF that split every digit off, which transformers drops while reading them
_SPLIT_DIGITS = ("smollm",)


@dataclass(frozen=True)
class Source:
    """Where weights come from; made by `open_source`.

    Attributes:
        path: a folder, or a GGUF file.
        model_type: of its configuration.
        vocab_size, num_hidden_layers: what to keep of an autoregressive source; None for all.
    """

    path: Path
    model_type: str
    vocab_size: int | None = None
    num_hidden_layers: int | None = None

    @property
    def is_ours(self) -> bool:
        """Whether it is a checkpoint of this package already."""
        return self.model_type == UnifiedDiffusionConfig.model_type

    @property
    def is_gguf(self) -> bool:
        """Whether it is a single GGUF file."""
        return self.path.is_file()

    @property
    def folder(self) -> Path:
        """The folder of the source."""
        return self.path.parent if self.is_gguf else self.path

    @property
    def weight_files(self) -> list[Path]:
        """The files that hold or index its weights."""
        return [self.path] if self.is_gguf else weight_files(self.path)

    @property
    def gguf_options(self) -> dict[str, str]:
        """How transformers is told about a GGUF file."""
        return {"gguf_file": self.path.name} if self.is_gguf else {}

    @cached_property
    def vocabulary(self) -> tuple[PreTrainedTokenizerBase, Int[Tensor, "vocab"]]:
        """The tokenizer with its mask token, and the source's id of each of its tokens, -1 for a new one."""
        tokenizer = AutoTokenizer.from_pretrained(self.folder, **self.gguf_options)
        if self.is_ours:
            return tokenizer, torch.arange(len(tokenizer))
        if self.is_gguf and gguf_pre_tokenizer(self.path) in _SPLIT_DIGITS:
            split_digits(tokenizer)
        if self.vocab_size is not None:
            return truncate_bpe(tokenizer, self.vocab_size)
        kept_ids = whole_vocabulary(len(tokenizer))  # rows that only pad the source's table are left behind
        tokenizer.add_special_tokens({"mask_token": MASK_TOKEN})
        return tokenizer, kept_ids

    def config(self) -> UnifiedDiffusionConfig:
        """The configuration of the network that `load` gives, read without its weights."""
        if self.is_ours:
            return UnifiedDiffusionConfig.from_pretrained(self.path)
        source = AutoConfig.from_pretrained(self.folder, **self.gguf_options)
        size = len(self.vocabulary[1])
        config = config_from_autoregressive(
            source, self.num_hidden_layers or source.num_hidden_layers, vocab_size=size, mask_token_id=size - 1
        )
        config.dtype = torch.float32 if self.is_gguf else source.dtype
        return config

    def load(self) -> UnifiedDiffusionModel:
        """The network, in the dtype of the source (float32 from GGUF); new parts start the same each time."""
        if self.is_ours:
            return UnifiedDiffusionModel.from_pretrained(self.path, dtype="auto")
        tokenizer, kept_ids = self.vocabulary
        options: dict[str, Any] = {"dtype": "auto"}
        if self.is_gguf:
            dense = GgufConfig(dequantize=True)
            options = {"gguf_file": self.path.name, "quantization_config": dense, "dtype": torch.float32}
        source, info = AutoModelForCausalLM.from_pretrained(self.folder, **options, output_loading_info=True)
        if info["missing_keys"]:  # transformers only warns, and draws them at random
            raise ValueError(f"the source must hold every weight, got none for {sorted(info['missing_keys'])}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = UnifiedDiffusionModel.from_source(source, kept_ids, self.num_hidden_layers).to(source.dtype)
        for name in ("eos_token_id", "bos_token_id", "pad_token_id"):
            setattr(model.config, name, getattr(tokenizer, name))
        return model

    def write_companions(self, destination: Path) -> None:
        """Put beside the weights what a pipeline needs: tokenizer, scheduler, card."""
        destination.mkdir(parents=True, exist_ok=True)
        if self.is_ours:
            left_out = {"config.json", METADATA_NAME, *(file.name for file in self.weight_files)}
            for file in self.path.iterdir():
                if file.is_file() and file.name not in left_out:
                    shutil.copy2(file, destination / file.name)
            return
        tokenizer = self.vocabulary[0]
        tokenizer.save_pretrained(destination)
        MaskedDiffusionScheduler(mask_token_id=tokenizer.mask_token_id).save_pretrained(destination)


def open_source(path: Path, vocab_size: int | None = None, num_hidden_layers: int | None = None) -> Source:
    """Find out what a path holds.

    Raises ValueError for what is neither a GGUF file nor a folder with a configuration of a known type, and where
    vocab_size or num_hidden_layers is asked of a checkpoint that is no longer autoregressive.
    """
    if path.is_file() and path.suffix == ".gguf":
        model_type = AutoConfig.from_pretrained(path.parent, gguf_file=path.name).model_type
    elif (path / "config.json").is_file():
        model_type = json.loads((path / "config.json").read_text()).get("model_type")
    else:
        raise ValueError(f"source must be a checkpoint folder (config.json) or a .gguf file, got {str(path)!r}")
    known = (UnifiedDiffusionConfig.model_type, *SOURCE_TYPES)
    if model_type not in known:
        raise ValueError(f"model_type of the source must be one of {known}, got {model_type!r}")
    source = Source(path, model_type, vocab_size, num_hidden_layers)
    if source.is_ours and (vocab_size, num_hidden_layers) != (None, None):
        raise ValueError("vocab_size and num_hidden_layers are for autoregressive sources, got a checkpoint of ours")
    return source


def weight_files(folder: Path) -> list[Path]:
    """The files of a checkpoint folder that hold or index weights."""
    return sorted(file for pattern in WEIGHT_PATTERNS for file in folder.glob(pattern))


def total_bytes(files: Iterable[Path]) -> int:
    """Bytes of files."""
    return sum(file.stat().st_size for file in files)


def gguf_pre_tokenizer(path: Path) -> str:
    """The name of the splitting rule in a GGUF file, "" without one."""
    from gguf import GGUFReader

    field = GGUFReader(path).get_field("tokenizer.ggml.pre")
    return "" if field is None else str(field.contents())
