"""An exported graph in the place of the network: the text pipelines write with it."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from ..contracts import Condition, Segment
from ..modeling.attention_rule import ContextCache
from ..modeling.configuration_unified_diffusion import UnifiedDiffusionConfig
from ..modeling.pretrained import UnifiedDiffusionOutput
from ..modeling.segments import layout
from ..pipelines.pipeline_code import UnifiedDiffusionCodePipeline
from ..pipelines.pipeline_text import UnifiedDiffusionTextPipeline
from ..schedulers.scheduling_masked_diffusion import MaskedDiffusionScheduler
from .denoising_graph import OUTPUT_NAMES
from .graph_export import GRAPH_FACTS, GRAPH_FILES

Arrays = Mapping[str, np.ndarray]
PIPELINES = {"text": UnifiedDiffusionTextPipeline, "code": UnifiedDiffusionCodePipeline}


def onnx_session(file: Path) -> Callable[[Arrays], list[np.ndarray]]:
    """A graph run by onnxruntime on the CPU, with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda arrays: session.run(list(OUTPUT_NAMES), dict(arrays))


def openvino_session(file: Path) -> Callable[[Arrays], list[np.ndarray]]:
    """A graph run by OpenVINO on the CPU in float32, with as many threads as torch has."""
    import openvino

    # its own choice is bfloat16 where the processor has units for it
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(file, "CPU", settings)

    def run(arrays: Arrays) -> list[np.ndarray]:
        outputs = compiled(dict(arrays))
        return [outputs[name] for name in OUTPUT_NAMES]

    return run


SESSIONS = {"onnx": onnx_session, "openvino": openvino_session}


class GraphTransformer(nn.Module):
    """What the text pipelines ask of a `UnifiedDiffusionModel`, answered by an exported graph on the CPU.

    One segment of context, one canvas, and a cache; no conditions, ControlNets, adapters or gradients.

    Args:
        config: of the network.
        run: arrays of a `DenoisingGraph`'s inputs by name -> its outputs.
        modality: that the graph was exported for.

    Usage: `GraphTransformer.from_folder(Path("edge-onnx"))`
    """

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, config: UnifiedDiffusionConfig, run: Callable[[Arrays], list[np.ndarray]], modality: str):
        super().__init__()
        self.config, self.run, self.modality = config, run, modality
        self.eval()

    @classmethod
    def from_folder(cls, folder: Path) -> "GraphTransformer":
        """Open what `export_graph` wrote as "onnx" or "openvino".

        Files of torch.export are refused: torch reads parts of them with pickle, which can run any code.
        """
        facts = json.loads((folder / GRAPH_FACTS).read_text())
        name = facts.get("format")
        if name not in SESSIONS:
            raise ValueError(
                f"format of a graph must be one of {sorted(SESSIONS)} to be opened here, got {name!r} "
                "(files of torch.export may hold pickle, which can run any code)"
            )
        config = UnifiedDiffusionConfig.from_pretrained(folder)
        return cls(config, SESSIONS[name](folder / GRAPH_FILES[name]), facts["modality"])

    def forward(
        self,
        segments: Sequence[Segment],
        condition: Condition | None = None,
        cache: ContextCache | None = None,
        use_cache: bool = False,
        controls: Sequence[Any] = (),
    ) -> UnifiedDiffusionOutput:
        """As `UnifiedDiffusionModel.forward`; ValueError for what a graph does not have."""
        self._check(segments, condition, controls)
        cache = ContextCache() if cache is None else cache
        order = sorted(range(len(segments)), key=lambda i: not segments[i].is_context)
        positions, roles, num_context, end = layout(segments, order, cache)
        inputs = {"cached": stacked(cache, self.config, len(positions)), "cached_mask": real_tokens(cache, positions)}
        for name in ("context", "canvas"):
            given = [segment for segment in segments if segment.is_context == (name == "context")]
            place = positions[:, :num_context] if name == "context" else positions[:, num_context:]
            inputs |= segment_inputs(name, given[0] if given else None, place)
            inputs["time"] = inputs.get("time", torch.zeros(len(positions)))
        arrays = {name: value.contiguous().numpy() for name, value in inputs.items()}
        logits, new = (torch.from_numpy(output) for output in self.run(arrays))
        if use_cache and num_context:
            for layer, (key, value) in enumerate(new.unbind(0)):
                cache.append(layer, key, value)
            cache.remember(roles, num_context, end)
        split = inputs["context_ids"].shape[1]
        predictions = tuple(logits[:, :split] if segment.is_context else logits[:, split:] for segment in segments)
        return UnifiedDiffusionOutput(predictions=predictions, logits=predictions[-1], cache=cache)

    def _check(self, segments: Sequence[Segment], condition: Condition | None, controls: Sequence[Any]) -> None:
        if condition is not None or controls:
            raise ValueError("a graph has no conditions and no ControlNets: leave them out, or use the network itself")
        kinds = [(segment.modality, segment.is_context) for segment in segments]
        if len(set(kinds)) != len(kinds) or {modality for modality, _ in kinds} != {self.modality}:
            raise ValueError(
                f"a graph takes at most one context and one canvas of {self.modality!r}, got {kinds} as "
                "(modality, is context)"
            )
        for segment in segments:
            for name in ("document", "canvas", "reach", "target_time", "guidance"):
                if getattr(segment, name) is not None:
                    raise ValueError(f"a graph has no {name}, got one for {segment.modality!r}")
            if segment.positions is not None and segment.positions.ndim != 2:
                raise ValueError(f"positions of a graph must be (B, n), got {tuple(segment.positions.shape)}")
            if segment.time is not None and segment.time.ndim != 1:
                raise ValueError(f"the time of a graph's canvas must be (B,), got {tuple(segment.time.shape)}")


def segment_inputs(name: str, segment: Segment | None, positions: Tensor) -> dict[str, Tensor]:
    """A segment's inputs of the graph; one token of padding where there is none."""
    batch = len(positions)
    if segment is None:
        ids = torch.zeros(batch, 1, dtype=torch.int64)
        return {f"{name}_ids": ids, f"{name}_mask": ids > 0, f"{name}_positions": ids.float()}
    ids = segment.values.long()
    mask = torch.ones(ids.shape, dtype=torch.bool) if segment.mask is None else segment.mask
    inputs = {f"{name}_ids": ids, f"{name}_mask": mask, f"{name}_positions": positions[..., 0]}
    return inputs if segment.time is None else {**inputs, "time": segment.time.float()}


def stacked(cache: ContextCache, config: UnifiedDiffusionConfig, batch: int) -> Tensor:
    """Keys and values of a cache as one tensor; one token of padding where it is empty."""
    if not len(cache):
        heads = config.num_key_value_heads
        return torch.zeros(config.num_hidden_layers, 2, batch, heads, 1, config.head_size)
    return torch.stack([torch.stack([key, value]) for key, value in zip(cache.keys, cache.values, strict=True)])


def real_tokens(cache: ContextCache, positions: Tensor) -> Tensor:
    """(B, n) bool: which cached tokens are no padding."""
    if cache.document is not None:
        return cache.document >= 0
    return torch.full((len(positions), max(1, len(cache))), len(cache) > 0)


def graph_pipeline(folder: str | Path) -> UnifiedDiffusionTextPipeline:
    """A text or code pipeline whose network is an exported graph.

    Usage: `graph_pipeline("edge-onnx")("The capital of France", max_new_tokens=16, seed=0).texts[0]`
    """
    folder = Path(folder)
    transformer = GraphTransformer.from_folder(folder)
    scheduler = MaskedDiffusionScheduler.from_pretrained(folder)
    return PIPELINES[transformer.modality](transformer, scheduler, AutoTokenizer.from_pretrained(folder))
