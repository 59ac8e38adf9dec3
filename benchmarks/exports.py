"""Exported graphs beside the network: error, latency of one pass, size of the files.

    python benchmarks/exports.py                                # the embedded checkpoint, all ways; minutes of tracing
    python benchmarks/exports.py --ways onnx-packed             # one of them
    python benchmarks/exports.py --graphs out/graphs            # keeps the graphs there, and takes those that are there

Eager computes in float32, as the graphs do, with the same weights dequantized. Error is over the logits of context and
canvas, the mask token's -inf left out; the ceiling is 0. All ways take turns in one run.
"""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
import torch
from measure import argument_parser, described, interleaved_seconds, report, start
from torch import Tensor

from hf_unified_diffusion import export_graph
from hf_unified_diffusion.conversion.denoising_graph import DenoisingGraph, example_inputs
from hf_unified_diffusion.conversion.graph_export import graph_of
from hf_unified_diffusion.conversion.graph_runner import SESSIONS
from hf_unified_diffusion.modeling.embedded import EMBEDDED_CHECKPOINT
from hf_unified_diffusion.pipelines.checkpoints import load_parts

WAYS = ("onnx-packed", "onnx-dense", "openvino-packed", "openvino-dense", "torch_export-packed", "compile-dense")
Run = Callable[[dict[str, Tensor]], Tensor]


def opened(way: str, graph: DenoisingGraph, source: Path, graphs: Path) -> tuple[Run, float]:
    """A way to run the pass, and the MB of its files; writes the graph where there is none."""
    format, weights = way.split("-")
    if format == "compile":
        compiled = torch.compile(graph, dynamic=True)
        return lambda inputs: compiled(**inputs)[0], 0.0
    folder = graphs / way
    if not folder.is_dir():
        begun = perf_counter()
        export_graph(source, folder, format, weights=weights)
        print(f"{way}: exported in {perf_counter() - begun:.0f} s", flush=True)
    file = next(
        path for path in sorted(folder.glob("graph.*"), reverse=True) if path.suffix in (".onnx", ".xml", ".pt2")
    )
    megabytes = sum(path.stat().st_size for path in folder.glob("graph.*")) / 1e6
    if format == "torch_export":
        module = torch.export.load(file).module()
        return lambda inputs: module(**inputs)[0], megabytes
    session = SESSIONS[format](file)
    return lambda inputs: torch.from_numpy(session({k: np.asarray(v) for k, v in inputs.items()})[0]), megabytes


def difference(found: Tensor, expected: Tensor) -> Tensor:
    """Absolute differences of the finite logits."""
    return (found - expected)[expected.isfinite()].abs()


parser = argument_parser(__doc__)
parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
parser.add_argument("--graphs", type=Path, help="a folder of graphs; default: a temporary one")
parser.add_argument("--context", type=int, default=2, help="new tokens of context, as between two blocks")
parser.add_argument("--canvas", type=int, default=32)
parser.add_argument("--cached", type=int, default=96)
parser.add_argument("--repeats", type=int, default=5)
args, shown = start(parser)
source = EMBEDDED_CHECKPOINT if args.checkpoint is None else Path(args.checkpoint)
model, _, tokenizer = load_parts(source, dtype=torch.float32)
graph = graph_of(model, "text", "dense")
inputs = example_inputs(model.config, 1, args.context, args.canvas, args.cached, args.seed)
with TemporaryDirectory() as temporary, torch.no_grad():
    graphs = Path(temporary) if args.graphs is None else args.graphs
    ways = {way: opened(way, graph, source, graphs) for way in args.ways}
    runs: dict[str, Run] = {"eager": lambda inputs: graph(**inputs)[0], **{way: run for way, (run, _) in ways.items()}}
    expected = runs["eager"](inputs)
    errors = {way: difference(run(inputs), expected) for way, run in runs.items()}
    seconds = interleaved_seconds({way: lambda run=run: run(inputs) for way, run in runs.items()}, args.repeats)
sizes = {"eager": sum(p.nbytes for p in model.parameters()) / 1e6, **{way: mb for way, (_, mb) in ways.items()}}
rows = [
    {
        "way": way,
        "max error": errors[way].max().item(),
        "mean error": errors[way].mean().item(),
        "ms a pass": 1000 * seconds[way],
        "times eager's speed": seconds["eager"] / seconds[way],
        "files, MB": sizes[way],
    }
    for way in runs
]
spread = expected[expected.isfinite()]
notes = [
    described(model, tokenizer),
    f"One pass over {args.context} new tokens of context and a canvas of {args.canvas} behind {args.cached} cached; "
    f"logits between {spread.min():.1f} and {spread.max():.1f}, standard deviation {spread.std():.2f}. "
    "Eager's size is that of the weights in float32; a compiled module has no file.",
]
report(
    "exports",
    {"One denoising pass": rows},
    {**shown, "graphs": "kept" if args.graphs else "temporary"},
    notes,
    args.output,
)
