"""Speech shards: utterances with their phonemes, as rows of sound tokens behind a reference of the same voice."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor
from transformers import PreTrainedTokenizerFast

from ..codecs.audio_codec import SAMPLES_PER_TOKEN, AudioCodec
from ..codecs.avatar_codec import AvatarCodec
from ..codecs.durations import middles, phoneme_places
from ..codecs.mel import SAMPLING_RATE_HZ
from ..codecs.phonemes import PhonemeCodec
from ..codecs.speech_layout import Reference, SpeechRow
from ..processes import spawn_generators
from .avatar_targets import row_face

if TYPE_CHECKING:
    from datasets import Dataset

COLUMNS = ("audio", "text", "phonemes", "phoneme_ends_s", "voice", "source")


@dataclass(frozen=True)
class SpeechBatch:
    """Clean utterances, each behind what is told of it.

    Attributes:
        rows: phonemes and reference of each, none where they are dropped for guidance.
        sounds: tokens of each, float32 (tokens, 400).
        faces: tokens of each one's face on the same clock, float32 (tokens, 52), or None.
        bos_token_id: begins every context.
    """

    rows: list[SpeechRow]
    sounds: list[Float[Tensor, "tokens width"]]
    faces: list[Float[Tensor, "tokens 52"]] | None
    bos_token_id: int
    modality: str = "audio"

    @property
    def num_tokens(self) -> int:
        """Tokens of sound in it; neither references nor phonemes are counted."""
        return sum(map(len, self.sounds))

    def with_others_texts(self) -> "SpeechBatch":
        """Each utterance with the phonemes of the one before it."""
        others = [self.rows[-1], *self.rows[:-1]]
        rows = [
            replace(
                row,
                phoneme_ids=other.phoneme_ids,
                places=[at * row.num_tokens / other.num_tokens for at in other.places],
            )
            for row, other in zip(self.rows, others, strict=True)
        ]
        return replace(self, rows=rows)


class Utterances(Protocol):
    """Utterances by their places: what `SpokenRows` reads, from Parquet shards or from packs."""

    @property
    def lengths(self) -> Int[np.ndarray, "rows"]:
        """Tokens of sound of each, int64."""
        ...

    @property
    def voices(self) -> list[str]:
        """Whose voice each is in."""
        ...

    def symbols(self, place: int) -> Sequence[str]:
        """Phonemes of an utterance."""
        ...

    def ends_s(self, place: int) -> Sequence[float]:
        """Where each of its phonemes ends, in seconds; empty where that is not known."""
        ...

    def sound(self, place: int) -> Float[Tensor, "tokens width"]:
        """Its tokens of sound."""
        ...

    def face(self, place: int) -> Float[Tensor, "tokens 52"]:
        """The tokens of its face; ValueError where they are not known."""
        ...


@dataclass(frozen=True)
class SpeechShards:
    """Utterances in a memory-mapped table.

    Attributes:
        table: columns `COLUMNS`; `audio` is FLAC of 24 kHz, mono.
        lengths: tokens of sound of each, int64.
        voices: of each.
    """

    table: "Dataset"
    lengths: Int[np.ndarray, "rows"]
    voices: list[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "voices", list(self.table["voice"]))

    def __len__(self) -> int:
        return len(self.table)

    def symbols(self, place: int) -> Sequence[str]:
        """As `Utterances` says."""
        return self.table[place]["phonemes"]

    def ends_s(self, place: int) -> Sequence[float]:
        """As `Utterances` says."""
        return self.table[place]["phoneme_ends_s"]

    def sound(self, place: int) -> Float[Tensor, "tokens width"]:
        """As `Utterances` says."""
        return AudioCodec().encode(self.waveform(place)[None])[0]

    def face(self, place: int) -> Float[Tensor, "tokens 52"]:
        """As `Utterances` says; the same each time."""
        return face(self.table[place], int(self.lengths[place]))

    def waveform(self, place: int) -> Float[Tensor, "samples"]:
        """The samples of an utterance."""
        return decoded(self.table[place]["audio"])


def places_by_voice(shards: Utterances) -> dict[str, list[int]]:
    """The places of each voice's utterances, in their order.

    Usage: `places_by_voice(open_speech(files, cache))["af_heart"]`
    """
    places: dict[str, list[int]] = {}
    for place, voice in enumerate(shards.voices):
        places.setdefault(voice, []).append(place)
    return places


def batches_of(lengths: Int[np.ndarray, "rows"], tokens: int, generator: Generator) -> list[list[int]]:
    """All places in micro-batches of about equal lengths, of at most `tokens` tokens with padding, in an order."""
    jitter = 0.9 + 0.2 * torch.rand(len(lengths), generator=generator).numpy()
    batches: list[list[int]] = []
    longest = 0
    for place in np.argsort(lengths * jitter):
        longest = max(longest, int(lengths[place]))
        if not batches or (len(batches[-1]) + 1) * longest > tokens:
            batches.append([])
            longest = int(lengths[place])
        batches[-1].append(int(place))
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def open_speech(files: Iterable[Path], cache_dir: Path) -> SpeechShards:
    """Map Parquet shards of speech (columns as in `SpeechShards`) through an Arrow copy under `cache_dir`.

    Raises:
        ValueError: no file, no row, a column that is missing, or sound of another rate or several channels.

    Usage: `open_speech(Path("data/speech/train").glob("*.parquet"), Path("runs/speech"))`
    """
    import soundfile  # as datasets here, where it is needed: a machine that trains on packs has neither
    from datasets import Dataset

    names = sorted(str(file) for file in files)
    if not names:
        raise ValueError("speech needs at least one Parquet file, got none")
    table = Dataset.from_parquet(names, cache_dir=str(cache_dir))
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing or not len(table):
        raise ValueError(f"speech shards must have rows of {COLUMNS}, got {len(table)} without {missing} in {names}")
    infos = [soundfile.info(io.BytesIO(row["audio"])) for row in table.select_columns(["audio"])]
    wrong = {(info.samplerate, info.channels) for info in infos} - {(SAMPLING_RATE_HZ, 1)}
    if wrong:
        raise ValueError(f"speech must be of {SAMPLING_RATE_HZ} Hz and 1 channel, got {sorted(wrong)} in {names}")
    return SpeechShards(table, np.array([-(-info.frames // SAMPLES_PER_TOKEN) for info in infos]))


def decoded(audio: bytes) -> Float[Tensor, "samples"]:
    """The samples of a sound file of one channel."""
    import soundfile

    samples, _ = soundfile.read(io.BytesIO(audio), dtype="float32")
    return torch.from_numpy(samples)


@dataclass(frozen=True)
class SpokenRows:
    """Micro-batches of speech: what `TrainingRun` reads of the modality "audio".

    Attributes:
        shards: where they come from.
        tokenizer: whose tokens stand for phonemes.
        tokens: of sound in a micro-batch, at most, but one utterance at least.
        text_dropout: the share of utterances of which nothing is told, for guidance (arXiv:2207.12598).
        reference_dropout: the share of micro-batches without references; in the rest each utterance has another one of
            its voice. One draw serves a micro-batch, since a row without one would be padded to those that have.
        wordless: of those with references, the share that is not told what they say: as where nobody knows the words.
        max_reference_tokens: longer utterances are no references.
        faces: whether each utterance comes with its face, from the times of its phonemes.

    Raises:
        ValueError: a number is out of its range.

    Usage: `SpokenRows(open_speech(files, cache), tokenizer).batch(turn=0, seed=0)`
    """

    shards: Utterances
    tokenizer: PreTrainedTokenizerFast
    tokens: int = 1024
    text_dropout: float = 0.1
    reference_dropout: float = 0.3
    wordless: float = 0.5
    max_reference_tokens: int = 160
    faces: bool = False
    modality: str = "audio"
    phonemes: PhonemeCodec = field(init=False)
    by_voice: dict[str, list[int]] = field(init=False)

    def __post_init__(self) -> None:
        for name in ("tokens", "max_reference_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("text_dropout", "reference_dropout", "wordless"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        object.__setattr__(self, "by_voice", places_by_voice(self.shards))
        object.__setattr__(self, "phonemes", PhonemeCodec(self.tokenizer))

    def batch(self, turn: int, seed: int, process: int = 0, num_processes: int = 1) -> SpeechBatch:
        """The micro-batch a process takes in its turn; processes take turns, so that none reads another's rows."""
        number, epoch = turn * num_processes + process, 0
        while True:  # epochs differ by a batch or so in length
            batches = batches_of(self.shards.lengths, self.tokens, Generator().manual_seed(seed * 1_000_003 + epoch))
            if number < len(batches):
                break
            number, epoch = number - len(batches), epoch + 1
        (generator,) = spawn_generators(seed, 1, first=turn * num_processes + process)
        return self.rows_of(batches[number], generator)

    def rows_of(self, places: Sequence[int], generator: Generator) -> SpeechBatch:
        """Some utterances as a batch; the generator decides what is told of each."""
        sounds = [self.shards.sound(place) for place in places]
        rows = []
        no_reference, no_words = torch.rand(2, generator=generator).tolist()
        for place, sound in zip(places, sounds, strict=True):
            no_text, which = torch.rand(2, generator=generator).tolist()
            if no_text < self.text_dropout:
                rows.append(SpeechRow((), len(sound)))
                continue
            reference = None if no_reference < self.reference_dropout else self.reference(place, which)
            if reference is not None and no_words < self.wordless:
                reference = Reference((), reference.sound, ())
            ids, at = self.said(place, len(sound))
            rows.append(SpeechRow(ids, len(sound), at, reference))
        faces = [self.shards.face(place) for place in places] if self.faces else None
        return SpeechBatch(rows, sounds, faces, self.tokenizer.bos_token_id)

    def reference(self, place: int, which: float) -> Reference | None:
        """Another utterance of the same voice, by a number in [0, 1); None where there is no other."""
        short = self.shards.lengths <= self.max_reference_tokens
        others = [other for other in self.by_voice[self.shards.voices[place]] if other != place and short[other]]
        if not others:
            return None
        other = others[int(which * len(others))]
        sound = self.shards.sound(other)
        ids, at = self.said(other, len(sound))
        return Reference(ids, sound, at)

    def said(self, place: int, num_tokens: int) -> tuple[Sequence[int], Sequence[float]]:
        """Tokens of an utterance's phonemes, and where they are: at their true times, if these are known."""
        symbols, ends_s = self.shards.symbols(place), self.shards.ends_s(place)
        return self.phonemes.encode(symbols), middles(ends_s) if len(ends_s) else phoneme_places(symbols, num_tokens)


def face(row: dict, num_tokens: int) -> Float[Tensor, "tokens 52"]:
    """The face of an utterance, from the times of its phonemes; ValueError where they are not known."""
    if not row["phoneme_ends_s"]:
        raise ValueError(f"a face needs the times of the phonemes, got none for {row['text'][:40]!r}")
    track = row_face(row, decoded(row["audio"]).numpy(), num_tokens)
    return AvatarCodec().encode(torch.from_numpy(track)[None])[0]
