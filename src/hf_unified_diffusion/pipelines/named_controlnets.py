"""ControlNets that lie in the folder of a model, asked for by name."""

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from ..modeling.controlnet import UnifiedControlNetModel
from ..modeling.embedded import EMBEDDED_CHECKPOINT

TOOLS, REASONING = "tools", "reasoning"  # what fills calls of tools with the right values, what answers in steps
CONTROLNETS = "controlnets"  # a folder in the folder of a model, with one for each name


class NamedControlNets:
    """The ControlNets of a model folder, each loaded when it is first asked for.

    Usage: `pipe("User: Wake me at 06:30.\\nCall:\\n", tools=tools, controlnet=NamedControlNets()["tools"])`
    """

    def __init__(self, folder: str | Path | None = EMBEDDED_CHECKPOINT):
        self._folder = None if folder is None else Path(folder) / CONTROLNETS
        self._loaded: dict[str, UnifiedControlNetModel] = {}
        self._loading = Lock()

    @property
    def names(self) -> list[str]:
        """Those that are there."""
        if self._folder is None or not self._folder.is_dir():
            return []
        return sorted(path.parent.name for path in self._folder.glob("*/config.json"))

    def __getitem__(self, name: str) -> UnifiedControlNetModel:
        """One of them, ready for inference.

        Raises:
            ValueError: none has this name.
        """
        if self._folder is None or name not in self.names:
            raise ValueError(f"controlnet must be one that comes with the checkpoint, {self.names}, got {name!r}")
        with self._loading:
            if name not in self._loaded:
                self._loaded[name] = UnifiedControlNetModel.from_pretrained(self._folder / name).eval()
            return self._loaded[name]

    def resolve(self, controlnet: Any, device: torch.device) -> Any:
        """Names replaced by what they name, on a device, alone or in a list; anything else as it is."""
        if isinstance(controlnet, str):
            return self[controlnet].to(device)
        if isinstance(controlnet, Sequence):
            return [self.resolve(each, device) for each in controlnet]
        return controlnet
