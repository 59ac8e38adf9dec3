"""Speech of a kind, in shards as of the data script: every phoneme a tone of its own, every voice a colour of it."""

import io
from pathlib import Path

import numpy as np
import soundfile
from datasets import Dataset, Features, List, Value

from hf_unified_diffusion import UnifiedDiffusionConfig, UnifiedDiffusionModel
from hf_unified_diffusion.codecs.phonemes import SYMBOLS, pronounce
from tests.training.tiny_training import TINY_SHAPE

RATE, SECONDS = 24_000, 0.06
TEXTS = ("A cat sat.", "No more tea.", "Go home now.", "Big red fish.", "Who saw it?", "We ran far.")
VOICES = {"low": (1.0, 0.2), "high": (0.2, 1.0)}
FEATURES = Features(
    {name: Value("string") for name in ("text", "voice", "source", "licence")}
    | {"audio": Value("binary"), "phonemes": List(Value("string")), "phoneme_ends_s": List(Value("float32"))}
)
MODALITIES = {
    "text": {"kind": "token"},
    "code": {"kind": "token"},
    "audio": {"kind": "continuous", "width": 400},
    "avatar": {"kind": "continuous", "width": 52},
}


def tones(symbols: tuple[str, ...], voice: str) -> np.ndarray:
    """Each symbol as 60 ms of a tone and its octaves."""
    time, colour = np.arange(int(RATE * SECONDS)) / RATE, VOICES[voice]
    pitches = [150 + 40 * SYMBOLS.index(symbol) for symbol in symbols]
    return np.concatenate(
        [sum(level * np.sin(2 * np.pi * hz * (k + 1) * time) for k, level in enumerate(colour)) / 4 for hz in pitches]
    ).astype(np.float32)


def row(text: str, voice: str) -> dict:
    """One utterance."""
    symbols, stream = pronounce(text).symbols, io.BytesIO()
    soundfile.write(stream, tones(symbols, voice), RATE, format="FLAC")
    ends = [SECONDS * (k + 1) for k in range(len(symbols))]
    names = {"text": text, "voice": voice, "source": "tones", "licence": "CC0-1.0"}
    return {**names, "audio": stream.getvalue(), "phonemes": list(symbols), "phoneme_ends_s": ends}


def write_speech(folder: Path, splits: dict[str, int]) -> Path:
    """Shards of so many texts a split, said by both voices; no text is in two splits."""
    first = 0
    for split, count in splits.items():
        rows = [row(text, voice) for text in TEXTS[first : first + count] for voice in VOICES]
        (folder / split).mkdir(parents=True, exist_ok=True)
        columns = {name: [each[name] for each in rows] for name in FEATURES}
        Dataset.from_dict(columns, features=FEATURES).to_parquet(str(folder / split / "tones.parquet"))
        first += count
    return folder


def speech_model(vocab_size: int, **changes) -> UnifiedDiffusionModel:
    """As before training, with heads for sound and face."""
    shape = {**TINY_SHAPE, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, **changes}
    config = UnifiedDiffusionConfig(
        vocab_size=vocab_size, mask_token_id=vocab_size - 1, bos_token_id=0, **{**shape, "modalities": MODALITIES}
    )
    return UnifiedDiffusionModel(config)
