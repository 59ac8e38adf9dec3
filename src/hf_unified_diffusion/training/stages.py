"""What a training stage is told: the arguments of the training script, from a command line or a configuration file."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser

from ..contracts import TOKEN_MODALITIES
from .flow_layout import FlowConfig
from .machine import check_precision
from .objective import ObjectiveConfig
from .run import RunSettings

RECIPE_TABLES = ("prepare", "distillation", "report")  # what `read_recipe` reads of the same file
SEEDS_APART = 101  # between the stages of a file: a stage that reads the rows of the one before memorises them


@dataclass
class StageArguments:
    """Command line of one stage; names as in the scripts of transformers and diffusers. Mappings are `name=value`."""

    output_dir: str
    tokenizer: str
    shards: str = "data/shards"
    latents: list[str] = field(default_factory=list)  # image=data/images: a folder with train/ and validation/
    speech: str | None = None  # a folder with train/ and validation/ of speech: the modality audio
    packs: list[str] = field(default_factory=list)  # of `make pack`: data come from these, and from no other folder
    initial_model: str | None = None  # a folder of ours, or with from_autoregressive a Llama- or Qwen-shaped one
    from_autoregressive: bool = False
    teacher: str | None = None  # a checkpoint whose answers text and code keep, while others learn from data
    layers: list[int] = field(default_factory=list)  # the autoregressive model's layers to keep; all by default
    config: str | None = None  # JSON of UnifiedDiffusionConfig values: start from scratch
    modalities: list[str] = field(default_factory=lambda: ["text", "code"])  # those of tokens
    # text=1 image=2: what trains, and of how many micro-batches of a round; all in turns by default
    mixture: list[str] = field(default_factory=list)
    loss_weights: list[str] = field(default_factory=list)  # image=0.5
    train_only: list[str] = field(default_factory=list)  # patterns of parameter names, such as heads.image*
    max_train_tokens: int | None = None  # of each modality of tokens; fewer tokens, more epochs
    sequence_length: int = 256
    train_batch_size: int = 4  # rows of tokens
    latent_batch_tokens: int = 1024  # tokens of a micro-batch of latents, their captions not counted
    speech_batch_tokens: int = 1024  # of sound in a micro-batch, 20 a second, references not counted
    reference_dropout: float = 0.3  # of speech: the share without references; caption_dropout is that without anything
    max_reference_tokens: int = 160  # longer utterances are no references
    faces: bool = False  # speech comes with its face, of the modality avatar
    gradient_accumulation_steps: int = 1
    max_train_steps: int = 1000
    max_train_minutes: float | None = None  # the learning rate then follows the clock
    slice_minutes: float | None = None  # save and end after so many minutes of this call; --resume goes on
    trunk_optimizer: str = "adamw"  # or muon, for the matrices of the trunk's layers
    learning_rate: float = 3e-4
    warmup_steps: int = 50
    weight_decay: float = 0.1
    adam_beta2: float = 0.98
    max_grad_norm: float = 1.0
    dropout: float = 0.0  # whatever the model had before
    ema_decay: float = 0.999
    mixed_precision: str = "auto"  # auto: bf16 where the machine has units for it
    causal_weight: float = 0.3
    canvas: bool = True
    block_lengths: list[int] = field(default_factory=lambda: [4, 8, 16, 32])
    infill_rate: float = 0.25
    complementary: bool = True
    caption_dropout: float = 0.1
    max_caption_tokens: int = 32
    caption_weight: float = 0.0
    flow_loss: str = "velocity"
    flow_max_weight: float = 400.0
    flow_time_mean: list[str] = field(default_factory=list)  # audio=1.5: where training looks, in logits of the time
    flow_time_std: float = 1.0
    flow_base_tokens: int = 16
    flow_canvases: list[str] = field(default_factory=list)  # image=4: noisy copies of each sample after its caption
    quantization_bits: int | None = None  # train against the rounding to so many bits; may start with --resume
    quantization_group_size: int = 64
    quantization_scales: str | None = None  # a rounded checkpoint: training goes on between its levels (decision 26)
    int8_modules: list[str] = field(default_factory=lambda: ["embeddings"])
    compile: bool = False
    gradient_checkpointing: bool = False
    evaluation_steps: int = 100
    evaluation_rows: int = 16
    evaluation_block_lengths: list[int] = field(default_factory=lambda: [4, 16])
    evaluation_latents: int = 32  # samples, about
    checkpointing_steps: int | None = None
    checkpointing_minutes: float = 5.0
    resume: bool = False
    seed: int = 0

    def __post_init__(self):
        counts = ("max_train_steps", "evaluation_steps", "evaluation_rows", "evaluation_latents")
        for name in (*counts, "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.slice_minutes is not None and not self.slice_minutes > 0:
            raise ValueError(f"slice_minutes must be positive, got {self.slice_minutes}")
        if self.config is not None and self.initial_model is not None:
            raise ValueError(
                f"config starts from scratch and initial_model does not: give one, got {self.initial_model!r}"
            )
        if self.quantization_scales is not None and self.quantization_bits is None:
            raise ValueError(f"quantization_scales need quantization_bits, got {self.quantization_scales!r} alone")
        check_precision(self.mixed_precision)
        wrong = sorted(set(self.modalities) - set(TOKEN_MODALITIES))
        if wrong:
            raise ValueError(f"modalities must be of {TOKEN_MODALITIES}, got {wrong}; others come by latents")
        self.objective_config()
        self.run_settings()

    def latent_folders(self) -> dict[str, Path]:
        """Modality -> folder of latent shards."""
        return {name: Path(folder) for name, folder in named(self.latents, str, "latents").items()}

    def objective_config(self) -> ObjectiveConfig:
        """What a step is made of."""
        flow = FlowConfig(
            loss=self.flow_loss,
            max_weight=self.flow_max_weight,
            time_mean=named(self.flow_time_mean, float, "flow_time_mean"),
            time_std=self.flow_time_std,
            base_tokens=self.flow_base_tokens,
            caption_weight=self.caption_weight,
            canvases=named(self.flow_canvases, int, "flow_canvases"),
        )
        return ObjectiveConfig(
            causal_weight=self.causal_weight,
            canvas=self.canvas,
            block_lengths=tuple(self.block_lengths),
            infill_rate=self.infill_rate,
            complementary=self.complementary,
            flow=flow,
        )

    def run_settings(self) -> RunSettings:
        """How the run steps."""
        return RunSettings(
            seed=self.seed,
            trunk_optimizer=self.trunk_optimizer,
            weight_decay=self.weight_decay,
            beta2=self.adam_beta2,
            max_grad_norm=self.max_grad_norm,
            ema_decay=self.ema_decay,
            shares=named(self.mixture, int, "mixture"),
            loss_weights=named(self.loss_weights, float, "loss_weights"),
            train_only=tuple(self.train_only),
        )


def named(entries: Sequence[str], kind: type, what: str) -> dict[str, Any]:
    """`["image=2"]` as {"image": 2}; ValueError for another form."""
    found = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        try:
            found[name] = kind(value)
        except ValueError:
            equals = ""
        if not equals or not name:
            raise ValueError(f"{what} must be of the form name={kind.__name__}, got {entry!r}")
    return found


def parse_arguments(argv: Sequence[str] | None) -> StageArguments:
    """One stage from a command line; ValueError where a value breaks a rule."""
    (args,) = HfArgumentParser(StageArguments).parse_args_into_dataclasses(args=argv)
    return args


def read_stages(file: Path, only: Sequence[str] = (), overrides: Sequence[str] = ()) -> dict[str, StageArguments]:
    """The stages of a TOML file, in its order, by name.

    The table `[all]` holds what they share; `[stages.NAME]` the rest, which goes first. Each stage has its folder under
    the shared `output_dir`, has a seed of its own, and starts from the model of the one before unless it names an
    `initial_model` or a `config`.

    Args:
        only: names of the stages wanted; all by default.
        overrides: a command line that goes before the file.

    Raises:
        ValueError: no file of this form, an unknown stage or name, or a value that breaks a rule.

    Usage: `read_stages(Path("examples/unified.toml"), ["joint"], ["--max_train_minutes", "30"])`
    """
    try:
        tables = tomllib.loads(file.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"a configuration must be TOML, got {file}: {error}") from error
    shared, stages = tables.get("all", {}), tables.get("stages", {})
    missing = sorted(set(only) - set(stages))
    if set(tables) - {"all", "stages", *RECIPE_TABLES} or not stages or missing:
        raise ValueError(
            f"a configuration must have the tables all and stages, and the stages {list(only)}, "
            f"got {sorted(tables)} with the stages {list(stages)} in {file}"
        )
    found: dict[str, StageArguments] = {}
    start: dict[str, str] = {}
    for number, (name, own) in enumerate(stages.items()):
        values = {**shared, "seed": shared.get("seed", 0) + SEEDS_APART * number, **start, **own}
        if "output_dir" not in values:
            raise ValueError(f"[all] or [stages.{name}] must name an output_dir, got neither in {file}")
        folder = Path(values["output_dir"]) / name
        values["output_dir"] = str(folder)
        found[name] = parse_arguments([*command_line(values), *overrides])
        start = {"initial_model": str(folder / "model")}
    return {name: args for name, args in found.items() if not only or name in only}


def command_line(values: Mapping[str, Any]) -> list[str]:
    """Values of a TOML table as a command line; tables become `name=value`."""
    unknown = sorted(set(values) - {field.name for field in fields(StageArguments)})
    if unknown:
        raise ValueError(f"a stage must use the names of the script's arguments, got {unknown}")
    arguments = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            value = [f"{key}={entry}" for key, entry in value.items()]
        arguments += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return arguments
