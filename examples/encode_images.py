"""Encode the captioned pictures once, so that training reads latents: `OUTPUT/{train,validation}/*.parquet`.

    python examples/encode_images.py --sizes 128 --views 2
    python examples/encode_images.py --vae runs/image_codec/vae --sizes 128 256

What is there already stays, so a run that was cut off goes on where it was; shards are written whole or not at all.
Train on them with `train_unified.py --latents image=data/image_latents`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from diffusers import AutoencoderDC
from tqdm.auto import tqdm
from transformers import HfArgumentParser

from hf_unified_diffusion.codecs.image_codec import ImageCodec
from hf_unified_diffusion.modeling.diffusers_weights import load_diffusers_model
from hf_unified_diffusion.modeling.embedded import EMBEDDED_CHECKPOINT
from hf_unified_diffusion.training.latent_encoding import PatchEncoder, claim_folder, encode_shard


@dataclass
class Arguments:
    """Command line."""

    vae: str = str(EMBEDDED_CHECKPOINT / "vae")  # a folder that `save_diffusers_model` wrote
    pictures: str = "data/image_pictures"
    output_dir: str = "data/image_latents"
    splits: list[str] = field(default_factory=lambda: ["train", "validation"])
    sizes: list[int] = field(default_factory=lambda: [128])
    views: int = 2  # of each training picture; held-out ones are encoded whole
    batch_size: int = 16
    max_pictures: int | None = None  # of each shard, to try it out

    def __post_init__(self):
        if self.views < 1:
            raise ValueError(f"views must be at least 1, got {self.views}")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the number of samples written."""
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses(args=argv)
    codec, out = ImageCodec(load_diffusers_model(AutoencoderDC, args.vae)), Path(args.output_dir)
    claim_folder(out, codec)
    plan = []
    for split, size in product(args.splits, args.sizes):
        files = sorted((Path(args.pictures) / split).glob("*.parquet"))
        if not files:
            raise ValueError(f"{args.pictures}/{split} must hold Parquet files of pictures, got none")
        for view, file in product(range(args.views if split == "train" else 1), files):
            plan.append((file, out / split / f"{file.stem}-{size}-{view}.parquet", size, view))
    left = [job for job in plan if not job[1].exists()]
    encoder = PatchEncoder(codec)
    print(f"{len(plan) - len(left)} of {len(plan)} shards are there")
    with tqdm(unit=" pictures") as bar:
        written = 0
        for file, target, size, view in left:
            bar.set_description(target.name)
            written += encode_shard(encoder, file, target, size, view, args.batch_size, args.max_pictures, bar.update)
    print(f"{written} samples in {len(left)} shards")
    return written


if __name__ == "__main__":
    main()
