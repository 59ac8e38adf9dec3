"""What tests of the memory share: unit vectors, and the bytes of a folder."""

from pathlib import Path

import numpy as np

WIDTH = 16


def vectors(count: int, seed: int = 0, width: int = WIDTH) -> np.ndarray:
    """Random unit vectors, float32."""
    rows = np.random.default_rng(seed).standard_normal((count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def nearest(query: np.ndarray, rows: np.ndarray, k: int) -> list[int]:
    """Positions of the k nearest rows by inner product, best first."""
    return np.argsort(-(rows @ query), kind="stable")[:k].tolist()


def texts(count: int) -> list[str]:
    """Texts that tell which row they belong to."""
    return [f"memory of row {i}" for i in range(count)]


def found_in(folder: Path, needle: bytes) -> list[str]:
    """Names of the files below a folder that hold some bytes."""
    return [file.name for file in sorted(folder.rglob("*")) if file.is_file() and needle in file.read_bytes()]
