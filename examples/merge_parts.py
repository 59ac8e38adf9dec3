"""Put trained parts into a checkpoint folder, a memory conditioner or a decoder; by default the one inside the package.

    python examples/merge_parts.py runs/decoder/decoder.safetensors
    python examples/merge_parts.py runs/memory/conditioner.safetensors --checkpoint my-checkpoint --output_dir steered

Every other weight stays as it is, code by code. What `progress.json` beside the file says goes into `metadata.json`, as
the training stage of the file's name.
"""

import argparse
import json
from pathlib import Path

from hf_unified_diffusion.conversion.merging import PROGRESS_FILE, merge_tensors
from hf_unified_diffusion.modeling.embedded import EMBEDDED_CHECKPOINT
from hf_unified_diffusion.quantization import bits_per_weight, num_weights

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("file", type=Path, help="written by train_memory_conditioner.py or train_decoder.py")
parser.add_argument("--checkpoint", type=Path, default=EMBEDDED_CHECKPOINT)
parser.add_argument("--output_dir", type=Path, help="default: the checkpoint itself")
arguments = parser.parse_args()

destination = arguments.checkpoint if arguments.output_dir is None else arguments.output_dir
progress = json.loads((arguments.file.parent / PROGRESS_FILE).read_text())
model = merge_tensors(arguments.checkpoint, arguments.file, destination, training={arguments.file.stem: progress})
size = sum(file.stat().st_size for file in destination.iterdir())
print(f"{num_weights(model) / 1e6:.1f}M parameters, {bits_per_weight(model):.2f} bits per weight, {size / 1e6:.2f} MB")
print(f"trunk {model.trunk_share():.1%} of the parameters")
