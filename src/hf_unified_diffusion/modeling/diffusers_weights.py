"""Models of diffusers (a VAE, a vocoder) in the weight files of this package, mapped without a copy."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from accelerate import init_empty_weights
from diffusers import ModelMixin
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from torch import Tensor
from transformers.utils.hub import convert_file_size_to_int

from ..quantization import (
    ParquetWeights,
    ShardedParquetWeights,
    dequantize,
    quantize,
    read_parquet_weights,
    write_parquet_weights,
)
from ..quantization.parquet_reader import Verify
from .parquet_weights import MAX_SHARD_SIZE, PARQUET_INDEX_NAME, PARQUET_NAME, find_weights, remove_weights

SCALE_SUFFIX = "_scale"  # beside the name of the codes

Model = TypeVar("Model", bound=ModelMixin)


def save_diffusers_model(
    model: ModelMixin,
    save_directory: str | os.PathLike[str],
    metadata: Mapping[str, Any] | None = None,
    max_shard_size: int | str = MAX_SHARD_SIZE,
    int8: bool = False,
) -> None:
    """Save any model of diffusers as `config.json` and Parquet weights, in place of its safetensors files.

    Args:
        metadata: JSON object for the Parquet manifest (licence, hash of the base model, ...).
        max_shard_size: bytes of a weight file, or words as "5GB"; above it there are several and an index.
        int8: keep matrices and kernels as INT8 codes, with a scale for each output and tap (`quantization.integer`).

    Raises ValueError for what `write_parquet_weights` refuses.
    Usage: `save_diffusers_model(pipeline.vae, "checkpoint/vae")`
    """
    folder = Path(save_directory)
    folder.mkdir(parents=True, exist_ok=True)
    about = {"format": "pt", "model_type": type(model).__name__, **(metadata or {})}
    bound = convert_file_size_to_int(max_shard_size)
    tensors, roles = coded(model.state_dict()) if int8 else (model.state_dict(), {})
    write_parquet_weights(folder / PARQUET_NAME, tensors, about, roles=roles, max_shard_bytes=bound)
    model.save_config(folder)
    remove_weights(folder, SAFETENSORS_WEIGHTS_NAME)


def load_diffusers_model(
    cls: type[Model], name_or_path: str | os.PathLike[str], verify_weights: Verify = "touch", **hub: Any
) -> Model:
    """Load a model that `save_diffusers_model` wrote; its parameters lie in the mapped file, in their saved dtypes.

    Those that are codes in the file are dequantized to float32 in memory.

    Args:
        cls: its class, AutoencoderKL for instance.
        name_or_path: a folder or a repository; `hub` takes `subfolder`, `revision`, `token`, `cache_dir`, ...
        verify_weights: "header", "touch" or "full", as of `read_parquet_weights`.

    Raises:
        FormatError: (a ValueError) the file is broken.
        ValueError: the weights are not those of such a model.
        OSError: there is no Parquet file.

    Usage: `vae = load_diffusers_model(AutoencoderKL, "checkpoint", subfolder="vae")`
    """
    path = find_weights(name_or_path, hub)
    if path is None:
        raise OSError(f"{name_or_path} must hold {PARQUET_NAME} or {PARQUET_INDEX_NAME}")
    with init_empty_weights():  # parameters alone: buffers that are not saved keep their values
        model: Any = cls.from_config(cls.load_config(name_or_path, **hub))
    try:
        model.load_state_dict(decoded(read_parquet_weights(path, verify_weights)), assign=True)
    except RuntimeError as error:
        raise ValueError(f"the weights must be those of {cls.__name__} in config.json: {error}") from None
    model.register_to_config(_name_or_path=os.fspath(name_or_path))
    return model.eval()


def coded(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors of two and more axes as INT8 codes, inputs last, a scale for each output and tap; and roles by name.

    The taps of a kernel differ in size: with one scale for all, the small ones would drown in the step of the large.
    """
    found: dict[str, Tensor] = {}
    roles: dict[str, str] = {}
    for name, tensor in tensors.items():
        if tensor.ndim < 2 or not tensor.is_floating_point():
            found[name] = tensor
            continue
        inputs_last = tensor.movedim(1, -1)
        packed, scale = quantize(inputs_last.flatten(0, -2), bits=8)
        found |= {name: packed.view(inputs_last.shape), name + SCALE_SUFFIX: scale}
        roles |= {name: "packed", name + SCALE_SUFFIX: "scale"}
    return found, roles


def decoded(weights: ParquetWeights | ShardedParquetWeights) -> dict[str, Tensor]:
    """The tensors of a file, codes among them dequantized; ValueError for codes without scales of the right shape."""
    found = {}
    for name, tensor in weights.items():
        role = weights.roles[name]
        if role == "packed":
            scale = weights.get(name + SCALE_SUFFIX)
            rows = tensor.shape[:-1].numel()
            if tensor.ndim < 2 or scale is None or scale.shape != (rows, 1):
                shape = None if scale is None else tuple(scale.shape)
                raise ValueError(f"codes {name!r} of shape {tuple(tensor.shape)} need one scale a row, got {shape}")
            values = dequantize(tensor.reshape(rows, -1), scale, bits=8)
            tensor = values.view(tensor.shape).movedim(-1, 1).contiguous()
        if role != "scale":
            found[name] = tensor
    return found
