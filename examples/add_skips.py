"""Give a checkpoint skips past its trunk (`WienerSkip`), fitted to training data; the rest stays as it is.

    python examples/add_skips.py src/hf_unified_diffusion/assets/unified-diffusion-edge --output_dir runs/start \
        --latents data/image_latents --speech data/speech

A folder of Parquet weights stays one, code by code; a skip that is there stays.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer

from hf_unified_diffusion import UnifiedDiffusionModel
from hf_unified_diffusion.training.latent_data import CaptionedLatents, open_latents
from hf_unified_diffusion.training.skip_fitting import fitted_skip
from hf_unified_diffusion.training.speech_data import SpokenRows, open_speech

BATCH_TOKENS = 1024


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--latents", type=Path, help="of pictures: a folder with train/")
    parser.add_argument("--speech", type=Path, help="a folder with train/")
    parser.add_argument("--image_axes", type=int, default=128)
    parser.add_argument("--audio_axes", type=int, default=256)
    parser.add_argument("--avatar_axes", type=int, default=52)
    parser.add_argument("--batches", type=int, default=24, help="of a thousand tokens each")
    parser.add_argument("--cache", type=Path, default=Path("runs"))
    args = parser.parse_args(argv)
    model, tokenizer = UnifiedDiffusionModel.from_pretrained(args.model), AutoTokenizer.from_pretrained(args.model)
    plans: list[tuple[str, CaptionedLatents | SpokenRows, int]] = []
    if args.latents is not None:
        shards = open_latents(args.latents.glob("train/*.parquet"), "image", args.cache / "latents")
        plans.append(("image", CaptionedLatents(shards, tokenizer, BATCH_TOKENS), args.image_axes))
    if args.speech is not None:
        rows = open_speech(args.speech.glob("train/*.parquet"), args.cache / "speech")
        spoken = SpokenRows(rows, tokenizer, BATCH_TOKENS, faces=True)
        plans += [("audio", spoken, args.audio_axes), ("avatar", spoken, args.avatar_axes)]
    for modality, source, num_axes in plans:
        if modality in model.skips:
            continue
        batches = [source.batch(turn, seed=0) for turn in range(args.batches)]
        axes, variances = fitted_skip(model, batches, num_axes, face=modality == "avatar")
        model.add_skip(modality, axes, variances)
        shown = ", ".join(f"{value:.3g}" for value in variances[:: max(1, num_axes // 8)].tolist())
        print(f"{modality}: {num_axes} axes; variances of some {shown}")
    model.save_pretrained(args.output_dir)
    tokenizer.save_pretrained(args.output_dir)


if __name__ == "__main__":
    main()
