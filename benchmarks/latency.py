"""Text latency on a CPU: 350M parameters at INT2, 128 tokens in 4 steps, beside other ways to hold the same network.

    python benchmarks/latency.py --threads 2

Each way lives in a process of its own, so that its peak memory is its own; they take turns, so that a drifting machine
drifts for all. All load from files and write from an empty prompt, greedily; the weights are random, because speed does
not depend on them. A Llama of the same layers, width and vocabulary writes its 128 tokens one by one, from its cache.
"""

import argparse
import math
import multiprocessing
from bisect import bisect
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from measure import CLOCKS, Row, argument_parser, report, start
from speed import twin_of
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import AutoTokenizer, BitsAndBytesConfig, LlamaForCausalLM
from transformers.utils import logging

from hf_unified_diffusion import UnifiedDiffusionConfig, UnifiedDiffusionModel
from hf_unified_diffusion.modeling.embedded import EMBEDDED_CHECKPOINT
from hf_unified_diffusion.pipelines.pipeline_text import UnifiedDiffusionTextPipeline
from hf_unified_diffusion.quantization import ArrowQuantConfig, bits_per_weight, modules, num_weights, quantize_model
from hf_unified_diffusion.quantization import set_dequantized_cache_bytes as set_cache_bytes
from hf_unified_diffusion.schedulers.scheduling_masked_diffusion import MaskedDiffusionScheduler
from hf_unified_diffusion.training.machine import matmul_rate

NEW, STEPS, MB = 128, 4, 10**6
SHAPE = {
    "vocab_size": 12288,
    "hidden_size": 1024,
    "num_hidden_layers": 29,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "intermediate_size": 2816,
}
LLAMA = "bf16 safetensors, Llama of transformers"
NF4 = "nf4 of bitsandbytes"
CANVASES = {"one canvas": None, "blocks of 32": 32}
# way -> folder, bytes of dense weights kept, arguments of from_pretrained
WAYS: dict[str, tuple[str, int, dict[str, object]]] = {
    "INT2 Parquet": ("int2", 1 << 30, {}),
    "INT2 Parquet, int8 activations": ("int2", 1 << 30, {"quantization_config": ArrowQuantConfig(activation_bits=8)}),
    "INT2 Parquet, dequantized at each use": ("int2", 0, {}),
    "bf16 safetensors": ("bf16", 0, {}),
    NF4: (
        "bf16",
        0,
        {
            "quantization_config": BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
            )
        },
    ),
    LLAMA: ("llama", 0, {}),
}
KERNELS = {
    "matmuls": ("aten::mm", "aten::addmm", "mkldnn::_linear_pointwise", "onednn::qlinear_pointwise", "bitsandbytes::"),
    "attention": ("aten::bmm", "aten::_softmax", "aten::_scaled_dot_product"),
}
PARTS = (*KERNELS, "dequantization", "rest of the trunk", "head and sampling", "between kernels")


def write_checkpoints(folder: Path) -> str:
    """The network in bfloat16 and at INT2 and a Llama, unless the folder has them; gives the network in words."""
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_CHECKPOINT)
    config = UnifiedDiffusionConfig(**SHAPE, mask_token_id=tokenizer.mask_token_id, eos_token_id=None)
    if not (folder / "llama").exists():
        model = UnifiedDiffusionModel._from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(folder / "bf16")
        quantize_model(model, ArrowQuantConfig(bits=2)).save_pretrained(folder / "int2")
        for name in ("bf16", "int2"):
            tokenizer.save_pretrained(folder / name)
        twin_of(config).bfloat16().save_pretrained(folder / "llama")
    model = UnifiedDiffusionModel.from_pretrained(folder / "int2")
    size = f"{num_weights(model) / 1e6:.0f}M parameters, {bits_per_weight(model):.2f} bits per weight at INT2"
    return f"Network: {size}; {config.num_hidden_layers} layers of {config.hidden_size}, {len(tokenizer)} tokens."


def runs_of(way: str, folder: Path) -> dict[str, Callable[[], object]]:
    """name -> a function that writes NEW tokens."""
    name, cache_bytes, options = WAYS[way]
    set_cache_bytes(cache_bytes)
    if way == LLAMA:
        llama = LlamaForCausalLM.from_pretrained(folder / name, dtype=torch.bfloat16)
        llama.generation_config.eos_token_id = None
        prompt = torch.zeros(1, 1, dtype=torch.int64)
        settings = {"min_new_tokens": NEW, "max_new_tokens": NEW, "do_sample": False}
        return {f"{NEW} steps": lambda: llama.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)}
    model = UnifiedDiffusionModel.from_pretrained(folder / name, dtype=torch.bfloat16, **options)
    tokenizer = AutoTokenizer.from_pretrained(folder / name)
    pipe = UnifiedDiffusionTextPipeline(
        model, MaskedDiffusionScheduler(mask_token_id=tokenizer.mask_token_id), tokenizer
    )
    pipe.set_progress_bar_config(disable=True)
    model.shared_transformer.forward = recorded("trunk", model.shared_transformer.forward)

    def write(block_length: int | None) -> Callable[[], object]:
        settings = {"num_inference_steps": STEPS, "temperature": 0.0, "seed": 0, "block_length": block_length}
        return lambda: pipe(max_new_tokens=NEW, **settings)

    return {canvas: write(block_length) for canvas, block_length in CANVASES.items()}


def recorded(label: str, function: Callable) -> Callable:
    """The same function, a range of that name in profiles."""

    def run(*args: object, **kwargs: object) -> object:
        with record_function(label):
            return function(*args, **kwargs)

    return run


def shares(function: Callable[[], object]) -> dict[str, float]:
    """Shares of a run's time by part; "between kernels" is Python."""
    with profile(activities=[ProfilerActivity.CPU]) as trace, record_function("all"):
        function()
    ranges = defaultdict(list)
    for event in trace.events():
        ranges[event.name].append((event.time_range.start, event.time_range.end))

    ordered = {label: sorted(found) for label, found in ranges.items()}

    def inside(event, label: str) -> bool:
        found = ordered.get(label, [])
        before = bisect(found, (event.time_range.start, math.inf)) - 1
        return before >= 0 and event.time_range.end <= found[before][1]

    def part_of(event) -> str:
        if event.name in ("all", "trunk", "dequantize"):
            return "between kernels"
        if inside(event, "dequantize"):
            return "dequantization"
        if not inside(event, "trunk"):
            return "head and sampling"
        return next((part for part, names in KERNELS.items() if event.name.startswith(names)), "rest of the trunk")

    sums = dict.fromkeys(PARTS, 0.0)
    for event in trace.events():
        if event.time_range.start >= ranges["all"][0][0]:
            sums[part_of(event)] += event.self_cpu_time_total
    return {part: spent / sum(sums.values()) for part, spent in sums.items()}


def peak_bytes() -> int:
    """The most memory that this process had resident, mapped files included; getrusage would count its parent's too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def serve(way: str, folder: Path, threads: int, clock: str, connection: Connection) -> None:
    """A child's life: load, then time each run it is asked for; "profile" and "peak" at the end."""
    torch.set_num_threads(threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    now = CLOCKS[clock]
    modules.dequantize = recorded("dequantize", modules.dequantize)
    began = now()
    runs = runs_of(way, folder)
    connection.send((list(runs), now() - began))
    with torch.no_grad():
        while (order := connection.recv()) is not None:
            kind, name = order
            began = now()
            if kind == "time":
                runs[name]()
                connection.send(now() - began)
            else:
                connection.send(shares(runs[name]) if kind == "profile" else peak_bytes())


class Child:
    """A way in a process of its own.

    Usage: `child = Child("INT2 Parquet", folder, args); child.ask("time", child.runs[0]); child.close()`
    """

    def __init__(self, way: str, folder: Path, args: argparse.Namespace):
        # forks of a process that has imported everything and computed nothing
        context = multiprocessing.get_context("forkserver")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(way, folder, args.threads, args.clock, theirs), daemon=True)
        self.process.start()
        theirs.close()  # so that a child that dies is an EOFError here
        self.runs, self.load_seconds = self.connection.recv()

    def ask(self, kind: str, run: str):
        """The child's answer: seconds of a run, shares of its time, or peak bytes."""
        self.connection.send((kind, run))
        return self.connection.recv()

    def close(self) -> None:
        """End the process."""
        self.connection.send(None)
        self.process.join()


@contextmanager
def children_of(ways: list[str], folder: Path, args: argparse.Namespace):
    """A child a way, ended afterwards."""
    children = {}
    try:
        for way in ways:
            children[way] = Child(way, folder, args)
        yield children
    finally:
        for child in children.values():
            child.close()


def measure(folder: Path, args: argparse.Namespace) -> dict[str, list[Row]]:
    """Latency and memory of every way, and where the time goes."""
    ways = [way for way in args.ways if way != NF4 or find_spec("bitsandbytes") is not None]
    with children_of(ways, folder, args) as children:
        first = {way: child.ask("time", child.runs[0]) for way, child in children.items()}
        print(f"loaded {', '.join(children)}", flush=True)
        turns = [(way, run) for way, child in children.items() for run in child.runs]
        taken: dict[tuple[str, str], list[float]] = {turn: [] for turn in turns}
        for repeat in range(args.repeats + 1):
            for way, run in turns:
                seconds = children[way].ask("time", run)
                if repeat:  # the first turn warms up
                    taken[way, run].append(seconds)
        llama = median(taken[LLAMA, children[LLAMA].runs[0]]) if LLAMA in children else math.nan
        latency, parts = [], []
        for (way, run), seconds in taken.items():
            child, middle = children[way], median(seconds)
            speed = {"median ms": middle * 1e3, "slowest ms": max(seconds) * 1e3, "times Llama": llama / middle}
            once = {"load ms": child.load_seconds * 1e3, "first request ms": first[way] * 1e3}
            latency.append({"what": way, "canvas": run, **speed, **once, "peak MB": child.ask("peak", run) / MB})
        for way, run in turns if args.breakdown else ():
            if way != LLAMA:
                spent = children[way].ask("profile", run).items()
                parts.append({"what": way, "canvas": run, **{k: v * median(taken[way, run]) * 1e3 for k, v in spent}})
    tables = {f"{NEW} tokens in {STEPS} steps": latency}
    return {**tables, "Where the milliseconds go (shares of a profiled run)": parts} if parts else tables


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall", help="cpu: for one thread on a busy machine")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--breakdown", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--folder", type=Path, help="keeps the checkpoints for the next run; default: a temporary one")
    args, settings = start(parser)
    settings.pop("folder")
    torch.set_num_threads(args.threads)
    with TemporaryDirectory() if args.folder is None else nullcontext(args.folder) as folder:
        about = write_checkpoints(Path(folder))
        tables = measure(Path(folder), args)
    rate = matmul_rate(torch.device("cpu"), torch.bfloat16) / 1e9  # GFLOP/s
    bound = 2 * NEW * STEPS * trunk_weights() / rate / 1e6  # ms
    notes = [
        about,
        f"One canvas multiplies {NEW} tokens by the trunk in each of {STEPS} steps: {bound:.0f} ms at this machine's "
        f"{rate:.0f} GFLOP/s in bfloat16. Blocks of 32 take a step each, with what is written in the context cache.",
    ]
    report("latency", tables, settings, notes, args.output)


def trunk_weights() -> int:
    """Weights of the trunk's linear layers that every token meets."""
    width, inner = SHAPE["hidden_size"], SHAPE["intermediate_size"]
    keys = width * SHAPE["num_key_value_heads"] // SHAPE["num_attention_heads"]
    return SHAPE["num_hidden_layers"] * width * (2 * width + 2 * keys + 3 * inner)


if __name__ == "__main__":
    main()
