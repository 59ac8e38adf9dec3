"""Put a trained memory conditioner into a checkpoint folder; by default the one inside the package.

    python examples/merge_memory_conditioner.py runs/memory
    python examples/merge_memory_conditioner.py runs/memory --checkpoint my-checkpoint --output_dir steered

The conditioner is kept at 8 bits; every other weight stays as it is, code by code.
"""

import argparse
import json
from pathlib import Path

from hf_unified_diffusion.conversion.export import merge_tensors
from hf_unified_diffusion.modeling.embedded import EMBEDDED_CHECKPOINT
from hf_unified_diffusion.quantization import bits_per_weight, num_weights

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("conditioner", type=Path, help="a folder written by train_memory_conditioner.py")
parser.add_argument("--checkpoint", type=Path, default=EMBEDDED_CHECKPOINT)
parser.add_argument("--output_dir", type=Path, help="default: the checkpoint itself")
arguments = parser.parse_args()

destination = arguments.checkpoint if arguments.output_dir is None else arguments.output_dir
model = merge_tensors(
    arguments.checkpoint,
    arguments.conditioner / "conditioner.safetensors",
    destination,
    training={"memory_conditioner": json.loads((arguments.conditioner / "progress.json").read_text())},
)
size = sum(file.stat().st_size for file in destination.iterdir())
print(f"{num_weights(model) / 1e6:.1f}M parameters, {bits_per_weight(model):.2f} bits per weight, {size / 1e6:.1f} MB")
print(f"trunk {model.trunk_share():.1%} of the parameters")
