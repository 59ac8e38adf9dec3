"""Write a model in steps of four bits, in files of at most 15 MiB: to a machine that trains, or back from it.

    python examples/pack_weights.py runs/causal/model --output_dir runs/weights-0                # 4 bits a weight
    python examples/pack_weights.py runs/causal/model --sent runs/weights-0 --output_dir runs/weights-1     # 4 more
    python examples/pack_weights.py trained/model --base start --output_dir return-0     # what training changed, only

`--base` is a model that the other side has too; `--sent` are the steps that it got before.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer

from hf_unified_diffusion import UnifiedDiffusionConfig
from hf_unified_diffusion.training.refinements import (
    added,
    dense_weights,
    refinement_of,
    residual,
    write_refinement,
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a folder of train_unified.py, or a checkpoint")
    parser.add_argument("--base", type=Path, help="a model folder that is there already")
    parser.add_argument("--sent", type=Path, nargs="*", default=[], help="steps that were sent, in order")
    parser.add_argument("--output_dir", type=Path, required=True)
    args = parser.parse_args(argv)
    weights, base = dense_weights(args.model), None if args.base is None else dense_weights(args.base)
    sent = added(base, args.sent) if args.sent or base is not None else None
    left = residual(weights, sent)
    paths = write_refinement(refinement_of(left), args.output_dir)
    config = UnifiedDiffusionConfig.from_pretrained(args.model)
    if hasattr(config, "quantization_config"):  # what is sent stands for dense weights
        del config.quantization_config
    config.save_pretrained(args.output_dir)
    AutoTokenizer.from_pretrained(args.model).save_pretrained(args.output_dir)
    then = residual(weights, added(base, [*args.sent, args.output_dir]))
    before, after = (sum(float(v.square().sum()) for v in values.values()) ** 0.5 for values in (left, then))
    size = sum(path.stat().st_size for path in paths)
    print(
        f"{size / 1e6:.1f} MB in {len(paths)} files; distance from the model {before:.4g}, with this step {after:.4g}"
    )


if __name__ == "__main__":
    main()
