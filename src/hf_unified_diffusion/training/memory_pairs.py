"""Passages with memories to train a memory conditioner on: parts of the same document, near ones, wrong ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor

from .layouts import TokenBatch

KINDS = ("right", "near", "wrong")


@dataclass(frozen=True)
class MemoryMix:
    """What the slots of a row hold.

    Attributes:
        slots: memories of a row.
        dropout: share of rows none of whose memories are right (retrieval dropout).
        near: share of the other slots that hold the nearest passage of another document, instead of any.
    """

    slots: int = 4
    dropout: float = 0.1
    near: float = 0.5

    def draw(self, generator: Generator) -> list[str]:
        """The kinds of a row's slots, in random order: at least one right one unless it is dropped."""
        num_right = int(torch.randint(1, self.slots + 1, (), generator=generator))
        if torch.rand((), generator=generator) < self.dropout:
            num_right = 0
        others = torch.rand(self.slots, generator=generator) < self.near
        kinds = ["right" if i < num_right else "near" if others[i] else "wrong" for i in range(self.slots)]
        return [kinds[i] for i in torch.randperm(self.slots, generator=generator)]


class MemoryPairs:
    """Documents cut into passages; each row is a passage, and memories are other passages.

    Args:
        documents: token ids of each; those with fewer than two passages are left out.
        length: tokens of a passage.
        embeddings: of the tokens: passages are near by the mean of theirs, rare tokens counting more.
        memory_length: tokens of a memory, cut from a passage at a random place.

    Raises ValueError where fewer than two documents have two passages.

    Usage: `batch, memories = MemoryPairs(documents, 96, embeddings).rows(8, MemoryMix(), generator)`
    """

    def __init__(
        self,
        documents: Sequence[np.ndarray],
        length: int,
        embeddings: Float[Tensor, "vocab width"],
        memory_length: int = 48,
    ):
        cut = [d[: len(d) // length * length].reshape(-1, length) for d in documents if len(d) >= 2 * length]
        if len(cut) < 2:
            raise ValueError(f"at least two documents must have two passages of {length} tokens, got {len(cut)}")
        self.memory_length = min(memory_length, length)
        self.passages = torch.from_numpy(np.concatenate(cut).astype(np.int64))
        counts = torch.tensor([len(part) for part in cut])
        self.document = torch.arange(len(cut)).repeat_interleave(counts)
        self.first, self.count = (counts.cumsum(0) - counts)[self.document], counts[self.document]
        self.vectors = passage_vectors(self.passages, embeddings)

    def __len__(self) -> int:
        return len(self.passages)

    def rows(
        self, count: int, mix: MemoryMix | str, generator: Generator
    ) -> tuple[TokenBatch, Int[Tensor, "rows slots length"]]:
        """Random passages and their memories; `mix` may be one kind for all slots."""
        chosen = torch.randint(0, len(self), (count,), generator=generator)
        slots = (MemoryMix() if isinstance(mix, str) else mix).slots
        kinds = [[mix] * slots if isinstance(mix, str) else mix.draw(generator) for _ in range(count)]
        near = self.nearest(chosen, slots)
        memories = [
            torch.stack([self.memory(int(row), kind, near[i, slot], generator) for slot, kind in enumerate(kinds[i])])
            for i, row in enumerate(chosen)
        ]
        tokens = self.passages[chosen]
        return TokenBatch(tokens, torch.zeros_like(tokens), "text"), torch.stack(memories)

    def memory(self, row: int, kind: str, near: Tensor, generator: Generator) -> Int[Tensor, "length"]:
        """A part of another passage: of the same document, the near one, or any of another document."""
        if kind == "right":
            place = int(torch.randint(0, int(self.count[row]) - 1, (), generator=generator))
            other = int(self.first[row]) + place
            other += other >= row
        elif kind == "near":
            other = int(near)
        else:
            place = int(torch.randint(0, len(self) - int(self.count[row]), (), generator=generator))
            other = place + int(self.count[row]) * (place >= int(self.first[row]))
        passage = self.passages[other]
        start = int(torch.randint(0, len(passage) - self.memory_length + 1, (), generator=generator))
        return passage[start : start + self.memory_length]

    def nearest(self, chosen: Int[Tensor, "rows"], count: int) -> Int[Tensor, "rows count"]:
        """The passages of other documents that are nearest to each row, best first."""
        scores = self.vectors[chosen] @ self.vectors.T
        scores[self.document[chosen][:, None] == self.document] = -torch.inf
        return scores.topk(min(count, scores.shape[1])).indices


def passage_vectors(
    passages: Int[Tensor, "passages length"], embeddings: Float[Tensor, "vocab width"]
) -> Float[Tensor, "passages width"]:
    """Unit vectors of passages: the mean embedding of their tokens, weighted by inverse document frequency."""
    vocab_size = len(embeddings)
    found = torch.zeros(vocab_size)
    for part in passages.split(4096):
        seen = torch.zeros(len(part), vocab_size, dtype=torch.bool).scatter(1, part, True)
        found += seen.sum(dim=0)
    weight = torch.log(len(passages) / found.clamp_min(1))
    centred = F.normalize(embeddings - embeddings.mean(dim=0), dim=1) * weight[:, None]
    vectors = [F.embedding_bag(part, centred, mode="mean") for part in passages.split(4096)]
    return F.normalize(torch.cat(vectors), dim=1)
