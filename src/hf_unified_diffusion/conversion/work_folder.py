"""The work of a conversion beside its destination: finished layers outlive a kill; one process adds at a time."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from ..quantization import FormatError, read_parquet_weights, write_parquet_weights
from ..quantization.parquet_writer import fsync_path

VERSION = 1


class WorkFolder:
    """`DESTINATION.partial`: `job.json` says what is made, `layers` holds what is finished, `result` what is assembled.

    Usage:
        with work_folder(Path("out"), {"bits": 4}) as work:
            ...
            work.publish()
    """

    def __init__(self, destination: Path, path: Path):
        self.destination, self.path = destination, path
        self.layers, self.result = path / "layers", path / "result"

    def begin(self, job: Mapping[str, Any]) -> None:
        """Keep finished layers of the same job, throw away those of another."""
        described, file = json.dumps({"version": VERSION, **job}, sort_keys=True), self.path / "job.json"
        shutil.rmtree(self.result, ignore_errors=True)
        if not file.is_file() or file.read_text() != described:
            shutil.rmtree(self.layers, ignore_errors=True)
            file.write_text(described)
        self.layers.mkdir(exist_ok=True)

    def _file(self, index: int) -> Path:
        return self.layers / f"{index:06d}.parquet"

    def finished_layers(self) -> int:
        """How many layers are there."""
        return sum(1 for _ in self.layers.glob("*.parquet"))

    def put(self, index: int, name: str, tensors: Mapping[str, Tensor], error: float) -> None:
        """Keep a finished layer; it is on the disk when this returns."""
        write_parquet_weights(self._file(index), tensors, {"name": name, "error": error})

    def get(self, index: int, name: str) -> tuple[dict[str, Tensor], float] | None:
        """A finished layer and its error, mapped from its file; None where it is missing, damaged or another one."""
        if not self._file(index).is_file():
            return None
        try:
            weights = read_parquet_weights(self._file(index))
            tensors = dict(weights)  # inside: a tensor is checked when it is first read
        except FormatError:
            return None
        if weights.metadata.get("name") != name:
            return None
        return tensors, float(weights.metadata["error"])

    def publish(self) -> None:
        """Make the result the destination, all of it or nothing, on the disk."""
        for file in self.result.rglob("*"):
            fsync_path(file)
        fsync_path(self.result)
        os.rename(self.result, self.destination)
        fsync_path(self.destination.parent)


@contextmanager
def work_folder(destination: Path, job: Mapping[str, Any]) -> Iterator[WorkFolder]:
    """The work folder of a destination, locked; what is finished stays where the work is broken off.

    Raises ValueError where another process works on the same destination, or it exists.
    """
    path = destination.with_name(f"{destination.name}.partial")
    path.mkdir(parents=True, exist_ok=True)
    work = WorkFolder(destination, path)
    with open(path / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"one conversion at a time may write {str(destination)!r}, got a second one") from None
        try:
            if destination.exists():  # another process may have finished while this one waited to start
                raise ValueError(f"destination must not exist yet, got {str(destination)!r}")
            work.begin(job)
            yield work
        except OSError:
            shutil.rmtree(work.result, ignore_errors=True)  # makes room; the layers let a second run go on
            if not work.finished_layers():
                shutil.rmtree(path)
            raise
        except Exception:
            shutil.rmtree(path)
            raise
        shutil.rmtree(path)
