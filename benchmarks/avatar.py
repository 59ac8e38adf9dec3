"""Is the face in time with the sound? Onsets of visemes, closures of P, B and M, and the jaw against the loudness.

    python benchmarks/avatar.py                                                  # target tracks: the ceiling
    python benchmarks/avatar.py --generate --checkpoint FOLDER                   # sound and face generated together

The reference is a forced alignment of the sound that goes with the face (PocketSphinx and the model it carries); for
target tracks also the teacher's own phoneme times. Every figure stands beside that of the same track 100 ms late.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from datasets import Dataset
from forced_alignment import ForcedAligner
from jaxtyping import Float32
from measure import Row, argument_parser, described, report, start
from tqdm.auto import tqdm

from hf_unified_diffusion.codecs.avatar_codec import COEFFICIENTS, TOKENS_PER_SECOND
from hf_unified_diffusion.codecs.viseme_alignment import aligned_visemes
from hf_unified_diffusion.codecs.visemes import CLOSED, timed_visemes
from hf_unified_diffusion.contracts import TimedLabel
from hf_unified_diffusion.pipelines.pipeline_joint import UnifiedDiffusionJointPipeline
from hf_unified_diffusion.training.avatar_targets import envelope, heard_ends, row_face

JAW, CLOSE = COEFFICIENTS.index("jawOpen"), COEFFICIENTS.index("mouthClose")
CLOSED_BELOW = 0.05  # lips count as closed where the jaw opens them less
REACH_S = 0.025  # half a token: a closure between two tokens is seen in one of them
LATE_TOKENS = 2  # 100 ms

Track = Float32[np.ndarray, "tokens 52"]


@dataclass(frozen=True)
class Clip:
    """A sound with its face, and what is said."""

    waveform: Float32[np.ndarray, "samples"]
    track: Track
    text: str
    symbols: Sequence[str] = ()  # with ends_s, the teacher's
    ends_s: Sequence[float] = ()


def target_clips(rows: Dataset) -> list[Clip]:
    """Recorded rows with their target tracks."""
    clips = []
    for row in rows:
        waveform, _ = soundfile.read(io.BytesIO(row["audio"]), dtype="float32")
        tokens = -(-len(waveform) * TOKENS_PER_SECOND // 24000)
        ends = heard_ends(row["phoneme_ends_s"], row["source"])
        clips.append(Clip(waveform, row_face(row, waveform, tokens), row["text"], row["phonemes"], ends))
    return clips


def generated_clips(rows: Dataset, pipe: UnifiedDiffusionJointPipeline, args) -> list[Clip]:
    """Sound and face of the rows' texts, generated together."""
    clips = []
    for number, text in enumerate(tqdm(rows["text"])):
        options = {"num_inference_steps": args.steps, "guidance_scale": args.guidance_scale}
        output = pipe(modality=["audio", "avatar"], text=text, seed=args.seed + number, **options)
        clips.append(Clip(output.audio[0], output.avatar[0], text))
    return clips


def late(track: Track) -> Track:
    """The control: the same track 100 ms late."""
    return np.concatenate([track[:1].repeat(LATE_TOKENS, axis=0), track[:-LATE_TOKENS]])


def onset_errors_ms(track: Track, visemes: Sequence[TimedLabel]) -> list[float]:
    """How far from their times the visemes begin in the track; the first begins with the clip and says nothing."""
    if len(track) * 5 < len(visemes) or len(visemes) < 2:
        return []
    seen = aligned_visemes(track, TOKENS_PER_SECOND, [viseme.label for viseme in visemes])
    pairs = zip(seen[1:], visemes[1:], strict=True)
    return [1000 * abs(found.start_s - expected.start_s) for found, expected in pairs]


def closures(track: Track, visemes: Sequence[TimedLabel]) -> list[bool]:
    """Whether the lips close at each P, B and M."""
    opening = track[:, JAW] - track[:, CLOSE]
    centres = (np.arange(len(track)) + 0.5) / TOKENS_PER_SECOND
    windows = [(v.start_s - REACH_S <= centres) & (centres <= v.end_s + REACH_S) for v in visemes if v.label == CLOSED]
    return [bool(opening[window].min() < CLOSED_BELOW) for window in windows if window.any()]


def jaw_correlation(clip: Clip, track: Track) -> float:
    """Pearson's correlation of the jaw with the loudness in dB."""
    centres = (np.arange(len(track)) + 0.5) / TOKENS_PER_SECOND
    loudness = envelope(clip.waveform, centres)
    return float(np.corrcoef(track[:, JAW], loudness)[0, 1])


def figures(clips: Sequence[Clip], times: Sequence[Sequence[TimedLabel]], change: Callable[[Track], Track]) -> Row:
    """The metrics of tracks against the times of their visemes."""
    tracks = [change(clip.track) for clip in clips]
    errors = [error for track, visemes in zip(tracks, times, strict=True) for error in onset_errors_ms(track, visemes)]
    closed = [found for track, visemes in zip(tracks, times, strict=True) for found in closures(track, visemes)]
    correlations = [jaw_correlation(clip, track) for clip, track in zip(clips, tracks, strict=True)]
    return {
        "visemes": len(errors),
        "onset error ms, median": float(np.median(errors)),
        "onset error ms, 90%": float(np.percentile(errors, 90)),
        "P, B, M": len(closed),
        "closed": float(np.mean(closed)),
        "jaw against loudness": float(np.nanmean(correlations)),
    }


def tables_of(clips: list[Clip], aligner: ForcedAligner) -> dict[str, list[Row]]:
    """Every figure beside that of the late track, against each reference."""
    heard = [(clip, aligner(clip.waveform, clip.text)) for clip in tqdm(clips)]
    found = [(clip, alignment) for clip, alignment in heard if alignment is not None]
    references = {"forced alignment": [timed_visemes(heard.symbols, heard.ends_s) for _, heard in found]}
    kept = [clip for clip, _ in found]
    if all(clip.symbols for clip in kept):
        references["teacher's phoneme times"] = [timed_visemes(clip.symbols, clip.ends_s) for clip in kept]
    rows = [
        {"reference": name, "track": which, "clips": len(kept), **figures(kept, times, change)}
        for name, times in references.items()
        for which, change in (("as it is", lambda track: track), ("100 ms late", late))
    ]
    return {"Face and sound": rows, "Alignments": [{"clips": len(clips), "aligned": len(kept)}]}


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--shards", type=Path, default=Path("data/speech/test"))
    parser.add_argument("--generate", action="store_true", help="measure what --checkpoint generates, not the targets")
    parser.add_argument("--num_clips", type=int, default=100)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--guidance_scale", type=float, default=2.0)
    args, settings = start(parser)
    files = sorted(str(file) for file in args.shards.glob("*.parquet"))
    rows = Dataset.from_parquet(files).filter(bool, input_columns="text")  # some clips have no words
    rows = rows.shuffle(seed=args.seed).select(range(min(args.num_clips, len(rows))))  # of all voices
    checkpoints = []
    if args.generate:
        pipe = UnifiedDiffusionJointPipeline.from_pretrained(args.checkpoint)
        pipe.set_progress_bar_config(disable=True)
        clips = generated_clips(rows, pipe, args)
        checkpoints = [described(pipe.transformer, pipe.tokenizer)]
    else:
        clips = target_clips(rows)
    name = "avatar" if args.generate else "avatar_targets"
    report(name, tables_of(clips, ForcedAligner()), settings, checkpoints, args.output)


if __name__ == "__main__":
    main()
