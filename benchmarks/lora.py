"""What LoRA costs on the embedded checkpoint: loading, hot swap, fusing and undoing it, and what a row's adapter adds.

python benchmarks/lora.py
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from measure import argument_parser, load_pipelines, report, start
from peft import LoraConfig, get_peft_model

from hf_unified_diffusion import UnifiedDiffusionModel, UnifiedDiffusionTextPipeline
from hf_unified_diffusion.modeling.adapters import per_row
from hf_unified_diffusion.quantization import dequantize_model

TARGETS = ["q_proj", "v_proj", "up_proj", "down_proj"]


def milliseconds(call: Callable[[], object], repeats: int) -> float:
    """The fastest of several calls, in ms: other programs share the machine."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - began))
    return min(times)


def write_adapter(folder: Path, checkpoint: str | None, seed: int) -> Path:
    """A random adapter of rank 8, small against the weights."""
    model = UnifiedDiffusionModel.from_pretrained(checkpoint)
    adapted = get_peft_model(model, LoraConfig(r=8, target_modules=TARGETS))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(folder)
    return folder


def measured(pipe: UnifiedDiffusionTextPipeline, one: Path, other: Path, repeats: int) -> dict[str, float]:
    """Times in ms and differences, by what they are of."""
    ids = torch.randint(1, 8000, (2, 64), generator=torch.Generator().manual_seed(0))
    query = pipe.transformer.shared_transformer.layers[0].self_attn

    def forward(names: list[str] | None = None) -> torch.Tensor:
        with torch.no_grad(), per_row(pipe.transformer, names):
            return pipe.transformer(ids).logits

    found = {"forward of 2 x 64 tokens without adapters, ms": milliseconds(forward, repeats)}
    found["load, ms"] = milliseconds(lambda: pipe.load_lora_weights(one, adapter_name="one"), 1)
    pipe.load_lora_weights(other, adapter_name="other")
    own = [p.numel() for name, p in pipe.transformer.named_parameters() if ".one." in name]
    found["parameters of an adapter"] = sum(own)
    turns = iter([other, one] * repeats)
    swap = partial(pipe.load_lora_weights, adapter_name="one", hotswap=True)
    found["hot swap, ms"] = milliseconds(lambda: swap(next(turns)), repeats)
    pipe.set_adapters("one")
    found["forward with one adapter, ms"] = milliseconds(forward, repeats)
    mixed = partial(forward, ["one", "other"])
    found["forward with an adapter of its own a row, ms"] = milliseconds(mixed, repeats)
    pipe.set_adapters(["one", "other"], [0.7, 0.3])
    before, weight = forward(), query.q_proj.weight.clone()
    real = torch.isfinite(before)
    found["fuse two, ms"] = milliseconds(pipe.fuse_lora, 1)
    found["largest difference of a logit, fused"] = (forward() - before)[real].abs().max().item()
    pipe.unfuse_lora()
    found["largest difference of a logit, unfused again"] = (forward() - before)[real].abs().max().item()
    found["largest difference of a weight, unfused again"] = (query.q_proj.weight - weight).abs().max().item()
    found["largest logit"] = before[real].abs().max().item()
    return found


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    args, settings = start(parser)
    torch.set_num_threads(1)
    pipe = load_pipelines(args)["text"]
    dequantize_model(pipe.transformer, pipe.transformer.dtype)
    with TemporaryDirectory() as folder:
        one, other = (write_adapter(Path(folder) / str(seed), args.checkpoint, seed) for seed in (0, 1))
        found = measured(pipe, one, other, args.repeats)
    notes = [f"One thread, adapters of rank 8 on {', '.join(TARGETS)}; times are the fastest of {args.repeats}."]
    rows = [{"what": name, "figure": value} for name, value in found.items()]
    report("lora", {"LoRA": rows}, settings, notes, args.output)


if __name__ == "__main__":
    main()
