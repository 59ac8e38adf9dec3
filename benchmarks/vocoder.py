"""Resynthesis of held-out speech: from sound to tokens and back, by the vocoder, by Griffin-Lim, and not at all.

    python benchmarks/vocoder.py --vocoder runs/vocoder/model --rows 40

Sentences and half of the voices are held out. Each row is judged as it was (the ceiling), through the vocoder, through
Griffin-Lim (the yardstick), and, as a control, through the vocoder with tokens in random order. Joe and the recorded
woman are reported apart; she has no transcript, so that what Whisper hears in the original counts as what she said.
"""

import random
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time

import torch
from latency import peak_bytes
from measure import Mean, Row, argument_parser, report, start
from speech_evaluators import SpeakerEncoder, SpeechRecognizer, dnsmos, edits, plain_words
from torch import Tensor
from tqdm.auto import tqdm

from hf_unified_diffusion.codecs.audio_codec import AudioCodec
from hf_unified_diffusion.codecs.mel import SAMPLING_RATE_HZ, STD, log_mel
from hf_unified_diffusion.modeling.embedded import EMBEDDED_CHECKPOINT
from hf_unified_diffusion.modeling.vocoder import UnifiedVocoderModel
from hf_unified_diffusion.quantization import bits_per_weight, num_weights
from hf_unified_diffusion.training.speech_clips import read_flac, read_rows
from hf_unified_diffusion.training.speech_plan import HELD_OUT_VOICES

ORIGINAL, VOCODER, GRIFFIN_LIM = "original (ceiling)", "vocoder", "Griffin-Lim (yardstick)"
SHUFFLED = "control: vocoder, tokens in random order"
SPEED_SECONDS = 10


def group_of(voice: str) -> str:
    """How a row is reported."""
    if voice in ("joe", "asterisk"):
        return {"joe": "joe (Piper)", "asterisk": "a recorded woman"}[voice]
    return "held-out voices" if voice in HELD_OUT_VOICES else "seen voices"


def held_out_rows(shards: Path, rows: int) -> list[dict]:
    """Rows of the test split, as many of each group as there are, up to `rows`.

    Raises ValueError where there are none.
    """
    found: dict[str, list[dict]] = {}
    for path in sorted((shards / "test").glob("*.parquet")):
        for row in read_rows(path):
            found.setdefault(group_of(row["voice"]), []).append(row)
    if not found:
        raise ValueError(f"there must be held-out speech (make data-speech), got none in {shards / 'test'}")
    return [row for group in found.values() for row in group[:rows]]


def ways(codec: AudioCodec, yardstick: AudioCodec) -> dict[str, Callable[[Tensor], Tensor]]:
    """What a sound (samples,) goes through."""

    def shuffled(sound: Tensor) -> Tensor:
        tokens = codec.encode(sound[None])
        order = list(range(tokens.shape[1]))
        random.Random(0).shuffle(order)
        return codec.decode(tokens[:, order])[0]

    return {
        ORIGINAL: lambda sound: sound,
        VOCODER: lambda sound: codec.decode(codec.encode(sound[None]))[0],
        GRIFFIN_LIM: lambda sound: yardstick.decode(yardstick.encode(sound[None]))[0],
        SHUFFLED: shuffled,
    }


class Judge:
    """All that is measured of one sound beside the original."""

    def __init__(self):
        self.recognize, self.encode = SpeechRecognizer(), SpeakerEncoder()

    def __call__(self, made: Tensor, original: Tensor, words: list[str], vector: Tensor) -> dict[str, float]:
        heard = plain_words(self.recognize(made))
        letters, heard_letters = " ".join(words), " ".join(heard)
        length = min(len(made), len(original))
        mels = [log_mel(sound[None, : length // 300 * 300]) for sound in (made, original)]
        return {
            "DNSMOS": dnsmos(made)["overall"],
            "word errors": edits(words, heard),
            "words": len(words),
            "letter errors": edits(letters, heard_letters),
            "letters": len(letters),
            "similarity": float(self.encode(made) @ vector),
            "log-mel distance, nats": float((mels[0] - mels[1]).abs().mean()) * STD,
        }


def judged(rows: list[dict], codec: AudioCodec, yardstick: AudioCodec) -> list[dict]:
    """Every row through every way."""
    judge, found = Judge(), []
    for row in tqdm(rows, desc="judging"):
        sound = read_flac(row["audio"])
        words = plain_words(row["text"] or judge.recognize(sound))
        vector = judge.encode(sound)
        for way, through in ways(codec, yardstick).items():
            found.append({"voices": group_of(row["voice"]), "way": way, **judge(through(sound), sound, words, vector)})
    return found


def summary(found: list[dict]) -> list[Row]:
    """Means by group and way; error rates are of all words and letters together."""
    rows: list[Row] = []
    for voices in ("all of the teacher", *sorted({row["voices"] for row in found})):
        teacher = ("seen voices", "held-out voices")
        for way in (ORIGINAL, VOCODER, GRIFFIN_LIM, SHUFFLED):
            wanted = teacher if voices == "all of the teacher" else (voices,)
            of_way = [row for row in found if row["way"] == way and row["voices"] in wanted]
            if not of_way:
                continue
            total = {name: sum(row[name] for row in of_way) for name in ("words", "letters")}
            rows.append(
                {
                    "voices": voices,
                    "way": way,
                    "clips": len(of_way),
                    "DNSMOS": Mean.of([row["DNSMOS"] for row in of_way]),
                    "WER": sum(row["word errors"] for row in of_way) / total["words"],
                    "CER": sum(row["letter errors"] for row in of_way) / total["letters"],
                    "words": total["words"],
                    "similarity": Mean.of([row["similarity"] for row in of_way]),
                    "log-mel distance, nats": Mean.of([row["log-mel distance, nats"] for row in of_way]),
                }
            )
    return rows


def fallen(rows: list[Row]) -> list[Row]:
    """What the vocoder loses beside the original, on the teacher's voices."""
    by_way = {row["way"]: row for row in rows if row["voices"] == "all of the teacher"}
    return [
        {
            "way": way,
            "DNSMOS lost": by_way[ORIGINAL]["DNSMOS"].value - by_way[way]["DNSMOS"].value,
            "WER gained": by_way[way]["WER"] - by_way[ORIGINAL]["WER"],
            "clips": by_way[way]["clips"],
        }
        for way in (VOCODER, GRIFFIN_LIM, SHUFFLED)
    ]


def speed(codec: AudioCodec, yardstick: AudioCodec, repeats: int = 5) -> list[Row]:
    """Decoding 10 s: the best of some times, by the wall and by the process' own clock."""
    tokens = codec.encode(torch.randn(1, SPEED_SECONDS * SAMPLING_RATE_HZ) * 0.05)
    rows: list[Row] = []
    for name, one in ((VOCODER, codec), (GRIFFIN_LIM, yardstick)):
        wall, own = [], []
        for _ in range(repeats):
            began, began_own = perf_counter(), process_time()
            one.decode(tokens)
            wall.append(perf_counter() - began)
            own.append(process_time() - began_own)
        rows.append(
            {
                "way": name,
                "wall s": min(wall),
                "CPU s": min(own),
                "times faster than real time": SPEED_SECONDS / min(wall),
                "times, by CPU time": SPEED_SECONDS / min(own),
                "peak resident, MB": peak_bytes() / 1e6,
            }
        )
    return rows


if __name__ == "__main__":
    parser = argument_parser(__doc__)
    parser.add_argument("--vocoder", type=Path, default=EMBEDDED_CHECKPOINT / "vocoder")
    parser.add_argument("--shards", type=Path, default=Path("data/speech"))
    parser.add_argument("--rows", type=int, default=40, help="of each group of voices")
    args, shown = start(parser)
    shown["vocoder"] = args.vocoder.name
    vocoder = UnifiedVocoderModel.from_pretrained(args.vocoder, dtype=torch.float32).eval()
    codec, yardstick = AudioCodec(vocoder), AudioCodec()
    with torch.inference_mode():
        speeds = speed(codec, yardstick)  # before the judges take memory
        rows = summary(judged(held_out_rows(args.shards, args.rows), codec, yardstick))
    report(
        "vocoder",
        {"Resynthesis": rows, "Lost beside the original": fallen(rows), "Decoding 10 s": speeds},
        shown,
        [
            f"Vocoder: {num_weights(vocoder) / 1e6:.2f}M parameters, {bits_per_weight(vocoder):.2f} bits per weight.",
            "Numbers and abbreviations are spelled out in both texts before words are compared.",
            "Peak memory is of the whole process with torch in it, before the judges are loaded.",
        ],
        args.output,
    )
