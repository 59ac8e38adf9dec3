"""What a training step on this machine spends its time on, and what it gains by another allocator and by compiling.

    python benchmarks/train_step.py                    # 6 of the 24 layers, width and rows as in training
    LD_PRELOAD=libtcmalloc_minimal.so.4 python benchmarks/train_step.py

Times are CPU seconds of this process, which other work on the machine changes little; the matmul rate is measured by
the same clock, between the steps. `share` is the products' part of a step's time if they ran at that rate: 6 operations
a parameter of the trunk and position, and a parameter of the unembedding and token that has a label; attention's own
products are not counted.
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from measure import Row, report
from torch import Generator
from torch.profiler import ProfilerActivity, profile

from hf_unified_diffusion import UnifiedDiffusionConfig, UnifiedDiffusionModel
from hf_unified_diffusion.quantization import num_weights
from hf_unified_diffusion.training.layouts import IGNORED_LABEL, block_layout, clean_copy
from hf_unified_diffusion.training.mixture import TokenRows
from hf_unified_diffusion.training.objective import ObjectiveConfig, ScoreNetworkObjective
from hf_unified_diffusion.training.run import adamw
from hf_unified_diffusion.training.token_data import PackedTokens

SHAPE = {
    "vocab_size": 12288,
    "mask_token_id": 12287,
    "hidden_size": 576,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "cross_attention_every": 0,
    "modalities": {"text": {"kind": "token"}},
}
KINDS = {
    "products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "attention": ("flash_attention", "scaled_dot_product"),
    "optimizer": ("fused_adamw", "_foreach"),
    "cross-entropy": ("log_softmax", "nll_loss"),
    "copies": ("copy_", "cat", "index", "fill_", "zero_"),
}


def product_rate(size: int = 1024) -> float:
    """Operations of a matrix product in a CPU second, the best of a few."""
    a, b, best = torch.randn(size, size), torch.randn(size, size), float("inf")
    for _ in range(4):
        began = time.process_time()
        a @ b
        best = min(best, time.process_time() - began)
    return 2 * size**3 / best


def new_step(args: argparse.Namespace, canvas: bool, compiled: bool) -> tuple[Callable[[], float], float, int]:
    """A function that does a training step and returns its loss; operations and positions of a step."""
    torch.manual_seed(0)
    model = UnifiedDiffusionModel(UnifiedDiffusionConfig(**SHAPE, num_hidden_layers=args.layers)).train()
    if compiled:
        for layer in model.shared_transformer.layers:
            layer.compile()
    tokens = np.random.default_rng(0).integers(0, 12287, 100_000, dtype=np.uint16)
    documents = np.repeat(np.arange(500, dtype=np.uint32), 200)
    batch = TokenRows(PackedTokens(tokens, documents, "text", 1), args.rows, args.length).batch(0, 0)
    objective = ScoreNetworkObjective(model, ObjectiveConfig(canvas=canvas))
    parameters = list(model.parameters())
    optimizer = adamw(parameters, 0.1, 0.98)
    generator = Generator().manual_seed(0)

    def layout():
        return block_layout(batch, 16, 12287, generator) if canvas else [clean_copy(batch)]

    def step() -> float:
        parts = layout()
        loss = objective(parts)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    asked = sum(int((target.labels != IGNORED_LABEL).sum()) for _, target in layout())
    positions = args.rows * args.length * (3 if canvas else 1)
    trunk, head = num_weights(model.shared_transformer), model.token_embedding.weight.numel()
    return step, 6.0 * (trunk * positions + head * asked), positions


def measured(args: argparse.Namespace, canvas: bool, compiled: bool) -> tuple[Row, list[Row]]:
    """One way of stepping: its speed, and of which operations it consists."""
    step, operations, positions = new_step(args, canvas, compiled)
    for _ in range(2):  # the first compile, the optimizer's state
        step()
    seconds, rates = [], [product_rate()]
    for _ in range(args.steps):
        began = time.process_time()
        step()
        seconds.append(time.process_time() - began)
        rates.append(product_rate())
    rate, best = max(rates), min(seconds)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        step()
    way = f"{'clean copy and two canvases' if canvas else 'causal'}, {'compiled' if compiled else 'eager'}"
    row: Row = {"step": way, "allocator": Path(os.environ.get("LD_PRELOAD", "glibc")).name, "positions": positions}
    row |= {"CPU s": best, "positions/s": positions / best, "matmul TFLOP/s": rate / 1e12}
    row |= {"share": operations / best / rate}
    return row, [{"step": way} | parts_of(seen)]


def parts_of(seen: profile) -> dict[str, float]:
    """Shares of a step's own CPU time by kind of operation."""
    spent = {event.key: event.self_cpu_time_total for event in seen.key_averages()}
    total, shares = sum(spent.values()), {}
    for kind, names in KINDS.items():
        found = [key for key in spent if any(name in key for name in names)]
        shares[kind] = sum(spent.pop(key) for key in found) / total
    return shares | {"elementwise and the rest": sum(spent.values()) / total}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=["eager", "compiled"], default=["eager", "compiled"])
    parser.add_argument("--output", type=Path, default=Path("out"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    speeds, parts = [], []
    for way in args.ways:
        for canvas in (False, True):
            row, found = measured(args, canvas, way == "compiled")
            print(row, found, flush=True)
            speeds.append(row)
            parts += found
    settings = {name: getattr(args, name) for name in ("layers", "rows", "length", "steps")}
    notes = ["CPU seconds of one thread: the best step, and the best product measured between the steps."]
    report("train_step", {"Speed": speeds, "Shares of a step": parts}, settings, notes, args.output)


if __name__ == "__main__":
    main()
