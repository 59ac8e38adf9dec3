"""What the score network asks of its inputs, checked at the door.

Shapes and dtypes are always checked. Values are checked on the CPU only: on an accelerator each look would stall it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..contracts import Condition, Segment
from .attention_rule import ContextCache
from .configuration_unified_diffusion import UnifiedDiffusionConfig

TOKEN_DTYPES = (torch.int64, torch.int32)


def check_segments(
    segments: Sequence[Segment], config: UnifiedDiffusionConfig, condition: Condition | None, cache: ContextCache
) -> None:
    """Raise ValueError where a segment, the condition or the cache breaks a rule."""
    if not segments:
        raise ValueError("a forward pass needs at least one segment, got none")
    for segment in segments:
        if segment.modality not in config.modalities:
            raise ValueError(f"modality must be one of {sorted(config.modalities)}, got {segment.modality!r}")
        check_values(segment, config.modalities[segment.modality], config.vocab_size)
        check_roles(segment)
        check_times(segment)
        check_positions(segment)
    batches = [segment.values.shape[0] for segment in segments]
    if len(set(batches)) > 1:
        raise ValueError(f"segments must share one batch size, got {batches}")
    length = len(cache) + sum(segment.values.shape[1] for segment in segments)
    if length > config.max_position_embeddings:
        raise ValueError(f"at most {config.max_position_embeddings} tokens fit the context, got {length}")
    if len(cache) and cache.keys[0].shape[0] != batches[0]:
        raise ValueError(f"the cache must have the batch's {batches[0]} rows, got {cache.keys[0].shape[0]}")
    if len(cache) and len(cache.keys) != config.num_hidden_layers:
        raise ValueError(f"the cache must have the model's {config.num_hidden_layers} layers, got {len(cache.keys)}")
    if condition is not None:
        check_condition(condition, batches[0], config.condition_size)


def check_values(segment: Segment, spec: dict, vocab_size: int) -> None:
    """Token ids are (B, n) integers of the vocabulary, continuous values (B, n, width) finite floats; none is empty."""
    values, name = segment.values, segment.modality
    if spec["kind"] == "token":
        if values.ndim != 2 or values.dtype not in TOKEN_DTYPES:
            raise ValueError(f"{name} tokens must be int64 (batch, length), got {values.dtype} {tuple(values.shape)}")
    elif values.ndim != 3 or values.shape[2] != spec["width"] or not values.is_floating_point():
        raise ValueError(
            f"{name} values must be float (batch, length, {spec['width']}), got {values.dtype} {tuple(values.shape)}"
        )
    if not values.numel():
        raise ValueError(f"{name} values must have at least one row and one token, got {tuple(values.shape)}")
    if can_look_at(values):
        if spec["kind"] == "token":
            check_range(f"{name} tokens", values, 0, vocab_size - 1)
        else:
            check_finite(f"{name} values", values)


def check_roles(segment: Segment) -> None:
    """Masks are bool, roles integers, all (B, n); only a canvas has a canvas id, from 1, and a reach."""
    name, shape = segment.modality, segment.values.shape[:2]
    for field in ("mask", "document", "canvas", "reach"):
        given = getattr(segment, field)
        if given is None:
            continue
        dtypes = (torch.bool,) if field == "mask" else TOKEN_DTYPES
        if given.shape != shape or given.dtype not in dtypes:
            raise ValueError(
                f"{field} of {name} must be {dtypes[0]} {tuple(shape)}, got {given.dtype} {tuple(given.shape)}"
            )
        if segment.is_context and field in ("canvas", "reach"):
            raise ValueError(f"{field} belongs to a canvas, got one for {name} without a time")
    if segment.canvas is not None and can_look_at(segment.canvas) and int(segment.canvas.min()) < 1:
        raise ValueError(f"canvas of {name} must be at least 1, got {int(segment.canvas.min())}")


def check_times(segment: Segment) -> None:
    """Times are floats in [0, 1], one a sample or one a token; target time and guidance come with a time."""
    allowed = (segment.values.shape[:1], segment.values.shape[:2])
    for field in ("time", "target_time", "guidance"):
        given, name = getattr(segment, field), f"{field} of {segment.modality}"
        if given is None:
            continue
        if given.shape not in allowed or not given.is_floating_point():
            raise ValueError(
                f"{name} must be float of shape {tuple(allowed[0])} or {tuple(allowed[1])}, "
                f"got {given.dtype} {tuple(given.shape)}"
            )
        if segment.is_context:
            raise ValueError(f"{name} needs a time, got none")
        if can_look_at(given):
            if field == "guidance":
                check_finite(name, given)
            else:
                check_range(name, given, 0, 1)


def check_positions(segment: Segment) -> None:
    """Positions are finite numbers (B, n) or (B, n, 3)."""
    given, name, shape = segment.positions, segment.modality, tuple(segment.values.shape[:2])
    if given is None:
        return
    if given.shape not in (shape, (*shape, 3)):
        raise ValueError(f"positions of {name} must be {shape} or {(*shape, 3)}, got {tuple(given.shape)}")
    if can_look_at(given):
        check_finite(f"positions of {name}", given)


def check_condition(condition: Condition, batch: int, width: int) -> None:
    """Condition tokens are finite floats (B, c, width) with a bool mask (B, c)."""
    tokens, mask = condition.tokens, condition.mask
    fits = tokens.ndim == 3 and tokens.shape[0] == batch and tokens.shape[1] > 0 and tokens.shape[2] == width
    if not fits or mask.shape != tokens.shape[:2] or not tokens.is_floating_point() or mask.dtype != torch.bool:
        raise ValueError(
            f"condition tokens must be float ({batch}, n, {width}) with a bool mask ({batch}, n), "
            f"got {tokens.dtype} {tuple(tokens.shape)} and {mask.dtype} {tuple(mask.shape)}"
        )
    strength = condition.strength
    if strength is not None and (strength.shape != tokens.shape[:2] or not strength.is_floating_point()):
        raise ValueError(
            f"the strength of a condition must be float {tuple(tokens.shape[:2])}, "
            f"got {strength.dtype} {tuple(strength.shape)}"
        )
    if can_look_at(tokens):
        check_finite("condition tokens", tokens)
        if strength is not None:
            check_finite("the strength of a condition", strength)


def check_labels(input_ids: Tensor, labels: Tensor, loss_weight: Tensor | None) -> None:
    """Labels are int64 and shaped like the tokens; weights float (B,) or (B, n)."""
    if labels.shape != input_ids.shape or labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64 {tuple(input_ids.shape)}, got {labels.dtype} {tuple(labels.shape)}")
    if loss_weight is not None and (
        loss_weight.shape not in (labels.shape[:1], labels.shape) or not loss_weight.is_floating_point()
    ):
        raise ValueError(
            f"loss_weight must be float of shape {tuple(labels.shape[:1])} or {tuple(labels.shape)}, "
            f"got {loss_weight.dtype} {tuple(loss_weight.shape)}"
        )


def can_look_at(values: Tensor) -> bool:
    """Whether a look at the values is cheap."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def check_range(name: str, values: Tensor, low: int, high: int) -> None:
    """low <= values <= high, and no NaN."""
    if not bool(((values >= low) & (values <= high)).all()):
        wrong = values[~((values >= low) & (values <= high))][0].item()
        raise ValueError(f"{name} must be in [{low}, {high}], got {wrong}")


def check_finite(name: str, values: Tensor) -> None:
    """No NaN and no infinity."""
    if not bool(values.isfinite().all()):
        raise ValueError(f"{name} must be finite, got {values[~values.isfinite()][0].item()}")
