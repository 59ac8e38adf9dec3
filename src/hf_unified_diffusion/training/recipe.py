"""The recipe of a checkpoint: every step from data to model card, what proves that it is done, and what it costs."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from ..modeling.autoregressive import config_from_autoregressive
from ..modeling.configuration_unified_diffusion import UnifiedDiffusionConfig
from ..modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from .run import Progress
from .stages import StageArguments, read_stages

EDGE_PARAMETERS = 95_000_000  # assumed where the source model is not there yet
FLOPS_OF_TRAINING = 6  # a parameter and a position: forward, and gradients of inputs and weights
FLOPS_OF_DISTILLING = 8  # and the teacher's forward
SCRIPT_OF_STAGES, SCRIPT_OF_ROUNDING = "examples/train_unified.py", "examples/train_quantized.py"
SCRIPT_OF_REPORT, SCRIPT_OF_CARD = "benchmarks/evaluate.py", "examples/write_model_card.py"


@dataclass(frozen=True)
class Step:
    """One step of a recipe.

    Attributes:
        name: of the preparation, the stage, or "distillation", "report", "card".
        command: script and arguments, relative to the root of the checkout.
        is_done: whether its record says that nothing is left to do.
        positions: that the network will process, about; 0 where it does not train.
        flops: for all of them, about.
    """

    name: str
    command: list[str]
    is_done: bool
    positions: float = 0.0
    flops: float = 0.0

    def hours(self, flops_per_s: float) -> float:
        """At a rate of training; minutes that the configuration sets are in `flops` already."""
        return self.flops / flops_per_s / 3600


def read_recipe(file: Path, flops_per_s: float, overrides: Sequence[str] = ()) -> list[Step]:
    """The steps of a configuration file, in order.

    Beside what `read_stages` reads the file may have: `[prepare.NAME]` with the `command` (script and arguments) that
    makes the file or folder `record`; `[distillation]`, arguments of `train_quantized.py`; `[report]` with
    `output_dir`, `arguments` of `evaluate.py`, and `card`, the file of the model card.

    Args:
        flops_per_s: at which this machine trains; what minutes become steps and steps hours by.
        overrides: a command line that goes before the file, for all stages.

    Raises:
        ValueError: as `read_stages`, or a table of another form.

    Usage: `[step.name for step in read_recipe(Path("examples/unified.toml"), 3e10) if not step.is_done]`
    """
    tables = tomllib.loads(file.read_text())
    stages = read_stages(file, overrides=overrides)
    steps = [preparation(name, table) for name, table in tables.get("prepare", {}).items()]
    steps += training_steps(file, stages, overrides, flops_per_s)
    last, count = list(stages.values())[-1], stage_parameters(stages)[-1]
    checkpoint = Path(last.output_dir) / "model"
    if "distillation" in tables:
        folders = [args.output_dir for args in stages.values()]
        steps.append(rounding(tables["distillation"], checkpoint, folders, count))
        checkpoint = Path(tables["distillation"]["output_dir"])
    return [*steps, *reporting(tables.get("report", {}), checkpoint)]


def preparation(name: str, table: Mapping[str, Any]) -> Step:
    """A step that makes a file or folder."""
    if set(table) != {"record", "command"}:
        raise ValueError(f"[prepare.{name}] must have record and command, got {sorted(table)}")
    return Step(name, list(table["command"]), Path(table["record"]).exists())


def training_steps(
    file: Path, stages: Mapping[str, StageArguments], overrides: Sequence[str], flops_per_s: float
) -> list[Step]:
    """The stages; one is done when the progress that it saved says so."""
    steps = []
    for (name, args), count in zip(stages.items(), stage_parameters(stages), strict=True):
        command = [SCRIPT_OF_STAGES, "--configuration", str(file), "--stages", name, "--resume", "true", *overrides]
        per_step = positions_of_a_step(args)
        positions = float(args.max_train_steps * per_step)
        if args.max_train_minutes is not None:
            positions = min(positions, args.max_train_minutes * 60 * flops_per_s / (FLOPS_OF_TRAINING * count))
        steps.append(Step(name, command, is_finished(args), positions, FLOPS_OF_TRAINING * count * positions))
    return steps


def is_finished(args: StageArguments) -> bool:
    """Whether a stage has used up its steps or minutes."""
    for state in (Path(args.output_dir) / "complete" / "state", Path(args.output_dir) / "state"):
        if (state / "progress.json").exists():
            progress = Progress(**json.loads((state / "progress.json").read_text()))
            return progress.share(args.max_train_steps, args.max_train_minutes) >= 1
    return False


def positions_of_a_step(args: StageArguments) -> float:
    """Positions that the network processes in an optimizer step, about: captions and gaps are not counted apart."""
    copies = 1 + (2 if args.complementary else 1) * args.canvas
    shares = args.run_settings().shares or dict.fromkeys([*args.modalities, *args.latent_folders()], 1)
    rows = args.train_batch_size * args.sequence_length * copies
    sizes = [share * (rows if name in args.modalities else args.latent_batch_tokens) for name, share in shares.items()]
    return args.gradient_accumulation_steps * sum(sizes) / sum(shares.values())


def stage_parameters(stages: Mapping[str, StageArguments]) -> list[int]:
    """Parameters of the network in each stage, from the configuration it starts with."""
    counts: list[int] = []
    for args in stages.values():
        config = starting_config(args)
        if config is not None:
            with torch.device("meta"):
                counts.append(sum(p.numel() for p in UnifiedDiffusionModel(config).parameters()))
        else:
            counts.append(counts[-1] if counts else EDGE_PARAMETERS)
    return counts


def starting_config(args: StageArguments) -> UnifiedDiffusionConfig | None:
    """The configuration that a stage starts with; None where it follows from a model that is not there yet."""
    if args.config is not None:
        return UnifiedDiffusionConfig(**{"vocab_size": 12288, "mask_token_id": 12287, **json.loads(args.config)})
    if args.initial_model is None or not (Path(args.initial_model) / "config.json").exists():
        return None
    found = AutoConfig.from_pretrained(args.initial_model)
    if not args.from_autoregressive:
        return found
    return config_from_autoregressive(found, len(args.layers) or found.num_hidden_layers, vocab_size=12288)


def rounding(table: Mapping[str, Any], model: Path, stages: Sequence[str], count: int) -> Step:
    """Calibrated rounding and distillation; done when the checkpoint is there."""
    given = {name: value for name, value in table.items() if name != "output_dir"}
    if not {"output_dir", "loss_budget"} <= set(table):
        raise ValueError(f"[distillation] must have output_dir and loss_budget, got {sorted(table)}")
    options = [text for name, value in given.items() for text in (f"--{name}", *as_words(value))]
    command = [SCRIPT_OF_ROUNDING, str(model), "--output_dir", table["output_dir"], *options]
    rows = table.get("train_batch_size", 4) * table.get("sequence_length", 256)
    positions = float(table.get("max_train_steps", 1000) * rows * 3)
    is_done = (Path(table["output_dir"]) / "metadata.json").exists()
    command += ["--earlier_stages", *stages]
    return Step("distillation", command, is_done, positions, FLOPS_OF_DISTILLING * count * positions)


def as_words(value: Any) -> list[str]:
    """A value of a table as words of a command line."""
    return [str(entry) for entry in (value if isinstance(value, list) else [value])]


def reporting(table: Mapping[str, Any], checkpoint: Path) -> list[Step]:
    """The evaluation and the model card, where a table asks for them."""
    if not table:
        return []
    if set(table) != {"output_dir", "arguments", "card"}:
        raise ValueError(f"[report] must have output_dir, arguments and card, got {sorted(table)}")
    output, card = Path(table["output_dir"]), Path(table["card"])
    report = [SCRIPT_OF_REPORT, *table["arguments"], "--checkpoint", str(checkpoint), "--output", str(output)]
    write = [SCRIPT_OF_CARD, "--checkpoint", str(checkpoint), "--results", str(output), "--output", str(card)]
    return [
        Step("report", report, (output / "evaluation.json").exists()),
        Step("card", write, card.exists()),
    ]
