"""A training run: one step after another, each a function of its number; saved whole, resumed exactly."""

import json
import math
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Generator, Tensor, nn
from transformers import PreTrainedTokenizerFast

from ..contracts import Segment
from ..modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from .batched_muon import BatchedMuon
from .flow_layout import FlowTarget
from .latent_data import LatentBatch
from .layouts import Target, TokenBatch
from .mixture import MicroBatches, check_shares, reached_modalities, turn_of
from .moving_average import MovingAverage
from .objective import ScoreNetworkObjective, layout_for
from .quantization_aware import RoundedWeights
from .speech_data import SpeechBatch

MicroBatch = TokenBatch | LatentBatch | SpeechBatch
Parts = Sequence[tuple[Segment, Target | FlowTarget | None]]
SAVED = ("model", "state")
TRUNK_OPTIMIZERS = ("adamw", "muon")
MOST_LEFT_OUT = 3  # steps in a row whose gradient is not finite; one in hundreds is the hardware's or a batch's
MADE_AHEAD = 4  # micro-batches, by one thread: a tokenizer is not for several
ROUNDED = "rounded.pt"  # absent where the run was not quantization-aware when it was saved


@dataclass(frozen=True)
class RunSettings:
    """How a run steps. Micro-batches of a step are the accelerator's `gradient_accumulation_steps`.

    Attributes:
        seed: decides the order of the data and the noise.
        trunk_optimizer: of the matrices of the trunk's layers, "adamw" or "muon"; everything else has AdamW.
        weight_decay, beta2: of AdamW, and the decay of Muon; vectors are not decayed.
        max_grad_norm: gradients are scaled down to this norm.
        ema_decay: of the moving average of the weights, at most; it starts lower.
        shares: of how many micro-batches of a round each modality has; none: they take turns.
        loss_weights: factors on the losses of modalities, 1 where none is given.
        train_only: patterns of parameter names ("heads.image*"); all others are frozen. None given: all train.
    """

    seed: int = 0
    trunk_optimizer: str = "adamw"
    weight_decay: float = 0.1
    beta2: float = 0.98
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    shares: Mapping[str, int] = field(default_factory=dict)
    loss_weights: Mapping[str, float] = field(default_factory=dict)
    train_only: tuple[str, ...] = ()

    def __post_init__(self):
        rules = [
            (
                self.trunk_optimizer in TRUNK_OPTIMIZERS,
                f"trunk_optimizer must be one of {TRUNK_OPTIMIZERS}, got {self.trunk_optimizer!r}",
            ),
            (self.weight_decay >= 0, f"weight_decay must be 0 or more, got {self.weight_decay}"),
            (0 <= self.beta2 < 1, f"beta2 must be in [0, 1), got {self.beta2}"),
            (self.max_grad_norm > 0, f"max_grad_norm must be positive, got {self.max_grad_norm}"),
            (0 <= self.ema_decay <= 1, f"ema_decay must be in [0, 1], got {self.ema_decay}"),
            (
                all(0 <= weight < math.inf for weight in self.loss_weights.values()),
                f"loss_weights must be finite and 0 or more, got {dict(self.loss_weights)}",
            ),
        ]
        for holds, rule in rules:
            if not holds:
                raise ValueError(rule)


@dataclass
class Progress:
    """How far a run is: optimizer steps, data tokens read, positions the network processed, seconds at work."""

    step: int = 0
    tokens: int = 0
    positions: int = 0
    seconds: float = 0.0

    def share(self, max_steps: int, max_minutes: float | None = None) -> float:
        """How much of the steps or of the minutes is used up, whichever ends first; the learning rate follows it."""
        steps = self.step / max_steps
        return steps if max_minutes is None else max(steps, self.seconds / 60 / max_minutes)

    def following(self, max_steps: int, max_minutes: float | None = None) -> float | None:
        """`share` of the step after this one, None for the last; by the clock, which none knows ahead, of this one."""
        if self.step + 1 >= max_steps:
            return None
        return (self.step + 1) / max_steps if max_minutes is None else self.share(max_steps, max_minutes)


@dataclass(frozen=True)
class LearningRate:
    """Linear warm-up over `warmup_steps`, then a cosine from `peak` down to `final_share` of it."""

    peak: float
    warmup_steps: int
    final_share: float = 0.1

    def at(self, step: int, progress: float) -> float:
        """The rate at a step, `progress` in [0, 1] of the whole run."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return self.peak * warm * (self.final_share + (1 - self.final_share) * cosine)


def trainable_parameters(
    model: UnifiedDiffusionModel, modalities: list[str], train_only: Sequence[str] = ()
) -> list[nn.Parameter]:
    """Freeze what no batch of these modalities reaches and what `train_only` does not name, and return the rest.

    Raises:
        ValueError: a pattern that names nothing that could train.
    """
    frozen = [model.time_embedding.target_time, model.time_embedding.guidance]
    frozen += [layer.cross_attn for layer in model.shared_transformer.layers if layer.cross_attn is not None]
    for name in set(model.heads) - set(modalities):
        frozen += [part[name] for part in (model.heads, model.projections, model.decoders) if name in part]
        model.modality_embedding[name].requires_grad_(False)
    for part in frozen:
        part.requires_grad_(False)
    reached = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    idle = [pattern for pattern in train_only if not any(fnmatchcase(name, pattern) for name in reached)]
    if idle:
        raise ValueError(f"train_only must name parameters that {modalities} reach, got {idle}")
    for name, parameter in reached.items():
        parameter.requires_grad_(not train_only or any(fnmatchcase(name, pattern) for pattern in train_only))
    return [parameter for parameter in reached.values() if parameter.requires_grad]


def adamw(parameters: list[nn.Parameter], weight_decay: float, beta2: float) -> torch.optim.Optimizer:
    """AdamW (arXiv:1711.05101), fused; vectors are not decayed. The learning rate is set at each step."""
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, beta2), fused=True)


def optimizers_of(
    model: UnifiedDiffusionModel, parameters: Sequence[nn.Parameter], settings: RunSettings
) -> list[torch.optim.Optimizer]:
    """The optimizers of some parameters of a model; one learning rate serves all."""
    if settings.trunk_optimizer == "adamw":
        return [adamw(list(parameters), settings.weight_decay, settings.beta2)]
    trunk = {id(p) for p in model.shared_transformer.layers.parameters() if p.ndim == 2}
    matrices = [p for p in parameters if id(p) in trunk]
    rest = [p for p in parameters if id(p) not in trunk]
    return [BatchedMuon(matrices, 0.0, settings.weight_decay), adamw(rest, settings.weight_decay, settings.beta2)]


def finish_saving(folder: Path) -> None:
    """Move what `complete` holds into place; a crash at any moment leaves it to be done again."""
    complete = folder / "complete"
    if not complete.exists():
        return
    for name in SAVED:
        if (complete / name).exists():
            remove(folder / name)
            os.replace(complete / name, folder / name)
    complete.rmdir()


def was_saved(folder: Path) -> bool:
    """Whether a run can go on from there."""
    return any((folder / part / "state" / "progress.json").exists() for part in ("", "complete"))


def remove(folder: Path) -> None:
    """Delete a folder, if it is there."""
    if folder.exists():
        shutil.rmtree(folder)


class TrainingRun:
    """Model, optimizer, moving average and data of a run; each step is a function of its number.

    With `rounded` the network computes with rounded weights; what is saved stays dense. `save_model` writes what is to
    be kept of the model, an adapter for instance; all of it by default.

    Usage:
        data = [TokenRows(packed, rows=8), CaptionedLatents(shards, tokenizer)]
        run = TrainingRun(accelerator, ScoreNetworkObjective(model, config), data, tokenizer, RunSettings())
        while run.progress.step < 1000:
            record = run.step(rate, run.progress.step / 1000)
    """

    def __init__(
        self,
        accelerator: Accelerator,
        objective: ScoreNetworkObjective,
        data: Sequence[MicroBatches],
        tokenizer: PreTrainedTokenizerFast,
        settings: RunSettings,
        rounded: RoundedWeights | None = None,
        save_model: Callable[[UnifiedDiffusionModel, Path], None] = UnifiedDiffusionModel.save_pretrained,
    ):
        self.accelerator, self.tokenizer, self.settings = accelerator, tokenizer, settings
        self.data = {source.modality: source for source in data}
        self.shares = dict(settings.shares) or dict.fromkeys(self.data, 1)
        check_shares(self.shares, list(self.data))
        self.config, self.model, self.save_model = objective.config, objective.model, save_model
        self.parameters = trainable_parameters(objective.model, reached_modalities(data), settings.train_only)
        chosen = optimizers_of(objective.model, self.parameters, settings)
        self.objective, *self.optimizers = accelerator.prepare(objective, *chosen)
        self.rounded, self.left_out = rounded, 0
        self.ema = MovingAverage(self.parameters, settings.ema_decay)
        self.progress = Progress()
        self.maker = ThreadPoolExecutor(max_workers=1)
        self.made: deque[tuple[tuple[int, float], Future[tuple[MicroBatch, Parts]]]] = deque()
        if self.rounded is not None:
            accelerator.register_for_checkpointing(self.rounded)

    def batch(self, index: int) -> MicroBatch:
        """Micro-batch `index`, of one modality."""
        name, turn = turn_of(index, self.shares)
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        return self.data[name].batch(turn, self.settings.seed, process, processes)

    def parts(self, index: int, progress: float) -> tuple[MicroBatch, Parts]:
        """Micro-batch `index` and what the network sees of it, on the device."""
        accelerator, batch = self.accelerator, self.batch(index)
        noise_seed = (self.settings.seed * 1_000_003 + index) * accelerator.num_processes + accelerator.process_index
        generator = Generator().manual_seed(noise_seed)
        drawn = layout_for(batch, self.config, self.tokenizer.mask_token_id, progress, generator)
        device = accelerator.device
        return batch, [(s.to(device), None if t is None else t.to(device)) for s, t in drawn]

    def asked_ahead(
        self, first: int, count: int, progress: float, following: float | None
    ) -> Iterator[tuple[int, float]]:
        """Number and progress of the micro-batches to be made from now on, less those that are already."""
        asked = [(index, progress) for index in range(first, first + count)]
        if following is not None:
            asked += [(index, following) for index in range(first + count, first + 2 * count)]
        if [number for (number, _), _ in self.made] != [number for number, _ in asked[: len(self.made)]]:
            self.made.clear()  # of a step that failed
        return iter(asked[len(self.made) :])

    def next_parts(self, ahead: Iterator[tuple[int, float]]) -> tuple[MicroBatch, Parts]:
        """The next micro-batch, made while the device worked on those before it; later ones are made meanwhile."""
        while len(self.made) < MADE_AHEAD and (asked := next(ahead, None)) is not None:
            self.made.append((asked, self.maker.submit(self.parts, *asked)))
        return self.made.popleft()[1].result()

    def micro_step(self, batch: MicroBatch, parts: Parts) -> dict[str, Tensor]:
        """Forward and backward of one micro-batch; the losses stay on the device, which nobody waits for."""
        accelerator = self.accelerator
        losses = self.objective(parts)
        accelerator.backward(losses["loss"] * self.settings.loss_weights.get(batch.modality, 1.0))
        self.progress.tokens += batch.num_tokens * accelerator.num_processes
        self.progress.positions += sum(s.values.shape[:2].numel() for s, _ in parts) * accelerator.num_processes
        return {f"{batch.modality}/{name}": value.detach() for name, value in losses.items()}

    def step(self, rate: LearningRate, progress: float, following: float | None = None) -> dict[str, float]:
        """One optimizer step; returns losses (of this process), gradient norm and positions per second.

        Args:
            rate: of learning.
            progress: of the run, in [0, 1].
            following: that of the next step, if it is known: its first micro-batches are then made during this one.

        A step whose gradient is not finite is left out: weights and average stay as they were, and the record has
        `left_out`, how many were in a row.

        Raises:
            FloatingPointError: `MOST_LEFT_OUT` were left out in a row before this one.
        """
        began, before = time.monotonic(), self.progress.positions
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = rate.at(self.progress.step, progress)
        found: dict[str, Tensor] = {}
        micro_steps = self.accelerator.gradient_accumulation_steps
        first = self.progress.step * micro_steps
        ahead = self.asked_ahead(first, micro_steps, progress, following)
        with self.as_shipped():  # rounded once: the weights stay as they are until the optimizer steps
            for _ in range(micro_steps):
                made = self.next_parts(ahead)
                with self.accelerator.accumulate(self.objective):
                    found |= self.micro_step(*made)
        losses = {name: value.item() for name, value in found.items()}
        record = {name: value for name, value in losses.items() if math.isfinite(value)} | self.update()
        seconds = self.agreed(time.monotonic() - began)
        self.progress.step += 1
        self.progress.seconds += seconds
        return {**asdict(self.progress), **record, "positions_per_s": (self.progress.positions - before) / seconds}

    def update(self) -> dict[str, float]:
        """Move weights and average by the gradient, clipped, and forget it; the norm it had, or what was left out."""
        norm = float(self.accelerator.clip_grad_norm_(self.parameters, self.settings.max_grad_norm))
        is_finite = math.isfinite(norm)
        self.left_out = 0 if is_finite else self.left_out + 1
        for optimizer in self.optimizers:
            if is_finite:
                optimizer.step()
            optimizer.zero_grad()
        if is_finite:
            self.ema.step(self.parameters)
            return {"grad_norm": norm}
        if self.left_out > MOST_LEFT_OUT:
            raise FloatingPointError(
                f"the gradient must be finite, got norm {norm} in step {self.progress.step + 1} and in {MOST_LEFT_OUT} "
                "before it"
            )
        return {"left_out": float(self.left_out)}

    def agreed(self, seconds: float) -> float:
        """The main process' figure in all processes: what follows from the clock must follow in all of them."""
        return broadcast(torch.tensor(seconds, device=self.accelerator.device)).item()

    def as_shipped(self) -> AbstractContextManager[None]:
        """The weights rounded, where the run trains against it."""
        return nullcontext() if self.rounded is None else self.rounded.in_place()

    @contextmanager
    def averaged(self) -> Iterator[UnifiedDiffusionModel]:
        """The model with its moving average in place; the trained weights come back afterwards."""
        self.ema.put_into(self.parameters)
        try:
            yield self.model
        finally:
            self.ema.take_out_of(self.parameters)

    def save(self, folder: Path) -> None:
        """Write `model` (averaged) and `state` under `folder`; cut off anywhere, it leaves old or new, whole."""
        partial, is_main = folder / "partial", self.accelerator.is_main_process
        if is_main:
            finish_saving(folder)
            remove(partial)
            with self.averaged() as model:
                self.save_model(model, partial / "model")
            self.tokenizer.save_pretrained(partial / "model")
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(partial / "state"))
        self.accelerator.wait_for_everyone()  # each process writes its random state
        if is_main:
            torch.save(self.ema.state_dict(), partial / "state" / "ema.pt")
            (partial / "state" / "progress.json").write_text(json.dumps(asdict(self.progress)))
            os.replace(partial, folder / "complete")
            finish_saving(folder)
        self.accelerator.wait_for_everyone()

    def restore(self, folder: Path) -> None:
        """Go on from `state` under `folder`; the next steps are those of an unbroken run.

        Raises:
            ValueError: nothing was saved there.
        """
        self.made.clear()
        if self.accelerator.is_main_process:
            finish_saving(folder)
        self.accelerator.wait_for_everyone()
        state = folder / "state"
        if not was_saved(folder):
            raise ValueError(f"a run to resume must have been saved, got no {state / 'progress.json'}")
        self.accelerator.load_state(str(state))
        # several processes on CPUs have devices such as cpu:0, which torch.load does not know
        self.ema.load_state_dict(torch.load(state / "ema.pt", weights_only=True, map_location="cpu"))
        if self.rounded is not None and (state / ROUNDED).exists():
            self.rounded.load_state_dict(torch.load(state / ROUNDED, weights_only=True))
        self.progress = Progress(**json.loads((state / "progress.json").read_text()))
