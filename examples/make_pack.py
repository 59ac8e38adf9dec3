"""Write data and code into packs of limited size, with which training runs where only torch and transformers are.

    python examples/make_pack.py --tokenizer runs/edge_tokenizer --output_dir runs/packs
    python examples/make_pack.py --tokenizer runs/edge_tokenizer --output_dir runs/packs --latents image=data/images \
        --shares text=1 code=2 image=3 --packs 2

A pack is a folder: `code/` (this package and the training script), `site/` (pure Python that it imports), `tokenizer/`,
`train/` and `validation/`. docs/accelerator.md says how to train from it.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from transformers import AutoTokenizer

import hf_unified_diffusion
from hf_unified_diffusion.training.latent_data import open_latents
from hf_unified_diffusion.training.pack_blocks import PRECISIONS, VALUES_OF_BLOCK, Block, latent_blocks, token_blocks
from hf_unified_diffusion.training.pack_speech import speech_blocks
from hf_unified_diffusion.training.packs import PackSource, copy_code, size_of, write_packs
from hf_unified_diffusion.training.speech_data import open_speech
from hf_unified_diffusion.training.stages import named
from hf_unified_diffusion.training.token_data import pack_shards

EXAMPLES = Path(__file__).parent
SCRIPTS = [
    EXAMPLES / name
    for name in ("train_unified.py", "unified.toml", "accelerator.toml", "pack_weights.py", "quantize_weights.py")
]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="the packs go to pack-000, ... in it")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--shards", type=Path, default=Path("data/shards"), help="of text and code")
    parser.add_argument("--modalities", nargs="*", default=["text", "code"])
    parser.add_argument("--latents", nargs="*", default=[], help="image=data/images: folders of latent shards")
    parser.add_argument("--speech", type=Path, help="data/speech: a folder of speech shards, the modality audio")
    parser.add_argument("--faces", action="store_true", help="with the face of each utterance")
    parser.add_argument("--precision", nargs="*", default=[], help=f"image=int8: one of {PRECISIONS}, int8 by default")
    parser.add_argument("--shares", nargs="*", default=[], help="text=1 image=2: of a pack's bytes, 1 by default")
    parser.add_argument("--pack_mb", type=float, default=60.0, help="that no pack exceeds, in megabytes of 10^6 bytes")
    parser.add_argument("--packs", type=int, default=1, help="at most so many")
    parser.add_argument("--validation_tokens", type=int, default=65536, help="of each modality, in every pack")
    parser.add_argument("--validation_values", type=int, default=VALUES_OF_BLOCK // 8, help="numbers, likewise")
    parser.add_argument("--cache", type=Path, default=Path("runs/tokens"), help="of tokenized shards")
    return parser.parse_args(argv)


def block_values(precision: str) -> int:
    """Numbers of a block: principal axes are the same size in a block of any, so there are more."""
    return VALUES_OF_BLOCK * (8 if precision == "principal" else 1)


def splits_of(args: argparse.Namespace) -> Iterator[tuple[str, Block, Iterator[Block]]]:
    """Of each modality: its name, a block of validation data, and the blocks of training data."""
    tokenizer, precision = AutoTokenizer.from_pretrained(args.tokenizer), named(args.precision, str, "precision")
    for modality in args.modalities:
        train, unseen = (
            pack_shards(args.shards.glob(f"{split}/*.parquet"), tokenizer, modality, args.cache)
            for split in ("train", "validation")
        )
        yield modality, next(token_blocks(unseen, args.validation_tokens)), token_blocks(train)
    for modality, folder in named(args.latents, str, "latents").items():
        train, unseen = (
            open_latents(Path(folder).glob(f"{split}/*.parquet"), modality, args.cache.parent / "latents")
            for split in ("train", "validation")
        )
        kind = precision.get(modality, "int8")
        held_out = next(latent_blocks(unseen, kind, args.validation_values))
        yield modality, held_out, latent_blocks(train, kind, block_values(kind))
    if args.speech is not None:
        train, unseen = (
            open_speech((args.speech / split).glob("*.parquet"), args.cache.parent / "speech")
            for split in ("train", "validation")
        )
        kind = precision.get("audio", "int8")
        held_out = next(speech_blocks(unseen, args.faces, args.validation_values, kind))
        yield "audio", held_out, speech_blocks(train, args.faces, block_values(kind), kind)


def main(argv: Sequence[str] | None = None) -> list[Path]:
    args = parse(argv)
    shares = named(args.shares, int, "shares")
    splits = list(splits_of(args))
    held_out = {modality: unseen for modality, unseen, _ in splits}
    sources = [PackSource(modality, train, shares.get(modality, 1)) for modality, _, train in splits]
    args.output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.output_dir) as folder:
        common = Path(folder)
        copy_code(common, Path(hf_unified_diffusion.__file__).parent, SCRIPTS)
        AutoTokenizer.from_pretrained(args.tokenizer).save_pretrained(common / "tokenizer")
        packs = write_packs(
            args.output_dir, common, held_out, sources, limit_bytes=round(args.pack_mb * 1e6), max_packs=args.packs
        )
    for pack in packs:
        files = sorted({path.name.rpartition("-")[0] for path in (pack / "train").iterdir()})
        print(f"{pack}: {size_of(pack) / 1e6:.1f} MB, {', '.join(files)}")
    return packs


if __name__ == "__main__":
    main()
