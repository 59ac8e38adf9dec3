"""Speech of the shards, as waveforms and random clips; shards that come while a run reads them are found."""

import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch
from datasets import Dataset
from jaxtyping import Float
from torch import Tensor

GAIN_DB = 6.0  # clips are up to this much louder or quieter than the shards


def read_flac(content: bytes) -> Float[Tensor, "samples"]:
    """Samples in [-1, 1] of a FLAC of the shards."""
    return torch.from_numpy(soundfile.read(io.BytesIO(content), dtype="float32")[0])


def read_rows(path: Path) -> Iterator[dict]:
    """The rows of a shard, as `speech_corpus.SpeechRow` has them.

    Usage: `[row["text"] for row in read_rows(Path("data/speech/test/kokoro-0000.parquet"))]`
    """
    with tempfile.TemporaryDirectory() as cache:
        yield from Dataset.from_parquet(str(path), cache_dir=cache, keep_in_memory=True)


class SpeechClips:
    """Random clips of the speech in a folder of shards.

    Raises:
        FileNotFoundError: there is no shard yet.

    Usage:
        clips = SpeechClips(Path("data/speech/train"), clip_samples=19_200, seed=0)
        waveforms = clips.batch(8)
    """

    def __init__(self, folder: Path, clip_samples: int, seed: int):
        self.folder, self.clip_samples = folder, clip_samples
        self.rng = np.random.default_rng(seed)
        self.read: set[Path] = set()
        self.sounds: list[Tensor] = []
        self.refresh()
        if not self.sounds:
            raise FileNotFoundError(f"there must be shards of speech (make data-speech), got none in {folder}")

    @property
    def seconds(self) -> float:
        """How much speech was read, at 24 kHz."""
        return sum(map(len, self.sounds)) / 24_000

    def refresh(self) -> None:
        """Read the shards that are new."""
        for path in sorted(set(self.folder.glob("*.parquet")) - self.read):
            self.sounds += [read_flac(row["audio"]) for row in read_rows(path)]
            self.read.add(path)

    def batch(self, size: int) -> Float[Tensor, "size samples"]:
        """Clips from anywhere, long sounds more often; shorter ones end in silence."""
        lengths = np.array([len(sound) for sound in self.sounds])
        chosen = self.rng.choice(len(self.sounds), size, p=lengths / lengths.sum())
        clips = torch.zeros(size, self.clip_samples)
        for row, index in enumerate(chosen):
            start = int(self.rng.integers(max(1, lengths[index] - self.clip_samples + 1)))
            part = self.sounds[index][start : start + self.clip_samples]
            gain = 10 ** (self.rng.uniform(-GAIN_DB, GAIN_DB) / 20)
            clips[row, : len(part)] = (part * gain).clamp(-1, 1)
        return clips
