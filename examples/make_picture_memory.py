"""Let a checkpoint remember pictures: one of each concept of `train`, as INT4 tokens of its codec, by their captions.

    python examples/make_picture_memory.py --num 3300
    python examples/make_picture_memory.py runs/joint --sources noto fluent_emoji --output runs/joint

Words for a picture are those of its captions and, where these name none, the colours that fill it. What the image
pipeline then draws is led by what its prompt recalls (`own_memory`, docs/images.md).
The file holds the pictures themselves: only sources are taken whose licence lets them be passed on, and NOTICE has to
name them. Concepts of other splits stay out, so that what is measured on them is not what was remembered.
"""

import argparse
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from diffusers import AutoencoderDC
from PIL import Image
from tqdm.auto import tqdm

from hf_unified_diffusion.codecs.image_codec import ImageCodec
from hf_unified_diffusion.conditioning.picture_memory import COLOURS, PICTURE_MEMORY_NAME, PictureMemory, words_of
from hf_unified_diffusion.modeling.diffusers_weights import load_diffusers_model
from hf_unified_diffusion.modeling.embedded import EMBEDDED_CHECKPOINT
from hf_unified_diffusion.pipelines.checkpoints import PICTURE_MEMORY
from hf_unified_diffusion.training.image_views import pixels_of

SOURCES = ("noto", "fluent_emoji", "flat_color_icons", "meteocons", "streamline_color", "icon_park")
FACTS = ["captions", "concept", "source", "licence"]

# where the hues of a colour end, in degrees; the last ones begin anew
HUES = ((15, "red"), (42, "orange"), (70, "yellow"), (170, "green"), (255, "blue"), (290, "purple"), (345, "pink"))
BROWN_BELOW = 0.6  # what is orange in the light
LEAST_SATURATION, LEAST_VALUE = 0.3, 0.2  # of a pixel that has a colour
LEAST_COLOURED, LEAST_SHARE = 0.05, 0.35  # of the picture, and of what has a colour in it

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("checkpoint", type=Path, nargs="?", default=EMBEDDED_CHECKPOINT)
parser.add_argument("--pictures", type=Path, default=Path("data/image_pictures/train"))
parser.add_argument("--sources", nargs="+", default=list(SOURCES), help="the first that has a concept shows it")
parser.add_argument("--num", type=int, default=3300, help="pictures, of the first sources first")
parser.add_argument("--size", type=int, default=256, help="pixels a side")
parser.add_argument("--output", type=Path, help="folder of a model; default: the checkpoint")


def chosen(rows: Sequence[Mapping], sources: Sequence[str], num: int) -> list[int]:
    """Places of one picture of each concept, those of the first sources first, at most so many."""
    rank = {source: place for place, source in enumerate(sources)}
    order = sorted((rank[row["source"]], place) for place, row in enumerate(rows) if row["source"] in rank)
    first: dict[str, int] = {}
    for _, place in order:
        if words_of(rows[place]["captions"][0]):
            first.setdefault(rows[place]["concept"], place)
    return list(first.values())[:num]


def told(captions: Sequence[str], colours: set[str]) -> list[str]:
    """The first caption, and the words that others add, and its colours where it names none."""
    first = words_of(captions[0])
    more = set().union(*map(words_of, captions)) | (set() if first & COLOURS.keys() else colours)
    more -= first
    return [captions[0], " ".join(sorted(more))] if more else [captions[0]]


def colours_of(picture: Image.Image) -> set[str]:
    """The names of the colours that fill a good part of what is coloured in a picture."""
    hue, saturation, value = (np.asarray(band, np.float32) / 255 for band in picture.convert("HSV").split())
    coloured = (saturation > LEAST_SATURATION) & (value > LEAST_VALUE)
    if coloured.mean() < LEAST_COLOURED:
        return set()
    ends, names = zip(*HUES, strict=True)
    bins = np.digitize(hue[coloured] * 360, ends) % len(HUES)
    named = np.array(names)[bins]
    named[(named == "orange") & (value[coloured] < BROWN_BELOW)] = "brown"
    return {str(name) for name in np.unique(named) if (named == name).mean() >= LEAST_SHARE}


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> Path:
    """Returns the file."""
    args = parser.parse_args(argv)
    files = sorted(map(str, args.pictures.glob("*.parquet")))
    if not files:
        raise ValueError(
            f"pictures must hold Parquet files (run examples/prepare_images.py), got none in {args.pictures.name!r}"
        )
    table = Dataset.from_parquet(files)
    rows = table.select_columns(FACTS).to_list()
    places = chosen(rows, args.sources, args.num)
    codec = ImageCodec(load_diffusers_model(AutoencoderDC, args.checkpoint / "vae"))
    tokens, shown = [], []
    for row in tqdm(table.select(places).select_columns(["png"]), unit=" pictures"):
        tokens.append(codec.encode(pixels_of(row["png"], args.size)[None])[0])
        shown.append(colours_of(Image.open(io.BytesIO(row["png"])).convert("RGB")))
    kept = [rows[place] for place in places]
    counts = Counter((row["source"], row["licence"]) for row in kept)
    sources = [
        {"name": name, "licence": licence, "pictures": count} for (name, licence), count in sorted(counts.items())
    ]
    grid = codec.grid(args.size, args.size)
    captions = [told(row["captions"], colours) for row, colours in zip(kept, shown, strict=True)]
    memory = PictureMemory.of(captions, torch.stack(tokens), grid, {"sources": sources})
    file = memory.save((args.output or args.checkpoint) / PICTURE_MEMORY / PICTURE_MEMORY_NAME)
    print(f"{len(memory)} pictures, {file.stat().st_size / 1e6:.2f} MB: {dict(counts)}")
    return file


if __name__ == "__main__":
    main()
