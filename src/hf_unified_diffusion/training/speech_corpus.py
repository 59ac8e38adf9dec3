"""Speech in Parquet shards: spoken by the teacher, trimmed, brought to one level, with the times of its phonemes."""

import io
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile
import torch
from datasets import Dataset, Features, List, Value
from tqdm.auto import tqdm

from ..codecs.loudness import levelled, spoken_span
from ..codecs.mel import SAMPLING_RATE_HZ
from ..codecs.phonemes import pronounce
from .data_sources import SPEECH_SOURCES_FILE, load_packages
from .speech_clips import read_flac, read_rows
from .speech_plan import HELD_OUT_VOICES, SPLITS, Line, plan_lines

if TYPE_CHECKING:  # it needs packages that only building the corpus does
    from .speech_teacher import KokoroTeacher

SHARD_ROWS = 16  # about a minute of speech
FEATURES = Features(
    {
        "audio": Value("binary"),
        "text": Value("string"),
        "phonemes": List(Value("string")),
        "phoneme_ends_s": List(Value("float32")),
        "voice": Value("string"),
        "source": Value("string"),
        "licence": Value("string"),
    }
)


@dataclass(frozen=True)
class SpeechRow:
    """A row of the shards.

    Attributes:
        audio: FLAC, 16 bits, 24 kHz, mono; speech at -25 dB, silence around it cut to 50 ms.
        text: as written; empty where nobody wrote it down.
        phonemes: symbols that were spoken.
        phoneme_ends_s: where each symbol ends, in seconds; empty where it is not known.
        voice: whose, for all rows of a speaker the same.
    """

    audio: bytes
    text: str
    phonemes: list[str]
    phoneme_ends_s: list[float]
    voice: str
    source: str
    licence: str


def flac(waveform: torch.Tensor) -> bytes:
    """24 kHz samples in [-1, 1] as 16 bit FLAC."""
    stream = io.BytesIO()
    soundfile.write(stream, waveform.numpy(), SAMPLING_RATE_HZ, format="FLAC", subtype="PCM_16")
    return stream.getvalue()


def speech_row(
    waveform: np.ndarray,
    ends_s: Iterable[float],
    text: str,
    phonemes: Iterable[str],
    voice: str,
    source: str,
    licence: str,
) -> SpeechRow:
    """A row of 24 kHz samples: trimmed to what is spoken, levelled, the times moved with it."""
    sound = torch.from_numpy(np.ascontiguousarray(waveform, np.float32))
    start, end = spoken_span(sound)
    seconds = (end - start) / SAMPLING_RATE_HZ
    ends = [min(seconds, max(0.0, float(time) - start / SAMPLING_RATE_HZ)) for time in ends_s]
    return SpeechRow(flac(levelled(sound[start:end])), text, list(phonemes), ends, voice, source, licence)


def spoken_lines(lines: Iterable[Line], teacher: "KokoroTeacher") -> Iterator[SpeechRow]:
    """What the teacher says of the lines; ValueError where a text has phonemes that it does not know, or too many."""
    for line in lines:
        symbols = pronounce(line.text).symbols
        voices = [teacher.voices[name] for name in line.voices]
        style = voices[0] if len(voices) == 1 else line.share * voices[0] + (1 - line.share) * voices[1]
        said = teacher.say(symbols, style, line.speed)
        yield speech_row(said.waveform, said.ends_s, line.text, symbols, line.voice, "kokoro", "Apache-2.0")


def write_shard(rows: Iterable[SpeechRow], path: Path) -> None:
    """Write a shard beside its place and move it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = [asdict(row) for row in rows]
    partial = path.with_name(f".{path.name}.partial")
    columns = {column: [row[column] for row in found] for column in FEATURES}
    Dataset.from_dict(columns, features=FEATURES).to_parquet(partial)
    partial.rename(path)


def shard_order(counts: dict[str, int]) -> list[tuple[str, int]]:
    """(split, number of the shard), the splits spread evenly, so that what is done at any time is a sample of all."""
    shards = {split: -(-count // SHARD_ROWS) for split, count in counts.items()}
    places = [
        ((number + 0.5 * (split == "train")) / of_split, split, number)  # held-out ones first
        for split, of_split in shards.items()
        for number in range(of_split)
    ]
    return [(split, number) for _, split, number in sorted(places)]


def speak_corpus(
    folder: Path, texts: Path, teacher: "KokoroTeacher", counts: dict[str, int], mixes: list[tuple[str, str, float]]
) -> None:
    """Write the shards `folder/{split}/kokoro-{number}.parquet` that are not there yet.

    Stop it whenever you like; it goes on with the shard that was not finished.

    Args:
        folder: of the speech corpus.
        texts: folder of the text corpus.
        teacher: a `KokoroTeacher`.
        counts: rows of each split.
        mixes: pairs of voices and the share of the first, further speakers of train.

    Usage: `speak_corpus(Path("data/speech"), Path("data/shards"), teacher, {"train": 900, "test": 112}, [])`
    """
    voices = sorted(teacher.voices)
    lines = {split: plan_lines(split, texts, voices, mixes, count) for split, count in counts.items()}
    bar = tqdm(total=sum(map(len, lines.values())), unit="lines", desc="speech")
    for split, number in shard_order(counts):
        path = folder / split / f"kokoro-{number:04d}.parquet"
        of_shard = lines[split][number * SHARD_ROWS : (number + 1) * SHARD_ROWS]
        if not path.exists():
            write_shard(counted(spoken_lines(of_shard, teacher), bar), path)
        else:
            bar.update(len(of_shard))
    bar.close()


def counted(rows: Iterable[SpeechRow], bar: tqdm) -> Iterator[SpeechRow]:
    """The rows, the bar moving with them."""
    for row in rows:
        bar.update()
        yield row


def measure_speech(folder: Path) -> list[dict]:
    """How much speech the shards hold, by split, source and licence: rows, minutes, voices.

    Usage: `measure_speech(Path("data/speech"))`
    """
    found: dict[tuple[str, str, str], list[tuple[float, str]]] = defaultdict(list)
    for split in SPLITS:
        for path in sorted((folder / split).glob("*.parquet")):
            for row in read_rows(path):
                seconds = len(read_flac(row["audio"])) / SAMPLING_RATE_HZ
                found[split, row["source"], row["licence"]].append((seconds, row["voice"]))
    return [
        {
            "split": split,
            "source": source,
            "licence": licence,
            "rows": len(rows),
            "minutes": round(sum(seconds for seconds, _ in rows) / 60, 2),
            "voices": sorted({voice for _, voice in rows}),
        }
        for (split, source, licence), rows in found.items()
    ]


def write_speech_report(found: list[dict], folder: Path) -> Path:
    """Write speech_data_report.json and .md into the folder; return the path of the latter."""
    packages = load_packages(SPEECH_SOURCES_FILE)
    lines = [
        "# Speech",
        "",
        "Written by `make data-speech` (`examples/prepare_speech.py`): 24 kHz, mono, 16 bit FLAC, speech at -25 dB to "
        "full scale, silence around it cut to 50 ms. Held-out voices of the teacher: "
        f"{', '.join(HELD_OUT_VOICES)}; they are in test alone, as are joe and asterisk.",
        "",
        "| split | source | licence | rows | minutes | voices |",
        "|---|---|---|---|---|---|",
        *(
            f"| {row['split']} | {row['source']} | {row['licence']} | {row['rows']} | {row['minutes']} "
            f"| {len(row['voices'])} |"
            for row in found
        ),
        "",
        "Packages: " + ", ".join(f"{p.name} {p.version} ({p.licence}, {p.kind})" for p in packages) + ".",
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "speech_data_report.json").write_text(json.dumps(found, indent=1) + "\n")
    path = folder / "speech_data_report.md"
    path.write_text("\n".join(lines) + "\n")
    return path
