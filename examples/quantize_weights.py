"""Round a trained folder to what a checkpoint ships, in weight files of limited size, where it was trained.

    python quantize_weights.py runs/rounded/model --output_dir $OUT --max_shard_size 14MB
    python quantize_weights.py runs/rounded/model --quantization_scales start --output_dir $OUT     # the stage's own

`export_checkpoint.py` lays the folder out as a checkpoint, code by code as it is.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoTokenizer

from hf_unified_diffusion import ArrowQuantConfig, UnifiedDiffusionModel
from hf_unified_diffusion.quantization import bits_per_weight, quantize_model
from hf_unified_diffusion.training.quantization_aware import RoundedWeights, scales_of

INT8_MODULES = ["embeddings", "heads", "projections", "time_embedding"]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a folder written by train_unified.py")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group_size", type=int, default=96)
    parser.add_argument("--int8_modules", nargs="*", default=INT8_MODULES, help="kept at 8 bits")
    parser.add_argument("--quantization_scales", type=Path, help="a rounded checkpoint, whose scales are kept")
    parser.add_argument("--max_shard_size", default="14MB")
    args = parser.parse_args(argv)
    model = UnifiedDiffusionModel.from_pretrained(args.model, dtype=torch.float32)
    quantization = ArrowQuantConfig(args.bits, args.group_size, args.int8_modules, modules_to_not_convert=[])
    codes = {}
    if args.quantization_scales is not None:
        scales = scales_of(UnifiedDiffusionModel.from_pretrained(args.quantization_scales))
        codes = RoundedWeights(model, quantization, scales=scales).codes()
    quantize_model(model, quantization, codes)
    model.save_pretrained(args.output_dir, max_shard_size=args.max_shard_size)
    AutoTokenizer.from_pretrained(args.model).save_pretrained(args.output_dir)
    print(f"{bits_per_weight(model):.2f} bits per weight in {args.output_dir}")


if __name__ == "__main__":
    main()
