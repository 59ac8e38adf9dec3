"""Which adapter a prompt asks for: the one whose examples are nearest."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

Encode = Callable[[Sequence[str]], Float[Tensor, "texts width"]]  # unit vectors


class AdapterRouter:
    """Picks an adapter by cosine similarity between a prompt and each adapter's mean example.

    All similarities are taken after the mean over all examples is subtracted: mean-pooled features share a large common
    part that says nothing.

    Args:
        encode: texts to unit vectors.
        least_similarity: below it no adapter is picked.

    Usage:
        router = AdapterRouter(engine.encode)
        router.add("poems", ["Roses are red", "Shall I compare thee"])
        router.choose("The sea is calm tonight")
    """

    def __init__(self, encode: Encode, least_similarity: float = 0.0):
        self.encode, self.least_similarity = encode, least_similarity
        self._examples: dict[str, Float[Tensor, "examples width"]] = {}

    def add(self, name: str, examples: Sequence[str]) -> None:
        """Register an adapter by texts like those it was trained on.

        Raises:
            ValueError: no examples.
        """
        if isinstance(examples, str) or not examples:
            raise ValueError(f"examples must be a list with at least one text, got {examples!r}")
        self._examples[name] = self.encode(list(examples))

    def remove(self, name: str) -> None:
        """Forget an adapter; nothing happens where it is not known."""
        self._examples.pop(name, None)

    def choose(self, prompt: str) -> str | None:
        """The adapter whose examples are nearest, None where none is near enough."""
        if not self._examples:
            return None
        common = torch.cat(list(self._examples.values())).mean(dim=0)
        asked = self.encode([prompt])[0] - common
        means = {name: rows.mean(dim=0) - common for name, rows in self._examples.items()}
        similarity = {name: torch.cosine_similarity(asked, mean, dim=0).item() for name, mean in means.items()}
        best = max(similarity, key=similarity.__getitem__)
        return best if len(means) == 1 or similarity[best] >= self.least_similarity else None
