"""Weights sent in steps of four bits: each refinement rounds what the ones before left over.

A network of 95M parameters takes 51 MB a refinement: one suffices to go on from, two are finer than bfloat16 for what
training changed, and each goes where files are few and small.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from ..quantization import dequantize, dequantize_model, quantize

BITS = 4
GROUP_SIZE = 64
LEAST_GROUP = 16  # of matrices whose columns allow no larger group, all numbers are kept
FILE_BYTES = 15 << 20
CODES, SCALE, PLAIN = ".codes", ".scale", ".plain"

Weights = Mapping[str, Tensor]


def dense_weights(folder: Path) -> dict[str, Tensor]:
    """float32 weights of a model folder; those of a quantized one are what its codes stand for.

    Usage: `dense_weights(Path("runs/unified/joint/model"))`
    """
    model = UnifiedDiffusionModel.from_pretrained(folder, dtype=torch.float32)
    dequantize_model(model)
    return model.state_dict()


def refinement_of(residual: Weights) -> dict[str, Tensor]:
    """Codes and scales of matrices, all numbers of the rest in float32."""
    parts: dict[str, Tensor] = {}
    for name, values in residual.items():
        group = math.gcd(values.shape[-1], GROUP_SIZE) if values.ndim == 2 else 0
        if group < LEAST_GROUP:
            parts[name + PLAIN] = values.float().contiguous()
        else:
            parts[name + CODES], parts[name + SCALE] = quantize(values.float(), BITS, group)
    return parts


def restored(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """float32 values of a refinement.

    Raises:
        ValueError: codes without their scale, or a name of no such part.
    """
    values = {}
    for name, part in parts.items():
        stem, dot, kind = name.rpartition(".")
        if dot + kind == PLAIN:
            values[stem] = part
        elif dot + kind == CODES and stem + SCALE in parts:
            values[stem] = dequantize(part, parts[stem + SCALE], BITS)
        elif not (dot + kind == SCALE and stem + CODES in parts):
            raise ValueError(f"a refinement must hold codes with their scales, got {name!r} alone")
    return values


def write_refinement(parts: Mapping[str, Tensor], folder: Path) -> list[Path]:
    """Write the parts to `folder/weights-0.safetensors`, ... of at most 15 MiB each (a single matrix may be larger).

    Usage: `write_refinement(refinement_of(residual(model, base)), Path("runs/return"))`
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: list[dict[str, Tensor]] = [{}]
    for name, part in parts.items():
        for place, piece in enumerate(pieces(part)):
            if sum(p.nbytes for p in files[-1].values()) + piece.nbytes > FILE_BYTES:
                files.append({})
            files[-1][f"{place}/{name}"] = piece
    paths = [folder / f"weights-{number}.safetensors" for number in range(len(files))]
    for path, held in zip(paths, files, strict=True):
        save_file(held, path)
    return paths


def pieces(part: Tensor) -> Sequence[Tensor]:
    """A tensor in rows that fit a file."""
    rows = max(1, FILE_BYTES // 2 // max(1, part[0].nbytes)) if part.ndim else 1
    return [piece.contiguous() for piece in part.split(rows)] if part.ndim else [part]


def read_refinement(folder: Path) -> dict[str, Tensor]:
    """The parts in `folder`, whole again.

    Raises:
        ValueError: no file of a refinement.
    """
    found: dict[str, list[tuple[int, Tensor]]] = {}
    for path in sorted(folder.glob("weights-*.safetensors")):
        for key, piece in load_file(path).items():
            place, _, name = key.partition("/")
            found.setdefault(name, []).append((int(place), piece))
    if not found:
        raise ValueError(f"a refinement must have files weights-*.safetensors, got none in {folder}")
    whole = {}
    for name, placed in found.items():
        placed.sort(key=lambda pair: pair[0])
        if [place for place, _ in placed] != list(range(len(placed))):
            raise ValueError(f"a refinement must have all pieces of {name!r}, got {[place for place, _ in placed]}")
        whole[name] = placed[0][1] if len(placed) == 1 else torch.cat([piece for _, piece in placed])
    return whole


def added(base: Weights | None, folders: Sequence[Path]) -> dict[str, Tensor]:
    """float32 weights: those of `base`, zero if None, with the refinements of folders added.

    Raises:
        ValueError: refinements of other names or shapes.

    Usage: `model.load_state_dict(added(start.state_dict(), [Path("runs/return")]))`
    """
    total = None if base is None else {name: values.float() for name, values in base.items()}
    for folder in folders:
        more = restored(read_refinement(folder))
        total = {name: torch.zeros_like(values) for name, values in more.items()} if total is None else total
        if {n: v.shape for n, v in total.items()} != {n: v.shape for n, v in more.items()}:
            raise ValueError(f"a refinement must be of the weights it is added to, got others in {folder}")
        total = {name: values + more[name] for name, values in total.items()}
    if total is None:
        raise ValueError("weights must have a base or a refinement, got neither")
    return total


def residual(weights: Weights, sent: Weights | None) -> dict[str, Tensor]:
    """What is still to be sent, in float32, where `sent` is there already (nothing if None)."""
    return {name: values.float() - (0 if sent is None else sent[name].float()) for name, values in weights.items()}
