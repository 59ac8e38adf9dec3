"""Colour, count and relation of composed scenes, read from the picture by a small classifier trained on real renders.

Ridge classification (regression to one-hot labels) on three views of a picture: EfficientNet's cells, its pixels at 16
x 16, and a histogram of its colours. Its accuracy on real held-out scenes is the ceiling of any drawn ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from evaluators import EfficientNetFeatures, features_of, pixels_of
from image_metrics import derangement
from jaxtyping import Float
from measure import Mean, Row
from pictures import Picture
from torch import Generator, Tensor

ATTRIBUTES = ("colour", "count", "relation")
GRID, THUMBNAIL, COLOUR_STEPS = 4, 16, 5
VIEW_WIDTHS = (GRID**2 * 1280, 3 * THUMBNAIL**2, COLOUR_STEPS**3)
PENALTIES = (1e-3, 1e-2, 0.1, 1.0, 10.0)  # beside a kernel of mean diagonal 1


def colour_histogram(pixels: Float[Tensor, "3 height width"], steps: int = COLOUR_STEPS) -> Float[Tensor, "bins"]:
    """Square roots of the shares of pixels in each of steps^3 cubes of RGB; pixels in [0, 1]."""
    cube = (pixels * steps).long().clamp(max=steps - 1)
    index = (cube[0] * steps + cube[1]) * steps + cube[2]
    return (torch.bincount(index.flatten(), minlength=steps**3) / index.numel()).sqrt()


def views_of(pictures: Sequence[Picture], network: EfficientNetFeatures) -> Float[Tensor, "pictures features"]:
    """What the classifier sees of each picture, of widths `VIEW_WIDTHS`; `network` has a grid of `GRID`."""
    cells = features_of(network, [picture.image for picture in pictures])
    thumbnails = torch.stack([pixels_of(picture.image, THUMBNAIL).flatten() for picture in pictures])
    colours = torch.stack([colour_histogram(pixels_of(picture.image, 64)) for picture in pictures])
    return torch.cat([cells, thumbnails, colours], dim=1)


@dataclass(frozen=True)
class AttributeClassifier:
    """Labels of one attribute from views; `fit` makes one.

    Usage: `AttributeClassifier.fit(views, ["red", "blue"]).predict(views)`
    """

    labels: tuple[str, ...]
    mean: Float[Tensor, "features"]
    deviation: Float[Tensor, "features"]
    seen: Float[Tensor, "n features"]
    weight: Float[Tensor, "n labels"]
    prior: Float[Tensor, "labels"]

    @classmethod
    def fit(
        cls, views: Float[Tensor, "n features"], names: Sequence[str], widths: Sequence[int] = VIEW_WIDTHS
    ) -> "AttributeClassifier":
        """Fit on labelled views, in the dual form, for features outnumber scenes; each view weighs the same.

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
            left_out = weight / (vectors.square() @ inverse)[:, None]  # error of each scene without itself
            return weight.float(), left_out.square().mean().item()

        weight, _ = min(map(solved, PENALTIES), key=lambda choice: choice[1])
        return cls(labels, mean, deviation, seen, weight, prior)

    def predict(self, views: Float[Tensor, "pictures features"]) -> list[str]:
        """The likeliest label of each picture."""
        found = ((views - self.mean) / self.deviation) @ self.seen.T @ self.weight + self.prior
        return [self.labels[i] for i in found.argmax(dim=1).tolist()]


def label_of(picture: Picture, attribute: str) -> str | None:
    """What a scene says of an attribute, as a label; None where it says nothing."""
    value = dict(picture.attributes).get(attribute)
    return None if value is None else str(value)


def attribute_rows(
    train: tuple[Sequence[Picture], Tensor], sets: dict[str, tuple[Sequence[Picture], Tensor]], generator: Generator
) -> list[Row]:
    """Accuracy of each attribute of each set of scenes (pictures and their views), and with the labels shuffled."""
    rows: list[Row] = []
    for attribute in ATTRIBUTES:
        known = [i for i, picture in enumerate(train[0]) if label_of(picture, attribute) is not None]
        names = [str(label_of(train[0][i], attribute)) for i in known]
        if len(set(names)) < 2:
            continue
        classifier = AttributeClassifier.fit(train[1][known], names)
        for name, (pictures, views) in sets.items():
            asked = [i for i, picture in enumerate(pictures) if label_of(picture, attribute) in classifier.labels]
            if len(asked) < 2:
                continue
            found = classifier.predict(views[asked])
            moved = derangement(len(asked), generator).tolist()
            for what, order in (("", range(len(asked))), (", control: captions shuffled", moved)):
                right = [float(found[i] == label_of(pictures[asked[j]], attribute)) for i, j in enumerate(order)]
                row = {"attribute": attribute, "scenes": name + what, "labels": len(classifier.labels)}
                rows.append({**row, "accuracy": Mean.of(right)})
    return rows
