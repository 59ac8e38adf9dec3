"""What the benchmarks share: the machine in words, timing, intervals, held-out rows, and results as JSON and Markdown.

Results go to benchmarks/results/<name>.json and .md. They name the processor and the versions, no host and no path.
"""

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

import pyarrow.parquet as parquet
import torch
from diffusers.utils import logging as diffusers_logging
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from hf_unified_diffusion import UnifiedDiffusionModel
from hf_unified_diffusion.modeling.embedded import EMBEDDED_CHECKPOINT
from hf_unified_diffusion.pipelines.checkpoints import load_parts
from hf_unified_diffusion.pipelines.pipeline_code import UnifiedDiffusionCodePipeline
from hf_unified_diffusion.pipelines.pipeline_text import UnifiedDiffusionTextPipeline
from hf_unified_diffusion.training.machine import fast_dtype

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "diffusers", "hf_unified_diffusion")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Row = Mapping[str, object]


def machine(device: torch.device | str = "cpu") -> dict[str, str | int | bool]:
    """The processor and the accelerator in words."""
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    described: dict[str, str | int | bool] = {
        "processor": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "bf16_units": fast_dtype() is torch.bfloat16,
    }
    if torch.device(device).type == "cuda":
        described["accelerator"] = torch.cuda.get_device_name(device)
    return described


def environment() -> dict[str, str]:
    """Versions of Python and of the packages that decide a number."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


@dataclass(frozen=True)
class Mean:
    """A mean with the half-width of its 95% interval (normal, over independent samples)."""

    value: float
    half_width: float
    count: int

    @staticmethod
    def of(values: Sequence[float]) -> "Mean":
        """Usage: `Mean.of([1.0, 2.0, 3.0])`; one value has an infinite interval, none is NaN."""
        count = len(values)
        if count == 0:
            return Mean(math.nan, math.inf, 0)
        mean = sum(values) / count
        if count == 1:
            return Mean(mean, math.inf, 1)
        variance = sum((value - mean) ** 2 for value in values) / (count - 1)
        return Mean(mean, 1.96 * math.sqrt(variance / count), count)

    def __str__(self) -> str:
        return f"{self.value:.2f} ± {self.half_width:.2f}"


def interleaved_seconds(
    functions: Mapping[str, Callable[[], object]], repeats: int, clock: str = "wall", warm_up: bool = True
) -> dict[str, float]:
    """Median seconds of each function; the functions take turns, so that a drifting machine drifts for all.

    Usage: `interleaved_seconds({"ours": ours, "theirs": theirs}, repeats=5)`
    """
    now, taken = CLOCKS[clock], {name: [] for name in functions}
    for turn in range(repeats + warm_up):
        for name, function in functions.items():
            synchronize()
            start = now()
            function()
            synchronize()
            if turn or not warm_up:
                taken[name].append(now() - start)
    return {name: median(seconds) for name, seconds in taken.items()}


def synchronize() -> None:
    """Wait for the accelerator, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def markdown_table(rows: Sequence[Row]) -> str:
    """Rows of one set of columns as a Markdown table; floats get four significant digits."""
    columns = list(rows[0])
    cells = [columns, ["---"] * len(columns), *([cell(row[name]) for name in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def cell(value: object) -> str:
    """A value as a table shows it."""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    return str(value).replace("|", "\\|").replace("\n", " ")


def report(name: str, tables: Mapping[str, Sequence[Row]], settings: Row, notes: Sequence[str], folder: Path) -> None:
    """Print the tables and write them, with machine, versions and settings, to `folder`/`name`.json and .md.

    Args:
        tables: title -> rows; values are numbers, strings, booleans or `Mean`.
        settings: of the run; goes to the files as it is.
        notes: sentences under the tables.
    """
    about = {"machine": machine(), "environment": environment(), "settings": dict(settings)}
    parts = [f"# {name}", *(f"## {title}\n\n{markdown_table(rows)}" for title, rows in tables.items()), *notes]
    parts += [f"{key}: {', '.join(f'{k} {v}' for k, v in value.items())}." for key, value in about.items()]
    text = "\n\n".join(parts) + "\n"
    print(f"\n{text}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(text)
    content = {**about, "tables": {title: [plain(row) for row in rows] for title, rows in tables.items()}}
    (folder / f"{name}.json").write_text(json.dumps({**content, "notes": list(notes)}, indent=1) + "\n")


def plain(row: Row) -> dict[str, object]:
    """A row as JSON takes it; a `Mean` becomes its fields."""
    return {name: vars(value) if isinstance(value, Mean) else value for name, value in row.items()}


def argument_parser(description: str) -> argparse.ArgumentParser:
    """The arguments that all benchmarks of a checkpoint take."""
    parser = argparse.ArgumentParser(
        description=description.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--checkpoint", help="a folder of a model and its tokenizer; default: the embedded checkpoint")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16; auto: the fast one of this machine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the results go")
    return parser


def start(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, dict[str, object]]:
    """Read the command line; gives the arguments and, of these, what may stand in a result."""
    args = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    torch.manual_seed(args.seed)
    shown = {name: str(value) for name, value in vars(args).items() if name not in ("output", "shards")}
    if args.checkpoint is not None:
        shown["checkpoint"] = Path(args.checkpoint).name
    return args, shown


def load_pipelines(args: argparse.Namespace) -> dict[str, UnifiedDiffusionTextPipeline]:
    """The checkpoint's pipelines by modality, without progress bars; both hold the same network.

    Usage: `pipelines = load_pipelines(args); model = pipelines["text"].transformer`
    """
    dtype = fast_dtype() if args.dtype == "auto" else getattr(torch, args.dtype)
    parts = load_parts(EMBEDDED_CHECKPOINT if args.checkpoint is None else args.checkpoint, dtype)
    classes = {"text": UnifiedDiffusionTextPipeline, "code": UnifiedDiffusionCodePipeline}
    pipelines = {modality: pipeline(*parts).to(args.device) for modality, pipeline in classes.items()}
    for pipeline in pipelines.values():
        pipeline.transformer.eval()
        pipeline.set_progress_bar_config(disable=True)
    return pipelines


def described(model: UnifiedDiffusionModel, tokenizer: PreTrainedTokenizerFast) -> str:
    """One sentence on the network."""
    config = model.config
    return (
        f"Network: {config.num_hidden_layers} layers of {config.hidden_size}, {len(tokenizer)} tokens, "
        f"computing in {str(model.dtype).removeprefix('torch.')}."
    )


def held_out(shards: Path, modality: str, split: str = "test") -> list[dict]:
    """Held-out documents of a modality: the rows of `shards`/`split`, with columns as `make data` writes them.

    Raises ValueError where there are none.
    """
    files = sorted((shards / split).glob("*.parquet"))
    rows = [row for file in files for row in parquet.read_table(file).to_pylist() if row["modality"] == modality]
    if not rows:
        raise ValueError(
            f"the {split} split must hold documents of {modality!r} (run `make data`), got {len(files)} files"
        )
    return rows
