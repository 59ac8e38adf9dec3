"""A model folder from steps that pack_weights.py wrote.

python examples/unpack_weights.py runs/weights-0 runs/weights-1 --output_dir runs/start
python examples/unpack_weights.py return-0 --base start --output_dir runs/trained
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer

from hf_unified_diffusion import UnifiedDiffusionConfig, UnifiedDiffusionModel
from hf_unified_diffusion.training.refinements import added, dense_weights


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", type=Path, nargs="+", help="in the order in which they were written")
    parser.add_argument("--base", type=Path, help="the model folder that they were written with")
    parser.add_argument("--output_dir", type=Path, required=True)
    args = parser.parse_args(argv)
    base = None if args.base is None else dense_weights(args.base)
    config = UnifiedDiffusionConfig.from_pretrained(args.steps[-1])
    model = UnifiedDiffusionModel(config)
    model.load_state_dict(added(base, args.steps))
    model.save_pretrained(args.output_dir)
    AutoTokenizer.from_pretrained(args.steps[-1]).save_pretrained(args.output_dir)


if __name__ == "__main__":
    main()
