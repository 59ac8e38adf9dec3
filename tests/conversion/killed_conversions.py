"""Converts one checkpoint three times and is killed each time, by SIGKILL at a chosen place; prints where it was.

python killed_conversions.py SOURCE FOLDER
"""

import os
import signal
import sys
from pathlib import Path

import torch

from hf_unified_diffusion import UnifiedDiffusionModel
from hf_unified_diffusion.conversion.convert import convert_checkpoint
from hf_unified_diffusion.conversion.work_folder import WorkFolder

torch.set_num_threads(1)  # processes are forked below
source, folder = map(Path, sys.argv[1:])
replace, put, save = os.replace, WorkFolder.put, UnifiedDiffusionModel.save_pretrained


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def between_layers(self: WorkFolder, index: int, *given: object) -> None:
    put(self, index, *given)
    if index == 4:
        die()


def inside_a_layer(self: WorkFolder, index: int, *given: object) -> None:
    os.replace = die if index == 4 else replace
    put(self, index, *given)


def inside_the_result(self: UnifiedDiffusionModel, *given: object, **named: object) -> None:
    save(self, *given, **named)
    die()


places = {
    "between_layers": (WorkFolder, "put", between_layers),
    "inside_a_layer": (WorkFolder, "put", inside_a_layer),
    "inside_the_result": (UnifiedDiffusionModel, "save_pretrained", inside_the_result),
}
for name, (owner, method, trap) in places.items():
    child = os.fork()
    if child == 0:
        setattr(owner, method, trap)
        convert_checkpoint(source, folder / name, bits=4, group_size=8)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(name, os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0)
