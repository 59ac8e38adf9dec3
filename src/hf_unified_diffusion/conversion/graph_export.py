"""The score network as a graph for other runtimes: torch.export, ONNX, OpenVINO."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from torch.export import ExportedProgram

from ..folders import replacing
from ..modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from ..pipelines.checkpoints import load_parts
from ..quantization.modules import QuantizedWeight
from .denoising_graph import OUTPUT_NAMES, DenoisingGraph, dynamic_shapes, example_inputs, unpacked_in_graph

GRAPH_FILES = {"onnx": "graph.onnx", "openvino": "graph.xml", "torch_export": "graph.pt2"}
NEEDED_PACKAGES = {
    "onnx": ("onnx", "onnxscript"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    "torch_export": (),
}
GRAPH_WEIGHTS = ("dense", "packed")
GRAPH_FACTS = "graph.json"
EXAMPLE_LENGTHS = {"batch": 2, "context": 3, "canvas": 5, "cached": 4}  # above 1, where tracing would fix an axis


def export_graph(
    source: str | Path, destination: Path, format: str = "onnx", modality: str = "text", weights: str = "dense"
) -> Path:
    """Write one denoising pass over tokens as a graph, with all that a text pipeline needs beside it.

    The graph computes in float32 and is a `DenoisingGraph`: batch and lengths are free.

    Args:
        source: a checkpoint folder or a name on the Hub.
        destination: a folder; the old one is replaced at the end.
        format: "onnx", "openvino" (made from ONNX) or "torch_export".
        modality: of the tokens, "text" or "code".
        weights: "dense", as float32; or "packed", as the codes of a quantized checkpoint, which the graph unpacks:
            files as small as ours, for runtimes that fold constants as they load.

    Returns: the graph's file.

    Raises:
        ValueError: an unknown format, modality or kind of weights, or packed weights of a dense checkpoint.
        ImportError: the packages of the format are missing.

    Usage: `export_graph(EMBEDDED_CHECKPOINT, Path("edge-onnx"), "onnx")`
    """
    if format not in GRAPH_FILES:
        raise ValueError(f"format must be one of {sorted(GRAPH_FILES)}, got {format!r}")
    if weights not in GRAPH_WEIGHTS:
        raise ValueError(f"weights must be one of {GRAPH_WEIGHTS}, got {weights!r}")
    missing = [name for name in NEEDED_PACKAGES[format] if find_spec(name) is None]
    if missing:
        raise ImportError(f'{format} needs {missing}: pip install "hf_unified_diffusion[export]"')
    model, scheduler, tokenizer = load_parts(source, dtype=torch.float32)
    program = traced(graph_of(model, modality, weights))
    facts = {"format": format, "modality": modality, "weights": weights}
    with replacing(destination) as partial:
        model.config.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        scheduler.save_pretrained(partial)
        (partial / GRAPH_FACTS).write_text(json.dumps(facts, indent=1) + "\n")
        write_program(program, partial / GRAPH_FILES[format])
    return destination / GRAPH_FILES[format]


def graph_of(model: UnifiedDiffusionModel, modality: str, weights: str) -> DenoisingGraph:
    """The graph of a model, whose layers are replaced in place; for `weights` see `export_graph`."""
    is_packed = any(isinstance(module, QuantizedWeight) for module in model.modules())
    if weights == "packed" and not is_packed:
        raise ValueError("packed weights need a quantized checkpoint, got a dense one: `convert --bits 4` first")
    if weights == "packed":
        unpacked_in_graph(model)
    elif is_packed:
        model.dequantize()
    return DenoisingGraph(model.eval().requires_grad_(False), modality)


def traced(graph: DenoisingGraph) -> ExportedProgram:
    """The graph as torch.export traces it, with free batch and lengths.

    Usage: `traced(DenoisingGraph(model, "text")).module()(**inputs)`
    """
    config = graph.model.config
    shapes = dynamic_shapes(config.max_position_embeddings)
    with quiet_exporters():
        return torch.export.export(graph, (), example_inputs(config, **EXAMPLE_LENGTHS), dynamic_shapes=shapes)


def write_program(program: ExportedProgram, file: Path) -> None:
    """Write a traced graph in the format that the file's name says."""
    if file.suffix == ".pt2":
        torch.export.save(program, file)
        return
    onnx_file = file.with_suffix(".onnx")
    with quiet_exporters():
        torch.onnx.export(program, dynamo=True, verbose=False, output_names=list(OUTPUT_NAMES)).save(onnx_file)
    if file.suffix == ".xml":
        write_openvino(onnx_file, file)
        onnx_file.unlink()


def write_openvino(onnx_file: Path, file: Path) -> None:
    """Write an ONNX graph as OpenVINO's, `file` (.xml) and its weights beside (.bin)."""
    import openvino

    # float16 weights, OpenVINO's default, would change the answers
    openvino.save_model(openvino.convert_model(onnx_file), file, compress_to_fp16=False)


@contextmanager
def quiet_exporters() -> Iterator[None]:
    """Without the warnings that torch's exporters give of torch's own code."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*", category=FutureWarning)
        yield
