"""One checkpoint folder to another: safetensors <-> Parquet bit for bit, dense <-> quantized with its error."""

import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..modeling.checkpoint_metadata import METADATA_NAME
from ..modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from ..quantization import ArrowQuantConfig, QuantizedWeight, bits_per_weight, quantize_model
from ..quantization.configuration_arrowquant import WEIGHTS_FORMATS

WEIGHT_PATTERNS = ("*.safetensors", "*.safetensors.index.json", "*.parquet", "*.parquet.index.json")
CONVERTED_BITS = (4, 8, 32)  # 2 bits lose too much without training against the rounding


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did.

    Attributes:
        bytes_before, bytes_after: of the weight files; bytes_after is 0 for a dry run.
        bits_per_weight: effective, scales and dense layers included.
        errors: relative root-mean-square error of each layer that was quantized now.
    """

    bytes_before: int
    bytes_after: int
    bits_per_weight: float
    errors: dict[str, float] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """The report in words, the worst layers named."""
        worst = sorted(self.errors.items(), key=lambda item: -item[1])[:3]
        after = f"{self.bytes_after / 1e6:.1f} MB" if self.bytes_after else "not written (dry run)"
        return [
            f"weights before      {self.bytes_before / 1e6:.1f} MB",
            f"weights after       {after}",
            f"bits per weight     {self.bits_per_weight:.2f}",
            f"layers quantized    {len(self.errors)}",
            *(f"  error {error:6.2%}     {name}" for name, error in worst),
        ]


def convert_checkpoint(
    source: Path,
    destination: Path,
    weights_format: str,
    bits: int | None = None,
    group_size: int = 64,
    dry_run: bool = False,
) -> ConversionReport:
    """Write a checkpoint folder in another format or at another width; the destination appears whole or not at all.

    Args:
        source: a folder of ours; its other files (tokenizer, scheduler, card) come along.
        destination: a folder that does not exist yet.
        weights_format: "safetensors" or "parquet".
        bits: None keeps the weights bit for bit; 4 or 8 quantizes; 32 restores dense float32.
        group_size: columns that share a scale at 4 bits.
        dry_run: only report.

    Raises:
        ValueError: the source is no checkpoint, the destination exists, or format or bits are none of the above.

    Usage: `print("\\n".join(convert_checkpoint(Path("a"), Path("b"), "parquet", bits=4).lines()))`
    """
    if not (source / "config.json").is_file():
        raise ValueError(f"source must hold a checkpoint (config.json), got {str(source)!r}")
    if destination.exists():
        raise ValueError(f"destination must not exist yet, got {str(destination)!r}")
    if weights_format not in WEIGHTS_FORMATS:
        raise ValueError(f"weights_format must be one of {WEIGHTS_FORMATS}, got {weights_format!r}")
    if bits is not None and bits not in CONVERTED_BITS:
        raise ValueError(f"bits must be one of {CONVERTED_BITS} or None, got {bits!r}")
    model = UnifiedDiffusionModel.from_pretrained(source, dtype="auto")
    errors = {} if bits is None else change_width(model, bits, group_size)
    before = sum(file.stat().st_size for file in weight_files(source))
    if dry_run:
        return ConversionReport(before, 0, bits_per_weight(model), errors)
    partial = destination.with_name(f"{destination.name}.partial-{os.getpid()}")
    try:
        copy_companions(source, partial)
        model.save_pretrained(partial, weights_format=weights_format)
        after = sum(file.stat().st_size for file in weight_files(partial))
        os.rename(partial, destination)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return ConversionReport(before, after, bits_per_weight(model), errors)


def change_width(model: UnifiedDiffusionModel, bits: int, group_size: int) -> dict[str, float]:
    """Make a model dense, then quantize it to 4 or 8 bits, in place; returns the error of each layer."""
    if getattr(model, "is_quantized", False):
        model.dequantize(torch.float32)
    if bits == 32:
        return {}
    config = ArrowQuantConfig(bits, group_size)
    dense = {name: model.get_submodule(name).weight.detach() for name in config.bits_of_layers(model)}
    quantize_model(model, config)
    return dict(tqdm(relative_errors(model, dense), total=len(dense), desc="error of the layers", leave=False))


def relative_errors(model: nn.Module, dense: dict[str, Tensor]) -> Iterator[tuple[str, float]]:
    """(name, rms of the rounding over rms of the weights) of each quantized layer."""
    for name, module in model.named_modules():
        if isinstance(module, QuantizedWeight):
            weight = dense[name].float()
            error = module.dequantized(torch.float32) - weight
            yield name, (error.norm() / weight.norm().clamp_min(1e-12)).item()


def weight_files(folder: Path) -> Iterable[Path]:
    """The files of a checkpoint folder that hold or index weights."""
    return [file for pattern in WEIGHT_PATTERNS for file in folder.glob(pattern)]


def copy_companions(source: Path, destination: Path) -> None:
    """Copy what is neither weights, configuration nor metadata: those are written anew."""
    left_out = {"config.json", METADATA_NAME, *(file.name for file in weight_files(source))}
    destination.mkdir(parents=True)
    for file in source.iterdir():
        if file.is_file() and file.name not in left_out:
            shutil.copy2(file, destination / file.name)
