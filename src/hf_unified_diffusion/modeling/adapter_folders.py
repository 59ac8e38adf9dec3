"""Which model an adapter folder was made for, by what its own files say."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

CONFIG_NAME, WEIGHTS_NAME, PICKLE_NAME = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
SIDES = ("ar", "diffusion")
# in the names of all that adapts a score network (its trunk, where modalities come in and go out), and of nothing else
DIFFUSION_MODULES = ("shared_transformer.", "base_model.model.projections.", "base_model.model.heads.")


def adapter_side(folder: str | Path) -> tuple[str, str]:
    """("ar" or "diffusion", the weight whose name says so) of a PEFT adapter folder.

    Raises:
        ValueError: a folder without configuration or safetensors weights, or weights of both sides.

    Usage: `adapter_side("adapters/poems")  # ("diffusion", "base_model.model.shared_transformer.layers.0...")`
    """
    folder = Path(folder)
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / name).is_file():
            hint = f" ({PICKLE_NAME} holds a pickle and is not read)" if (folder / PICKLE_NAME).exists() else ""
            raise ValueError(f"an adapter folder must hold {name}, got {str(folder)!r} without{hint}")
    try:
        json.loads((folder / CONFIG_NAME).read_text())
        with safe_open(folder / WEIGHTS_NAME, "pt") as weights:
            names = sorted(weights.keys())
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"the files of an adapter must be readable, got {str(folder)!r}: {error}") from None
    sides: dict[str, str] = {}
    for name in names:
        sides.setdefault("diffusion" if any(module in name for module in DIFFUSION_MODULES) else "ar", name)
    if len(sides) != 1:
        raise ValueError(f"{folder / WEIGHTS_NAME} must hold the weights of one side, got those of {sorted(sides)}")
    return next(iter(sides.items()))


def check_adapter_side(folder: str | Path, side: str) -> None:
    """Raise ValueError, naming file and reason, unless the adapter was made for this side.

    Usage: `check_adapter_side("adapters/poems", "ar")`
    """
    made_for, name = adapter_side(folder)
    if made_for != side:
        raise ValueError(
            f"{Path(folder) / WEIGHTS_NAME} holds an adapter for the {made_for!r} side (it has the weight {name!r}), "
            f"it must not be loaded on the {side!r} side"
        )
