"""Let a checkpoint remember pictures: one of each concept of `train`, as INT4 tokens of its codec, by their captions.

    python examples/make_picture_memory.py --num 2500
    python examples/make_picture_memory.py runs/joint --sources noto fluent_emoji --output runs/joint

What the image pipeline then draws is led by what its prompt recalls (`own_memory`, docs/images.md). The file holds the
pictures themselves: only sources are taken whose licence lets them be passed on, and NOTICE has to name them. Concepts
of other splits stay out, so that what is measured on them is not what was remembered.
"""

import argparse
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from datasets import Dataset
from diffusers import AutoencoderDC
from PIL import Image
from tqdm.auto import tqdm

from hf_unified_diffusion.codecs.image_codec import ImageCodec
from hf_unified_diffusion.codecs.pictures import read_pictures
from hf_unified_diffusion.conditioning.picture_memory import PICTURE_MEMORY_NAME, PictureMemory, words_of
from hf_unified_diffusion.modeling.diffusers_weights import load_diffusers_model
from hf_unified_diffusion.modeling.embedded import EMBEDDED_CHECKPOINT
from hf_unified_diffusion.pipelines.image_inputs import resized

SOURCES = ("noto", "fluent_emoji", "flat_color_icons", "meteocons", "icon_park", "fxemoji")  # MIT or Apache-2.0
FACTS = ["captions", "concept", "source", "licence"]

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("checkpoint", type=Path, nargs="?", default=EMBEDDED_CHECKPOINT)
parser.add_argument("--pictures", type=Path, default=Path("data/image_pictures/train"))
parser.add_argument("--sources", nargs="+", default=list(SOURCES), help="the first that has a concept shows it")
parser.add_argument("--num", type=int, default=2500, help="pictures, of the first sources first")
parser.add_argument("--size", type=int, default=256, help="pixels a side")
parser.add_argument("--output", type=Path, help="folder; default: the checkpoint's")


def chosen(rows: Sequence[Mapping], sources: Sequence[str], num: int) -> list[int]:
    """Places of one picture of each concept, those of the first sources first, at most so many."""
    rank = {source: place for place, source in enumerate(sources)}
    order = sorted((rank[row["source"]], place) for place, row in enumerate(rows) if row["source"] in rank)
    first: dict[str, int] = {}
    for _, place in order:
        if words_of(rows[place]["captions"][0]):
            first.setdefault(rows[place]["concept"], place)
    return list(first.values())[:num]


def told(captions: Sequence[str]) -> list[str]:
    """The first caption, and the words that others add."""
    more = set().union(*map(words_of, captions)) - words_of(captions[0])
    return [captions[0], " ".join(sorted(more))] if more else [captions[0]]


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> Path:
    """Returns the file."""
    args = parser.parse_args(argv)
    files = sorted(map(str, args.pictures.glob("*.parquet")))
    if not files:
        raise ValueError(f"pictures must hold Parquet files (run examples/prepare_images.py), got none in {files}")
    table = Dataset.from_parquet(files)
    rows = table.select_columns(FACTS).to_list()
    places = chosen(rows, args.sources, args.num)
    codec = ImageCodec(load_diffusers_model(AutoencoderDC, args.checkpoint / "vae"))
    tokens = []
    for row in tqdm(table.select(places).select_columns(["png"]), unit=" pictures"):
        (pixels,) = read_pictures("picture", [Image.open(io.BytesIO(row["png"])).convert("RGB")])
        tokens.append(codec.encode(resized(pixels, (args.size, args.size))[None])[0])
    kept = [rows[place] for place in places]
    counts = Counter((row["source"], row["licence"]) for row in kept)
    sources = [
        {"name": name, "licence": licence, "pictures": count} for (name, licence), count in sorted(counts.items())
    ]
    grid = codec.grid(args.size, args.size)
    memory = PictureMemory.of([told(row["captions"]) for row in kept], torch.stack(tokens), grid, {"sources": sources})
    file = memory.save((args.output or args.checkpoint) / PICTURE_MEMORY_NAME)
    print(f"{len(memory)} pictures, {file.stat().st_size / 1e6:.2f} MB: {dict(counts)}")
    return file


if __name__ == "__main__":
    main()
