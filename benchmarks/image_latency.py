"""Latency of pictures on a CPU: 512 x 512 from caption to pixels, by the embedded checkpoint and by 600M parameters.

    python benchmarks/image_latency.py --threads 2

Each network lives in a process of its own, so that its peak memory is its own. The embedded checkpoint draws at its
default steps and guidance, by its network alone and led by its memory of pictures; the large network (the workstation
tier, random weights, because latency does not depend on them) in few steps without guidance, as a distilled one does.
A checkpoint without an autoencoder gets a random one of the planned size. Everything that a call does is timed:
tokenizing, all passes, decoding, the picture of Pillow.
"""

import argparse
import math
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from statistics import median

import torch
from diffusers.utils import logging as diffusers_logging
from latency import peak_bytes, recorded
from measure import CLOCKS, Row, argument_parser, report, start
from torch.profiler import ProfilerActivity, profile
from transformers.utils import logging

from hf_unified_diffusion import UnifiedDiffusionImagePipeline, UnifiedDiffusionModel, tier
from hf_unified_diffusion.pipelines.checkpoints import (
    EMBEDDED_CHECKPOINT,
    has_image_parts,
    load_image_parts,
    load_parts,
)
from hf_unified_diffusion.quantization import num_weights
from hf_unified_diffusion.schedulers.flow_matching import flow_scheduler
from hf_unified_diffusion.training.codec_objective import convolutional_autoencoder
from hf_unified_diffusion.training.machine import fast_dtype, matmul_rate

CAPTION, MB = "a red apple on a wooden table", 10**6
EMBEDDED, LARGE = "embedded checkpoint", "workstation tier, random weights"
LED = "embedded checkpoint, led by its memory"
NETWORKS = (EMBEDDED, LED, LARGE)
# operations by kind, as the profiler names them; the first kind that fits counts
KERNELS = {
    "convolutions": ("aten::mkldnn_convolution", "aten::thnn_conv", "aten::_slow_conv", "mkldnn::_convolution"),
    "matmuls": ("aten::mm", "aten::addmm", "mkldnn::_linear_pointwise", "onednn::"),
    "attention": ("aten::bmm", "aten::_softmax", "aten::_scaled_dot_product"),
}


def load(network: str, args: argparse.Namespace) -> tuple[UnifiedDiffusionImagePipeline, dict[str, object], str]:
    """The pipeline, the arguments of a call, and what the codec is."""
    folder = EMBEDDED_CHECKPOINT if args.checkpoint is None else args.checkpoint
    dtype = fast_dtype() if args.dtype == "auto" else getattr(torch, args.dtype)
    model, _, tokenizer = load_parts(folder, dtype)
    settings: dict[str, object] = {}
    if network == LARGE:
        model = UnifiedDiffusionModel._from_config(tier("workstation").config(), dtype=dtype).eval()
        settings = {"num_inference_steps": args.few_steps, "guidance_scale": 1.0}
    width = model.config.modalities["image"]["width"]
    scheduler, vae, codec = flow_scheduler(), None, "random"
    if has_image_parts(folder):
        scheduler, vae = load_image_parts(folder, dtype)
        codec = "the checkpoint's"
    if vae is None or vae.config.latent_channels != width:
        vae, codec = convolutional_autoencoder(width).eval().to(dtype), "random"
    pipe = UnifiedDiffusionImagePipeline(model, scheduler, tokenizer, vae)
    pipe.set_progress_bar_config(disable=True)
    return pipe, settings, f"{codec}, {num_weights(vae) / 1e6:.1f}M"


def shares(function: Callable[[], object]) -> dict[str, float]:
    """Shares of a run's time by kind of operation."""
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        function()
    sums = dict.fromkeys((*KERNELS, "rest"), 0.0)
    for event in trace.key_averages():
        kind = next((kind for kind, names in KERNELS.items() if event.key.startswith(names)), "rest")
        sums[kind] += event.self_cpu_time_total
    return {kind: spent / sum(sums.values()) for kind, spent in sums.items()}


def serve(network: str, args: argparse.Namespace, connection: Connection) -> None:
    """A child's life: load, draw in time, draw under the profiler, and tell."""
    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    now, decoding = CLOCKS[args.clock], []
    began = now()
    pipe, settings, codec = load(network, args)
    load_seconds = now() - began
    decode = recorded("decode", pipe.vae.decode)

    def timed_decode(*given: object, **options: object) -> object:
        began = now()
        output = decode(*given, **options)
        decoding.append(now() - began)
        return output

    pipe.vae.decode = timed_decode
    passes: list[int] = []

    def draw() -> None:
        # without its memory the network is asked in every step
        output = pipe(CAPTION, args.size, args.size, seed=args.seed, own_memory=network == LED, **settings)
        passes.append(output.num_forward_passes)

    taken = []
    for _ in range(args.repeats + 1):  # the first warms up
        began = now()
        draw()
        taken.append(now() - began)
    peak, weights = peak_bytes(), num_weights(pipe.transformer)  # before the profiler, which needs memory itself
    row = {
        "network": network,
        "parameters": f"{weights / 1e6:.0f}M",
        "codec": codec,
        "dtype": str(pipe.transformer.dtype).removeprefix("torch."),
        "passes": passes[-1],
        "median s": median(taken[1:]),
        "slowest s": max(taken[1:]),
        "first s": taken[0],
        "decoding s": median(decoding[1:]),
        "load s": load_seconds,
        "peak MB": peak / MB,
    }
    trunk = num_weights(pipe.transformer.shared_transformer)
    connection.send((row, {"network": network, **shares(draw)}, trunk))


def measure(network: str, args: argparse.Namespace) -> tuple[Row, Row, int]:
    """A network in a process of its own: latency and memory, shares of its time, weights of its trunk."""
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(network, args, theirs), daemon=True)
    process.start()
    theirs.close()  # so that a child that dies is an EOFError here
    answer = ours.recv()
    process.join()
    print(answer[0], flush=True)
    return answer


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall", help="cpu: for one thread on a busy machine")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--size", type=int, default=512, help="pixels a side")
    parser.add_argument("--few_steps", type=int, default=4, help="of the large network")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    args, settings = start(parser)
    torch.set_num_threads(args.threads)
    measured = [measure(network, args) for network in args.networks]
    dtype = fast_dtype() if args.dtype == "auto" else getattr(torch, args.dtype)
    rate = matmul_rate(torch.device("cpu"), dtype)
    tokens = math.ceil(args.size / 32) ** 2
    bounds = [2 * tokens * trunk * int(row["passes"]) / rate for row, _, trunk in measured]
    notes = [
        f"{tokens} tokens of the picture go through the trunk in each pass: at least "
        f"{', '.join(f'{bound:.2f} s' for bound in bounds)} at this machine's {rate / 1e9:.0f} GFLOP/s in "
        f"{str(dtype).removeprefix('torch.')}. Guidance takes two passes a step."
    ]
    tables = {
        f"{args.size} x {args.size} pixels from caption to picture": [row for row, _, _ in measured],
        "Shares of a profiled run": [parts for _, parts, _ in measured],
    }
    report("image_latency", tables, settings, notes, args.output)


if __name__ == "__main__":
    main()
