"""What a request says of ControlNets, checked once at the door, in diffusers' names."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..codecs.text_codec import TextCodec, pad_right
from ..conditioning.control import check_control, controlled
from ..conditioning.tool_hints import describe_tools
from ..contracts import Segment
from ..modeling.controlnet import UnifiedControlNetModel
from .context_denoiser import ContextDenoiser
from .text_inputs import as_texts, per_row


@dataclass(frozen=True)
class ControlInput:
    """A ControlNet of a request, its hint with one row for each of the batch, its weight and time range."""

    controlnet: UnifiedControlNetModel
    hint: Segment
    scale: float
    start: float
    end: float

    def apply(self, denoiser: ContextDenoiser) -> ContextDenoiser:
        """The denoiser under this ControlNet."""
        return controlled(denoiser, self.controlnet, self.hint, self.scale, self.start, self.end)


def given_hints(
    controlnet: UnifiedControlNetModel | Sequence[UnifiedControlNetModel] | None,
    hints: Any,
    prompt: str | list[str] | None,
    tools: Sequence[Mapping[str, Any] | Callable] | None,
) -> Any:
    """The hints of a call; where none is given, what the ControlNet's `hint_source` names.

    Raises:
        ValueError: none is given, and the ControlNet names no source, or one that the call lacks.
    """
    if controlnet is None:
        return hints
    sources = {"prompt": prompt, "tools": tools}

    def given(network: Any, hint: Any) -> Any:
        if hint is not None or not isinstance(network, UnifiedControlNetModel):
            return hint
        source = network.config.hint_source
        if source is None:
            raise ValueError("control_hint must be given for this controlnet, got None")
        if sources[source] is None:
            raise ValueError(f"control_hint must be given where there is no {source} to read, got None")
        return describe_tools(tools) if tools is not None and source == "tools" else prompt

    if not isinstance(controlnet, list | tuple):
        return given(controlnet, hints)
    if hints is None:
        hints = [None] * len(controlnet)
    if not isinstance(hints, list | tuple) or len(hints) != len(controlnet):
        return hints  # refused with the rest
    return [given(network, hint) for network, hint in zip(controlnet, hints, strict=True)]


def gather_controls(
    controlnet: UnifiedControlNetModel | Sequence[UnifiedControlNetModel] | None,
    hints: Any,
    scales: float | Sequence[float],
    starts: float | Sequence[float],
    ends: float | Sequence[float],
    codec: TextCodec,
    rows: int,
    repeats: int,
    pad_token_id: int,
    device: torch.device,
) -> list[ControlInput]:
    """The ControlNets of a call; with several, hints and numbers are lists as long.

    Args:
        hints: for each ControlNet a string, a list of one string a prompt, or a `Segment`.
        rows: of the batch, `repeats` for each prompt.

    Raises:
        ValueError: for counts, types or numbers that break a rule.
    """
    if controlnet is None:
        if hints is not None:
            raise ValueError("control_hint must be left out without a controlnet")
        return []
    several = isinstance(controlnet, list | tuple)
    networks = list(controlnet) if isinstance(controlnet, list | tuple) else [controlnet]
    for network in networks:
        if not isinstance(network, UnifiedControlNetModel):
            raise ValueError(f"controlnet must be a UnifiedControlNetModel, got {type(network).__name__}")
    if several and (not isinstance(hints, list | tuple) or len(hints) != len(networks)):
        raise ValueError(
            f"control_hint must be a list of one hint for each of {len(networks)} controlnets, got {hints!r}"
        )
    given = {
        "controlnet_conditioning_scale": scales,
        "control_guidance_start": starts,
        "control_guidance_end": ends,
    }
    numbers = [one_each(name, value, len(networks)) for name, value in given.items()]
    found = []
    for network, hint, scale, start, end in zip(networks, hints if several else [hints], *numbers, strict=True):
        check_control(scale, start, end)
        segment = as_segment(hint, network, codec, rows, repeats, pad_token_id).to(device)
        found.append(ControlInput(network, segment, scale, start, end))
    return found


def one_each(name: str, value: float | Sequence[float], count: int) -> list[float]:
    """A number for each ControlNet; a single one serves all."""
    if not isinstance(value, Sequence):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{name} must be one number or as many as the controlnets ({count}), got {len(value)}")
    return list(value)


def as_segment(
    hint: Any, controlnet: UnifiedControlNetModel, codec: TextCodec, rows: int, repeats: int, pad_token_id: int
) -> Segment:
    """A hint as clean tokens, one row for each of the batch."""
    if isinstance(hint, Segment):
        return with_rows(hint, rows, repeats)
    modality = controlnet.config.hint_modality
    if modality is None:
        raise ValueError(f"control_hint must be a Segment for this controlnet, got {type(hint).__name__}")
    ids = codec.encode(as_texts("control_hint", hint))
    if not all(ids):
        raise ValueError("control_hint must not hold an empty string, got ''")
    values, mask = pad_right(ids, pad_token_id)
    return with_rows(Segment(modality, values, mask=mask), rows, repeats)


def with_rows(hint: Segment, rows: int, repeats: int) -> Segment:
    """A hint of one row for the whole batch, of one row a prompt for its repeats, or of all rows as it is."""
    count = hint.values.shape[0]
    if count not in (1, rows // repeats, rows):
        raise ValueError(f"control_hint must have 1 row or as many as the prompts ({rows // repeats}), got {count}")
    return replace(
        hint, **{name: per_row(value, rows) for name, value in vars(hint).items() if isinstance(value, Tensor)}
    )
