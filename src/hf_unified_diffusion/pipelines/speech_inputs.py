"""What a request for speech may be, checked once at the door, and its texts in parts that are spoken one by one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..codecs.audio_codec import AudioCodec
from ..codecs.durations import Durations
from ..codecs.phonemes import Pronunciation, pronounce
from ..codecs.sounds import Sound, read_sound
from ..codecs.speech_layout import Reference
from ..conditioning.energy import check_scale
from ..conditioning.guidance import check_eta, check_interval
from .text_inputs import check_choice, check_positive, matched

OUTPUT_TYPES = ("np", "pt", "latent")
SPEEDS = (0.25, 4.0)
SHORTEST_REFERENCE_S = 1.0
LONGEST_PART_S = 12.0  # of a text that is spoken at once
FEWEST_TOKENS = 4
RATES = (0.5, 2.0)  # how far the reference's rate is followed
BREAKS = (".!?…", ";:,—)", " ")  # where a text is parted, the best places first


@dataclass(frozen=True)
class SpeechOptions:
    """How to speak, as in `UnifiedDiffusionSpeechPipeline.__call__`; ValueError where a rule is broken."""

    num_inference_steps: int
    guidance_scale: float
    speaker_guidance_scale: float
    guidance_interval: tuple[float, float]
    guidance_eta: float
    speed: float
    num_audios_per_prompt: int
    num_candidates: int
    output_type: str

    def __post_init__(self) -> None:
        for name in ("num_inference_steps", "num_audios_per_prompt", "num_candidates"):
            check_positive(name, getattr(self, name))
        for scale in (self.guidance_scale, self.speaker_guidance_scale):
            check_scale("guidance_scale", scale)
        check_interval(self.guidance_interval)
        check_eta(self.guidance_eta)
        is_number = isinstance(self.speed, int | float) and not isinstance(self.speed, bool)
        if not (is_number and SPEEDS[0] <= self.speed <= SPEEDS[1]):  # also false for NaN
            raise ValueError(f"speed must be a number in [{SPEEDS[0]}, {SPEEDS[1]}], got {self.speed!r}")
        check_choice("output_type", self.output_type, OUTPUT_TYPES)


@dataclass(frozen=True)
class Voice:
    """A reference, read: what the network sees of it, and how fast it is spoken, 1 being the corpus' rate."""

    reference: Reference
    rate: float


@dataclass(frozen=True)
class Part:
    """What is spoken at once: a sentence or a few, and how many tokens of sound it takes."""

    spoken: Pronunciation
    num_tokens: int


def parts_of(text: str, durations: Durations, rate: float) -> list[Part]:
    """A text in parts of at most 12 s, at a rate.

    Usage: `parts_of("One. Two.", Durations(), rate=1.0)`
    """
    parts = parted(pronounce(text), durations, LONGEST_PART_S * rate)
    return [Part(part, tokens_for(durations.of(part.symbols, rate))) for part in parts]


def tokens_for(seconds: float) -> int:
    """How many tokens of sound an utterance has."""
    return max(FEWEST_TOKENS, math.ceil(seconds * AudioCodec.tokens_per_second))


def parted(spoken: Pronunciation, durations: Durations, longest_s: float, level: int = 0) -> list[Pronunciation]:
    """Parts of at most so many seconds: between sentences, else at commas, else between words; a word stays whole."""
    if durations.of(spoken.symbols) <= longest_s or level == len(BREAKS):
        return [spoken]
    ends = [place + 1 for place, symbol in enumerate(spoken.symbols) if symbol in BREAKS[level]]
    found, start, end = [], 0, 0
    for stop in [*ends, len(spoken.symbols)]:
        if end > start and durations.of(spoken.symbols[start:stop]) > longest_s:
            found.append((start, end))
            start = end
        end = stop
    pieces = [spoken.part(*span) for span in [*found, (start, end)]]
    return [part for piece in pieces if piece.words for part in parted(piece, durations, longest_s, level + 1)]


def gather_voices(
    reference_audio: Sound | Sequence[Sound] | None,
    reference_text: str | Sequence[str] | None,
    sampling_rate_hz: int | None,
    count: int,
    codec: AudioCodec,
    durations: Durations,
) -> list[Voice | None]:
    """The voice of each of `count` prompts; None where any will do.

    Raises:
        ValueError: a text without its reference, counts that do not fit, or a sound that breaks a rule of
            `codecs.sounds.read_sound` or is under 1 s long.
    """
    if reference_audio is None:
        if reference_text is not None or sampling_rate_hz is not None:
            raise ValueError("reference_text and its sampling rate must come with a reference_audio, got them alone")
        return [None] * count
    sounds = list(reference_audio) if isinstance(reference_audio, list | tuple) else [reference_audio]
    if len(sounds) not in (1, count):
        raise ValueError(f"reference_audio must be one or as many as the prompts ({count}), got {len(sounds)}")
    said = matched("reference_text", reference_text, len(sounds))
    texts: Sequence[str | None] = [None] * len(sounds) if said is None else said
    voices = [
        voice_of(read_sound("reference_audio", sound, sampling_rate_hz), text, codec, durations)
        for sound, text in zip(sounds, texts, strict=True)
    ]
    return [*voices] * count if len(voices) == 1 else [*voices]


def voice_of(sound: Float[Tensor, "samples"], text: str | None, codec: AudioCodec, durations: Durations) -> Voice:
    """What the network sees of a reference, and its rate, 1 where its words are not known; ValueError for a short one.

    The words themselves are not told: nobody here knows when they are said.
    """
    seconds = len(sound) / codec.sampling_rate_hz
    if seconds < SHORTEST_REFERENCE_S:
        raise ValueError(f"reference_audio must have at least {SHORTEST_REFERENCE_S:g} s of speech, got {seconds:.2f}")
    (tokens,) = codec.encode(sound[None])
    rate = 1.0 if text is None else durations.rate(pronounce(text).symbols, seconds)
    return Voice(Reference((), tokens, ()), min(max(rate, RATES[0]), RATES[1]))


def check_room(parts: Sequence[Sequence[Part]], voices: Sequence[Voice | None], most: int) -> None:
    """Raise ValueError unless each part and its reference fit the context of `most` tokens."""
    for row, voice in zip(parts, voices, strict=True):
        first = None if voice is None else voice.reference
        given = 1 if first is None else 1 + len(first.phoneme_ids) + len(first.sound)
        if first is None and len(row) > 1:  # the first part is the reference of the others
            given += len(row[0].spoken.symbols) + row[0].num_tokens
        longest = max(len(part.spoken.symbols) + part.num_tokens for part in row)
        if given + longest > most:
            raise ValueError(
                f"prompt, reference and sound must fit the context of {most} tokens, got {given} + {longest}"
            )


def crossfaded(
    sounds: Sequence[Float[Tensor, "samples"]], pause: int, fade: int
) -> tuple[Float[Tensor, "samples"], list[int]]:
    """Sounds one after the other with a pause between, each faded into it and out of it, and where each begins.

    Args:
        pause, fade: samples; the fades are of a raised cosine, whose two halves add up to 1.

    Usage: `waveform, starts = crossfaded([first, second], pause=3600, fade=480)`
    """
    starts, place = [], 0
    for sound in sounds:
        starts.append(place)
        place += len(sound) + pause
    joined = sounds[0].new_zeros(place - pause)
    rise = 0.5 - 0.5 * torch.cos(torch.pi * (torch.arange(fade) + 0.5) / fade).to(joined)
    for number, (sound, start) in enumerate(zip(sounds, starts, strict=True)):
        part, reach = sound.clone(), min(fade, len(sound))
        if number > 0:
            part[:reach] *= rise[:reach]
        if number < len(sounds) - 1:
            part[-reach:] *= rise.flip(0)[-reach:]
        joined[start : start + len(part)] += part
    return joined, starts
