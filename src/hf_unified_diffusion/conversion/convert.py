"""Checkpoints to checkpoints: safetensors <-> Parquet, dense <-> quantized, autoregressive and GGUF to ours."""

import copy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from ..modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from ..modeling.tiers import tier, without_memory
from ..quantization import (
    ArrowQuantConfig,
    QuantizedWeight,
    bits_per_weight,
    layers_to_quantize,
    mark_quantized,
    num_weights,
    stored_bytes,
)
from ..quantization.configuration_arrowquant import WEIGHTS_FORMATS
from ..quantization.modules import dequantize_layer, quantize_layer
from .sources import Source, open_source, total_bytes, weight_files
from .work_folder import WorkFolder, work_folder

CONVERTED_BITS = (2, 4, 8, 32)
_ROUNDING_VERSION = 1  # finished layers of another rounding must not be mixed in
_TEXT_ROWS, _TEXT_LENGTH = 16, 256


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did, or would do.

    Attributes:
        num_weights: of the network, as the dense one counts them.
        bytes_before, bytes_after: of the weight files; bytes_after is without file overhead for a dry run.
        bits_per_weight: effective, scales and dense layers included.
        errors: relative root-mean-square error of each layer that was rounded.
        perplexity: on the given text, before and after.
        dry_run: whether nothing was written.
        layers_resumed: how many layers an earlier, broken off run had finished.
    """

    num_weights: int
    bytes_before: int
    bytes_after: int
    bits_per_weight: float
    errors: dict[str, float] = field(default_factory=dict)
    perplexity: tuple[float, float] | None = None
    dry_run: bool = False
    layers_resumed: int = 0

    def lines(self) -> list[str]:
        """The report in words, the worst layers named."""
        worst = sorted(self.errors.items(), key=lambda item: -item[1])[:3]
        shown = [
            f"weights             {self.num_weights / 1e6:.1f} M",
            f"bytes before        {self.bytes_before / 1e6:.1f} MB",
            f"bytes after         {self.bytes_after / 1e6:.1f} MB{' (nothing written)' if self.dry_run else ''}",
            f"bits per weight     {self.bits_per_weight:.2f}",
        ]
        if self.perplexity is not None:
            before, after = self.perplexity
            shown.append(f"perplexity          {before:.2f} before, {after:.2f} after ({after / before - 1:+.1%})")
        if self.errors:
            resumed = f", {self.layers_resumed} of them by an earlier run" if self.layers_resumed else ""
            shown.append(f"layers rounded      {len(self.errors)}{resumed}; the largest errors:")
        return [*shown, *(f"  {error:6.2%}  {name}" for name, error in worst)]

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON takes it."""
        return asdict(self)


def convert_checkpoint(
    source: str | Path,
    destination: str | Path,
    weights_format: str = "parquet",
    bits: int | None = None,
    group_size: int = 64,
    tier_name: str | None = None,
    vocab_size: int | None = None,
    num_hidden_layers: int | None = None,
    text: str | None = None,
    loss_budget: float | None = None,
    max_shard_size: str | int = "5GB",
    dry_run: bool = False,
) -> ConversionReport:
    """Write a checkpoint folder of ours from another one; the destination appears whole or not at all.

    A run that is killed leaves `DESTINATION.partial`; the same call goes on after the last layer it had rounded.

    Args:
        source: a folder of ours (its tokenizer, scheduler and card come along), one of a Llama, Qwen2 or Qwen3, or a
            GGUF file of one.
        destination: a folder that does not exist yet.
        weights_format: "safetensors" or "parquet".
        bits: None keeps the weights bit for bit; 8, 4 or 2 quantizes; 32 restores dense float32.
        group_size: columns that share a scale at 4 and 2 bits.
        tier_name: quantize by the policy of a tier, instead of `bits`.
        vocab_size, num_hidden_layers: what to keep of an autoregressive source; None for all.
        text: measure the causal perplexity on it, before and after.
        loss_budget: the share by which that perplexity may grow at most. Needed for 2 bits.
        max_shard_size: of safetensors.
        dry_run: only report sizes, from shapes; reads no weights.

    Raises:
        ValueError: an argument breaks a rule, or the measured loss breaks the budget.

    Usage: `print("\\n".join(convert_checkpoint("a", "b", bits=4).lines()))`
    """
    destination = Path(destination)
    opened = open_source(Path(source), vocab_size, num_hidden_layers)
    if destination.exists():
        raise ValueError(f"destination must not exist yet, got {str(destination)!r}")
    if weights_format not in WEIGHTS_FORMATS:
        raise ValueError(f"weights_format must be one of {WEIGHTS_FORMATS}, got {weights_format!r}")
    policy = quantization_policy(bits, group_size, tier_name)
    if dry_run:
        return dry_report(opened, policy, dense=bits == 32)
    check_budget(opened, policy, text, loss_budget)
    job = {"source": fingerprint(opened), "rounding": _ROUNDING_VERSION, "bits": bits}
    job["policy"] = None if policy is None else policy.to_dict()
    with work_folder(destination, job) as work:
        resumed = work.finished_layers()
        model = opened.load().eval()
        if (bits is not None or policy is not None) and getattr(model, "is_quantized", False):
            model.dequantize(torch.float32)
        if bits == 32:
            model.float()
        tokens = None if text is None else token_rows(opened, text)
        before = None if tokens is None else perplexity(model, tokens)
        errors = {} if policy is None else round_layers(model, policy, work)
        after = None if tokens is None else perplexity(model, tokens)
        if before is not None and after is not None and loss_budget is not None and after > before * (1 + loss_budget):
            raise ValueError(
                f"perplexity may grow by at most {loss_budget:.1%}, got {after / before - 1:.1%} "
                f"({before:.2f} to {after:.2f}): use more bits, or train against the rounding first"
            )
        opened.write_companions(work.result)
        model.save_pretrained(work.result, weights_format=weights_format, max_shard_size=max_shard_size)
        written = total_bytes(weight_files(work.result))
        work.publish()
    return ConversionReport(
        num_weights(model),
        total_bytes(opened.weight_files),
        written,
        bits_per_weight(model),
        errors,
        None if before is None or after is None else (before, after),
        layers_resumed=resumed,
    )


def quantization_policy(bits: int | None, group_size: int, tier_name: str | None) -> ArrowQuantConfig | None:
    """How to quantize; None for weights that stay, or become, dense."""
    if tier_name is not None:
        if bits is not None:
            raise ValueError(f"give bits or a tier, and not both, got {bits!r} and {tier_name!r}")
        return tier(tier_name).quantization()
    if bits is not None and (type(bits) is not int or bits not in CONVERTED_BITS):
        raise ValueError(f"bits must be one of {CONVERTED_BITS} or None, got {bits!r}")
    return None if bits in (None, 32) else ArrowQuantConfig(bits, group_size)


def check_budget(source: Source, policy: ArrowQuantConfig | None, text: str | None, loss_budget: float | None) -> None:
    """Raise ValueError unless a budget comes with a text to measure on, and INT2 with a budget."""
    if loss_budget is not None and (text is None or not loss_budget >= 0):
        raise ValueError(f"loss_budget must be at least 0 and come with a text to measure on, got {loss_budget!r}")
    if policy is not None and policy.bits == 2 and loss_budget is None:
        raise ValueError(
            "2 bits need a loss_budget and a text: without training against the rounding they lose much, got none"
        )


def fingerprint(source: Source) -> list[Any]:
    """Tells one source from another, and from itself once it was written to."""
    files = source.weight_files if source.is_gguf else [file for file in source.path.iterdir() if file.is_file()]
    stats = [(file.name, file.stat()) for file in sorted(files)]
    return [
        *([name, stat.st_size, stat.st_mtime_ns] for name, stat in stats),
        source.vocab_size,
        source.num_hidden_layers,
    ]


def dry_report(source: Source, policy: ArrowQuantConfig | None, dense: bool) -> ConversionReport:
    """What a conversion would give, from shapes alone."""
    config = source.config()
    kept = getattr(config, "quantization_config", None)
    if policy is None and kept is not None and not dense:
        policy = kept if isinstance(kept, ArrowQuantConfig) else ArrowQuantConfig.from_dict(kept)
    dtype = torch.float32 if dense or kept is not None or config.dtype is None else config.dtype
    model = without_memory(config, policy, dtype)
    sizes = num_weights(model), total_bytes(source.weight_files), stored_bytes(model), bits_per_weight(model)
    return ConversionReport(*sizes, dry_run=True)


def round_layers(model: UnifiedDiffusionModel, policy: ArrowQuantConfig, work: WorkFolder) -> dict[str, float]:
    """Quantize a dense model layer by layer, in place, taking what is finished from the work folder."""
    errors = {}
    plan = layers_to_quantize(model, policy)
    weights = sum(model.get_submodule(name).weight.numel() for name in plan)
    with tqdm(total=weights, unit="weight", unit_scale=True, desc="rounding", leave=False) as progress:
        for index, (name, bits) in enumerate(plan.items()):
            dense: Any = model.get_submodule(name)
            finished = work.get(index, name)
            if finished is None:
                layer = quantize_layer(dense, bits, policy.group_size, dense.weight.dtype)
                errors[name] = relative_error(dense, layer)
                work.put(index, name, own_tensors(layer), errors[name])
            else:
                layer = from_tensors(dense, bits, policy.group_size, finished[0])
                errors[name] = finished[1]
            model.set_submodule(name, layer)
            progress.update(dense.weight.numel())
    mark_quantized(model, policy)
    return errors


@torch.no_grad()
def relative_error(dense: Any, layer: QuantizedWeight) -> float:
    """rms of the rounding over rms of the weights."""
    weight = dense.weight.detach().float()
    restored = dequantize_layer(layer, torch.float32).weight  # not through the cache: nothing asks for it again
    return ((restored - weight).norm() / weight.norm().clamp_min(1e-12)).item()


def own_tensors(layer: QuantizedWeight) -> dict[str, torch.Tensor]:
    """What stands for the matrix of a layer."""
    return {name: tensor for name, tensor in layer.state_dict().items() if name != "bias"}


def from_tensors(dense: Any, bits: int, group_size: int, tensors: dict[str, torch.Tensor]) -> QuantizedWeight:
    """The quantized twin of a layer, its matrix given by `own_tensors` of an earlier run."""
    shape = copy.copy(dense)
    shape._parameters = {**dense._parameters, "weight": nn.Parameter(dense.weight.detach().to("meta"))}
    layer = quantize_layer(shape, bits, group_size, dense.weight.dtype)
    layer.load_state_dict({**layer.state_dict(), **tensors}, assign=True)
    return layer


def token_rows(source: Source, text: str) -> torch.Tensor:
    """The first tokens of a text in rows, int64 (rows, length); ValueError for a text of fewer than two tokens."""
    tokenizer: PreTrainedTokenizerBase = source.vocabulary[0]
    ids = torch.tensor(tokenizer(text)["input_ids"][: _TEXT_ROWS * _TEXT_LENGTH], dtype=torch.int64)
    if len(ids) < 2:
        raise ValueError(f"text to measure on must have at least two tokens, got {len(ids)}")
    length = min(_TEXT_LENGTH, len(ids))
    return ids[: len(ids) // length * length].view(-1, length)


@torch.no_grad()
def perplexity(model: UnifiedDiffusionModel, rows: torch.Tensor) -> float:
    """exp of the mean causal nats per token."""
    losses = [model(row[None], labels=row[None]).loss.double() for row in rows]
    return torch.stack(losses).mean().exp().item()
