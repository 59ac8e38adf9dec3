"""What LoRA costs on the embedded checkpoint: loading, hot swap, fusing and undoing it, and what a row's adapter adds.

python benchmarks/lora.py              # to benchmarks/results/lora.json and lora.md
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from peft import LoraConfig, get_peft_model

from hf_unified_diffusion import UnifiedDiffusionModel, UnifiedDiffusionTextPipeline

RESULTS = Path(__file__).parent / "results"
TARGETS = ["q_proj", "v_proj", "up_proj", "down_proj"]


def milliseconds(call: Callable[[], object], repeats: int) -> float:
    """The fastest of several calls, in ms: other programs share the machine."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - began))
    return min(times)


def write_adapter(folder: Path, seed: int) -> Path:
    """A random adapter of rank 8, small against the weights."""
    model = UnifiedDiffusionModel.from_pretrained()
    adapted = get_peft_model(model, LoraConfig(r=8, target_modules=TARGETS))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    ids = torch.randint(1, 8000, (2, 64), generator=torch.Generator().manual_seed(0))
    with TemporaryDirectory() as folder:
        one, other = (write_adapter(Path(folder) / str(seed), seed) for seed in (0, 1))
        pipe = UnifiedDiffusionTextPipeline.from_pretrained()
        pipe.transformer.dequantize(torch.float32)
        found: dict[str, float] = {"parameters of the adapter": 0.0}

        def forward(names: list[str] | None = None) -> torch.Tensor:
            from hf_unified_diffusion.modeling.adapters import per_row

            with torch.no_grad(), per_row(pipe.transformer, names):
                return pipe.transformer(ids).logits

        found["forward of 2 x 64 tokens without adapters, ms"] = milliseconds(forward, args.repeats)
        began = time.perf_counter()
        pipe.load_lora_weights(one, adapter_name="one")
        found["load, ms"] = 1e3 * (time.perf_counter() - began)
        pipe.load_lora_weights(other, adapter_name="other")
        found["parameters of the adapter"] = sum(
            p.numel() for name, p in pipe.transformer.named_parameters() if ".one." in name
        )
        turns = iter([other, one] * args.repeats)
        found["hot swap, ms"] = milliseconds(
            lambda: pipe.load_lora_weights(next(turns), adapter_name="one", hotswap=True), args.repeats
        )
        pipe.set_adapters("one")
        found["forward with one adapter, ms"] = milliseconds(forward, args.repeats)
        found["forward with an adapter of its own a row, ms"] = milliseconds(
            lambda: forward(["one", "other"]), args.repeats
        )
        pipe.set_adapters(["one", "other"], [0.7, 0.3])
        before, weight = forward(), pipe.transformer.shared_transformer.layers[0].self_attn.q_proj.weight.clone()
        real = torch.isfinite(before)
        began = time.perf_counter()
        pipe.fuse_lora()
        found["fuse two, ms"] = 1e3 * (time.perf_counter() - began)
        found["largest difference of a logit, fused"] = (forward() - before)[real].abs().max().item()
        pipe.unfuse_lora()
        found["largest difference of a logit, unfused again"] = (forward() - before)[real].abs().max().item()
        again = pipe.transformer.shared_transformer.layers[0].self_attn.q_proj.weight
        found["largest difference of a weight, unfused again"] = (again - weight).abs().max().item()
        found["largest logit"] = before[real].abs().max().item()
    rows = [f"| {name} | {value:.3g} |" for name, value in found.items()]
    about = f"Embedded checkpoint in float32, one thread, adapters of rank 8 on {', '.join(TARGETS)}, the fastest of "
    text = "\n".join(["# LoRA", "", f"{about}{args.repeats}.", "", "| what | figure |", "|---|---|", *rows]) + "\n"
    (RESULTS / "lora.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "lora.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
