"""Passages with memories to train a memory conditioner on: parts of the same document, near ones, wrong ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor

KINDS = ("right", "near", "wrong")


@dataclass(frozen=True)
class MemoryMix:
    """What the slots of a row hold.

    Attributes:
        slots: memories of a row.
        dropout: share of rows none of whose memories are right (retrieval dropout).
        near: share of the other slots that hold the nearest memory of another document, instead of any.
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


@dataclass(frozen=True)
class Passages:
    """Documents cut in turn into a passage to write and a memory of the same document.

    Attributes:
        rows: int64 (R, length), what is written.
        items: int64 (I, memory_length), what is remembered.
        row_document, item_document: int64, ascending, the document of each.
    """

    rows: Int[Tensor, "rows length"]
    items: Int[Tensor, "items memory_length"]
    row_document: Int[Tensor, "rows"]
    item_document: Int[Tensor, "items"]

    def first(self, num_documents: int) -> "Passages":
        """Only the first documents."""
        rows, items = self.row_document < num_documents, self.item_document < num_documents
        return Passages(self.rows[rows], self.items[items], self.row_document[rows], self.item_document[items])


def cut_passages(documents: Sequence[np.ndarray], length: int, memory_length: int, most: int = 4) -> Passages:
    """At most `most` passages and as many memories of each document; those that are too short are left out.

    Raises ValueError where fewer than two documents are long enough.

    Usage: `cut_passages(token_ids, length=96, memory_length=48)`
    """
    if not 1 <= memory_length <= length:
        raise ValueError(f"memory_length must be in 1..{length}, got {memory_length}")
    rows, items, counts = [], [], []
    for document in documents:
        parts = document[: len(document) // length * length].reshape(-1, length).astype(np.int64)[: 2 * most]
        if len(parts) < 2:
            continue
        rows.append(parts[::2])
        items.append(parts[1::2, :memory_length])
        counts.append((len(rows[-1]), len(items[-1])))
    if len(counts) < 2:
        raise ValueError(f"at least two documents must have two passages of {length} tokens, got {len(counts)}")
    index = torch.arange(len(counts))
    owners = [index.repeat_interleave(torch.tensor([count[i] for count in counts])) for i in (0, 1)]
    return Passages(torch.from_numpy(np.concatenate(rows)), torch.from_numpy(np.concatenate(items)), *owners)


class MemoryPairs:
    """Draws memories for passages.

    Args:
        embeddings: of the tokens: texts are near by the mean of theirs, rare tokens counting more.

    Usage: `items = MemoryPairs(passages, embeddings).draw(torch.tensor([0, 1]), MemoryMix(), generator)`
    """

    def __init__(self, passages: Passages, embeddings: Float[Tensor, "vocab width"]):
        self.passages = passages
        weight = rarity(passages.rows, len(embeddings))
        self.row_vectors, self.item_vectors = (
            text_vectors(texts, embeddings, weight) for texts in (passages.rows, passages.items)
        )

    def draw(
        self, rows: Int[Tensor, "count"], mix: MemoryMix | str, generator: Generator
    ) -> Int[Tensor, "count slots"]:
        """Places of each row's memories among the items; `mix` may be one kind for all slots."""
        slots = (MemoryMix() if isinstance(mix, str) else mix).slots
        chosen = torch.empty(len(rows), slots, dtype=torch.int64)
        for i, row in enumerate(rows):
            own = self.passages.item_document == self.passages.row_document[row]
            scores = (self.item_vectors @ self.row_vectors[row]).masked_fill(own, -torch.inf)
            places = {
                "right": own.nonzero()[:, 0],
                "near": scores.topk(min(slots, int((~own).sum()))).indices,
                "wrong": (~own).nonzero()[:, 0],
            }
            for slot, kind in enumerate([mix] * slots if isinstance(mix, str) else mix.draw(generator)):
                among = places[kind]
                chosen[i, slot] = among[int(torch.randint(0, len(among), (), generator=generator))]
        return chosen


def rarity(texts: Int[Tensor, "texts length"], vocab_size: int) -> Float[Tensor, "vocab"]:
    """Inverse document frequency of each token, in nats."""
    found = torch.zeros(vocab_size)
    for part in texts.split(1024):
        found += torch.zeros(len(part), vocab_size, dtype=torch.bool).scatter(1, part, True).sum(dim=0)
    return torch.log(len(texts) / found.clamp_min(1))


def text_vectors(
    texts: Int[Tensor, "texts length"], embeddings: Float[Tensor, "vocab width"], weight: Float[Tensor, "vocab"]
) -> Float[Tensor, "texts width"]:
    """Unit vectors of texts: the weighted mean of their tokens' directions."""
    directions = F.normalize(embeddings - embeddings.mean(dim=0), dim=1) * weight[:, None]
    return F.normalize(torch.cat([F.embedding_bag(part, directions, mode="mean") for part in texts.split(1024)]), dim=1)
