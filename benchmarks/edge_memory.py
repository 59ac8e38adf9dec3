"""The edge and workstation tiers: their files, and what they write, say and draw in processes of limited memory.

Edge is the embedded checkpoint at two bits, with the shipped vocoder, in 2 GB; workstation a network of that tier with
random codes and the shipped autoencoder, in 8 GB. Neither has learned to speak or draw: memory does not depend on it.
Ceiling: the same in float32, without a limit. Control: a limit too small for anything, which must end the process.
The two-bit file is rounded from the four-bit one without training against the rounding: it shows size and memory, and
its perplexity shows what training must win back.
"""

import json
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from measure import argument_parser, held_out, report, start
from transformers import AutoTokenizer

from hf_unified_diffusion import UnifiedDiffusionModel
from hf_unified_diffusion.conversion.convert import convert_checkpoint
from hf_unified_diffusion.conversion.sources import total_bytes, weight_files
from hf_unified_diffusion.modeling.embedded import EMBEDDED_CHECKPOINT
from hf_unified_diffusion.modeling.memory_plan import plan_model
from hf_unified_diffusion.modeling.tiers import tier, without_memory
from hf_unified_diffusion.quantization import QuantizedWeight, bits_per_weight, mark_quantized, num_weights

LIMIT_BYTES, TOO_SMALL_BYTES, WORKSTATION_BYTES = 2_000_000_000, 600_000_000, 8_000_000_000
MAKER_STEPS = 2  # of sound and pictures: memory does not depend on their number
WEIGHT_RMS = 0.02
ALL_DENSE = 1 << 40  # a bound on the cache that bounds nothing
WRITER, MAKER = (Path(__file__).with_name(name) for name in ("limited_writer.py", "limited_maker.py"))


def in_a_process(script: Path, arguments: list[object], limit: int | None) -> dict | None:
    """What a script prints, in an address space of at most `limit` bytes; None where it failed."""

    def apply_limit() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    command = [sys.executable, script, *arguments]
    ran = subprocess.run(list(map(str, command)), preexec_fn=apply_limit, capture_output=True, text=True)
    return json.loads(ran.stdout) if ran.returncode == 0 else None


def memory_rows(name: str, folder: Path, limit: int | None, tokens: tuple[int, int]) -> list[dict[str, object]]:
    """Peak memory without and with a cache of dense layers, measured and planned."""
    model = UnifiedDiffusionModel.from_pretrained(folder)
    rows = []
    for cache in (0, ALL_DENSE):
        taken = in_a_process(WRITER, [folder, *tokens, cache], limit)
        room = 0 if cache == 0 else ALL_DENSE
        plan = plan_model(model, model.config, room, sum(tokens), model.dtype)
        row: dict[str, object] = {
            "weights": name,
            "limit (MB)": "none" if limit is None else limit / 1e6,
            "dense layers kept (MB)": plan.cache_bytes / 1e6,
            "ran": taken is not None,
        }
        if taken is not None:
            *_, wrote = taken.values()
            row |= {"peak resident (MB)": wrote["peak"] / 1e6, "planned (MB)": plan.total_bytes / 1e6}
            row |= {"address space (MB)": wrote["address_space"] / 1e6, "text": wrote["text"][:60]}
        else:
            row |= dict.fromkeys(("peak resident (MB)", "planned (MB)", "address space (MB)", "text"), "")
        rows.append(row)
    return rows


def maker_rows(name: str, folder: Path, modality: str, limit: int) -> list[dict[str, object]]:
    """Peak memory of sound or a picture without and with a cache of dense layers."""
    rows = []
    for cache, kept in {0: "none", ALL_DENSE: "all"}.items():
        taken = in_a_process(MAKER, [folder, modality, MAKER_STEPS, cache], limit)
        made = {"peak": "", "address_space": "", "made": ""} if taken is None else taken[f"made, cache {cache}"]
        peak, space = (made[key] / 1e6 if taken else "" for key in ("peak", "address_space"))
        row = {"weights": name, "modality": modality, "limit (MB)": limit / 1e6, "dense layers kept": kept}
        row |= {"ran": taken is not None, "peak resident (MB)": peak, "address space (MB)": space, "made": made["made"]}
        rows.append(row)
    return rows


def save_workstation(folder: Path) -> None:
    """A network of the workstation tier at its two bits with random codes, and the shipped autoencoder beside it."""
    chosen, generator = tier("workstation"), torch.Generator().manual_seed(0)
    model = without_memory(chosen.config(), chosen.quantization()).to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.normal_(0, WEIGHT_RMS, generator=generator)
        for layer in model.modules():
            if isinstance(layer, QuantizedWeight):
                layer.weight.random_(0, 256, generator=generator)
                layer.weight_scale.fill_(WEIGHT_RMS / 2 ** (layer.bits - 2))
    mark_quantized(model, chosen.quantization()).save_pretrained(folder)
    AutoTokenizer.from_pretrained(EMBEDDED_CHECKPOINT).save_pretrained(folder)
    shutil.copytree(Path(EMBEDDED_CHECKPOINT) / "vae", folder / "vae")


parser = argument_parser(__doc__)
parser.add_argument("--shards", type=Path, default=Path("data/shards"), help="as `make data` writes them")
parser.add_argument("--tokens", type=int, nargs=2, default=[128, 64], help="of the prompt, and new ones")
args, shown = start(parser)
source = Path(args.checkpoint or EMBEDDED_CHECKPOINT)
text = "\n\n".join(row["text"] for row in held_out(args.shards, "text", "validation")[:20])
with tempfile.TemporaryDirectory() as scratch:
    folders = {"as shipped": source, "INT2, edge policy": Path(scratch) / "int2", "float32": Path(scratch) / "dense"}
    workstation = "INT2, workstation policy, random codes"
    folders[workstation] = Path(scratch) / "workstation"
    converted = convert_checkpoint(
        source, folders["INT2, edge policy"], tier_name="edge", text=text, loss_budget=float("inf")
    )
    shutil.copytree(EMBEDDED_CHECKPOINT / "vocoder", folders["INT2, edge policy"] / "vocoder")
    convert_checkpoint(source, folders["float32"], "safetensors", bits=32)
    save_workstation(folders[workstation])
    sizes = []
    for name, folder in folders.items():
        model = UnifiedDiffusionModel.from_pretrained(folder)
        sizes.append(
            {
                "weights": name,
                "parameters (M)": num_weights(model) / 1e6,
                "bits per weight": bits_per_weight(model),
                "weight file (MB)": total_bytes(weight_files(folder)) / 1e6,
                "whole folder (MB)": total_bytes(path for path in folder.rglob("*") if path.is_file()) / 1e6,
            }
        )
    memory = []
    for name, limit in {"as shipped": LIMIT_BYTES, "INT2, edge policy": LIMIT_BYTES, "float32": None}.items():
        memory += memory_rows(name, folders[name], limit, tuple(args.tokens))
    memory += memory_rows("as shipped", source, TOO_SMALL_BYTES, tuple(args.tokens))[:1]
    made = maker_rows("INT2, edge policy", folders["INT2, edge policy"], "audio", LIMIT_BYTES)
    made += maker_rows(workstation, folders[workstation], "image", WORKSTATION_BYTES)
before, after = converted.perplexity
notes = [
    f"Causal perplexity on held-out prose, as shipped {before:.1f}, rounded to INT2 without training {after:.1f} "
    f"({after / before:.1f} times); largest relative error of a layer {max(converted.errors.values()):.1%}.",
    "The limit is on the address space (RLIMIT_AS): it holds mapped files and libraries too, and is stricter than one "
    "on resident memory. Planned: `plan_model`, from shapes alone.",
    "The whole folder of the edge tier holds the vocoder, that of the workstation tier the autoencoder, that of the "
    "shipped checkpoint both. Sound and pictures show memory alone: no network here was trained for them at two bits.",
]
report("edge_memory", {"Size": sizes, "Memory": memory, "Sound and pictures": made}, shown, notes, args.output)
