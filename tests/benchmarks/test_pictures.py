"""Pictures are read, chosen and captioned; judges of captions and attributes learn what pictures show."""

import io
import json
import random
from dataclasses import replace
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet
import pytest
import torch
from caption_match import CaptionMatcher, fit_on_train, recall_rows
from evaluators import EVALUATORS_FILE, RandomFeatures, features_of, pixels_of
from image_metrics import density_and_coverage, kid
from pictures import Picture, choose, coarse, is_drawing, is_scene, one_per_concept
from PIL import Image, ImageDraw
from scene_attributes import (
    COLOUR_WIDTHS,
    OPPOSITE,
    PLACES,
    AttributeClassifier,
    SceneJudge,
    attribute_rows,
    colour_histogram,
    colour_of,
    colour_views,
    count_of,
    cropped,
    number_of,
    relation_of,
)
from torch import Generator

from hf_unified_diffusion.training.data_sources import load_packages

COLOURS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (30, 60, 220)}


def painted(parts: list[tuple[str, tuple[float, float]]], relation: str | None, chance: random.Random) -> Picture:
    """Discs of colours at places."""
    image = Image.new("RGB", (48, 48), (255, 255, 255))
    for colour, (x, y) in parts:
        radius, x, y = chance.uniform(6, 10), 48 * x + chance.uniform(-2, 2), 48 * y + chance.uniform(-2, 2)
        ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), fill=COLOURS[colour])
    described = [{"name": "circle", "count": 1, "colour": colour, "is_shape": True} for colour, _ in parts]
    caption = f" {relation} ".join(f"a {colour} circle" for colour, _ in parts)
    return Picture(image, (caption,), f"scene: {caption}", "scenes", {"parts": described, "relation": relation})


def singles(count: int, seed: int) -> list[Picture]:
    chance = random.Random(seed)
    return [painted([(chance.choice(list(COLOURS)), (0.5, 0.5))], None, chance) for _ in range(count)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = []
    for i, picture in enumerate([*singles(6, 0), *singles(6, 1)]):
        with io.BytesIO() as stream:
            picture.image.save(stream, "png")
            attributes = json.dumps(picture.attributes) if i < 6 else None
            rows.append({"png": stream.getvalue(), "captions": [f"caption {i // 2}"], "concept": f"concept {i // 2}",
                         "source": "test", "licence": "CC0-1.0", "attributes": attributes})  # fmt: skip
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "pictures-000.parquet")
    return tmp_path


def test_scenes_and_drawings_are_told_apart_and_each_is_chosen_once(folder: Path) -> None:
    for keep, concepts in ((is_scene, range(3)), (is_drawing, range(3, 6))):
        found = choose(folder, 99, 32, random.Random(0), keep)
        assert sorted(picture.concept for picture in found) == sorted(2 * [f"concept {i}" for i in concepts])
        assert {picture.image.size for picture in found} == {(32, 32)}


def test_every_picture_is_as_likely_to_be_chosen(folder: Path) -> None:
    chosen = [choose(folder, 1, 8, random.Random(seed), is_scene)[0].concept for seed in range(300)]
    assert all(60 <= chosen.count(f"concept {i}") <= 140 for i in range(3))


def test_a_folder_without_pictures_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must hold pictures"):
        choose(tmp_path, 1, 8, random.Random(0), is_scene)


def test_a_concept_is_asked_for_once_and_by_its_own_caption() -> None:
    image = Image.new("RGB", (8, 8))
    rows = [("cat", "a cat"), ("cat", "a kitten"), ("dog", "a dog"), ("hound", "a dog"), ("cow", "a cow")]
    pictures = [Picture(image, (caption,), concept) for concept, caption in rows]
    assert [(one.concept, one.caption) for one in one_per_concept(pictures, 9)] == [rows[0], rows[2], rows[4]]
    assert len(one_per_concept(pictures, 2)) == 2


def test_pixels_keep_their_colours_and_lie_between_nothing_and_one() -> None:
    assert pixels_of(Image.new("RGB", (50, 30), (255, 0, 51)), 8).flatten(1).mean(dim=1).tolist() == pytest.approx(
        [1.0, 0.0, 0.2], abs=1e-3
    )


def test_random_features_are_fixed_and_do_not_depend_on_the_batch() -> None:
    pictures = [picture.image for picture in singles(5, 0)]
    together = features_of(RandomFeatures(), pictures)
    assert torch.equal(together, features_of(RandomFeatures(), pictures))
    assert torch.allclose(together, features_of(RandomFeatures(), pictures, batch_size=2), atol=1e-5)


def test_pictures_without_detail_are_farther_from_real_ones_than_real_ones_are() -> None:
    network, real, other = RandomFeatures(), singles(60, 0), singles(60, 1)
    reference, found, blurred = (
        features_of(network, [picture.image for picture in pictures]) for pictures in (real, other, coarse(other, 4))
    )
    assert abs(kid(reference, found)) < kid(reference, blurred) / 10
    assert density_and_coverage(reference, found)[1] > density_and_coverage(reference, blurred)[1]


def test_a_caption_judge_finds_captions_of_unseen_pictures_and_not_shuffled_ones() -> None:
    generator = Generator().manual_seed(0)
    turn = torch.randn(12, 6, generator=generator)

    def pairs(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        features = torch.randn(count, 12, generator=generator)
        return features, features @ turn + 0.1 * torch.randn(count, 6, generator=generator)

    matcher, _ = fit_on_train(pairs(400), pairs(50))
    features, captions = pairs(60)
    rows = recall_rows("any", matcher, {"real": features}, captions, generator)
    real, control, chance = ({k: row[f"recall at {k}"].value for k in (1, 10)} for row in rows)
    assert real[1] > 0.9 and real[10] == 1
    assert control[1] < 0.1 and control[10] < 0.5
    assert chance == {1: 1 / 60, 10: 10 / 60}


@pytest.mark.parametrize(("penalty", "rows"), [(0.0, 5), (1.0, 1)])
def test_a_caption_judge_refuses_what_it_cannot_be_fitted_on(penalty: float, rows: int) -> None:
    with pytest.raises(ValueError, match="penalty must be positive"):
        CaptionMatcher.fit(torch.randn(rows, 3), torch.randn(rows, 2), penalty)


def test_labels_are_those_of_the_caption() -> None:
    chance, places = random.Random(0), ((0.25, 0.5), (0.75, 0.5))
    single = painted([("red", (0.5, 0.5))], None, chance)
    two, alike = (
        painted(list(zip(colours, places, strict=True)), "left of", chance)
        for colours in (("red", "blue"), 2 * ["red"])
    )
    (part,) = single.attributes["parts"]
    three = replace(single, attributes={"parts": [{**part, "count": 3}], "relation": None})
    labels = (colour_of, number_of, count_of, relation_of)
    assert [label(single) for label in labels] == ["red", "1", None, None]
    assert [label(three) for label in labels] == [None, "3", "3", None]
    assert [label(two) for label in labels] == [None, None, None, "left of"]
    assert relation_of(alike) is None  # nobody could tell which is which


def test_a_histogram_has_the_share_of_every_colour() -> None:
    half = torch.zeros(3, 4, 4)
    half[:, :2] = 1
    found = colour_histogram(half).square()
    assert found.sum().item() == pytest.approx(1) and found[0].item() == found[-1].item() == pytest.approx(0.5)


def test_colours_are_read_from_unseen_pictures_and_halves() -> None:
    train, chance = singles(60, 0), random.Random(2)
    judge = AttributeClassifier.fit(colour_views(train), [str(colour_of(one)) for one in train], COLOUR_WIDTHS)
    unseen = singles(30, 1)
    assert judge.predict(colour_views(unseen)) == [colour_of(one) for one in unseen]
    scene = painted([("red", (0.25, 0.5)), ("blue", (0.75, 0.5))], "left of", chance)
    halves = [cropped(scene, PLACES[side]) for side in ("left of", "right of")]
    assert judge.predict(colour_views(halves)) == ["red", "blue"]


def test_relations_are_read_from_halves_and_not_where_a_colour_was_never_seen() -> None:
    chance = random.Random(3)
    train = [one for one in singles(60, 0) if colour_of(one) != "green"]
    colours = AttributeClassifier.fit(colour_views(train), [str(colour_of(one)) for one in train], COLOUR_WIDTHS)
    counts = AttributeClassifier.fit(colour_views(train), ["2", "3"] * (len(train) // 2) + ["2"] * (len(train) % 2),
                                     COLOUR_WIDTHS)  # fmt: skip
    judge = SceneJudge(None, colours, counts)  # relations need no network
    centres = {"left of": (0.25, 0.5), "right of": (0.75, 0.5), "above": (0.5, 0.25), "below": (0.5, 0.75)}
    scenes = [
        painted([(first, centres[relation]), (second, centres[OPPOSITE[relation]])], relation, chance)
        for relation in PLACES
        for first, second in (("red", "blue"), ("blue", "red"))
    ]
    assert judge.read("relation", scenes)(scenes) == [1.0] * 8
    swapped = [scenes[i ^ 1] for i in range(8)]
    assert judge.read("relation", scenes)(swapped) == [0.0] * 8
    unseen = painted([("green", (0.25, 0.5)), ("red", (0.75, 0.5))], "left of", chance)
    assert judge.knows("relation", scenes[0]) and not judge.knows("relation", unseen)
    assert judge.knows("colour", singles(1, 0)[0]) == (colour_of(singles(1, 0)[0]) != "green")
    ((row, control),) = [attribute_rows(judge, {"real": [*scenes, unseen]}, Generator().manual_seed(0))]
    assert row["attribute"] == "relation" and row["accuracy"].value == 1 and row["count"] == 8
    assert control["accuracy"].value < 1


def test_one_label_cannot_be_learned() -> None:
    with pytest.raises(ValueError, match="at least 2 labels"):
        AttributeClassifier.fit(torch.randn(3, 4), ["red"] * 3, [4])


def test_evaluators_are_pinned_models_of_permissive_licences() -> None:
    packages = load_packages(EVALUATORS_FILE)
    assert len({package.name for package in packages}) == len(packages) >= 3
    assert all(package.kind == "model" and package.is_permissive for package in packages)
