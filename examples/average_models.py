"""Average the weights of model folders of one lineage (model soups, arXiv:2203.05482) into a new folder.

python examples/average_models.py runs/edge_canvas/model runs/edge_rounding/model --output_dir runs/averaged
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoTokenizer

from hf_unified_diffusion import UnifiedDiffusionModel

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("models", type=Path, nargs="+", help="dense folders of the same shape")
parser.add_argument("--output_dir", type=Path, required=True)
arguments = parser.parse_args()

loaded = [UnifiedDiffusionModel.from_pretrained(folder, dtype=torch.float32) for folder in arguments.models]
states = [model.state_dict() for model in loaded]
averaged = {name: torch.stack([state[name] for state in states]).mean(dim=0) for name in states[0]}
loaded[0].load_state_dict(averaged)
loaded[0].save_pretrained(arguments.output_dir)
AutoTokenizer.from_pretrained(arguments.models[0]).save_pretrained(arguments.output_dir)
