"""LoRA adapters inside a network: put in, weighted, given to rows of a batch, fused, swapped and taken out. Needs PEFT.

By PEFT's own layers and functions: `load_adapter` of transformers 5.24 asks for a newer PEFT than there is.
"""

import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .adapter_folders import CONFIG_NAME, WEIGHTS_NAME
from .parquet_weights import find_file

BASE = "__base__"  # PEFT's name for a row without an adapter
_PREFIX = "base_model.model."  # of weights in adapter files


def find_adapter(name_or_path: str | os.PathLike[str], **hub: Any) -> Path:
    """The folder of an adapter, a local one or a repository's, fetched.

    Raises OSError where a repository lacks one of the two files.
    """
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    files = [find_file(name_or_path, name, hub) for name in (CONFIG_NAME, WEIGHTS_NAME)]
    if None in files:
        raise OSError(f"an adapter must hold {CONFIG_NAME} and {WEIGHTS_NAME}, got {str(name_or_path)!r}")
    return Path(str(files[0])).parent


def lora_layers(model: nn.Module) -> list[Any]:
    """All layers of the network that hold adapters."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def adapter_names(model: nn.Module) -> list[str]:
    """Names of the adapters inside, in the order in which they came."""
    return list(getattr(model, "peft_config", {}))


def check_names(model: nn.Module, names: Sequence[str]) -> None:
    """Raise ValueError unless all are names of adapters inside."""
    unknown = sorted(set(names) - set(adapter_names(model)))
    if unknown:
        raise ValueError(f"adapters must be among {adapter_names(model)}, got {unknown}")


def check_not_fused(model: nn.Module) -> None:
    """Raise ValueError while adapters are fused: their layers no longer say what was added."""
    if fused := fused_names(model):
        raise ValueError(f"adapters must be unfused first, got {fused} fused into the weights")


def fused_names(model: nn.Module) -> list[str]:
    """Names of the adapters that are fused into the weights."""
    return sorted({name for layer in lora_layers(model) for name in layer.merged_adapters})


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of an adapter folder, by their names in the network."""
    return {key.removeprefix(_PREFIX): value for key, value in load_file(folder / WEIGHTS_NAME).items()}


def inject(model: nn.Module, folder: Path, name: str) -> None:
    """Put an adapter's layers into a network, in place; nothing else of it changes.

    Raises ValueError where its weights do not fit.
    """
    from peft import PeftConfig, inject_adapter_in_model, set_peft_model_state_dict

    check_not_fused(model)
    config = PeftConfig.from_pretrained(str(folder))
    config.inference_mode = True
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several adapters are the point
        inject_adapter_in_model(config, model, adapter_name=name)
    found = set_peft_model_state_dict(model, read_weights(folder), adapter_name=name)
    missing = [key for key in found.missing_keys if f".{name}." in key]
    if missing or found.unexpected_keys:
        raise ValueError(
            f"the weights of {str(folder)!r} must fit the model: {len(missing)} missing, {len(found.unexpected_keys)} "
            f"unknown, such as {[*missing, *found.unexpected_keys][0]!r}"
        )


def swap(model: nn.Module, folder: Path, name: str) -> None:
    """Give an adapter inside the weights of another of the same layers and ranks; no layer is made anew.

    PEFT's `hotswap_adapter` is not used: it finds an adapter's weights by a part of their names and may clear others'.
    Raises ValueError, before anything changes, where layers or ranks differ.
    """
    from peft import PeftConfig

    check_names(model, [name])
    check_not_fused(model)
    config, weights = PeftConfig.from_pretrained(str(folder)), read_weights(folder)
    place = re.compile(rf"(\.lora_\w+)\.{re.escape(name)}(?=\.|$)")  # PEFT puts the name after lora_A, lora_B, ...
    inside = {
        place.sub(r"\1", key): parameter for key, parameter in model.named_parameters() if place.search(key) is not None
    }
    if {key: p.shape for key, p in inside.items()} != {key: value.shape for key, value in weights.items()}:
        raise ValueError(f"a hot swap needs an adapter of the same layers and ranks as {name!r}, got {str(folder)!r}")
    factors = weights_of(model)
    with torch.no_grad():
        for key, parameter in inside.items():
            parameter.copy_(weights[key])
    for layer in lora_layers(model):
        if name in layer.lora_alpha:
            layer.lora_alpha[name], layer.use_rslora[name] = config.lora_alpha, config.use_rslora
            layer.set_scale(name, factors.get(name, 1.0))


def weights_of(model: nn.Module) -> dict[str, float]:
    """The active adapters and the weight of each; {} where none is active."""
    found: dict[str, float] = {}
    for layer in lora_layers(model):
        if not layer.disable_adapters:
            for name in layer.active_adapters:
                if name in layer.scaling:
                    root = math.sqrt(layer.r[name]) if layer.use_rslora.get(name) else layer.r[name]
                    found[name] = layer.scaling[name] * root / layer.lora_alpha[name]
    return found


def activate(model: nn.Module, weights: Mapping[str, float]) -> None:
    """Let these adapters add to the network, each times its weight; {} leaves it as it was without any.

    Raises ValueError for a name that is not inside, and while adapters are fused.
    """
    check_names(model, list(weights))
    check_not_fused(model)
    for layer in lora_layers(model):
        layer.enable_adapters(bool(weights))
        if weights:
            layer.set_adapter(list(weights), inference_mode=True)
            for name, weight in weights.items():
                layer.set_scale(name, weight)


@contextmanager
def per_row(model: nn.Module, names: Sequence[str] | None) -> Iterator[None]:
    """While it lasts, row i of a batch has the adapter names[i] alone, or none where that is `BASE`; None: no change.

    Usage: `with per_row(model, ["poems", BASE]): model(ids)`
    """
    if names is None:
        yield
        return

    def with_names(layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return args, {**kwargs, "adapter_names": list(names)}

    layers = lora_layers(model)
    off = [layer for layer in layers if layer.disable_adapters]
    hooks = [layer.register_forward_pre_hook(with_names, with_kwargs=True) for layer in layers]
    try:
        for layer in off:
            layer._disable_adapters = False
        yield
    finally:
        for layer in off:
            layer._disable_adapters = True
        for hook in hooks:
            hook.remove()


def fuse(model: nn.Module, names: Sequence[str], scale: float = 1.0, safe: bool = False) -> None:
    """Add adapters to the weights, each times its own weight and `scale`; quantized ones keep them beside their codes.

    Args:
        safe: refuse where a weight would not be finite.

    Raises ValueError for names that are not inside or fused already.
    """
    check_names(model, names)
    check_not_fused(model)
    for layer in lora_layers(model):
        for name in names:
            if name in layer.scaling:
                layer.scaling[name] *= scale
        layer.merge(safe_merge=safe, adapter_names=list(names))


def unfuse(model: nn.Module) -> None:
    """Take fused adapters out of the weights again, within rounding.

    Raises ValueError where nothing is fused.
    """
    if not fused_names(model):
        raise ValueError("unfusing needs adapters that are fused, got none")
    for layer in lora_layers(model):
        if layer.merged:
            layer.unmerge()


def remove(model: nn.Module, names: Sequence[str]) -> None:
    """Take adapters out; with the last one its layers go too. Fused ones stay in the weights."""
    check_names(model, names)
    left = [name for name in adapter_names(model) if name not in names]
    config: dict[str, Any] = model.peft_config
    if left:
        active = {name: weight for name, weight in weights_of(model).items() if name in left}
        for layer in lora_layers(model):
            layer.set_adapter(left, inference_mode=True)  # else PEFT picks one, and warns
            for name in names:
                layer.delete_adapter(name)
        for name in names:
            del config[name]
        activate(model, active)
        return
    layers = {id(layer) for layer in lora_layers(model)}
    for name, layer in [(name, module) for name, module in model.named_modules() if id(module) in layers]:
        model.set_submodule(name, layer.get_base_layer())
    del model.peft_config


def save_adapter(model: nn.Module, folder: str | os.PathLike[str], name: str) -> None:
    """Write an adapter as PEFT does; `inject` and `PeftModel.from_pretrained` read it."""
    from peft import get_peft_model_state_dict

    check_names(model, [name])
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        _PREFIX + key: value.detach().cpu().contiguous()
        for key, value in get_peft_model_state_dict(model, adapter_name=name).items()
    }
    save_file(weights, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    model.peft_config[name].save_pretrained(str(folder))
