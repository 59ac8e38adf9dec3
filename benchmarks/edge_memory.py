"""The edge tier: the embedded checkpoint at two bits, its file, and text written in a process limited to 2 GB.

Ceiling: the same in float32, without a limit. Control: a limit too small for anything, which must end the process.
The two-bit file is rounded from the four-bit one without training against the rounding: it shows size and memory, and
its perplexity shows what training must win back.
"""

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import argument_parser, held_out, report, start

from hf_unified_diffusion import UnifiedDiffusionModel
from hf_unified_diffusion.conversion.convert import convert_checkpoint
from hf_unified_diffusion.conversion.sources import total_bytes, weight_files
from hf_unified_diffusion.modeling.embedded import EMBEDDED_CHECKPOINT
from hf_unified_diffusion.modeling.memory_plan import plan_model
from hf_unified_diffusion.quantization import bits_per_weight, num_weights

LIMIT_BYTES, TOO_SMALL_BYTES = 2_000_000_000, 600_000_000
ALL_DENSE = 1 << 40  # a bound on the cache that bounds nothing
WRITER = Path(__file__).with_name("limited_writer.py")


def write_in_a_process(folder: Path, caches: list[int], limit: int | None, tokens: tuple[int, int]) -> dict | None:
    """What `limited_writer.py` prints, in an address space of at most `limit` bytes; None where it failed."""

    def apply_limit() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    command = [sys.executable, WRITER, folder, *tokens, *caches]
    ran = subprocess.run(map(str, command), preexec_fn=apply_limit, capture_output=True, text=True)
    return json.loads(ran.stdout) if ran.returncode == 0 else None


def memory_rows(name: str, folder: Path, limit: int | None, tokens: tuple[int, int]) -> list[dict[str, object]]:
    """Peak memory without and with a cache of dense layers, measured and planned."""
    model = UnifiedDiffusionModel.from_pretrained(folder)
    rows = []
    for cache in (0, ALL_DENSE):
        taken = write_in_a_process(folder, [cache], limit, tokens)
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


parser = argument_parser(__doc__)
parser.add_argument("--shards", type=Path, default=Path("data/shards"), help="as `make data` writes them")
parser.add_argument("--tokens", type=int, nargs=2, default=[128, 64], help="of the prompt, and new ones")
args, shown = start(parser)
source = Path(args.checkpoint or EMBEDDED_CHECKPOINT)
text = "\n\n".join(row["text"] for row in held_out(args.shards, "text", "validation")[:20])
with tempfile.TemporaryDirectory() as scratch:
    folders = {"as shipped": source, "INT2, edge policy": Path(scratch) / "int2", "float32": Path(scratch) / "dense"}
    made = convert_checkpoint(
        source, folders["INT2, edge policy"], tier_name="edge", text=text, loss_budget=float("inf")
    )
    convert_checkpoint(source, folders["float32"], "safetensors", bits=32)
    sizes = []
    for name, folder in folders.items():
        model = UnifiedDiffusionModel.from_pretrained(folder)
        sizes.append(
            {
                "weights": name,
                "parameters (M)": num_weights(model) / 1e6,
                "bits per weight": bits_per_weight(model),
                "weight file (MB)": total_bytes(weight_files(folder)) / 1e6,
                "whole folder (MB)": total_bytes(folder.iterdir()) / 1e6,
            }
        )
    memory = []
    for name, limit in {"as shipped": LIMIT_BYTES, "INT2, edge policy": LIMIT_BYTES, "float32": None}.items():
        memory += memory_rows(name, folders[name], limit, tuple(args.tokens))
    memory += memory_rows("as shipped", source, TOO_SMALL_BYTES, tuple(args.tokens))[:1]
before, after = made.perplexity
notes = [
    f"Causal perplexity on held-out prose, as shipped {before:.1f}, rounded to INT2 without training {after:.1f} "
    f"({after / before:.1f} times); largest relative error of a layer {max(made.errors.values()):.1%}.",
    "The limit is on the address space (RLIMIT_AS): it holds mapped files and libraries too, and is stricter than one "
    "on resident memory. Planned: `plan_model`, from shapes alone.",
    "Audio is not run: this checkpoint is not trained for it.",
]
report("edge_memory", {"Size": sizes, "Memory": memory}, shown, notes, args.output)
