"""Small pictures as latents: a caption names the colour, and the colour is a direction of the latent space."""

from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Features, List, Value

from hf_unified_diffusion import UnifiedDiffusionConfig, UnifiedDiffusionModel
from hf_unified_diffusion.training.latent_data import LatentShards, open_latents
from tests.training.tiny_training import TINY_SHAPE

WIDTH = 4
COLOURS = {"red": (1.5, -0.5, 0.0, 0.0), "blue": (-0.5, 1.5, 0.0, 0.0)}
MODALITIES = {
    "text": {"kind": "token"},
    "code": {"kind": "token"},
    "image": {"kind": "continuous", "width": WIDTH},
    "audio": {"kind": "continuous", "width": WIDTH},
}
FEATURES = Features(
    {
        "latents": List(Value("float16")),
        "rows": Value("int32"),
        "columns": Value("int32"),
        "captions": List(Value("string")),
    }
    | {name: Value("string") for name in ("concept", "source", "licence")}
)


def blob(colour: str, rows: int, columns: int, random: np.random.Generator) -> dict:
    """One sample: its tokens are the colour and noise."""
    latents = np.asarray(COLOURS[colour]) + 0.3 * random.standard_normal((rows * columns, WIDTH))
    facts = {"concept": colour, "source": "made here", "licence": "CC0-1.0"}
    return {
        "latents": latents.astype(np.float16).ravel(),
        "rows": rows,
        "columns": columns,
        "captions": [colour, f"a {colour} blob"],
        **facts,
    }


def write_blobs(path: Path, shapes: dict[tuple[int, int], int], seed: int = 0) -> None:
    """A shard with so many samples of each shape, colours in turn."""
    random, names = np.random.default_rng(seed), list(COLOURS)
    samples = [blob(names[i % len(names)], *shape, random) for shape, count in shapes.items() for i in range(count)]
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(samples, features=FEATURES).to_parquet(str(path))


def blobs(folder: Path, shapes: dict[tuple[int, int], int], modality: str = "image") -> LatentShards:
    """The samples of `write_blobs`, opened."""
    write_blobs(folder / "train" / "blobs.parquet", shapes)
    return open_latents(folder.glob("train/*.parquet"), modality, folder / "cache")


def picture_model(**changes) -> UnifiedDiffusionModel:
    """A tiny network with pictures and audio, as training starts it."""
    torch.manual_seed(0)
    shape = {**TINY_SHAPE, "modalities": MODALITIES, **changes}
    return UnifiedDiffusionModel(UnifiedDiffusionConfig(vocab_size=258, mask_token_id=257, **shape)).train()
