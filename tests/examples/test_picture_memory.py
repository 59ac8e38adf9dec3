"""The story of a memory of pictures: one of a concept, of sources in their order, with words, colours and its form."""

import io
import runpy
from pathlib import Path

import pytest
from datasets import Dataset
from PIL import Image, ImageDraw

from hf_unified_diffusion import PictureMemory, save_diffusers_model
from hf_unified_diffusion.codecs.image_codec import ImageCodec
from hf_unified_diffusion.training.image_corpus import FEATURES
from tests.codecs.vaes import tiny_dc

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "make_picture_memory.py"))


def drawing(colour: str, size: int = 64) -> bytes:
    picture = Image.new("RGB", (size, size), "white")
    ImageDraw.Draw(picture).rectangle((8, 8, size - 8, size - 8), fill=colour)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def row(colour: str, caption: str, concept: str, source: str) -> dict:
    captions = [caption, f"{caption} icon"]
    facts = {"captions": captions, "concept": concept, "source": source, "licence": "MIT", "attributes": ""}
    return {"png": drawing(colour), **facts}


@pytest.fixture
def folder(tmp_path):
    rows = [
        row("red", "an apple", "apple", "second"),
        row("lime", "an apple drawn first", "apple", "first"),
        row("blue", "a red car", "car", "second"),
        row("black", "the", "nothing", "first"),
        row("black", "a hat", "hat", "unknown"),
        row("gold", "a key", "key", "second"),
    ]
    Dataset.from_list(rows, features=FEATURES).to_parquet(str(tmp_path / "train" / "drawings-000.parquet"))
    save_diffusers_model(tiny_dc(8), tmp_path / "model" / "vae", metadata={"license": "apache-2.0"})
    return tmp_path


def test_one_picture_of_a_concept_with_words_and_colours(folder):
    made = SCRIPT["main"](
        [str(folder / "model"), "--pictures", str(folder / "train"), "--sources", "first", "second", "--size", "64"]
    )
    memory = PictureMemory.load(made)
    # by sources first; no caption without a word, no source that was not named, no colour beside one in the caption
    assert memory.captions == (("an apple drawn first", "green icon"), ("a red car", "icon"), ("a key", "icon yellow"))
    first, second = (source | {"licence": "MIT"} for source in ({"name": "first"}, {"name": "second"}))
    assert memory.metadata == {"sources": [first | {"pictures": 1}, second | {"pictures": 2}]}
    assert memory.grid == (2, 2)
    codec = ImageCodec(tiny_dc(8))
    assert memory.width == codec.width
    few = SCRIPT["main"](
        [
            str(folder / "model"),
            "--pictures",
            str(folder / "train"),
            "--sources",
            "second",
            "--num",
            "1",
            "--size",
            "64",
        ]
    )
    assert PictureMemory.load(few).captions == (("an apple", "icon red"),)


@pytest.mark.parametrize(
    ("colour", "found"),
    [
        ("red", {"red"}),
        ("#ff8800", {"orange"}),
        ("#884400", {"brown"}),
        ("pink", set()),
        ("gray", set()),
        ("#cc00ff", {"purple"}),
    ],
)
def test_colours_have_names(colour, found):
    assert SCRIPT["colours_of"](Image.open(io.BytesIO(drawing(colour)))) == found


def test_without_pictures_it_says_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match="pictures must hold Parquet files"):
        SCRIPT["main"]([str(tmp_path), "--pictures", str(tmp_path)])
