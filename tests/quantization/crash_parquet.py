"""Writes weights over older ones and dies, or meets an I/O error, at every step in turn; run by test_parquet_crash.

Steps are Python's own audit events: files opened, renamed and removed. After each, what the folder holds must read as
all of the old weights or all of the new ones. Prints how many steps were tried.
"""

import errno
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from hf_unified_diffusion.quantization import read_parquet_weights, write_parquet_weights
from hf_unified_diffusion.quantization.parquet_index import read_index

NAME = "model.arrowquant.parquet"
BOUNDS = {"one file": None, "two files": 128}
Event = tuple[str, str]


def weights(version: int) -> dict[str, Tensor]:
    return {f"layer.{i}": torch.full((16,), float(version)) for i in range(3)}


def version_of(folder: Path) -> float:
    """The version that a reader of the folder gets, if it is whole: one file before an index, as models load."""
    paths = [path for path in (folder / NAME, folder / f"{NAME}.index.json") if path.exists()]
    found = dict(read_parquet_weights(paths[0], verify="full"))
    versions = {float(value) for tensor in found.values() for value in tensor}
    assert len(found) == 3 and len(versions) == 1, (sorted(os.listdir(folder)), versions)
    return versions.pop()


def orphans(folder: Path) -> list[str]:
    """Files that belong to nobody: temporary ones, and shards without an index."""
    index = folder / f"{NAME}.index.json"
    named = read_index(index).digests if index.exists() else {}
    return [name for name in os.listdir(folder) if ".tmp-" in name or (name.startswith("model-") and name not in named)]


def write_with_a_fault(folder: Path, bound: int | None, step: int, fault: Callable[[], None]) -> list[Event]:
    """Write version 2, with `fault` at the given audit event; returns the events before it and that one."""
    events: list[Event] = []

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event not in ("open", "os.rename", "os.remove") or not str(arguments[0]).startswith(str(folder)):
            return
        events.append((event, str(arguments[0])))
        if len(events) == step:
            fault()

    sys.addaudithook(hook)
    write_parquet_weights(folder / NAME, weights(2), max_shard_bytes=bound)
    return events


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    raise OSError(errno.EIO, "input/output error")


def in_a_child(folder: Path, bound: int | None, step: int, fault: Callable[[], None]) -> int:
    """0: no fault came to pass; 1: an error was reported; -9: killed."""
    child = os.fork()
    if child == 0:
        try:
            write_with_a_fault(folder, bound, step, fault)
        except OSError as error:
            os._exit(1 if error.errno == errno.EIO else 2)
        except BaseException:
            os._exit(2)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(root: Path) -> None:
    steps = 0
    for before, old_bound in BOUNDS.items():
        original = root / before
        original.mkdir()
        write_parquet_weights(original / NAME, weights(1), max_shard_bytes=old_bound)
        for after, bound in BOUNDS.items():
            for fault, expected in ((die, -signal.SIGKILL), (fail, 1)):
                for step in range(1, 1000):
                    folder = root / "folder"
                    shutil.copytree(original, folder)
                    code = in_a_child(folder, bound, step, fault)
                    version, left = version_of(folder), sorted(os.listdir(folder))
                    assert code in (0, expected), (before, after, step, code)
                    assert version in (1, 2) and (code or version == 2), (before, after, step, version)
                    # an error while the old files are removed leaves them behind, any other one nothing
                    strays = [name for name in orphans(folder) if version == 1 or ".tmp-" in name]
                    assert fault is die or strays == [], (before, after, step, left)
                    shutil.rmtree(folder)
                    if code == 0:
                        break
                    steps += 1
    print(steps)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
