"""What each mask of a canvas says of the classes and labels of an automaton's tokens."""

import numpy as np
import torch
from numpy.typing import NDArray

from .token_automaton import TokenAutomaton

SMALLEST = -80.0  # logarithm of what float32 still sums without losing digits
SMALLEST_DOUBLE = -600.0  # the same for float64, with room for a product
RUN = 128  # weights that are summed at once before one is drawn


class ClassScores:
    """Log-probabilities of the classes and labels of an automaton at each mask: of their sums, or of their best tokens.

    Attributes:
        classes: float64 (masks, classes), unnormalized logarithms; -inf for the first class, whose tokens never come.
        labels: float64 (masks, labels + 1); the last one is of all tokens, for moves after the end.
        chances: float64 (masks, labels + 1), exponentials of the labels beside the likeliest token.
        lowest: float64 (masks,), the least of these that is no label's of probability 0; 0 where float64 lost it.
        top: float64 (masks,), the largest logit.
    """

    def __init__(self, automaton: TokenAutomaton, logits: NDArray[np.floating], best: bool):
        self.automaton, self.logits, self.best = automaton, logits, best
        top = logits.max(axis=1, keepdims=True) if len(logits) else np.zeros((0, 1), logits.dtype)
        if not np.isfinite(top).all():
            raise ValueError("logits must have a finite one and neither NaN nor inf at every mask, got some without")
        self.top = top[:, 0].astype(np.float64)
        first = automaton.starts[1]  # the tokens before it may never come
        order = torch.from_numpy(automaton.order[first:])
        sorted_lines = torch.from_numpy(logits).index_select(1, order)  # numpy takes 1.5 times as long
        starts = automaton.starts[1:-1] - first
        self.classes = np.full((len(logits), len(automaton.starts) - 1), -np.inf)
        if best:
            self.classes[:, 1:] = np.maximum.reduceat(sorted_lines.numpy(), starts, axis=1)
            # What comes after the end has the weight 1, so here too the sum: it is what logits are normalized by.
            whole = np.log(np.exp(logits - top).sum(axis=1, dtype=np.float64)) + self.top
        else:
            self.powers = sorted_lines.sub_(torch.from_numpy(top)).exp_().numpy()
            sums = np.add.reduceat(self.powers, starts, axis=1).astype(np.float64)
            with np.errstate(divide="ignore"):
                self.classes[:, 1:] = np.log(sums) + self.top[:, None]
            self._repair()
            never = np.exp(logits[:, automaton.order[:first]] - top).sum(axis=1, dtype=np.float64)
            whole = np.log(sums.sum(axis=1) + never) + self.top
        self.labels = np.concatenate([self._labels(), whole[:, None]], axis=1)
        self.chances = np.exp(self.labels - self.top[:, None])
        self.lowest = np.where(self.labels > -np.inf, self.chances, np.inf).min(axis=1)

    def tokens(self, labels: NDArray[np.int64], numbers: NDArray[np.float64] | None) -> NDArray[np.int64]:
        """A token of a label at each mask: int64 (masks,), the likeliest ones, or drawn.

        Args:
            labels: int64 (masks,).
            numbers: float64 (masks, 2), uniform in [0, 1).
        """
        scores = np.where(self.automaton.members[labels], self.classes, -np.inf)
        if numbers is None:
            return np.array([self._likeliest(*pair) for pair in enumerate(scores.argmax(axis=1))], dtype=np.int64)
        sums = np.exp(scores - scores.max(axis=1, keepdims=True)).cumsum(axis=1)
        chosen = (sums <= numbers[:, :1] * sums[:, -1:]).sum(axis=1)
        return np.array([self._drawn(line, c, numbers[line, 1]) for line, c in enumerate(chosen)], dtype=np.int64)

    def _likeliest(self, line: int, chosen: int) -> int:
        ids = self.automaton.order[slice(*self.automaton.starts[chosen : chosen + 2])]
        return int(ids[self.logits[line, ids].argmax()])

    def _drawn(self, line: int, chosen: int, number: float) -> int:
        low, high = self.automaton.starts[chosen : chosen + 2]
        if high - low == 1:
            return int(self.automaton.order[low])
        if self.classes[line, chosen] < self.top[line] + SMALLEST:
            weights = self._values(line, chosen)
            weights = np.exp(weights - weights.max())
        else:
            weights = self.powers[line, low - self.automaton.starts[1] : high - self.automaton.starts[1]]
        return int(self.automaton.order[low + pick(weights, number)])

    def _values(self, lines: NDArray[np.int64] | int, chosen: int) -> NDArray[np.float64]:
        """The logits of the tokens of a class, float64."""
        ids = self.automaton.order[slice(*self.automaton.starts[chosen : chosen + 2])]
        return self.logits[lines][..., ids].astype(np.float64)

    def _repair(self) -> None:
        """Sum anew, from their own largest value, the classes that are too unlikely beside the best token."""
        lost = self.classes < self.top[:, None] + SMALLEST
        lost[:, 0] = False
        for number in np.flatnonzero(lost.any(axis=0)).tolist():
            rows = np.flatnonzero(lost[:, number])
            self.classes[rows, number] = log_sum(self._values(rows, number))

    def _labels(self) -> NDArray[np.float64]:
        members = self.automaton.members
        if self.best:
            return np.stack([self.classes[:, classes].max(axis=1) for classes in members], axis=1)
        with np.errstate(divide="ignore"):
            labels = np.log(np.exp(self.classes - self.top[:, None]) @ members.T) + self.top[:, None]
        lost = labels < self.top[:, None] + SMALLEST_DOUBLE
        for number in np.flatnonzero(lost.any(axis=0)).tolist():
            rows = np.flatnonzero(lost[:, number])
            labels[rows, number] = log_sum(self.classes[rows][:, members[number]])
        return labels


def log_sum(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """log(sum(exp)) of each line; -inf where all are."""
    top = values.max(axis=1)
    base = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(values - base[:, None]).sum(axis=1)) + base


def pick(weights: NDArray[np.floating], number: float | None) -> int:
    """The place of the largest weight, or one drawn with the weights by a number in [0, 1)."""
    if number is None:
        return int(weights.argmax())
    if len(weights) <= 2 * RUN:
        return place_of(weights, number * weights.sum(dtype=np.float64))
    # The sums of thousands of weights one after the other take longer than all else: runs of them first.
    sums = np.add.reduceat(weights, np.arange(0, len(weights), RUN)).astype(np.float64)
    goal = number * sums.sum()
    run = place_of(sums, goal)
    return run * RUN + place_of(weights[run * RUN : (run + 1) * RUN], goal - sums[:run].sum())


def place_of(weights: NDArray[np.floating], goal: float) -> int:
    """Where the sum of the weights passes a goal; the last weight above 0 where rounding keeps it below."""
    place = int(weights.cumsum(dtype=np.float64).searchsorted(goal, side="right"))
    return place if place < len(weights) and weights[place] > 0 else int(np.flatnonzero(weights)[-1])
