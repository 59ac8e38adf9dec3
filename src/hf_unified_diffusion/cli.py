"""The console script `hf-unified-diffusion`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from .cli_memory import add_memory, memory
from .conversion.convert import CONVERTED_BITS, convert_checkpoint
from .memory import StorageError
from .modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from .pipelines.checkpoints import EMBEDDED_CHECKPOINT
from .pipelines.pipeline_code import UnifiedDiffusionCodePipeline
from .pipelines.pipeline_text import UnifiedDiffusionTextPipeline
from .quantization import num_weights
from .quantization.configuration_arrowquant import WEIGHTS_FORMATS

WEIGHT_FILES = ("*.safetensors", "*.parquet")
DOCSTRING = 'def count_words(text):\n    """Return how often each word occurs in the text, as a dictionary."""\n'
CHECKED = {"check_drafts": True, "block_length": 8, "num_inference_steps": 8, "temperature": 0.0}
STORIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Text from a prompt, drafts checked by the causal path": (
        "text",
        {"prompt": "The history of the bicycle", "max_new_tokens": 48, **CHECKED},
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
        {"prompt": DOCSTRING, "max_new_tokens": 64, **CHECKED},
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one subcommand; ends the process with a message where an argument is wrong.

    Usage: `hf-unified-diffusion info`
    """
    parser = argparse.ArgumentParser(prog="hf-unified-diffusion", description="Text and code by diffusion.")
    commands = parser.add_subparsers(required=True, metavar="command")
    for command in (demo, info):
        subparser = commands.add_parser(command.__name__, help=command.__doc__, description=command.__doc__)
        subparser.add_argument("folder", nargs="?", default=str(EMBEDDED_CHECKPOINT), help="default: the embedded one")
        subparser.set_defaults(command=command)
    add_convert(commands)
    add_memory(commands)
    chosen = parser.parse_args(arguments)
    if chosen.command in (convert, memory):
        try:
            chosen.command(chosen)
        except ValueError as error:
            parser.error(str(error))
        except (StorageError, ImportError) as error:
            parser.exit(1, f"{parser.prog}: {error}\n")
        return
    if not (Path(chosen.folder) / "config.json").is_file():
        parser.error(f"folder must hold a checkpoint (config.json), got {chosen.folder!r}")
    chosen.command(chosen.folder)


def add_convert(commands: Any) -> None:
    """The arguments of `convert`."""
    subparser = commands.add_parser("convert", help=convert.__doc__, description=convert.__doc__)
    subparser.add_argument("source", type=Path, help="a checkpoint folder")
    subparser.add_argument("destination", type=Path, help="a folder that does not exist yet")
    subparser.add_argument("--format", choices=WEIGHTS_FORMATS, default="parquet")
    subparser.add_argument("--bits", type=int, choices=CONVERTED_BITS, help="default: the weights as they are")
    subparser.add_argument("--group_size", type=int, default=64, help="columns that share a scale at 4 bits")
    subparser.add_argument("--dry_run", action="store_true", help="report, and write nothing")
    subparser.set_defaults(command=convert)


def convert(chosen: argparse.Namespace) -> None:
    """Write a checkpoint as safetensors or Parquet, at its own width or another."""
    report = convert_checkpoint(
        chosen.source, chosen.destination, chosen.format, chosen.bits, chosen.group_size, chosen.dry_run
    )
    print("\n".join(report.lines()))


def demo(folder: str) -> None:
    """Print a text, an infill and a function, each from its fixed seed."""
    writer = UnifiedDiffusionTextPipeline.from_pretrained(folder)
    writers = {"text": writer, "code": UnifiedDiffusionCodePipeline(**writer.components)}
    for title, (modality, request) in STORIES.items():
        writers[modality].set_progress_bar_config(disable=True)
        start = perf_counter()
        output = writers[modality](**request, seed=0)
        seconds = perf_counter() - start
        num_tokens = len(output.completion_ids[0])
        print(f"== {title}: {num_tokens} tokens, {output.num_forward_passes} passes, {seconds:.1f} s")
        print(f"{output.texts[0]}\n")


def info(folder: str) -> None:
    """Print a checkpoint's parameters, the trunk's share of them, and bits per weight on disk."""
    num_bytes = sum(file.stat().st_size for pattern in WEIGHT_FILES for file in Path(folder).glob(pattern))
    model = UnifiedDiffusionModel.from_pretrained(folder)
    num_parameters = num_weights(model)
    print(f"parameters         {num_parameters / 1e6:.1f} M")
    print(f"in the trunk       {num_weights(model.shared_transformer) / num_parameters:.1%}")
    print(f"bits per weight    {8 * num_bytes / num_parameters:.2f}")
    print(f"weights on disk    {num_bytes / 1e6:.1f} MB")
    print(f"layers             {model.config.num_hidden_layers} of width {model.config.hidden_size}")
    print(f"vocabulary         {model.config.vocab_size} tokens")
    print(f"modalities         {', '.join(sorted(model.config.modalities))}")
