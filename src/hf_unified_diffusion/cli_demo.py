"""`hf-unified-diffusion demo`: what a checkpoint does, each from its fixed seed."""

import argparse
from pathlib import Path
from time import perf_counter
from typing import Any

from .cli_demo_media import show_media
from .pipelines.named_controlnets import REASONING, TOOLS, NamedControlNets
from .pipelines.pipeline_code import UnifiedDiffusionCodePipeline
from .pipelines.pipeline_text import UnifiedDiffusionTextPipeline

DOCSTRING = 'def count_words(text):\n    """Return how often each word occurs in the text, as a dictionary."""\n'
QUESTION = "Question: Mia has 26 stamps and finds 7 more. How many stamps does Mia have?"
REQUEST = "User: Wake me at 06:30 on 2026-12-01.\nCall:\n"


def tool(name: str, **arguments: dict[str, Any]) -> dict[str, Any]:
    """A tool as a chat template of transformers takes it, all its arguments required."""
    parameters = {"type": "object", "properties": arguments, "required": list(arguments), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


ALARM = tool("set_alarm", time={"type": "string"}, date={"type": "string"})
MUSIC = tool("play_music", artist={"type": "string"}, volume={"type": "integer"})
CHECKED = {"check_drafts": True, "block_length": 8, "top_p": 0.9}
GREEDY = {"check_drafts": True, "block_length": 8, "num_inference_steps": 8, "max_new_tokens": 64, "temperature": 0.0}
STORIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Text from a prompt, drafts checked by the causal path": (
        "text",
        {
            "prompt": "The history of the bicycle",
            "max_new_tokens": 48,
            "num_inference_steps": 6,
            "temperature": 0.9,
            **CHECKED,
        },
    ),
    "Text from a prompt, diffusion alone": (
        "text",
        {"prompt": "The history of the bicycle", "max_new_tokens": 32, "block_length": 4, "num_inference_steps": 32},
    ),
    "A gap between given words": (
        "text",
        {"prompt": "She opened the door and", "suffix": " so she went back inside.", "max_new_tokens": 8},
    ),
    "A function from its docstring, drafts checked by the causal path": (
        "code",
        {"prompt": DOCSTRING, "max_new_tokens": 96, "num_inference_steps": 12, "temperature": 0.3, **CHECKED},
    ),
    "A call of a tool, under its schema and the ControlNet for tools": (
        "text",
        {"prompt": REQUEST, "tools": [MUSIC, ALARM], "controlnet": TOOLS, **GREEDY},
    ),
    "An answer in steps, under the ControlNet for reasoning": (
        "text",
        {"prompt": QUESTION, "controlnet": REASONING, "stop": "\n\n", **GREEDY},
    ),
}


def checkpoint_folder(chosen: argparse.Namespace) -> str:
    """The folder that was chosen; ValueError where it holds no checkpoint."""
    if not (Path(chosen.folder) / "config.json").is_file():
        raise ValueError(f"folder must hold a checkpoint (config.json), got {chosen.folder!r}")
    return chosen.folder


def demo(chosen: argparse.Namespace) -> None:
    """Print a text, an infill, a function and what the ControlNets do; draw and speak where the checkpoint can.

    Everything is from a fixed seed.
    """
    folder = checkpoint_folder(chosen)
    writer = UnifiedDiffusionTextPipeline.from_pretrained(folder)
    writers = {"text": writer, "code": UnifiedDiffusionCodePipeline(**writer.components)}
    controlnets = NamedControlNets(folder)
    for title, (modality, request) in STORIES.items():
        if request.get("controlnet") not in (None, *controlnets.names):
            continue
        start = perf_counter()
        options = request | {"controlnet": controlnets.resolve(request.get("controlnet"), writer.transformer.device)}
        writers[modality].set_progress_bar_config(disable=True)
        output = writers[modality](**options, seed=0)
        seconds = perf_counter() - start
        num_tokens = len(output.completion_ids[0])
        print(f"== {title}: {num_tokens} tokens, {output.num_forward_passes} passes, {seconds:.1f} s")
        print(f"{output.texts[0]}\n")
    show_media(folder, writer.transformer.checkpoint_facts, chosen.output)
