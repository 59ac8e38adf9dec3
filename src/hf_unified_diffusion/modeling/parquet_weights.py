"""Checkpoint folders whose weights are Parquet files: loading maps them into memory, saving replaces them whole."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers.modeling_utils import remove_tied_weights_from_state_dict
from transformers.utils import cached_file, find_adapter_config_file
from transformers.utils.hub import convert_file_size_to_int, resolve_revision

from ..quantization import QuantizedWeight, bits_per_weight, merged_ranks, read_parquet_weights, write_parquet_weights
from ..quantization.configuration_arrowquant import WEIGHTS_FORMATS
from ..quantization.parquet_index import INDEX_SUFFIX, read_index
from ..quantization.parquet_reader import Verify

if TYPE_CHECKING:
    from transformers import PreTrainedModel as _Base
else:
    _Base = object

PARQUET_NAME = "model.arrowquant.parquet"
PARQUET_INDEX_NAME = PARQUET_NAME + INDEX_SUFFIX
SAFETENSORS_NAME = "model.safetensors"
MAX_SHARD_SIZE = "1GIB"  # of Parquet weights; larger ones go to several files
HUB_KEYS = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision", "subfolder")
# loading options that share a name with a field of a config
_NOT_CONFIG_FIELDS = {"dtype", "torch_dtype", "quantization_config", "attn_implementation"}


class ParquetWeightsMixin(_Base):
    """`from_pretrained` and `save_pretrained` that know Parquet weights; put it before PreTrainedModel.

    Usage: `class Model(ParquetWeightsMixin, PreTrainedModel): ...`
    """

    writes_parquet_weights = True

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None = None,
        *model_args: Any,
        config: Any = None,
        verify_weights: Verify = "touch",
        **kwargs: Any,
    ) -> Any:
        """As transformers' own, and where the folder or repository holds Parquet weights, from those, without a copy.

        `verify_weights`: "header" maps without reading, "touch" checks every tensor's CRC-32, "full" every byte.
        Raises FormatError (a ValueError) for a broken file, and what transformers raises.
        """
        name = pretrained_model_name_or_path
        if name is None or "state_dict" in kwargs:
            return super().from_pretrained(name, *model_args, config=config, **kwargs)
        hub = {key: kwargs[key] for key in HUB_KEYS if key in kwargs}
        file = find_weights(name, hub)
        if file is not None:
            return cls._from_parquet(file, name, model_args, config, verify_weights, hub, kwargs)
        base = _base_of_adapter(name, hub) if config is None else None
        if base is not None and find_weights(base, {}) is not None:
            loaded = cls.from_pretrained(base, *model_args, verify_weights=verify_weights, **kwargs)
            model = loaded[0] if isinstance(loaded, tuple) else loaded
            model.load_adapter(os.fspath(name))
            return loaded
        return super().from_pretrained(name, *model_args, config=config, **kwargs)

    @classmethod
    def _from_parquet(
        cls,
        file: str,
        name: Any,
        model_args: tuple[Any, ...],
        config: Any,
        verify: Verify,
        hub: dict[str, Any],
        kwargs: dict[str, Any],
    ) -> Any:
        if config is None or isinstance(config, (str, os.PathLike)):
            config = cls.config_class.from_pretrained(name if config is None else config, **hub)
            for key in (config.to_dict().keys() & kwargs.keys()) - _NOT_CONFIG_FIELDS:
                setattr(config, key, kwargs.pop(key))
        options = {key: value for key, value in kwargs.items() if key not in (*HUB_KEYS, "variant", "use_safetensors")}
        weights = read_parquet_weights(file, verify)
        loaded = super().from_pretrained(None, *model_args, config=config, state_dict=dict(weights), **options)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.name_or_path = model.config.name_or_path = os.fspath(name)
        return loaded

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        max_shard_size: int | str | None = None,
        weights_format: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Save as transformers does, the weights as safetensors or as Parquet, never both.

        Args:
            max_shard_size: bytes of a weight file, or words as "5GB"; above it there are several and an index.
                Default: 1 GiB of Parquet, transformers' own bound of safetensors.
            weights_format: "safetensors" or "parquet"; default: the quantization config's, safetensors without one.
            metadata: JSON object for the Parquet manifest (licence, hash of the base model, ...).
        """
        quantization = getattr(self.config, "quantization_config", None)
        chosen = weights_format or getattr(quantization, "weights_format", "safetensors")
        if chosen not in WEIGHTS_FORMATS:
            raise ValueError(f"weights_format must be one of {WEIGHTS_FORMATS}, got {chosen!r}")
        if quantization is not None:
            quantization.weights_format = chosen
        adapters_only = getattr(self, "_hf_peft_config_loaded", False)
        parquet = chosen == "parquet" and not adapters_only
        if parquet and is_main_process:
            bound = convert_file_size_to_int(MAX_SHARD_SIZE if max_shard_size is None else max_shard_size)
            self._write_parquet(Path(save_directory), state_dict, metadata or {}, bound)
        tensors = {} if parquet else state_dict
        if max_shard_size is not None:
            kwargs["max_shard_size"] = max_shard_size
        super().save_pretrained(save_directory, is_main_process=is_main_process, state_dict=tensors, **kwargs)
        if is_main_process and not adapters_only:
            remove_weights(Path(save_directory), SAFETENSORS_NAME if parquet else PARQUET_NAME)

    def _write_parquet(
        self,
        folder: Path,
        state_dict: Mapping[str, Tensor] | None,
        metadata: Mapping[str, Any],
        max_shard_bytes: int,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        given = self.state_dict() if state_dict is None else state_dict
        tensors = remove_tied_weights_from_state_dict(dict(given), self)
        roles: dict[str, str] = {}
        for name, module in self.named_modules():
            if isinstance(module, QuantizedWeight):
                own = [key for key in module.state_dict() if key != "bias"]
                roles |= {f"{name}.{key}": "scale" if key.endswith("_scale") else "packed" for key in own}
        quantization = getattr(self.config, "quantization_config", None)
        if quantization is not None:
            quantization.merged_ranks = merged_ranks(self)
        facts = {
            "format": "pt",
            "model_type": self.config.model_type,
            "bits_per_weight": round(bits_per_weight(self), 4),
            "quantization": None if quantization is None else quantization.to_dict(),
        }
        path, about = folder / PARQUET_NAME, {**facts, **metadata}
        write_parquet_weights(path, tensors, about, roles=roles, max_shard_bytes=max_shard_bytes)


def find_file(name: str | os.PathLike[str], filename: str, hub: Mapping[str, Any]) -> str | None:
    """The file in a local folder, the cache or the Hub; None where there is none or it cannot be reached."""
    known = {key: value for key, value in hub.items() if key in ("revision", "token", "local_files_only", "cache_dir")}
    pinned = resolve_revision(name, **known)
    return cached_file(
        name,
        filename,
        **{**hub, "revision": pinned},
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )


def find_weights(name: str | os.PathLike[str], hub: Mapping[str, Any]) -> str | None:
    """The Parquet file of a folder or repository, or the index of several, which are fetched too; None without."""
    file = find_file(name, PARQUET_NAME, hub)
    if file is not None:
        return file
    index = find_file(name, PARQUET_INDEX_NAME, hub)
    for shard in () if index is None else read_index(index).digests:
        if find_file(name, shard, hub) is None:
            raise OSError(f"{name} must hold {shard}, which its {PARQUET_INDEX_NAME} names")
    return index


def _base_of_adapter(name: str | os.PathLike[str], hub: Mapping[str, Any]) -> str | None:
    """The base model of an adapter folder; None for anything else."""
    file = find_adapter_config_file(os.fspath(name), **{**hub, "revision": resolve_revision(name)})
    if file is None or Path(file).with_name("config.json").exists():
        return None
    return json.loads(Path(file).read_text())["base_model_name_or_path"]


def remove_weights(folder: Path, name: str) -> None:
    """Remove weights saved as `name` (model.safetensors, say), in one file or in several with an index."""
    stem, _, suffix = name.partition(".")
    for pattern in (name, f"{name}.index.json", f"{stem}-*-of-*.{suffix}"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
