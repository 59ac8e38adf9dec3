"""The captioned pictures: hold-out by concept, licences, rendering within bounds, composed scenes."""

import io
import json
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hf_unified_diffusion.training.data_sources import load_packages, permissive
from hf_unified_diffusion.training.image_concepts import captions_of, concept_key, plural, split_concepts
from hf_unified_diffusion.training.image_corpus import IMAGE_SOURCES_FILE, assign_splits
from hf_unified_diffusion.training.image_extract import Drawing
from hf_unified_diffusion.training.image_render import MAX_SIDE, RenderError, SvgRenderer, open_raster
from hf_unified_diffusion.training.image_scenes import COLOURS, Part, Scene, compose, draw_scene

SQUARE = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 10 10"><rect width="10" height="10" fill="#f00"/></svg>'
WORDS = ["apple", "tree", "cat", "red", "house", "fish", "star", "moon"]
concepts = st.sets(st.lists(st.sampled_from(WORDS), min_size=1, max_size=3, unique=True).map(" ".join), max_size=40)


@pytest.fixture(scope="module")
def renderer():
    with SvgRenderer() as renderer:
        yield renderer


def drawing(concept: str, source: str) -> Drawing:
    return Drawing(source, "MIT", concept, concept, (concept,), SQUARE)


@settings(max_examples=60, deadline=None)
@given(concepts)
def test_no_concept_of_train_contains_a_held_out_one(keys):
    splits = split_concepts(keys)
    assert set(splits) == keys
    for held_out in (key for key, split in splits.items() if split != "train"):
        wider = [key for key in keys if set(held_out.split()) <= set(key.split())]
        assert len(wider) > 13 or all(splits[key] != "train" for key in wider)


def test_drawings_are_held_out_with_all_their_styles():
    drawings = [drawing(f"{a} {b}", source) for a in WORDS for b in WORDS for source in "abcde"]
    splits = assign_splits(drawings)
    assert sum(map(len, splits.values())) == len(drawings)
    held_out = {d.concept for d in splits["test"] + splits["validation"]}
    assert held_out
    assert not held_out & {d.concept for d in splits["train"] + splits["seen"]}
    assert not {(d.concept, d.source) for d in splits["seen"]} & {(d.concept, d.source) for d in splits["train"]}
    assert {d.concept for d in splits["seen"]} <= {d.concept for d in splits["train"]}


def test_only_permissive_packages_pass():
    packages = permissive(load_packages(IMAGE_SOURCES_FILE))
    assert all(len(package.sha256) == 64 for package in packages)
    with pytest.raises(ValueError, match="licences must be permissive or public domain, got .*GPL-2.0"):
        permissive([replace(packages[0], licence="GPL-2.0")])


def test_a_concept_has_one_key_and_several_captions():
    assert concept_key("Red Apples") == concept_key("red apple")
    assert (plural("cherry"), plural("fox"), plural("fish")) == ("cherries", "foxes", "fish")
    captions = captions_of("red apple", "emoji", tags=("fruit", "food"))
    assert len(captions) == len(set(captions)) > 2
    assert all("apple" in caption for caption in captions)


def test_a_drawing_fills_the_side_that_is_asked_for(renderer):
    picture = renderer.render(SQUARE, 1.0, 32)
    assert (picture.size, picture.mode) == ((32, 32), "RGBA")
    assert picture.getpixel((16, 16)) == (255, 0, 0, 255)


@pytest.mark.parametrize("svg", [b"", b"<svg", b"\xff\xfe\x00", SQUARE[:-20]])
def test_a_broken_drawing_is_refused_and_the_next_one_drawn(renderer, svg):
    with pytest.raises(RenderError, match="an SVG must be"):
        renderer.render(svg, 1.0, 32)
    assert renderer.render(SQUARE, 1.0, 8).size == (8, 8)


def test_a_drawing_beyond_the_bounds_costs_only_itself():
    with SvgRenderer(max_seconds=20, max_bytes=1 << 29) as renderer:
        with pytest.raises(RenderError):
            renderer.render(SQUARE, 1.0, 60000)  # 14 GB of pixels
        assert renderer.render(SQUARE, 1.0, 8).size == (8, 8)


def test_a_slow_drawing_is_given_up():
    with SvgRenderer() as renderer:
        assert renderer.render(SQUARE, 1.0, 8).size == (8, 8)
        renderer.max_seconds = 0
        with pytest.raises(RenderError, match="within 0 s"):
            renderer.render(SQUARE, 1.0, 512)


def test_large_and_broken_raster_files_are_refused():
    file = io.BytesIO()
    Image.new("L", (MAX_SIDE + 1, 1)).save(file, "PNG")
    for content in (file.getvalue(), b"no picture"):
        with pytest.raises(RenderError):
            open_raster(content)


def centre(pixels: np.ndarray, colour: str) -> np.ndarray:
    """Mean (y, x) of the pixels of a colour."""
    wanted = np.array([int(COLOURS[colour][i : i + 2], 16) for i in (1, 3, 5)])
    places = np.argwhere((np.abs(pixels.astype(int) - wanted) < 30).all(axis=2))
    assert len(places) > 50
    return places.mean(axis=0)


@pytest.mark.parametrize(("relation", "axis", "sign"), [("left of", 1, -1), ("right of", 1, 1), ("above", 0, -1)])
def test_a_scene_shows_what_its_caption_says(renderer, relation, axis, sign):
    scene = Scene((Part("circle", 1, "red", True), Part("square", 1, "blue", True)), relation)
    drawn = compose(scene, random.Random(0), 96, "#ffffff", {}, lambda svg, side: renderer.render(svg, 1.0, side))
    pixels = np.array(drawn)
    assert sign * (centre(pixels, "red")[axis] - centre(pixels, "blue")[axis]) > 5
    assert scene.captions[0] == f"a red circle {relation} a blue square"
    assert json.loads(scene.attributes)["relation"] == relation


def test_scenes_follow_from_the_generator_and_name_every_part():
    scenes = [draw_scene(random.Random(seed), ["cat", "tree"]) for seed in range(100)]
    assert scenes == [draw_scene(random.Random(seed), ["cat", "tree"]) for seed in range(100)]
    assert {scene.relation for scene in scenes} == {None, "left of", "right of", "above", "below"}
    assert all(part.described in caption for s in scenes for part in s.parts for caption in s.captions)
