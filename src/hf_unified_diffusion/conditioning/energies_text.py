"""Ready energies of texts: forbidden and required words, length, what the causal path finds likely."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ..codecs.text_codec import TextCodec
from .energy import EnergyOf

Probs = Float[Tensor, "batch length vocab"]


@dataclass(frozen=True)
class Writing:
    """Where a canvas stands: what was written before it, as tokens, and which tokens end a text."""

    codec: TextCodec
    written: tuple[int, ...]
    end_token_ids: tuple[int, ...]


@dataclass(frozen=True)
class WrittenText:
    """A finished completion, its tokens, and what the causal path can be asked about it.

    Attributes:
        causal_nats: its nats per token.
        nats_saved: how many nats the context (a memory, say) saves on all its tokens together; 0 without one.
    """

    completion: str
    ids: tuple[int, ...]
    causal_nats: Callable[[], float]
    nats_saved: Callable[[], float]


@runtime_checkable
class TextEnergy(Protocol):
    """A wish about texts.

    Attributes:
        name: what histories call it.
        weight: how much it counts; in nats on the logit of a token that adds 1 to its energy.
        needs_candidates: whether it can only choose among finished texts.
    """

    name: str
    weight: float
    needs_candidates: bool

    def of_canvas(self, writing: Writing) -> EnergyOf | None:
        """Its energy as a function of float (B, n, vocab) probabilities of the canvas; None where it has none."""
        ...

    def of_text(self, text: WrittenText) -> float:
        """Its energy of a finished text."""
        ...

    def accepts(self, text: WrittenText) -> bool:
        """Whether a finished text is as wished."""
        ...


@dataclass(frozen=True, init=False)
class _Words:
    words: tuple[str, ...]
    weight: float
    name: str

    def __init__(self, words: Sequence[str], weight: float = 8.0, name: str | None = None):
        if isinstance(words, str) or not words or not all(isinstance(word, str) and word for word in words):
            raise ValueError(f"words must be a list of at least one string that is not empty, got {words!r}")
        object.__setattr__(self, "words", tuple(words))
        object.__setattr__(self, "weight", weight)
        object.__setattr__(self, "name", name or type(self).__name__)

    needs_candidates = False


class ForbiddenWords(_Words):
    """Words that must not be in the completion, as strings: its energy is how often they are expected.

    Expected with independent tokens, over every way in which tokens spell the word.

    Raises:
        ValueError: for no words, or an empty one.

    Usage: `pipe("The sea is", energies=[ForbiddenWords(["blue", "water"])])`
    """

    def of_canvas(self, writing: Writing) -> EnergyOf:
        begun = b"".join(piece or b"" for piece in map(pieces_of(writing.codec).__getitem__, writing.written[-64:]))
        spellings = [spelling(writing.codec.tokenizer, word.encode()) for word in self.words]
        return lambda probs: torch.stack([found.expected_count(probs, begun) for found in spellings]).sum(dim=0)

    def of_text(self, text: WrittenText) -> float:
        return float(sum(text.completion.count(word) for word in self.words))

    def accepts(self, text: WrittenText) -> bool:
        return not any(word in text.completion for word in self.words)


class RequiredWords(_Words):
    """Words that must be in the completion, as strings: its energy is how many tokens the nearest place for each lacks.

    The nearest place is where the tokens of the word (alone, or after a space) have the largest probabilities, and no
    end token comes before.

    Raises:
        ValueError: for no words, or an empty one.

    Usage: `pipe("The sea is", energies=[RequiredWords(["boat"])])`
    """

    def of_canvas(self, writing: Writing) -> EnergyOf:
        written = writing.codec.decode(list(writing.written))
        missing = [word for word in self.words if word not in written]
        spelled = [writing.codec.encode([word, " " + word]) for word in missing]
        ends = list(writing.end_token_ids)

        def energy(probs: Probs) -> Float[Tensor, "batch"]:
            lacking = [probs.sum(dim=(1, 2)) * 0]
            before = probs[..., ends].sum(dim=-1).cumsum(dim=1)  # ends up to and with each place
            for variants in spelled:
                ways = [lacks(probs, ids, before) for ids in variants if len(ids) <= probs.shape[1]]
                if ways:
                    lacking.append(torch.cat(ways, dim=1).amin(dim=1))
            return torch.stack(lacking).sum(dim=0)

        return energy

    def of_text(self, text: WrittenText) -> float:
        return float(sum(word not in text.completion for word in self.words))

    def accepts(self, text: WrittenText) -> bool:
        return all(word in text.completion for word in self.words)


def lacks(
    probs: Probs, ids: Sequence[int], ends_before: Float[Tensor, "batch length"]
) -> Float[Tensor, "batch starts"]:
    """What is missing of some tokens at each start: the sum of 1 - p, and the ends expected up to their last one."""
    starts = probs.shape[1] - len(ids) + 1
    lacking = [1 - probs[:, place : place + starts, token] for place, token in enumerate(ids)]
    return torch.stack(lacking).sum(dim=0) + ends_before[:, len(ids) - 1 :]


@dataclass(frozen=True)
class Length:
    """Between `fewest` and `most` tokens, the end token not counted: its energy is the end tokens out of place.

    Raises:
        ValueError: unless 0 <= fewest <= most.

    Usage: `pipe("Once", energies=[Length(20, 40)], max_new_tokens=64)`
    """

    fewest: int
    most: int
    weight: float = 8.0
    name: str = "Length"
    needs_candidates = False

    def __post_init__(self) -> None:
        bounds = (self.fewest, self.most)
        if not all(isinstance(n, int) and not isinstance(n, bool) for n in bounds) or not 0 <= self.fewest <= self.most:
            raise ValueError(f"fewest and most must be integers with 0 <= fewest <= most, got {bounds}")

    def of_canvas(self, writing: Writing) -> EnergyOf:
        ends, first = list(writing.end_token_ids), len(writing.written)

        def energy(probs: Probs) -> Float[Tensor, "batch"]:
            place = first + torch.arange(probs.shape[1], device=probs.device)
            ending = probs[..., ends].sum(dim=-1)
            early = (ending * (place < self.fewest)).sum(dim=1)
            late = ((1 - ending) * (place >= self.most)).sum(dim=1)
            return early + late

        return energy

    def of_text(self, text: WrittenText) -> float:
        return float(max(self.fewest - len(text.ids), len(text.ids) - self.most, 0))

    def accepts(self, text: WrittenText) -> bool:
        return self.fewest <= len(text.ids) <= self.most


@dataclass(frozen=True)
class CausalLikelihood:
    """What the network's own causal path finds likely: its energy is the nats of the text, all tokens together.

    It needs whole texts, hence candidates (`num_candidates` of at least 2): one is drawn with the importance weights
    exp(-weight * scale * energy) (compare arXiv:2410.21357, which corrects each step so).

    Args:
        most_nats: nats per token that an accepted text may have; None accepts all.

    Usage: `pipe("Once", energies=[CausalLikelihood()], num_candidates=4)`
    """

    most_nats: float | None = None
    weight: float = 1.0
    name: str = "CausalLikelihood"
    needs_candidates = True

    def of_canvas(self, writing: Writing) -> None:
        return None

    def of_text(self, text: WrittenText) -> float:
        return text.causal_nats() * len(text.ids)

    def accepts(self, text: WrittenText) -> bool:
        return self.most_nats is None or text.causal_nats() <= self.most_nats


@dataclass(frozen=True)
class FromContext:
    """What the context says rather than what is likely anyway: its energy is minus the nats that the context saves.

    Saved on the whole text by the network's own causal path, log p(text | context) - log p(text), the pointwise mutual
    information of both (compare the reranking of arXiv:1510.03055). It needs whole texts, hence candidates
    (`num_candidates` of at least 2): one is drawn with the weights exp(-weight * scale * energy).

    Usage: `pipe("Anna drinks", context="Anna likes green tea.\\n\\n", energies=[FromContext()], num_candidates=2)`
    """

    weight: float = 1.0
    name: str = "FromContext"
    needs_candidates = True

    def of_canvas(self, writing: Writing) -> None:
        return None

    def of_text(self, text: WrittenText) -> float:
        return -text.nats_saved()

    def accepts(self, text: WrittenText) -> bool:
        return True


class Spelling:
    """Which tokens spell which part of a word, given how much of it stands before.

    Attributes:
        ways: float (vocab, pairs), whether a token leads from i bytes of the word to j.
        pairs: (i, j) of each column; j = size ends the word.
        inside: float (vocab,), how often a token holds the word by itself.
    """

    def __init__(self, pieces: Sequence[bytes | None], word: bytes):
        self.word = word
        entries: dict[tuple[int, int], list[int]] = {}
        self.inside = torch.zeros(len(pieces))
        for token, piece in enumerate(pieces):
            if not piece:
                continue
            self.inside[token] = piece.count(word)
            for done in range(len(word)):
                for after in steps(piece, word, done):
                    entries.setdefault((done, after), []).append(token)
        self.pairs = sorted(entries)
        self.ways = torch.zeros(len(pieces), len(self.pairs))
        for column, pair in enumerate(self.pairs):
            self.ways[entries[pair], column] = 1.0

    def expected_count(self, probs: Probs, begun: bytes) -> Float[Tensor, "batch"]:
        """How often the word is expected in a canvas of independent tokens after some bytes."""
        size, vocab = len(self.word), len(self.ways)
        probs = probs[..., :vocab]
        moves = probs.new_zeros(*probs.shape[:2], size, size + 1)
        rows, columns = torch.tensor(self.pairs).T if self.pairs else torch.zeros(2, 0, dtype=torch.int64)
        moves[:, :, rows, columns] = probs @ self.ways.to(probs)
        # how much of the word stands there: 0 always does, and more where bytes before spell it
        state = probs.new_tensor([float(done == 0 or begun.endswith(self.word[:done])) for done in range(size)])
        state = state.expand(len(probs), size)
        fresh = torch.zeros_like(state)
        fresh[:, 0] = 1.0
        count = probs @ self.inside.to(probs)
        total = count.sum(dim=1)
        for place in range(probs.shape[1]):
            after = torch.einsum("bi,bij->bj", state, moves[:, place])
            total = total + after[:, size]
            state = after[:, :size] + fresh
        return total


def steps(piece: bytes, word: bytes, done: int) -> list[int]:
    """Where a token leads that comes when `done` bytes of a word stand there."""
    rest = word[done:]
    if done == 0:  # the word begins inside the token
        return [size for size in range(1, min(len(piece), len(word) - 1) + 1) if piece.endswith(word[:size])]
    if piece.startswith(rest):
        return [len(word)]
    return [done + len(piece)] if rest.startswith(piece) else []


def pieces_of(codec: TextCodec) -> list[bytes | None]:
    """The bytes of each token, kept."""
    return _pieces(codec.tokenizer, len(codec.tokenizer))


@lru_cache(maxsize=4)
def _pieces(tokenizer: PreTrainedTokenizerFast, num_tokens: int) -> list[bytes | None]:
    return TextCodec(tokenizer).token_bytes()


@lru_cache(maxsize=64)
def spelling(tokenizer: PreTrainedTokenizerFast, word: bytes) -> Spelling:
    """The spellings of a word by the tokens of a tokenizer, kept."""
    return Spelling(_pieces(tokenizer, len(tokenizer)), word)
