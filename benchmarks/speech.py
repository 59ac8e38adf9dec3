"""Speech: what a recogniser hears, who it sounds like, how good it sounds, and how its pitch moves.

    python benchmarks/speech.py --checkpoint runs/unified/speech/model --rows 100
    python benchmarks/speech.py --only_ceilings   # the yardsticks alone, without a network

Rows are of the test split: held-out sentences by voices that training heard ("seen voices"), by the teacher's others
("cloned voices") and by people ("recorded voices"), as many of each. Each is spoken behind another row of its voice.
Ceilings go through the same judges: the recording, and what the codec makes of it. Controls must be bad: each sound
judged by another row's text, and by another voice.
"""

import argparse
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import librosa
import numpy
from jaxtyping import Float
from measure import Mean, argument_parser, report, start
from speech_evaluators import SpeakerEncoder, SpeechRecognizer, dnsmos, edits, plain_words
from torch import Tensor
from tqdm.auto import tqdm

from hf_unified_diffusion import UnifiedDiffusionSpeechPipeline
from hf_unified_diffusion.codecs.audio_codec import AudioCodec
from hf_unified_diffusion.training.speech_data import SpeechShards, open_speech, places_by_voice
from hf_unified_diffusion.training.speech_plan import HELD_OUT_VOICES

TEACHER = "kokoro"
SHORTEST_REFERENCE_S, LONGEST_REFERENCE_S = 3.0, 8.0
PITCHES_HZ = (60.0, 500.0)
Waveform = Float[Tensor, "samples"]


@dataclass(frozen=True)
class Case:
    """A sentence to be spoken: the recording of it, and another of the same voice, with its words."""

    text: str
    voice: str
    recording: Waveform
    reference: Waveform
    reference_text: str

    kind: str


def kind_of(row: Mapping[str, str]) -> str:
    """Whether training heard the voice, another of its teacher's, or no recording of anybody."""
    if row["source"] != TEACHER:
        return "recorded voices"
    return "cloned voices" if row["voice"].split("*")[0] in HELD_OUT_VOICES else "seen voices"


def in_turns(groups: Iterable[Sequence[int]]) -> list[int]:
    """The first of each group, then the second of each, and so on."""
    return [place for turn in zip_longest(*groups) for place in turn if place is not None]


def cases_of(shards: SpeechShards, count: int) -> list[Case]:
    """Rows with words: kinds of voices in turns, and within a kind its voices.

    The reference is the longest other row of the voice that is of a fitting length.
    """
    seconds = shards.lengths / AudioCodec.tokens_per_second
    references: dict[int, int] = {}
    groups: dict[str, list[list[int]]] = defaultdict(list)
    for places in places_by_voice(shards).values():
        fitting = [place for place in places if SHORTEST_REFERENCE_S <= seconds[place] <= LONGEST_REFERENCE_S]
        fitting.sort(key=lambda place: -seconds[place])
        best = {place: next((other for other in fitting if other != place), None) for place in places}
        usable = [place for place in places if shards.table[place]["text"] and best[place] is not None]
        if usable:
            references |= {place: best[place] for place in usable}
            groups[kind_of(shards.table[usable[0]])].append(usable)
    cases = []
    for place in in_turns([in_turns(voices) for voices in groups.values()])[:count]:
        row, best_one = shards.table[place], references[place]
        sounds = shards.waveform(place), shards.waveform(best_one)
        cases.append(Case(row["text"], row["voice"], *sounds, shards.table[best_one]["text"], kind_of(row)))
    return cases


@dataclass(frozen=True)
class Judged:
    """What judges say of one sound."""

    words: list[str]
    vector: Float[Tensor, "256"]
    quality: float
    pitch_hz: float
    pitch_range: float  # standard deviation in semitones


class Judges:
    """All judges, loaded once."""

    def __init__(self, threads: int):
        self.recognize, self.encode = SpeechRecognizer(threads), SpeakerEncoder()

    def __call__(self, sound: Waveform) -> Judged:
        pitch, range_ = pitch_of(sound)
        words = plain_words(self.recognize(sound))
        return Judged(words, self.encode(sound), dnsmos(sound)["overall"], pitch, range_)


def pitch_of(sound: Waveform) -> tuple[float, float]:
    """Median pitch in Hz and its deviation in semitones, by YIN over frames that sound (10.1121/1.1458024)."""
    samples = sound.numpy()
    pitch = librosa.yin(samples, fmin=PITCHES_HZ[0], fmax=PITCHES_HZ[1], sr=24_000, frame_length=2048)
    loud = librosa.feature.rms(y=samples, frame_length=2048)[0][: len(pitch)]
    kept = pitch[(loud > 0.1 * loud.max()) & (pitch < 0.98 * PITCHES_HZ[1])]
    if not len(kept):
        return math.nan, math.nan
    middle = float(numpy.median(kept))
    return middle, float(numpy.std(12 * numpy.log2(kept / middle)))


def figures(name: str, judged: list[Judged], cases: list[Case], like: list[Judged]) -> dict[str, object]:
    """One line of the table: words against the texts of the cases, voices against those of `like`."""
    wanted = [plain_words(case.text) for case in cases]
    wrong = sum(edits(words, found.words) for words, found in zip(wanted, judged, strict=True))
    letters = [("".join(words), "".join(found.words)) for words, found in zip(wanted, judged, strict=True)]
    similar = [float(found.vector @ other.vector) for found, other in zip(judged, like, strict=True)]
    semitones = [abs(12 * math.log2(f.pitch_hz / o.pitch_hz)) for f, o in zip(judged, like, strict=True)]
    return {
        "what": name,
        "rows": len(cases),
        "WER %": 100 * wrong / sum(map(len, wanted)),
        "CER %": 100 * sum(edits(*pair) for pair in letters) / sum(len(pair[0]) for pair in letters),
        "similarity": Mean.of(similar),
        "DNSMOS": Mean.of([found.quality for found in judged]),
        "pitch off, semitones": Mean.of([value for value in semitones if math.isfinite(value)]),
        "pitch range, semitones": Mean.of([found.pitch_range for found in judged if math.isfinite(found.pitch_range)]),
    }


def shifted(items: list) -> list:
    """Each with the one before it."""
    return [items[-1], *items[:-1]]


def another_voice(cases: list[Case], references: list[Judged]) -> list[Judged]:
    """For each case the reference of the next one of another voice."""
    found = []
    for place, case in enumerate(cases):
        order = [*range(place + 1, len(cases)), *range(place)]
        found.append(next(references[other] for other in order if cases[other].voice != case.voice))
    return found


def spoken_by(pipe: UnifiedDiffusionSpeechPipeline, args: argparse.Namespace) -> Callable[[Case], Waveform]:
    """Speaks a case behind its reference."""

    def speak(case: Case) -> Waveform:
        options = {"num_inference_steps": args.steps, "num_candidates": args.candidates, "seed": args.seed}
        output = pipe(
            case.text, reference_audio=case.reference, reference_text=case.reference_text, output_type="pt", **options
        )
        return output.audios[0]

    return speak


def lines_of(
    name: str, cases: list[Case], speakers: dict[str, Callable[[Case], Waveform]], judges: Judges
) -> Iterable[dict[str, object]]:
    """The table of one kind of voices: ceilings, speakers, and the controls of each."""
    if not cases:
        return
    references = [judges(case.reference) for case in tqdm(cases, desc=f"{name}: references")]
    for speaker, speak in speakers.items():
        judged = [judges(speak(case).detach().float().cpu()) for case in tqdm(cases, desc=f"{name}: {speaker}")]
        yield figures(f"{name}: {speaker}", judged, cases, references)
        if speaker in ("recording", "ours") and len({case.voice for case in cases}) > 1:
            yield figures(f"{name}: {speaker}, control: other text", judged, shifted(cases), references)
            others = another_voice(cases, references)
            yield figures(f"{name}: {speaker}, control: other voice", judged, cases, others)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--speech", type=Path, default=Path("data/speech"))
    parser.add_argument("--rows", type=int, default=100, help="of all kinds of voices together")
    parser.add_argument("--steps", type=int, help="default: the checkpoint's")
    parser.add_argument("--candidates", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of the recogniser")
    parser.add_argument("--only_ceilings", action="store_true")
    args, settings = start(parser)
    settings["speech"] = args.speech.name
    shards = open_speech((args.speech / "test").glob("*.parquet"), Path("runs") / "speech_cache")
    cases = cases_of(shards, args.rows)
    griffin_lim = AudioCodec()
    speakers: dict[str, Callable[[Case], Waveform]] = {
        "recording": lambda case: case.recording,
        "Griffin-Lim of its mels": lambda case: griffin_lim.decode(griffin_lim.encode(case.recording[None]))[0],
    }
    if not args.only_ceilings:
        pipe = UnifiedDiffusionSpeechPipeline.from_pretrained(args.checkpoint).to(args.device)
        pipe.set_progress_bar_config(disable=True)
        if pipe.vocoder is not None:
            codec = pipe.codec
            speakers["vocoder of its mels"] = lambda case: codec.decode(codec.encode(case.recording[None]))[0]
        speakers["ours"] = spoken_by(pipe, args)
    judges, table = Judges(args.threads), []
    for kind in dict.fromkeys(case.kind for case in cases):
        table += lines_of(kind, [case for case in cases if case.kind == kind], speakers, judges)
    notes = [
        "Similarity is to the reference, another utterance of the voice: that of the recordings is what a speaker has "
        "with himself. Words are compared with numbers and abbreviations spelled out.",
    ]
    report("speech", {"Held-out sentences": table}, settings, notes, args.output)


if __name__ == "__main__":
    main()
