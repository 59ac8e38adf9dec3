"""Colour, count and relation of composed scenes, read from the picture by small classifiers trained on real renders.

Ridge classification (regression to one-hot labels) on views of a picture: its pixels at 16 x 16, a histogram of its
colours, and for counts EfficientNet's cells too. A relation is read by the colours of the four halves: in "a red cat
left of a blue box" the left half should look red and the right half blue, more so than in any other arrangement. The
accuracy on real held-out scenes is the ceiling of any drawn ones.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from evaluators import EfficientNetFeatures, features_of, pixels_of
from image_metrics import derangement
from jaxtyping import Float
from measure import Mean, Row
from pictures import Picture
from torch import Generator, Tensor

from hf_unified_diffusion.training.image_scenes import OPPOSITE

GRID, THUMBNAIL, COLOUR_STEPS = 4, 16, 5
COLOUR_WIDTHS = (3 * THUMBNAIL**2, COLOUR_STEPS**3)
COUNT_WIDTHS = (*COLOUR_WIDTHS, GRID**2 * 1280)
PENALTIES = (1e-3, 1e-2, 0.1, 1.0, 10.0)  # beside a kernel of mean diagonal 1
# relation -> the square where its first part lies, in shares of the side: left, top, right, bottom
PLACES = {
    "left of": (0.0, 0.25, 0.5, 0.75),
    "right of": (0.5, 0.25, 1.0, 0.75),
    "above": (0.25, 0.0, 0.75, 0.5),
    "below": (0.25, 0.5, 0.75, 1.0),
}


def colour_of(scene: Picture) -> str | None:
    """The colour of a single thing, None where there are more or where it has none given."""
    (part, *more) = scene.attributes["parts"]
    return None if more or part["count"] != 1 else part["colour"]


def count_of(scene: Picture) -> str | None:
    """How many there are of one thing; None where there are different ones, or one alone (the easy and common case)."""
    number = number_of(scene)
    return None if number == "1" else number


def number_of(scene: Picture) -> str | None:
    """How many there are of one thing, one included; None where there are different ones."""
    (part, *more) = scene.attributes["parts"]
    return None if more else str(part["count"])


def relation_of(scene: Picture) -> str | None:
    """Where the first of two things of different given colours is; None for other scenes."""
    colours = {part["colour"] for part in scene.attributes["parts"]}
    return scene.attributes["relation"] if None not in colours and len(colours) == 2 else None


LABELS: Mapping[str, Callable[[Picture], str | None]] = {
    "colour": colour_of,
    "count": count_of,
    "relation": relation_of,
}


def colour_histogram(pixels: Float[Tensor, "3 height width"], steps: int = COLOUR_STEPS) -> Float[Tensor, "bins"]:
    """Square roots of the shares of pixels in each of steps^3 cubes of RGB; pixels in [0, 1]."""
    cube = (pixels * steps).long().clamp(max=steps - 1)
    index = (cube[0] * steps + cube[1]) * steps + cube[2]
    return (torch.bincount(index.flatten(), minlength=steps**3) / index.numel()).sqrt()


def colour_views(pictures: Sequence[Picture]) -> Float[Tensor, "pictures features"]:
    """What colours are read from, of widths `COLOUR_WIDTHS`."""
    thumbnails = torch.stack([pixels_of(picture.image, THUMBNAIL).flatten() for picture in pictures])
    colours = torch.stack([colour_histogram(pixels_of(picture.image, 64)) for picture in pictures])
    return torch.cat([thumbnails, colours], dim=1)


def count_views(pictures: Sequence[Picture], network: EfficientNetFeatures) -> Float[Tensor, "pictures features"]:
    """What counts are read from, of widths `COUNT_WIDTHS`; `network` has a grid of `GRID`."""
    cells = features_of(network, [picture.image for picture in pictures])
    return torch.cat([colour_views(pictures), cells], dim=1)


@dataclass(frozen=True)
class AttributeClassifier:
    """Labels of one attribute from views; `fit` makes one.

    Usage: `AttributeClassifier.fit(views, ["red", "blue"], [768, 125]).predict(views)`
    """

    labels: tuple[str, ...]
    mean: Float[Tensor, "features"]
    deviation: Float[Tensor, "features"]
    seen: Float[Tensor, "n features"]
    weight: Float[Tensor, "n labels"]
    prior: Float[Tensor, "labels"]

    @classmethod
    def fit(
        cls, views: Float[Tensor, "n features"], names: Sequence[str], widths: Sequence[int]
    ) -> "AttributeClassifier":
        """Fit on labelled views, each of `widths` weighing the same, in the dual form: features outnumber scenes.

        The penalty is the one with the least squared error when each scene is left out in turn.
        Raises ValueError where there are fewer than two labels.
        """
        labels = tuple(sorted(set(names)))
        if len(labels) < 2:
            raise ValueError(f"names must hold at least 2 labels, got {list(labels)}")
        sizes = torch.tensor(widths)
        share = (len(widths) * sizes).repeat_interleave(sizes).sqrt()
        mean, deviation = views.mean(dim=0), (views.std(dim=0) + 1e-3) * share
        seen = (views - mean) / deviation
        wanted = F.one_hot(torch.tensor([labels.index(name) for name in names]), len(labels)).float()
        prior = wanted.mean(dim=0)
        values, vectors = torch.linalg.eigh((seen @ seen.T).double())
        turned = vectors.T @ (wanted - prior).double()

        def solved(penalty: float) -> tuple[Tensor, float]:
            inverse = 1 / (values.clamp(min=0) + penalty)
            weight = vectors @ (inverse[:, None] * turned)
            left_out = weight / (vectors.square() @ inverse)[:, None]  # each scene's error without itself
            return weight.float(), left_out.square().mean().item()

        weight, _ = min(map(solved, PENALTIES), key=lambda choice: choice[1])
        return cls(labels, mean, deviation, seen, weight, prior)

    def scores(self, views: Float[Tensor, "pictures features"]) -> Float[Tensor, "pictures labels"]:
        """About the probability of each label."""
        return ((views - self.mean) / self.deviation) @ self.seen.T @ self.weight + self.prior

    def predict(self, views: Float[Tensor, "pictures features"]) -> list[str]:
        """The likeliest label of each picture."""
        return [self.labels[i] for i in self.scores(views).argmax(dim=1).tolist()]


def cropped(scene: Picture, place: tuple[float, float, float, float]) -> Picture:
    """A part of a picture."""
    width, height = scene.image.size
    left, top, right, bottom = place
    return replace(scene, image=scene.image.crop((left * width, top * height, right * width, bottom * height)))


Reading = Callable[[Sequence[Picture]], list[float]]


@dataclass(frozen=True)
class SceneJudge:
    """Reads colour, count and relation; `fit` makes one of real scenes.

    Usage: `accuracy = SceneJudge.fit(train, EfficientNetFeatures(GRID)).read("colour", drawn)(real)`
    """

    network: EfficientNetFeatures
    colours: AttributeClassifier
    counts: AttributeClassifier

    @classmethod
    def fit(cls, scenes: Sequence[Picture], network: EfficientNetFeatures) -> "SceneJudge":
        """Raises ValueError where the scenes show fewer than two colours or counts."""
        coloured, counted = ([s for s in scenes if label(s) is not None] for label in (colour_of, number_of))
        colours = [str(colour_of(scene)) for scene in coloured]
        counts = [str(number_of(scene)) for scene in counted]
        if not coloured or not counted:
            raise ValueError(f"scenes must show colours and counts, got {len(coloured)} and {len(counted)} of them")
        return cls(
            network,
            AttributeClassifier.fit(colour_views(coloured), colours, COLOUR_WIDTHS),
            AttributeClassifier.fit(count_views(counted, network), counts, COUNT_WIDTHS),
        )

    def knows(self, attribute: str, scene: Picture) -> bool:
        """Whether the caption says something of the attribute, in words that the training scenes have shown."""
        label = LABELS[attribute](scene)
        if attribute == "relation":
            return label is not None and all(p["colour"] in self.colours.labels for p in scene.attributes["parts"])
        return label in {"colour": self.colours, "count": self.counts}[attribute].labels

    def read(self, attribute: str, scenes: Sequence[Picture]) -> Reading:
        """Look at pictures once: a function that says, 1 or 0 each, which show what the captions of others ask for."""
        if attribute == "relation":
            halves = {
                relation: self.colours.scores(colour_views([cropped(scene, place) for scene in scenes]))
                for relation, place in PLACES.items()
            }
            return lambda others: [
                float(self._relation(halves, i, other) == relation_of(other)) for i, other in enumerate(others)
            ]
        if attribute == "count":
            found = self.counts.predict(count_views(scenes, self.network))
        else:
            found = self.colours.predict(colour_views(scenes))
        label = LABELS[attribute]
        return lambda others: [float(one == label(other)) for one, other in zip(found, others, strict=True)]

    def _relation(self, halves: Mapping[str, Tensor], i: int, other: Picture) -> str:
        """The relation that puts the colours of the other's first and second part where picture i has them most."""
        first, second = (self.colours.labels.index(part["colour"]) for part in other.attributes["parts"])
        likely = {r: (halves[r][i, first] + halves[OPPOSITE[r]][i, second]).item() for r in PLACES}
        return max(likely, key=likely.__getitem__)


def attribute_rows(judge: SceneJudge, sets: Mapping[str, Sequence[Picture]], generator: Generator) -> list[Row]:
    """Accuracy of each attribute in each set of scenes, and against the captions of other scenes."""
    rows: list[Row] = []
    for attribute in LABELS:
        for name, scenes in sets.items():
            asked = [scene for scene in scenes if judge.knows(attribute, scene)]
            if len(asked) < 2:
                continue
            reading, moved = judge.read(attribute, asked), derangement(len(asked), generator).tolist()
            for what, others in (("", asked), (", control: captions shuffled", [asked[i] for i in moved])):
                row = {"attribute": attribute, "scenes": name + what, "count": len(asked)}
                rows.append({**row, "accuracy": Mean.of(reading(others))})
    return rows
