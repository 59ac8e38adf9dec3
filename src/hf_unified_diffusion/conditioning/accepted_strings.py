"""Distributions over the strings that an automaton accepts: the likeliest one, exact draws, marginals.

Tokens are independent under a denoiser; given that the whole string is accepted they are not. Dynamic programming over
positions and states (DINGO, arXiv:2505.23061, and its sum-product form) takes time linear in the length.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .token_automaton import TokenAutomaton

SMALLEST = -80.0  # logarithm of what float32 still sums without losing digits


@dataclass(frozen=True)
class Moves:
    """The edges that an accepted string may use at one position, sorted by source.

    Attributes:
        source, target, label: int64 (edges,); label -1 where the token is given.
        first: int64 (sources,), where the edges of each source begin.
    """

    source: NDArray[np.int64]
    target: NDArray[np.int64]
    label: NDArray[np.int64]
    first: NDArray[np.int64]


class AcceptedStrings:
    """The accepted strings of one canvas, each weighted by the product of its tokens' probabilities.

    After an end token nothing is asked of the denoiser: padding has the weight 1.

    Args:
        automaton: what accepts.
        logits: float (masks, tokens), unnormalized, one row per mask.
        tokens: int64 (length,), the canvas, -1 at masks.
        start: the state before the canvas.
        finals: bool (states,), where the canvas may end.
        best: keep the largest weight instead of the sum, for `likeliest`.

    Raises:
        ValueError: where no accepted string fits the canvas, or logits are NaN.

    Usage:
        strings = AcceptedStrings(automaton, logits, np.full(8, -1), 0, automaton.reachable(0, True))
        tokens = strings.draw(np.random.rand(8, 3))
    """

    def __init__(
        self,
        automaton: TokenAutomaton,
        logits: NDArray[np.floating],
        tokens: NDArray[np.int64],
        start: int,
        finals: NDArray[np.bool_],
        best: bool = False,
    ):
        self.automaton, self.logits, self.start, self.best = automaton, logits, start, best
        self.masks = np.flatnonzero(tokens < 0)
        self.scores = ClassScores(automaton, logits, best)
        self.line_of = np.cumsum(tokens < 0) - 1  # the line of logits of each position
        self.moves = self._alive_moves(tokens, finals)
        self.chances: list[NDArray[np.float64]] = []  # of each move, given its source
        self.log_weight = self._backward()

    def marginal_logits(self) -> NDArray[np.floating]:
        """float (masks, tokens): up to a constant a line, the logarithm of each token's probability at each mask."""
        automaton = self.automaton
        here = np.zeros(len(automaton.accepting))
        here[self.start] = 1.0
        used = np.zeros((len(self.masks), len(automaton.members)))
        for position, moves in enumerate(self.moves):
            mass = here[moves.source] * self.chances[position]
            here = np.bincount(moves.target, mass, len(automaton.accepting))
            if moves.label[0] >= 0:
                used[self.line_of[position]] = np.bincount(moves.label, mass, len(automaton.members))
        ratio = np.full_like(used, -np.inf)
        ratio[used > 0] = np.log(used[used > 0]) - self.scores.labels[used > 0]
        ratio -= ratio.max(axis=1, keepdims=True)
        with np.errstate(divide="ignore", under="ignore"):
            of_class = np.log(np.exp(ratio) @ automaton.members).astype(self.logits.dtype)
        return self.logits + of_class[:, automaton.class_of]

    def draw(self, numbers: NDArray[np.float64]) -> NDArray[np.int64]:
        """A string with the probability of its weight: int64 (masks,), its tokens at the masks.

        Args:
            numbers: float64 (masks, 3), uniform in [0, 1).
        """
        return self._walk(numbers)

    def likeliest(self) -> NDArray[np.int64]:
        """The string of the largest weight: int64 (masks,), its tokens at the masks. Needs `best`."""
        return self._walk(None)

    def _walk(self, numbers: NDArray[np.float64] | None) -> NDArray[np.int64]:
        state, found = self.start, []
        for position, moves in enumerate(self.moves):
            low, high = np.searchsorted(moves.source, (state, state + 1))
            line = self.line_of[position]
            is_mask = moves.label[0] >= 0
            chances = self.chances[position][low:high]
            edge = low + (0 if not is_mask else pick(chances, None if numbers is None else numbers[line, 0]))
            state = int(moves.target[edge])
            if is_mask:
                rest = None if numbers is None else numbers[line, 1:]
                found.append(self.scores.token(line, int(moves.label[edge]), rest))
        return np.array(found, dtype=np.int64)

    def _alive_moves(self, tokens: NDArray[np.int64], finals: NDArray[np.bool_]) -> list[Moves]:
        """The moves of each position that lie on a way from the start to where the canvas may end."""
        forward, here = [], np.array([self.start])
        for position, token in enumerate(tokens.tolist()):
            found = self._moves_from(here, token, self.line_of[position])
            forward.append(found)
            is_next = np.zeros(len(finals), dtype=bool)
            is_next[found[1]] = True
            here = np.flatnonzero(is_next)
        moves: list[Moves] = []
        alive = finals
        for source, target, label in reversed(forward):
            kept = alive[target]
            source, target, label = source[kept], target[kept], label[kept]
            first = np.flatnonzero(np.diff(source, prepend=-1))
            moves.append(Moves(source, target, label, first))
            alive = np.zeros(len(finals), dtype=bool)
            alive[source] = True
        if not alive[self.start]:
            raise ValueError("a canvas must have room for an accepted text around its given tokens, got one without")
        return moves[::-1]

    def _moves_from(self, states: NDArray[np.int64], token: int, line: int) -> tuple[NDArray, NDArray, NDArray]:
        automaton = self.automaton
        if token >= 0:
            target = automaton.next_state[states, automaton.class_of[token]].astype(np.int64)
            kept = target >= 0
            return states[kept], target[kept], np.full(int(kept.sum()), -1)
        if len(states) * 4 > len(automaton.accepting):
            is_here = np.zeros(len(automaton.accepting), dtype=bool)
            is_here[states] = True
            edges = np.flatnonzero(is_here[automaton.source])
        else:
            spans = [np.arange(automaton.first_edge[s], automaton.first_edge[s + 1]) for s in states.tolist()]
            edges = np.concatenate([np.empty(0, dtype=np.int64), *spans])
        edges = edges[self.scores.labels[line, automaton.label[edges]] > -np.inf]
        return automaton.source[edges], automaton.target[edges], automaton.label[edges]

    def _backward(self) -> float:
        """Fill `chances` from the last position on; gives the logarithm of the weight of all accepted strings."""
        weight = np.zeros(len(self.automaton.accepting))  # logarithm of what may follow each state
        for position in range(len(self.moves) - 1, -1, -1):
            moves = self.moves[position]
            value = weight[moves.target]
            if moves.label[0] >= 0:
                line = self.line_of[position]
                free = self.scores.whole[line]
                value = value + np.where(
                    moves.source == self.automaton.done, free, self.scores.labels[line, moves.label]
                )
            count = np.diff(moves.first, append=len(value))
            most = np.maximum.reduceat(value, moves.first)
            chances = np.exp(value - np.repeat(most, count))
            total = most
            if not self.best:
                sums = np.add.reduceat(chances, moves.first)
                total = most + np.log(sums)
                chances /= np.repeat(sums, count)
            self.chances.append(chances)
            weight = np.zeros(len(self.automaton.accepting))
            weight[moves.source[moves.first]] = total
        self.chances.reverse()
        return float(weight[self.start])


class ClassScores:
    """Log-probabilities of the classes and labels of an automaton at each mask: of their sums, or of their best tokens.

    Attributes:
        lines: float (masks, tokens), the logits sorted by class, without the class of tokens that may never come.
        classes: float64 (masks, classes); the first class's are -inf.
        labels: float64 (masks, labels).
        whole: float64 (masks,), of all tokens.
    """

    def __init__(self, automaton: TokenAutomaton, logits: NDArray[np.floating], best: bool):
        self.automaton = automaton
        starts = automaton.starts[1:-1] - automaton.starts[1]
        self.lines = logits[:, automaton.order[automaton.starts[1] :]]
        self.classes = np.full((len(logits), len(automaton.starts) - 1), -np.inf)
        top = logits.max(axis=1, keepdims=True) if len(logits) else np.zeros((0, 1), logits.dtype)
        if not np.isfinite(top).all():
            raise ValueError("logits must have a finite one and neither NaN nor inf at every mask, got some without")
        if best:
            self.classes[:, 1:] = np.maximum.reduceat(self.lines, starts, axis=1)
            self.whole = top[:, 0].astype(np.float64)
        else:
            powers = np.exp(self.lines - top)
            sums = np.add.reduceat(powers, starts, axis=1)
            with np.errstate(divide="ignore"):
                self.classes[:, 1:] = np.log(sums.astype(np.float64)) + top
            self._repair(starts, top)
            self.whole = self._whole(logits, powers, top)
        self.labels = np.stack([self._label(label, best) for label in range(len(automaton.members))], axis=1)

    def token(self, line: int, label: int, numbers: NDArray[np.float64] | None) -> int:
        """A token of a label: the likeliest, or drawn by two uniform numbers."""
        classes = np.flatnonzero(self.automaton.members[label])
        scores = self.classes[line, classes]
        chosen = classes[pick(np.exp(scores - scores.max()), None if numbers is None else numbers[0])]
        offset = self.automaton.starts[1]
        low, high = self.automaton.starts[chosen : chosen + 2]
        values = self.lines[line, low - offset : high - offset].astype(np.float64)
        place = pick(np.exp(values - values.max()), None if numbers is None else numbers[1])
        return int(self.automaton.order[low + place])

    def _label(self, label: int, best: bool) -> NDArray[np.float64]:
        scores = self.classes[:, np.flatnonzero(self.automaton.members[label])]
        if scores.shape[1] == 1:
            return scores[:, 0]
        if best:
            return scores.max(axis=1)
        return log_sum(scores)

    def _repair(self, starts: NDArray[np.int64], top: NDArray[np.floating]) -> None:
        """Sum anew, from their own largest value, the classes that are too unlikely beside the best token."""
        lost = self.classes[:, 1:] < top + SMALLEST
        ends = np.append(starts[1:], self.lines.shape[1])
        for number in np.flatnonzero(lost.any(axis=0)).tolist():
            rows = np.flatnonzero(lost[:, number])
            part = self.lines[rows, starts[number] : ends[number]].astype(np.float64)
            self.classes[rows, number + 1] = log_sum(part)

    def _whole(self, logits: NDArray, powers: NDArray, top: NDArray) -> NDArray[np.float64]:
        never = self.automaton.order[: self.automaton.starts[1]]
        sums = powers.sum(axis=1, dtype=np.float64) + np.exp(logits[:, never] - top).sum(axis=1, dtype=np.float64)
        return np.log(sums) + top[:, 0]


def log_sum(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """log(sum(exp)) of each line; -inf where all are."""
    top = values.max(axis=1)
    base = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(values - base[:, None]).sum(axis=1)) + base


def pick(weights: NDArray[np.float64], number: float | None) -> int:
    """The place of the largest weight, or one drawn with the weights by a number in [0, 1)."""
    if number is None:
        return int(weights.argmax())
    sums = weights.cumsum()
    return min(int(np.searchsorted(sums, number * sums[-1], side="right")), int(np.flatnonzero(weights)[-1]))
