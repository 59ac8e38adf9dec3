"""The console script `hf-unified-diffusion`."""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoModel

from .cli_demo import checkpoint_folder, demo
from .cli_generate import add_generate
from .cli_memory import add_memory
from .cli_serve import add_serve
from .conversion.convert import CONVERTED_BITS, convert_checkpoint
from .conversion.graph_export import GRAPH_FILES, GRAPH_WEIGHTS, export_graph
from .modeling.memory_plan import plan_memory, recommended
from .modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from .modeling.tiers import TIERS
from .pipelines.checkpoints import EMBEDDED_CHECKPOINT
from .quantization import num_weights
from .quantization.configuration_arrowquant import WEIGHTS_FORMATS

UNITS = ("", "K", "M", "G", "T")
EXIT_CODES = "Ends with 0 where all went well, 2 for a wrong argument, 1 for what stood in the way."
WEIGHT_FILES = ("*.safetensors", "*.parquet")
EVALUATION = Path(__file__).resolve().parents[2] / "benchmarks" / "evaluate.py"  # of a checkout; wheels do not have it


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one subcommand; ends the process with a message where an argument is wrong.

    Usage: `hf-unified-diffusion info`
    """
    parser = argparse.ArgumentParser(
        prog="hf-unified-diffusion", description="Text, code and pictures by diffusion.", epilog=EXIT_CODES
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    add_generate(commands)
    for command in (demo, info):
        subparser = commands.add_parser(command.__name__, help=command.__doc__, description=command.__doc__)
        subparser.add_argument("folder", nargs="?", default=str(EMBEDDED_CHECKPOINT), help="default: the embedded one")
        subparser.set_defaults(command=command)
        if command is demo:
            told = "folder for pictures and sounds (default: %(default)s)"
            subparser.add_argument("--output", type=Path, default=Path("out/demo"), help=told)
    add_convert(commands)
    add_export(commands)
    add_plan(commands)
    add_memory(commands)
    add_serve(commands)
    subparser = commands.add_parser("eval", help=evaluate.__doc__, add_help=False)
    subparser.set_defaults(command=evaluate)
    chosen, rest = parser.parse_known_args(arguments)
    if chosen.command is evaluate:
        parser.exit(evaluate(rest))
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        chosen.command(chosen)
    except (OSError, ImportError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    except ValueError as error:
        parser.error(str(error))


def add_convert(commands: Any) -> None:
    """The arguments of `convert`."""
    subparser = commands.add_parser("convert", help=convert.__doc__, description=convert.__doc__)
    subparser.add_argument(
        "source", type=Path, help="a checkpoint folder of ours or of a Llama or Qwen, or a .gguf file"
    )
    subparser.add_argument("destination", type=Path, help="a folder that does not exist yet")
    subparser.add_argument("--format", choices=WEIGHTS_FORMATS, default="parquet")
    subparser.add_argument("--bits", type=int, choices=CONVERTED_BITS, help="default: the weights as they are")
    subparser.add_argument("--group-size", type=int, default=64, help="columns that share a scale at 4 and 2 bits")
    subparser.add_argument("--tier", choices=TIERS, help="quantize by the policy of a tier, instead of --bits")
    subparser.add_argument("--vocab-size", type=int, help="tokens to keep of a Llama or Qwen; default: all")
    subparser.add_argument("--layers", type=int, help="layers to keep of a Llama or Qwen; default: all")
    subparser.add_argument("--text", type=Path, help="a text file to measure perplexity on, before and after")
    subparser.add_argument("--loss-budget", type=float, help="by how much it may grow, 0.05 for 5%%; 2 bits need one")
    subparser.add_argument("--max-shard-size", default="5GB", help="of safetensors files")
    subparser.add_argument("--report", type=Path, help="write sizes and the error of every layer there, as JSON")
    subparser.add_argument("--dry-run", action="store_true", help="report sizes, and write nothing")
    subparser.set_defaults(command=convert)


def convert(chosen: argparse.Namespace) -> None:
    """Write a checkpoint as safetensors or Parquet, at its own width or another; a killed run goes on where it was."""
    report = convert_checkpoint(
        chosen.source,
        chosen.destination,
        chosen.format,
        bits=chosen.bits,
        group_size=chosen.group_size,
        tier_name=chosen.tier,
        vocab_size=chosen.vocab_size,
        num_hidden_layers=chosen.layers,
        text=None if chosen.text is None else chosen.text.read_text(),
        loss_budget=chosen.loss_budget,
        max_shard_size=chosen.max_shard_size,
        dry_run=chosen.dry_run,
    )
    if chosen.report is not None:
        chosen.report.write_text(json.dumps(report.to_dict(), indent=1) + "\n")
    print("\n".join(report.lines()))


def add_export(commands: Any) -> None:
    """The arguments of `export`."""
    subparser = commands.add_parser("export", help=export.__doc__, description=export.__doc__)
    subparser.add_argument("source", nargs="?", default=str(EMBEDDED_CHECKPOINT), help="default: the embedded one")
    subparser.add_argument("destination", type=Path, help="a folder; one that is there is replaced")
    subparser.add_argument("--format", default="onnx", help=f"one of {', '.join(GRAPH_FILES)}")
    subparser.add_argument("--modality", default="text", help="of the tokens: text or code")
    subparser.add_argument("--weights", default="dense", help=f"one of {', '.join(GRAPH_WEIGHTS)}: float32, or codes")
    subparser.set_defaults(command=export)


def export(chosen: argparse.Namespace) -> None:
    """Write one denoising pass as a graph for another runtime, with tokenizer and scheduler beside it."""
    file = export_graph(chosen.source, chosen.destination, chosen.format, chosen.modality, chosen.weights)
    print(f"{file}: {sum(f.stat().st_size for f in file.parent.glob('graph.*')) / 1e6:.1f} MB")


def add_plan(commands: Any) -> None:
    """The arguments of `plan`."""
    subparser = commands.add_parser("plan", help=plan.__doc__, description=plan.__doc__)
    subparser.add_argument("--memory", help="such as 2GB; default: what this machine has free")
    subparser.add_argument("--modalities", nargs="+", default=["text"])
    subparser.add_argument("--context", type=int, default=2048, help="tokens of the longest prompt")
    subparser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="to compute in")
    subparser.set_defaults(command=plan)


def plan(chosen: argparse.Namespace) -> None:
    """Print which tier, bits and cache of dense layers fit a machine's memory."""
    memory = psutil.virtual_memory().available if chosen.memory is None else parse_bytes(chosen.memory)
    plans = plan_memory(memory, chosen.modalities, chosen.context, getattr(torch, chosen.dtype))
    print(f"{memory / 1e9:.2f} GB for one process, {chosen.context} tokens of context, in {chosen.dtype}")
    print(f"{'tier':12} {'bits':>4} {'weights':>9} {'kept dense':>17} {'process':>9}")
    for each in plans:
        kept = f"{each.cache_bytes / 1e6:.0f} of {each.all_dense_bytes / 1e6:.0f} MB"
        verdict = "" if each.fits else "  does not fit"
        sizes = f"{each.file_bytes / 1e6:6.0f} MB {kept:>17} {each.total_bytes / 1e6:6.0f} MB"
        print(f"{each.tier:12} {each.bits:4} {sizes}{verdict}")
    best = recommended(plans)
    if best is None:
        print(f"nothing fits: the smallest, {plans[0].tier}, needs {plans[0].least_bytes / 1e6:.0f} MB")
        return
    print(f"take {best.tier} at {best.bits} bits ({best.bits_per_weight:.2f} bits per weight in all):")
    print(f"  hf_unified_diffusion.quantization.set_dequantized_cache_bytes({best.cache_bytes})")


def parse_bytes(text: str) -> int:
    """ "2GB", "512 MB" or "2GiB" as bytes; ValueError for anything else."""
    matched = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", text.strip(), flags=re.IGNORECASE)
    if matched is None:
        raise ValueError(f"memory must be a number with B, KB, MB, GB, TB or KiB and so on, got {text!r}")
    number, unit, binary = matched.groups()
    return int(float(number) * (1024 if binary else 1000) ** UNITS.index(unit.upper()))


def evaluate(arguments: Sequence[str], script: Path = EVALUATION) -> int:
    """Measure a checkpoint with the benchmarks of a checkout, and write one report; --help lists its arguments."""
    if not script.is_file():
        print(
            "eval runs benchmarks, which are not in the installed package: it needs a checkout of the repository, "
            "installed there with `make setup` or `pip install --editable '.[dev]'`",
            file=sys.stderr,
        )
        return 1
    return subprocess.run([sys.executable, str(script), *arguments], check=False).returncode


def info(chosen: argparse.Namespace) -> None:
    """Print a network's parameters and bits per weight on disk; of a score network also the trunk's share of them."""
    folder = checkpoint_folder(chosen)
    num_bytes = sum(file.stat().st_size for pattern in WEIGHT_FILES for file in Path(folder).glob(pattern))
    model = AutoModel.from_pretrained(folder)
    num_parameters = num_weights(model)
    print(f"network            {type(model).__name__}")
    print(f"parameters         {num_parameters / 1e6:.1f} M")
    print(f"bits per weight    {8 * num_bytes / num_parameters:.2f}")
    print(f"weights on disk    {num_bytes / 1e6:.1f} MB")
    if isinstance(model, UnifiedDiffusionModel):
        print(f"in the trunk       {num_weights(model.shared_transformer) / num_parameters:.1%}")
        print(f"layers             {model.config.num_hidden_layers} of width {model.config.hidden_size}")
        print(f"vocabulary         {model.config.vocab_size} tokens")
        print(f"modalities         {', '.join(sorted(model.config.modalities))}")
