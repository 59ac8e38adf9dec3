"""What rounding costs a network: held-out perplexity beside bfloat16, the error of each layer, and the time it takes.

    python benchmarks/quantization.py --model runs/edge/model          # a dense folder, as training leaves it
    python benchmarks/quantization.py --parts time                     # beside a plain Python loop and torchao

Ratios of perplexity are paired: the same test rows under the same masks, with the 95% interval of the mean difference.
Calibration reads training rows alone. torchao is no dependency: without it its row is left out.
"""

import argparse
import math
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from measure import argument_parser, interleaved_seconds, report, start
from torch import Generator, Tensor, nn
from transformers import AutoTokenizer

from hf_unified_diffusion import ArrowQuantConfig, UnifiedDiffusionModel
from hf_unified_diffusion.conversion.convert import relative_error
from hf_unified_diffusion.quantization import bits_per_weight, calibrated_codes, dequantize, quantize, quantize_model
from hf_unified_diffusion.training.calibration_rows import calibration_batches
from hf_unified_diffusion.training.likelihood import Likelihood, canvas_nats, causal_nats, counted_tokens
from hf_unified_diffusion.training.machine import fast_dtype
from hf_unified_diffusion.training.token_data import bytes_per_token, pack_shards, starts_for

LENGTH, ROWS_AT_ONCE = 256, 8
MODALITIES = ("text", "code")
WAYS = {"causal": None, "blocks of 4": 4, "blocks of 16": 16}
TIMED_LAYERS, TIMED_SHAPE, TIMED_GROUP = 24, (4096, 1024), 64  # 100M weights
LOOPED_ROWS = 2  # of a layer, in the plain Python loop
SHARES, LARGEST_LEVEL = [1 - 0.025 * i for i in range(17)], 7  # of the INT4 search, spelled out


def load(args: argparse.Namespace, dtype: torch.dtype) -> UnifiedDiffusionModel:
    """The dense network."""
    return UnifiedDiffusionModel.from_pretrained(args.model, dtype=dtype).eval()


def packed_split(args: argparse.Namespace, tokenizer, split: str) -> dict:
    """Tokens of a split by modality."""
    files = sorted((args.shards / split).glob("*.parquet"))
    return {modality: pack_shards(files, tokenizer, modality, args.cache) for modality in MODALITIES}


def test_rows(args: argparse.Namespace, tokenizer) -> dict[str, list]:
    """Batches of the split that is measured, by modality."""
    count = args.rows // ROWS_AT_ONCE
    return {
        modality: [packed.rows(starts_for(packed, LENGTH, ROWS_AT_ONCE, i, 0), LENGTH) for i in range(count)]
        for modality, packed in packed_split(args, tokenizer, args.split).items()
    }


def nats_of_rows(
    model: UnifiedDiffusionModel, batches: Mapping[str, list], draws: int
) -> dict[tuple[str, str], Tensor]:
    """Nats of each row, by data and way of reading; the masks are the same at each call."""
    found = {}
    for modality, rows in batches.items():
        for way, block_length in WAYS.items():
            generator = Generator().manual_seed(0)
            parts = [
                causal_nats(model, batch)[0]
                if block_length is None
                else canvas_nats(model, batch, block_length, draws, generator)[0]
                for batch in rows
            ]
            found[modality, way] = torch.cat(parts)
    return found


def rounded(args: argparse.Namespace, bits: int, batches: list[dict] | None) -> tuple[UnifiedDiffusionModel, dict]:
    """The network at so many bits, calibrated on the batches if there are any, and the errors of its layers."""
    config = ArrowQuantConfig(bits, args.group_size, int8_modules=args.int8_modules, modules_to_not_convert=[])
    model = load(args, torch.float32)
    dense = {name: model.get_submodule(name) for name in config.bits_of_layers(model)}
    codes = {}
    if batches is not None:
        with torch.autocast(model.device.type, fast_dtype(), enabled=fast_dtype() is not torch.float32):
            codes = calibrated_codes(model, config, batches)
    quantize_model(model, config, codes)
    return model, {name: relative_error(layer, model.get_submodule(name)) for name, layer in dense.items()}


def likelihood_tables(args: argparse.Namespace) -> dict[str, list[dict]]:
    """Held-out likelihood of each scheme, and the errors of its layers."""
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    calibration = calibration_batches(
        packed_split(args, tokenizer, "train"), args.calibration_rows, tokenizer.mask_token_id, seed=args.seed
    )
    batches, sizes = test_rows(args, tokenizer), bytes_per_token(tokenizer)
    counted = {modality: torch.cat([counted_tokens(batch) for batch in rows]) for modality, rows in batches.items()}
    tokens = {modality: torch.cat([batch.tokens for batch in rows]) for modality, rows in batches.items()}
    num_bytes = {modality: (sizes[tokens[modality]] * counted[modality]).sum(dim=1) for modality in batches}
    base_model = load(args, torch.bfloat16)
    base, rows, errors = nats_of_rows(base_model, batches, args.draws), [], {}

    def add(name: str, bits: float, found: dict[tuple[str, str], Tensor]) -> None:
        for (modality, way), nats in found.items():
            asked = counted[modality].sum(dim=1)
            here = Likelihood.of(nats, asked, num_bytes[modality])
            more = Likelihood.of(nats - base[modality, way], asked, num_bytes[modality])
            ratio = math.exp(more.nats_per_token)
            rows.append(
                {
                    "weights": name,
                    "bits per weight": bits,
                    "data": modality,
                    "read as": way,
                    "bits per byte": here.bits_per_byte,
                    "perplexity": here.perplexity,
                    "ratio to bf16": ratio,
                    "95% interval": f"± {ratio * more.confidence:.4f}",
                }
            )

    add("bf16", 16.0, base)
    for scheme in args.schemes:
        bits, calibrated = int(scheme.partition("-")[0]), scheme.endswith("-calibrated")
        model, errors[scheme] = rounded(args, bits, calibration if calibrated else None)
        name = f"INT{bits}{', calibrated' if calibrated else ''}"
        add(name, bits_per_weight(model), nats_of_rows(model.to(torch.bfloat16), batches, args.draws))
    plot_errors(errors, args.output / "quantization_layers.png")
    return {"Held-out likelihood": rows, "Error of the layers": error_rows(errors)}


def error_rows(errors: Mapping[str, Mapping[str, float]]) -> list[dict]:
    """One row per layer: rms of the rounding over rms of the weights, by scheme."""
    names = next(iter(errors.values()))
    return [{"layer": name, **{scheme: of_layers[name] for scheme, of_layers in errors.items()}} for name in names]


def plot_errors(errors: Mapping[str, Mapping[str, float]], picture: Path) -> None:
    """Draw the errors in the order of the layers."""
    figure, panel = plt.subplots(figsize=(12, 4.5), layout="constrained")
    for scheme, of_layers in errors.items():
        panel.plot(list(of_layers.values()), marker=".", linewidth=0.5, label=scheme)
    panel.set(xlabel="layer, from the input to the output", ylabel="rms error / rms of the weights", yscale="log")
    panel.legend(fontsize="small")
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=120)
    plt.close(figure)


def python_loop(weights: list[float], group_size: int) -> list[tuple[list[int], float]]:
    """INT4 codes and scales of least squared error over the shares, a number at a time."""
    groups = []
    for first in range(0, len(weights), group_size):
        group = weights[first : first + group_size]
        widest = max(abs(w) for w in group) / LARGEST_LEVEL
        best = (math.inf, [], widest)
        for share in SHARES:
            scale = widest * share
            codes = [max(-8, min(7, round(w / scale))) for w in group]
            error = sum((w - code * scale) ** 2 for w, code in zip(group, codes, strict=True))
            best = min(best, (error, codes, scale), key=lambda found: found[0])
        groups.append(best[1:])
    return groups


def our_runs(weights: list[Tensor]) -> dict[str, tuple[Callable[[], list], Callable]]:
    """Ours with both kinds of scales: what is timed, and what restores the weights of one of its results."""

    def restored(codes: tuple[Tensor, Tensor]) -> Tensor:
        return dequantize(*codes, 4)

    return {
        "ours, widest weight": (lambda: [quantize(w, 4, TIMED_GROUP, search=False) for w in weights], restored),
        "ours, scales searched": (lambda: [quantize(w, 4, TIMED_GROUP) for w in weights], restored),
    }


def torchao_runs(weights: list[Tensor]) -> dict[str, tuple[Callable[[], list], Callable]]:
    """torchao at INT4 in groups: with the widest weight as scale, and with its own search; none where it is missing."""
    if find_spec("torchao") is None:
        print("torchao is not installed: its rows are left out (pip install torchao)")
        return {}
    from torchao.quantization import IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerGroup

    def run(algorithm: str) -> list:
        layers = [nn.Linear(*reversed(weight.shape), bias=False, device="meta") for weight in weights]
        for layer, weight in zip(layers, weights, strict=True):
            layer.weight = nn.Parameter(weight, requires_grad=False)
        config = IntxWeightOnlyConfig(torch.int4, PerGroup(TIMED_GROUP), intx_choose_qparams_algorithm=algorithm)
        quantize_(nn.Sequential(*layers), config)
        return [layer.weight for layer in layers]

    return {
        "torchao, widest weight": (lambda: run("affine"), lambda weight: weight.dequantize()),
        "torchao, scales searched": (lambda: run("hqq_scale_only"), lambda weight: weight.dequantize()),
    }


def time_rows(args: argparse.Namespace) -> list[dict]:
    """Seconds for 100M weights at INT4 in groups of 64; the loop's are extrapolated from its slice."""
    generator = Generator().manual_seed(args.seed)
    weights = [torch.randn(TIMED_SHAPE, generator=generator) * 0.02 for _ in range(TIMED_LAYERS)]
    total = sum(weight.numel() for weight in weights)
    part = weights[0][:LOOPED_ROWS].flatten().tolist()
    all_layers, one_layer = (our_runs(some) | torchao_runs(some) for some in (weights, weights[:1]))
    taken = interleaved_seconds({name: run for name, (run, _) in all_layers.items()}, args.repeats, clock=args.clock)
    errors: dict[str, object] = {
        name: ((restored(run()[0]) - weights[0]).norm() / weights[0].norm()).item()
        for name, (run, restored) in one_layer.items()
    }
    slice_seconds = interleaved_seconds({"loop": lambda: python_loop(part, TIMED_GROUP)}, args.repeats, args.clock)
    taken["plain Python loop, scales searched"] = slice_seconds["loop"] * total / len(part)
    return [
        {
            "quantizer": name,
            "weights": total,
            "seconds": seconds,
            "times ours of the same scales": seconds / taken[f"ours, {name.partition(', ')[2]}"],
            "rms error / rms of the weights": errors.get(name, ""),
        }
        for name, seconds in taken.items()
    ]


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--parts", nargs="+", choices=["likelihood", "time"], default=["likelihood", "time"])
    parser.add_argument("--model", type=Path, default=Path("runs/edge/model"), help="a dense folder with tokenizer")
    parser.add_argument("--shards", type=Path, default=Path("data/shards"))
    parser.add_argument("--cache", type=Path, default=Path("runs/tokens"))
    parser.add_argument("--split", choices=["test", "validation"], default="test", help="validation to choose by")
    parser.add_argument("--rows", type=int, default=32, help="sequences of 256 tokens, of each modality")
    parser.add_argument("--draws", type=int, default=1, help="masks drawn for each sequence")
    parser.add_argument("--calibration_rows", type=int, default=32, help="of the training split")
    parser.add_argument("--group_size", type=int, default=96)
    parser.add_argument("--int8_modules", nargs="*", default=["embeddings"], help="kept at 8 bits")
    schemes = ["8", "4", "4-calibrated", "2", "2-calibrated"]
    parser.add_argument("--schemes", nargs="+", choices=schemes, default=schemes)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu where the machine is shared")
    args, shown = start(parser)
    shown |= {"model": args.model.name}
    del shown["checkpoint"], shown["cache"]
    if "likelihood" in args.parts:
        report("quantization", likelihood_tables(args), shown, [], args.output)
    if "time" in args.parts:
        report("quantization_time", {"Seconds for 100M weights": time_rows(args)}, shown, [], args.output)


if __name__ == "__main__":
    main()
