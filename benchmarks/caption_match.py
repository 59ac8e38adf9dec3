"""Does a picture show its caption? A stand-in for CLIP: ridge regression from picture features to caption embeddings.

It is fitted on pictures of the training concepts alone; its penalty is chosen on validation concepts. Scores are
cosines of centred vectors, as common parts of captions ("a picture of") tell nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from evaluators import SentenceEncoder
from image_metrics import derangement, ranks, recalls
from jaxtyping import Float
from measure import Mean, Row
from pictures import Picture
from torch import Generator, Tensor

PENALTIES = (100.0, 300.0, 1000.0, 3000.0, 10000.0, 30000.0)
AT = (1, 5, 10)


@dataclass(frozen=True)
class CaptionMatcher:
    """Linear from standardized features to a caption's embedding; `fit` makes one.

    Usage: `scores = CaptionMatcher.fit(features, embeddings, 1000.0).scores(features, captions)`
    """

    mean: Float[Tensor, "features"]
    deviation: Float[Tensor, "features"]
    weight: Float[Tensor, "features width"]
    usual: Float[Tensor, "width"]

    @classmethod
    def fit(
        cls, features: Float[Tensor, "n features"], embeddings: Float[Tensor, "n width"], penalty: float
    ) -> "CaptionMatcher":
        """Ridge regression in float64; raises ValueError for a penalty that is not positive or fewer than two rows."""
        if penalty <= 0 or len(features) < 2:
            raise ValueError(f"penalty must be positive and rows at least 2, got {penalty} and {len(features)}")
        mean, deviation, usual = features.mean(dim=0), features.std(dim=0) + 1e-3, embeddings.mean(dim=0)
        x, y = ((features - mean) / deviation).double(), (embeddings - usual).double()
        gram = x.T @ x + penalty * torch.eye(x.shape[1], dtype=x.dtype)
        return cls(mean, deviation, torch.linalg.solve(gram, x.T @ y).float(), usual)

    def scores(
        self, features: Float[Tensor, "pictures features"], embeddings: Float[Tensor, "captions width"]
    ) -> Float[Tensor, "pictures captions"]:
        """Cosines of every picture with every caption."""
        return self.of_pictures(features) @ self.of_captions(embeddings).T

    def of_pictures(self, features: Float[Tensor, "pictures features"]) -> Float[Tensor, "pictures width"]:
        """Unit vectors of pictures in the space of captions."""
        return F.normalize(((features - self.mean) / self.deviation) @ self.weight, dim=1)

    def of_captions(self, embeddings: Float[Tensor, "captions width"]) -> Float[Tensor, "captions width"]:
        """Unit vectors of captions in the same space."""
        return F.normalize(embeddings - self.usual, dim=1)


def caption_targets(pictures: Sequence[Picture], encoder: SentenceEncoder) -> Float[Tensor, "pictures width"]:
    """The mean embedding of each picture's captions."""
    flat = sorted({caption for picture in pictures for caption in picture.captions})
    embedding = dict(zip(flat, encoder(flat), strict=True))
    return torch.stack([torch.stack([embedding[c] for c in picture.captions]).mean(dim=0) for picture in pictures])


def fit_on_train(
    train: tuple[Float[Tensor, "n features"], Float[Tensor, "n width"]],
    validation: tuple[Float[Tensor, "m features"], Float[Tensor, "m width"]],
) -> tuple[CaptionMatcher, float]:
    """The matcher whose penalty ranks validation captions best (mean rank), and that penalty."""

    def mean_rank(penalty: float) -> float:
        scores = CaptionMatcher.fit(*train, penalty).scores(*validation)
        return ranks(scores, torch.arange(len(scores))).double().mean().item()

    best = min(PENALTIES, key=mean_rank)
    return CaptionMatcher.fit(*train, best), best


def recall_rows(
    concepts: str,
    matcher: CaptionMatcher,
    sets: dict[str, Float[Tensor, "captions features"]],
    captions: Float[Tensor, "captions width"],
    generator: Generator,
) -> list[Row]:
    """Recall of the own caption for each set of pictures (one a caption, in order), and with the captions shuffled."""
    count, rows = len(captions), []
    orders = {"": torch.arange(count), ", control: captions shuffled": derangement(count, generator)}
    for name, features in sets.items():
        scores = matcher.scores(features, captions)
        for what, order in orders.items():
            found = recalls(ranks(scores, order), AT)
            rows.append(
                {"concepts": concepts, "pictures": name + what, "of": count}
                | {f"recall at {k}": mean for k, mean in found.items()}
            )
    chance = {f"recall at {k}": Mean(min(1.0, k / count), 0.0, count) for k in AT}
    return [*rows, {"concepts": concepts, "pictures": "chance", "of": count, **chance}]
