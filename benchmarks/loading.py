"""Loading weights: ready time, memory and layout beside safetensors; and how lazily a quantized model dequantizes.

    python benchmarks/loading.py

Ready: from the path to every tensor at hand, none of their bytes read ("header", as safetensors does), or all of them
checked ("touch", "full", which safetensors cannot). The loaders take turns in one process, files in the page cache.
Memory: in a process of its own each, from /proc/self/smaps_rollup before and after. Control: safetensors read into
memory of its own. Lazy: a model of random INT2 weights (about 350M parameters) runs one layer.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors.torch
import torch
from measure import Row, argument_parser, interleaved_seconds, report
from torch import Tensor
from transformers import AutoModel

from hf_unified_diffusion import UnifiedDiffusionConfig, UnifiedDiffusionModel
from hf_unified_diffusion.quantization import (
    ArrowQuantConfig,
    QuantizedWeight,
    bits_per_weight,
    dequantized_cache_info,
    num_weights,
    read_parquet_weights,
    write_parquet_weights,
)
from hf_unified_diffusion.quantization.parquet_layout import ALIGN
from hf_unified_diffusion.quantization.quantizer_arrowquant import replace_layers

SHAPES = {"q": (1024, 1024), "k": (256, 1024), "v": (256, 1024), "o": (1024, 1024), "norm": (1024,)}
SHAPES |= {"gate": (2816, 1024), "up": (2816, 1024), "down": (1024, 2816)}
BYTES = 400 << 20
MODEL = {"hidden_size": 1024, "num_hidden_layers": 27, "num_attention_heads": 16, "num_key_value_heads": 16}
MODEL |= {"intermediate_size": 2816, "vocab_size": 12288, "mask_token_id": 12287}
Loader = Callable[[Path], Mapping[str, Tensor]]


def read_into_memory(path: Path) -> dict[str, Tensor]:
    return safetensors.torch.load(path.read_bytes())


LOADERS: dict[str, tuple[str, Loader]] = {
    "safetensors": ("weights.safetensors", lambda path: safetensors.torch.load_file(path)),
    "Parquet, header": ("weights.parquet", lambda path: dict(read_parquet_weights(path, "header"))),
    "Parquet, touch, opened": ("weights.parquet", lambda path: read_parquet_weights(path, "touch")),
    "Parquet, touch, every byte checked": ("weights.parquet", lambda path: dict(read_parquet_weights(path, "touch"))),
    "Parquet, full": ("weights.parquet", lambda path: dict(read_parquet_weights(path, "full"))),
    "control: safetensors into memory": ("weights.safetensors", read_into_memory),
}
IN_CHILDREN = [name for name in LOADERS if name != "Parquet, touch, opened"]  # it holds no tensors yet


def weights(total_bytes: int) -> dict[str, Tensor]:
    """Layers of random bfloat16 until that many bytes."""
    tensors: dict[str, Tensor] = {}
    layer, left = 0, total_bytes
    while left > 0:
        for name, shape in SHAPES.items():
            tensors[f"layers.{layer}.{name}.weight"] = torch.randn(shape).bfloat16()
        left -= sum(tensors[f"layers.{layer}.{name}.weight"].nbytes for name in SHAPES)
        layer += 1
    return tensors


def ready_table(folder: Path, repeats: int) -> list[Row]:
    """Milliseconds until every tensor is at hand, and the ratio to safetensors."""
    functions = {name: lambda load=load, file=folder / file: load(file) for name, (file, load) in LOADERS.items()}
    seconds = interleaved_seconds(functions, repeats)
    cpu_seconds = interleaved_seconds(functions, repeats, clock="cpu")  # what a busy machine would need alone
    return [
        {
            "loader": name,
            "ready, ms": 1e3 * value,
            "times safetensors": value / seconds["safetensors"],
            "CPU, ms": 1e3 * cpu_seconds[name],
            "times safetensors' CPU": cpu_seconds[name] / cpu_seconds["safetensors"],
        }
        for name, value in seconds.items()
    ]


def anonymous_bytes() -> int:
    """Memory of this process that no file backs."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


def mappings_of(path: Path) -> list[tuple[int, int]]:
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    spans = [line.split()[0].split("-") for line in lines]
    return [(int(low, 16), int(high, 16)) for low, high in spans]


def measure_memory(name: str, folder: Path) -> Row:
    """Load in this process; where the tensors lie and what it took."""
    file, load = LOADERS[name]
    path = folder / file
    load(path)  # libraries load and caches fill before the measurement
    before = anonymous_bytes()
    tensors = load(path)
    values = list(tensors.values())
    grown = anonymous_bytes() - before
    spans = mappings_of(path)
    inside = [any(low <= t.data_ptr() and t.data_ptr() + t.nbytes <= high for low, high in spans) for t in values]
    lowest = min(tensor.data_ptr() & -tensor.data_ptr() for tensor in values)
    return {
        "loader": name,
        "anonymous, MB": grown / 1e6,
        "of the file": f"{grown / path.stat().st_size:.2%}",
        "tensors": len(values),
        "inside the mapping": sum(inside),
        f"aligned to {ALIGN}": sum(tensor.data_ptr() % ALIGN == 0 for tensor in values),
        "least alignment": lowest,
    }


def in_a_child(part: str, *arguments: str) -> Row:
    """The row that this script prints when it is run for one part."""
    command = [sys.executable, __file__, "--part", part, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{part} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def write_random_int2(folder: Path) -> None:
    """A quantized model that nobody trained: random codes, scales near 0.01, saved as Parquet."""
    config = UnifiedDiffusionConfig(**MODEL)
    with torch.device("meta"):
        model = UnifiedDiffusionModel(config).to(torch.bfloat16)
    model.config.quantization_config = ArrowQuantConfig(bits=2)
    replace_layers(model, model.config.quantization_config)
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        codes = tensor.dtype == torch.uint8
        filled = torch.randint(0, 256, tensor.shape, dtype=torch.uint8) if codes else torch.rand(tensor.shape) + 0.5
        state[name] = filled if codes else (filled / 100).to(tensor.dtype)
    model.save_pretrained(folder, state_dict=state)


@torch.no_grad()
def measure_lazy(folder: Path) -> Row:
    """Load the model in this process, run layer 13, count."""
    before = anonymous_bytes()
    model = AutoModel.from_pretrained(folder).eval()
    loaded = anonymous_bytes() - before
    start = dequantized_cache_info()
    layer = model.shared_transformer.layers[13]
    x = torch.randn(1, 128, MODEL["hidden_size"], dtype=model.dtype)
    layer.mlp(layer.post_attention_layernorm(x))
    for projection in ("q_proj", "k_proj", "v_proj", "o_proj"):
        getattr(layer.self_attn, projection)(x)
    info = dequantized_cache_info()
    inside = [module for module in layer.modules() if isinstance(module, QuantizedWeight)]
    everywhere = sum(isinstance(module, QuantizedWeight) for module in model.modules())
    (file,) = folder.glob("*.parquet")
    return {
        "parameters, M": num_weights(model) / 1e6,
        "bits per weight": bits_per_weight(model),
        "file, MB": file.stat().st_size / 1e6,
        "anonymous after loading, MB": loaded / 1e6,
        "matrices": everywhere,
        "dequantized by loading": start.dequantizations,
        "in layer 13": len(inside),
        "dequantized by it": info.dequantizations - start.dequantizations,
        "held, MB": info.used_bytes / 1e6,
        "their dense size, MB": sum(2 * rows * columns for rows, columns in (m.matrix_shape for m in inside)) / 1e6,
    }


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--folder", type=Path, help="where the files go; default: a temporary folder")
    parser.add_argument("--part", help="for processes that this script starts: memory or lazy")
    parser.add_argument("--loader", help="of the part memory")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    if args.part:
        row = measure_memory(args.loader, args.folder) if args.part == "memory" else measure_lazy(args.folder)
        print(json.dumps(row))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        tensors = weights(BYTES)
        write_parquet_weights(folder / "weights.parquet", tensors)
        safetensors.torch.save_file(tensors, folder / "weights.safetensors")
        del tensors
        tables = {
            f"Ready, {os.path.getsize(folder / 'weights.parquet') / 1e6:.0f} MB": ready_table(folder, args.repeats),
            "Memory": [in_a_child("memory", "--loader", name, "--folder", str(folder)) for name in IN_CHILDREN],
        }
        write_random_int2(folder / "model")
        tables["One layer of a model"] = [in_a_child("lazy", "--folder", str(folder / "model"))]
    load = f"Load average while it ran: {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores."
    floors = "Floors: ready at most 15 times safetensors and under 50 ms; anonymous memory at most 2% of the file."
    report("loading", tables, {"repeats": args.repeats, "seed": args.seed}, [floors, load], args.output)


if __name__ == "__main__":
    main()
