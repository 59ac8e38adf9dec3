"""`hf-unified-diffusion generate | infill | draw | speak | bench`: the engine with its defaults."""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from .codecs.avatar_track import AvatarTrack
from .codecs.avatar_view import write_gif
from .contracts import Result
from .engine import ArrowEngine
from .media_files import wav_bytes
from .pipelines.checkpoints import EMBEDDED_CHECKPOINT

MARK = "____"
BENCH_PROMPT = "The history of the bicycle"
NUMBERS = {  # option -> type and help; what is left out is the engine's own default
    "max_new_tokens": (int, "the most tokens to write"),
    "num_steps": (int, "denoising passes"),
    "guidance_scale": (float, "above 1: closer to the prompt, with twice the passes"),
    "temperature": (float, "0 takes the likeliest"),
    "top_k": (int, "draw among so many tokens"),
    "top_p": (float, "draw among the likeliest of so much probability"),
    "seed": (int, "the same seed gives the same output"),
    "height": (int, "in pixels"),
    "width": (int, "in pixels"),
    "speaker_guidance_scale": (float, "above 1: closer to the voice of the reference"),
    "speed": (float, "2 is twice as fast"),
    "num_candidates": (int, "make so many, and keep the one that the network finds likeliest"),
}
SAMPLING = ("temperature", "top_k", "top_p")
TAKES = {
    "generate": ("max_new_tokens", "num_steps", "guidance_scale", *SAMPLING, "seed"),
    "infill": ("max_new_tokens", "num_steps", "guidance_scale", *SAMPLING, "seed"),
    "draw": ("num_steps", "guidance_scale", "height", "width", "num_candidates", "seed"),
    "speak": ("num_steps", "guidance_scale", "speaker_guidance_scale", "speed", "num_candidates", "seed"),
    "bench": ("max_new_tokens", "num_steps", "seed"),
}


def add_generate(commands: Any) -> None:
    """The arguments of all that generates."""
    for command in (generate, infill, draw, speak, bench):
        name = command.__name__
        subparser = commands.add_parser(name, help=command.__doc__, description=command.__doc__)
        subparser.set_defaults(command=command)
        subparser.add_argument("--checkpoint", default=str(EMBEDDED_CHECKPOINT), help="a folder; default: embedded")
        subparser.add_argument("--device", help="such as cuda; default: the CPU")
        subparser.add_argument("--json", action="store_true", help="print one JSON object")
        for option in TAKES[name]:
            kind, told = NUMBERS[option]
            subparser.add_argument(f"--{option.replace('_', '-')}", type=kind, help=told)
        if command is not bench:
            subparser.add_argument("text", nargs="?", help="default: standard input")
            is_file = command in (draw, speak)
            told = "PNG or JPEG" if command is draw else "WAV" if command is speak else "default: standard output"
            subparser.add_argument("--output", "-o", type=Path, required=is_file, help=f"a file to write ({told})")
        if command in (generate, infill):
            subparser.add_argument("--modality", choices=("text", "code"), default="text")
        if command is generate:
            subparser.add_argument("--mode", choices=("diffusion", "ar"), default="diffusion")
            subparser.add_argument("--ar-model", help="name, folder or GGUF file, for --mode ar")
            subparser.add_argument("--stop", action="append", help="a string that ends the text; may be repeated")
            subparser.add_argument("--json-schema", type=Path, help="a file; what is written is such a document")
        if command in (generate, draw):
            what = "its texts steer what is written" if command is generate else "its pictures steer what is drawn"
            subparser.add_argument("--memory", type=Path, help=f"a folder of `memory add`: {what}")
            subparser.add_argument("--namespace", help="whose memories")
            subparser.add_argument("--memory-strength", type=float, help="0 (none) to 10; default: 1")
        if command is draw:
            told = "let what the checkpoint itself remembers lead; default: as it says"
            subparser.add_argument("--own-memory", action=argparse.BooleanOptionalAction, help=told)
        if command is generate:
            told = "write so many texts, and keep the one that the memories say most about; default: 1"
            subparser.add_argument("--memory-candidates", type=int, help=told)
        if command is infill:
            subparser.add_argument("--mark", default=MARK, help="what stands for the gap (default: %(default)s)")
        if command is speak:
            subparser.add_argument("--avatar", type=Path, help="a file for the mouth track (JSON or CSV)")
            subparser.add_argument("--fps", type=float, help="frames a second of the mouth track; default: 20")
            subparser.add_argument("--face", type=Path, help="a file for the face that speaks (GIF)")
            subparser.add_argument("--reference-audio", type=Path, help="1 to 30 s of the voice to speak in")
            subparser.add_argument("--reference-text", help="what is said in it, word by word")
        if command is bench:
            subparser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")


def generate(chosen: argparse.Namespace) -> None:
    """Write after a prompt, which is given or read from standard input."""
    prompt = text_of(chosen)
    options = {**numbers_of(chosen), "stop": chosen.stop}
    if chosen.json_schema is not None:
        options["json_schema"] = json.loads(chosen.json_schema.read_text())
    steering = memory_of(chosen)
    options = given(options)
    if chosen.mode == "ar":
        unfit = sorted(options.keys() & {"num_steps", "guidance_scale", "json_schema"}) + ["memory"] * bool(steering)
        if unfit:
            raise ValueError(f"{', '.join(unfit)} must be left out with --mode ar")
        options |= {"stop_strings": options.pop("stop")} if "stop" in options else {}
        text = str(engine_of(chosen, ar_model=chosen.ar_model).generate(prompt, mode="ar", **options))
        write_text(chosen, text, {"text": text, "mode": "ar"})
        return
    result = diffused(chosen, engine_of(chosen, memory=chosen.memory), prompt, chosen.modality, options | steering)
    write_text(chosen, result.output, facts_of(result))


def infill(chosen: argparse.Namespace) -> None:
    """Write what a mark in a text stands for."""
    text = text_of(chosen)
    if not chosen.mark or text.count(chosen.mark) != 1:
        found = text.count(chosen.mark) if chosen.mark else "an empty mark"
        raise ValueError(f"the text must hold the mark {chosen.mark!r} once, got {found}")
    before, after = text.split(chosen.mark)
    options = {**given(numbers_of(chosen)), "suffix": after}
    result = diffused(chosen, engine_of(chosen), before or None, chosen.modality, options)
    write_text(chosen, result.output, facts_of(result))


def draw(chosen: argparse.Namespace) -> None:
    """Draw a caption into a file."""
    options = given({**numbers_of(chosen), "own_memory": chosen.own_memory}) | memory_of(chosen)
    result = diffused(chosen, engine_of(chosen, memory=chosen.memory), text_of(chosen), "image", options)
    Image.fromarray(result.output).save(chosen.output)
    told(chosen, {"file": str(chosen.output), **facts_of(result, of_text=False)}, str(chosen.output))


def speak(chosen: argparse.Namespace) -> None:
    """Speak a text into a file, and the face that says it into another."""
    voice = {"reference_audio": chosen.reference_audio, "reference_text": chosen.reference_text}
    options = given({**numbers_of(chosen), **voice})
    with_face = chosen.avatar is not None or chosen.face is not None
    if with_face:
        unfit = sorted(options.keys() & {*voice, "speaker_guidance_scale", "speed", "num_candidates"})
        if unfit:
            raise ValueError(f"{', '.join(unfit)} must be left out with --avatar and --face")
    result = diffused(
        chosen, engine_of(chosen), text_of(chosen), ["audio", "avatar"] if with_face else "audio", options
    )
    samples = result.output["audio"] if with_face else result.output
    rate = result.sampling_rate_hz or 0  # speech has one
    chosen.output.write_bytes(wav_bytes(samples, rate))
    facts = {"file": str(chosen.output), **facts_of(result, of_text=False), "seconds": len(samples) / rate}
    if with_face:
        facts |= write_face(chosen, result)
    words = result.extra["words"][0] if with_face else result.extra["alignments"][0].words
    facts["words"] = [asdict(word) for word in words]
    told(chosen, facts, str(chosen.output))


def write_face(chosen: argparse.Namespace, result: Result) -> dict[str, str]:
    """The mouth track and the moving face into the files that were named; gives their names."""
    said = {name: result.extra[name][0] for name in ("words", "phonemes", "visemes")}
    track = AvatarTrack(result.output["avatar"], result.extra["avatar_rate_hz"], **said)
    files = {}
    if chosen.avatar is not None:
        files["avatar"] = str((track if chosen.fps is None else track.at(chosen.fps)).write(chosen.avatar))
    if chosen.face is not None:
        files["face"] = str(write_gif(track, chosen.face))
    return files


def bench(chosen: argparse.Namespace) -> None:
    """Time the engine on this machine: loading, and writing one text again and again."""
    if chosen.repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {chosen.repeats}")
    begin = perf_counter()
    engine = engine_of(chosen)
    loading, options, taken, tokens = perf_counter() - begin, given(numbers_of(chosen)), [], 0
    options.setdefault("seed", 0)
    for turn in range(chosen.repeats + 1):
        begin = perf_counter()
        result = diffused(chosen, engine, BENCH_PROMPT, "text", options)
        tokens = len(result.extra["completion_ids"][0])
        if turn:  # the first one warms up
            taken.append(perf_counter() - begin)
    seconds = median(taken)
    facts = {
        "load_s": round(loading, 3),
        "tokens": tokens,
        "passes": result.extra["num_forward_passes"],
        "text_s": round(seconds, 3),
        "tokens_per_s": round(tokens / seconds, 2),
        "threads": torch.get_num_threads(),
    }
    told(chosen, facts, "\n".join(f"{name:<14} {value}" for name, value in facts.items()))


def memory_of(chosen: argparse.Namespace) -> dict[str, Any]:
    """How the engine is to be guided by the memory that was named; empty where none was."""
    asked = ("namespace", "memory_strength", "memory_candidates")
    options = given({name: getattr(chosen, name, None) for name in asked})
    if chosen.memory is None:
        if options:
            raise ValueError(f"{' and '.join(options)} need --memory, got none")
        return {}
    if not chosen.memory.is_dir():
        raise ValueError(f"memory must be a folder, got {str(chosen.memory)!r}")
    return {"memory_guided": True, **options}


def engine_of(chosen: argparse.Namespace, **options: Any) -> ArrowEngine:
    """The engine of the checkpoint that was chosen."""
    if not (Path(chosen.checkpoint) / "config.json").is_file():
        raise ValueError(f"checkpoint must be a folder with a config.json, got {chosen.checkpoint!r}")
    return ArrowEngine.from_pretrained(chosen.checkpoint, device=chosen.device, **options)


def diffused(
    chosen: argparse.Namespace,
    engine: ArrowEngine,
    prompt: str | None,
    modality: str | list[str],
    options: dict[str, Any],
) -> Result:
    """What the engine makes, its steps counted on standard error where that is a terminal."""
    with tqdm(unit="step", file=sys.stderr, disable=None, leave=False) as bar:
        return engine.diffuse(prompt, modality, return_result=True, callback_on_step_end=counting(bar), **options)


def counting(bar: tqdm) -> Callable[..., dict[str, Any]]:
    """A callback that moves a bar by one each step."""

    def count(pipe: Any, step: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        bar.update()
        return tensors

    return count


def text_of(chosen: argparse.Namespace) -> str:
    """The text on the command line, else all of standard input but the line feed at its end."""
    text = sys.stdin.read().removesuffix("\n") if chosen.text is None else chosen.text
    if not text:
        raise ValueError("text must be given as an argument or on standard input, got none")
    return text


def numbers_of(chosen: argparse.Namespace) -> dict[str, Any]:
    """The numbers that the command takes, None where one was left out."""
    return {name: getattr(chosen, name) for name in TAKES[chosen.command.__name__]}


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Options without what was left out."""
    return {name: value for name, value in options.items() if value is not None}


def facts_of(result: Result, of_text: bool = True) -> dict[str, Any]:
    """A result as JSON has it."""
    facts: dict[str, Any] = {"text": result.output} if of_text else {}
    facts |= {"seed": result.seed, "passes": result.extra["num_forward_passes"]}
    recalled = result.extra.get("recalled")
    if recalled is not None:
        facts["recalled"] = [{"id": memory.id, "score": memory.score} for memory in recalled]
    return facts


def write_text(chosen: argparse.Namespace, text: str, facts: dict[str, Any]) -> None:
    """A text to the file that was named, else to standard output."""
    if chosen.output is None:
        told(chosen, facts, text)
        return
    chosen.output.write_text(text + "\n")
    if chosen.json:
        told(chosen, {**facts, "file": str(chosen.output)}, "")


def told(chosen: argparse.Namespace, facts: dict[str, Any], line: str) -> None:
    """Print what came of it, as JSON where that was asked for."""
    print(json.dumps(facts, ensure_ascii=False) if chosen.json else line)
