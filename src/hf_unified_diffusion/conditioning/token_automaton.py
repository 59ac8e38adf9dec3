"""The automaton of a constraint over the tokens of a tokenizer."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from .byte_automaton import ByteAutomaton

STATES_AT_ONCE = 256


@dataclass(frozen=True)
class TokenVocabulary:
    """What an automaton must know of a tokenizer.

    Attributes:
        pieces: the bytes of each token, None for tokens that stand for none.
        end_token_ids: tokens that end a text; none where all texts fill their canvas.
        pad_token_id: what follows an end.
    """

    pieces: tuple[bytes | None, ...]
    end_token_ids: tuple[int, ...]
    pad_token_id: int


@dataclass
class TokenAutomaton:
    """A deterministic automaton over tokens. Tokens that act alike are one class.

    State 0 is the start. The last state, `done`, is what an end token leads to from an accepting state; only padding
    follows. Edges are pairs of states, sorted by the first; all tokens that lead from one to the other are its label.

    Attributes:
        next_state: int32 (states, classes), -1 where a class may not come.
        class_of: int64 (tokens,), the class of each token.
        order: int64 (tokens,), the tokens sorted by class.
        starts: int64 (classes + 1,), where each class begins in `order`.
        members: bool (labels, classes), the classes of each label.
        source, target, label: int64 (edges,).
        first_edge: int64 (states + 1,), where the edges of each state begin.
        accepting: bool (states,), `done` among them.
        seconds: what building took.
    """

    next_state: NDArray[np.int32]
    class_of: NDArray[np.int64]
    order: NDArray[np.int64]
    starts: NDArray[np.int64]
    members: NDArray[np.bool_]
    source: NDArray[np.int64]
    target: NDArray[np.int64]
    label: NDArray[np.int64]
    first_edge: NDArray[np.int64]
    accepting: NDArray[np.bool_]
    seconds: float = 0.0
    _reach: dict[bool, list[NDArray[np.bool_]]] = field(default_factory=dict, init=False, repr=False)

    @property
    def done(self) -> int:
        """The state after an end token."""
        return len(self.accepting) - 1

    @property
    def num_bytes(self) -> int:
        """Memory of its arrays."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, np.ndarray))

    @cached_property
    def successors(self) -> NDArray[np.int64]:
        """int64 (classes, states + 1): `next_state` by class, with the number of states for -1."""
        size = len(self.accepting)
        found = np.full((self.next_state.shape[1], size + 1), size, dtype=np.int64)
        found[:, :size] = np.where(self.next_state < 0, size, self.next_state).T
        return found

    @cached_property
    def weighed_label(self) -> NDArray[np.int64]:
        """int64 (edges,): `label`, with the number of labels for padding after an end, which weighs 1."""
        return np.where(self.source == self.done, len(self.members), self.label)

    def advance(self, state: int, tokens: Sequence[int]) -> int:
        """The state after some tokens, -1 where the automaton does not allow them."""
        for token in tokens:
            if state < 0:
                break
            state = int(self.next_state[state, self.class_of[token]])
        return state

    def reachable(self, length: int, may_end: bool) -> NDArray[np.bool_]:
        """bool (states,): from where an accepted text of exactly `length` more tokens exists, padding counted.

        Args:
            length: at least 0.
            may_end: whether end tokens and padding may be among them.
        """
        known = self._reach.setdefault(may_end, [self._finals(may_end)])
        inner = np.ones(len(self.source), dtype=bool) if may_end else self.target != self.done
        while len(known) <= length:
            hits = known[-1][self.target] & inner
            found = np.zeros(len(self.accepting), dtype=bool)
            found[self.source[hits]] = True
            known.append(known[-1] if np.array_equal(found, known[-1]) else found)
        return known[length]

    def shortest(self) -> int:
        """Tokens of the shortest accepted text, its end not counted."""
        length = 0
        while not self.reachable(length, may_end=False)[0]:
            length += 1
        return length

    def _finals(self, may_end: bool) -> NDArray[np.bool_]:
        finals = self.accepting.copy()
        finals[self.done] = may_end
        return finals


def token_automaton(automaton: ByteAutomaton, vocabulary: TokenVocabulary) -> TokenAutomaton:
    """Follow every token from every state of an automaton over bytes.

    Raises:
        ValueError: where no sequence of tokens spells an accepted text.

    Usage: `token_automaton(byte_automaton(Literal("ab"), 10), TokenVocabulary((b"a", b"b", None), (2,), 2))`
    """
    began = perf_counter()
    class_of, columns = classes_of(automaton.table, vocabulary.pieces)
    next_state, accepting = with_end(columns, class_of, automaton.accepting, vocabulary)
    class_of, next_state = used_classes(class_of, next_state)
    class_of, next_state = used_classes(class_of, without_dead(next_state, accepting))
    order = np.argsort(class_of, kind="stable")
    starts = np.searchsorted(class_of[order], np.arange(next_state.shape[1] + 1))
    source, target, label, members = edges_of(next_state)
    first_edge = np.searchsorted(source, np.arange(len(accepting) + 1))
    built = TokenAutomaton(next_state, class_of, order, starts, members, source, target, label, first_edge, accepting)
    built.seconds = perf_counter() - began
    return built


def classes_of(table: NDArray[np.int32], pieces: Sequence[bytes | None]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """The class of each token and the next state of each class; class 0 is of tokens that may never come."""
    prefixes, parents, last_bytes = prefix_tree(pieces)
    ends = np.array([-1 if not piece else prefixes[piece] for piece in pieces])
    spelled = np.flatnonzero(ends >= 0)
    numbers = np.random.default_rng(0)
    sums = np.zeros((2, len(spelled)), dtype=np.uint64)
    after = []
    for first in range(0, len(table), STATES_AT_ONCE):
        reached = follow(table, np.arange(first, min(first + STATES_AT_ONCE, len(table))), parents, last_bytes)
        after.append(reached[ends[spelled]])
        weights = numbers.integers(1, 2**63, size=(2, reached.shape[1]), dtype=np.uint64)
        sums += weights @ (after[-1] + 1).T.astype(np.uint64)  # modulo 2^64: equal columns give equal sums
    _, chosen, groups = np.unique(sums, axis=1, return_index=True, return_inverse=True)
    columns = np.concatenate([part[chosen].T for part in after])
    class_of = np.zeros(len(pieces), dtype=np.int64)
    class_of[spelled] = groups.reshape(-1) + 1
    return class_of, np.concatenate([np.full((len(table), 1), -1, dtype=np.int32), columns], axis=1)


def prefix_tree(pieces: Sequence[bytes | None]) -> tuple[dict[bytes, int], list[NDArray], list[NDArray]]:
    """Prefixes of the tokens with a number each, shorter ones first; by length, parents and last bytes of each."""
    by_length: dict[int, set[bytes]] = {}
    for piece in pieces:
        for size in range(1, len(piece or b"") + 1):
            by_length.setdefault(size, set()).add(piece[:size])  # type: ignore[index]
    prefixes, parents, last_bytes = {b"": 0}, [], []
    for size in sorted(by_length):
        found = sorted(by_length[size])
        parents.append(np.array([prefixes[prefix[:-1]] for prefix in found]))
        last_bytes.append(np.array([prefix[-1] for prefix in found]))
        prefixes |= {prefix: len(prefixes) + i for i, prefix in enumerate(found)}
    return prefixes, parents, last_bytes


def follow(
    table: NDArray[np.int32], states: NDArray[np.int64], parents: list[NDArray], last_bytes: list[NDArray]
) -> NDArray[np.int32]:
    """int32 (prefixes, states): where each prefix leads, -1 where it may not come."""
    padded = np.concatenate([table, np.full((1, 256), -1, dtype=np.int32)])  # state -1 leads to itself
    levels = [states[None].astype(np.int32)]
    first = 0
    for above, byte in zip(parents, last_bytes, strict=True):
        levels.append(padded[levels[-1][above - first], byte[:, None]])
        first += len(levels[-2])
    return np.concatenate(levels)


def with_end(
    columns: NDArray[np.int32],
    class_of: NDArray[np.int64],
    accepting: NDArray[np.bool_],
    vocabulary: TokenVocabulary,
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Add the state `done`, and classes of the end tokens and of padding; `class_of` changes in place."""
    done = len(columns)
    end, pad = columns.shape[1], columns.shape[1] + 1
    next_state = np.full((done + 1, pad + 1), -1, dtype=np.int32)
    next_state[:done, :end] = columns
    if vocabulary.end_token_ids:
        next_state[:done, end] = np.where(accepting, done, -1)
        class_of[list(vocabulary.end_token_ids)] = end
    if vocabulary.pad_token_id in vocabulary.end_token_ids:
        next_state[:done, pad] = next_state[:done, end]
    class_of[vocabulary.pad_token_id] = pad
    next_state[done, pad] = done
    return next_state, np.append(accepting, True)


def without_dead(next_state: NDArray[np.int32], accepting: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Only moves that an accepted text may still follow; ValueError where the start has none."""
    source, column = np.nonzero(next_state >= 0)
    target = next_state[source, column]
    alive = accepting.copy()
    while True:
        more = alive.copy()
        more[source[alive[target]]] = True
        if np.array_equal(more, alive):
            break
        alive = more
    if not alive[0]:
        raise ValueError("a constraint must accept a text that the tokenizer's tokens spell, got one without")
    kept = next_state.copy()
    kept[source, column] = np.where(alive[target], target, -1)
    return kept


def used_classes(
    class_of: NDArray[np.int64], next_state: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """All classes that may never come as one, the first."""
    used = (next_state >= 0).any(axis=0) & (np.bincount(class_of, minlength=next_state.shape[1]) > 0)
    used[0] = True
    number = np.where(used, np.cumsum(used) - 1, 0)
    return number[class_of], np.ascontiguousarray(next_state[:, used])


def edges_of(next_state: NDArray[np.int32]) -> tuple[NDArray, NDArray, NDArray, NDArray[np.bool_]]:
    """Pairs of states (source, target), the label of each pair, and the classes of each label."""
    labels: dict[bytes, int] = {}
    source, target, label = [], [], []
    for state, row in enumerate(next_state):
        for there in np.unique(row[row >= 0]).tolist():
            key = np.packbits(row == there).tobytes()
            source.append(state)
            target.append(there)
            label.append(labels.setdefault(key, len(labels)))
    bits = np.frombuffer(b"".join(labels), dtype=np.uint8).reshape(len(labels), -1)
    members = np.unpackbits(bits, axis=1, count=next_state.shape[1]).astype(bool)
    return np.array(source), np.array(target), np.array(label), members
