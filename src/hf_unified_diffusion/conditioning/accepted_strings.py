"""Distributions over the strings that an automaton accepts: the likeliest one, exact draws, marginals.

Tokens are independent under a denoiser; given that the whole string is accepted they are not. Dynamic programming over
positions and states (DINGO, arXiv:2505.23061, and its sum-product form) takes time linear in the length.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .class_scores import ClassScores, pick
from .token_automaton import TokenAutomaton

SMALLEST_STATE = 1e-200  # beside the likeliest state: what linear weights may be as small as
SMALLEST_WEIGHT = 1e-290  # the same for such a state's way on: float64 still holds it in full
NEGLIGIBLE_STATE = 1e-30  # beside the likeliest state: left out where that is seen not to count
NEGLIGIBLE_SHARE = 1e-12  # of the weight of all accepted strings: what may be left out


@dataclass(frozen=True)
class StateWeights:
    """What leads to each state after some positions, summed.

    Attributes:
        values: float64, by state, the largest first made 1; or, where float64 cannot hold that, their logarithms.
        are_logs: which of both.
        lowest: no value above 0 is smaller.
        scale: the logarithm of what was divided by; -inf where all values are 0.
        lost: the logarithm of the sum of what was left out, before division.
    """

    values: NDArray
    are_logs: bool
    lowest: float
    scale: float
    lost: float = -np.inf

    @classmethod
    def of(cls, values: NDArray, are_logs: bool, scale: float, cut: float = 0.0) -> "StateWeights":
        """Weights by state on a common scale, or their logarithms, less those below `cut` times the largest."""
        none = -np.inf if are_logs else 0.0
        top = values.max(initial=none)
        if top == none:
            return cls(values, are_logs, none, -np.inf)
        values, scale = (values - top, scale + top) if are_logs else (values / top, scale + np.log(top))
        if cut:
            if are_logs:  # what float64 does not hold is counted for more than it is, not for nothing
                values = np.exp(np.where(values > none, np.maximum(values, math.log(SMALLEST_WEIGHT)), none))
            small = values < cut
            lost = values @ small
            values[small] = 0.0
            return cls(values, False, cut, scale, scale + math.log(lost) if lost else -np.inf)
        lowest = values[values > none].min()
        if are_logs and lowest > np.log(SMALLEST_STATE):
            return cls(np.exp(values), False, np.exp(lowest), scale)
        if not are_logs and lowest < SMALLEST_STATE:
            return cls(logarithm(values), True, np.log(lowest), scale)
        return cls(values, are_logs, lowest, scale)

    def logs(self) -> NDArray:
        """Logarithms of the values."""
        return self.values if self.are_logs else logarithm(self.values)


@dataclass(frozen=True)
class Moves:
    """The edges that a string may use at one mask, and the tokens given after it.

    Attributes:
        source, label: int64 (edges,), of the edges at the mask.
        target: int64 (edges,), after the given tokens; the number of states where they are not allowed.
        weight: float64 (edges,), of all that leads along the edge, on the scale of its target.
        total: float64 (states + 1,), by target the sum of these weights, or the largest one.
    """

    source: NDArray[np.int64]
    label: NDArray[np.int64]
    target: NDArray[np.int64]
    weight: NDArray
    total: NDArray

    def chances(self, after: NDArray) -> NDArray:
        """float64 (edges,): the probability that each is used, from those of the states after it."""
        rate = np.zeros(len(self.total))
        np.divide(after, self.total[: len(after)], out=rate[: len(after)], where=self.total[: len(after)] > 0)
        rate[-1] = 0.0
        found = rate.take(self.target)
        found *= self.weight
        return found


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

    Attributes:
        log_weight: the logarithm of the weight of all accepted strings.

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
        self.automaton, self.logits, self.best = automaton, logits, best
        self.scores = ClassScores(automaton, logits, best)
        classes = np.where(tokens < 0, -1, automaton.class_of[tokens]).tolist()
        masks = np.flatnonzero(tokens < 0).tolist()
        bounds = [*masks, len(tokens)]
        given = [classes[mask + 1 : bound] for mask, bound in zip(masks, bounds[1:], strict=True)]
        begun = automaton.advance(start, tokens[: bounds[0]].tolist())
        values = np.zeros(len(automaton.accepting))
        values[begun] = float(begun >= 0)
        states = StateWeights.of(values, False, 0.0)
        self.moves: list[Moves] = []
        self.log_weight = -np.inf
        # Of a thousand counts of characters some hundred are likely. The rest is left out first, but only where it
        # turns out not to count: all else might be refused further on.
        for cut in (0.0,) if best else (NEGLIGIBLE_STATE, 0.0):
            needed = self._forward(states, given, finals, cut)
            if self.log_weight > needed:
                return
        raise ValueError("a canvas must have room for an accepted text around its given tokens, got one without")

    def _forward(self, states: StateWeights, given: list[list[int]], finals: NDArray[np.bool_], cut: float) -> float:
        """From the start to the end: `moves`, `ends`, `log_weight`, and what the latter must exceed to be believed.

        Args:
            states: before the first mask.
            given: classes of the given tokens after each mask.
            finals: bool (states,), where the canvas may end.
            cut: states of a smaller weight beside the likeliest one are left out.
        """
        self.moves, self.log_weight, needed = [], -np.inf, -np.inf
        # From any state the rest of the canvas weighs at most as much as all tokens at its masks, accepted or not.
        rests = [*self.scores.labels[::-1, -1].cumsum()[::-1].tolist(), 0.0]
        for line, classes in enumerate(given):
            if states.scale + math.log(len(states.values)) + rests[line] <= needed:
                return needed
            states = self._over(states, line, classes, cut)
            needed = np.logaddexp(needed, states.lost + rests[line + 1] - math.log(NEGLIGIBLE_SHARE))
        ended = np.where(finals[: len(states.values)], states.logs(), -np.inf)
        peak = StateWeights.of(ended, True, states.scale)
        if peak.scale > -np.inf:
            self.ends = np.exp(peak.logs())
            self.log_weight = float(peak.scale + (0.0 if self.best else np.log(self.ends.sum())))
        return needed

    def marginal_logits(self) -> NDArray[np.floating]:
        """float (masks, tokens): up to a constant a line, the logarithm of each token's probability at each mask."""
        automaton, labels = self.automaton, self.scores.labels
        used = np.zeros_like(labels)
        states = self.ends / self.ends.sum()  # the probability of each
        for line in range(len(self.moves) - 1, -1, -1):
            moves = self.moves[line]
            chances = moves.chances(states)
            states = np.bincount(moves.source, chances)
            used[line] = np.bincount(moves.label, chances, used.shape[1])
        used[:, automaton.label[-1]] += used[:, -1]  # the last edge is the one of padding
        used, labels = used[:, :-1], labels[:, :-1]
        ratio = np.full_like(used, -np.inf)
        ratio[used > 0] = np.log(used[used > 0]) - labels[used > 0]
        ratio -= ratio.max(axis=1, keepdims=True)
        with np.errstate(under="ignore"):
            of_class = logarithm(np.exp(ratio) @ automaton.members).astype(self.logits.dtype)
        found = of_class.take(automaton.class_of, axis=1)
        found += self.logits
        return found

    def draw(self, numbers: NDArray) -> NDArray[np.int64]:
        """A string with the probability of its weight: int64 (masks,), its tokens at the masks.

        Args:
            numbers: float64 (masks, 3), uniform in [0, 1).
        """
        return self._walk(numbers)

    def likeliest(self) -> NDArray[np.int64]:
        """The string of the largest weight: int64 (masks,), its tokens at the masks. Needs `best`."""
        return self._walk(None)

    def _walk(self, numbers: NDArray | None) -> NDArray[np.int64]:
        """Back from the end: at each mask one of the edges that lead to where the rest goes on."""
        labels = np.zeros(len(self.moves), dtype=np.int64)
        state = -1
        for line in range(len(self.moves) - 1, -1, -1):
            moves, number = self.moves[line], None if numbers is None else numbers[line, 0]
            if state < 0:
                edge = pick(moves.chances(self.ends), number)
            else:
                edges = np.flatnonzero(moves.target == state)
                edge = edges[pick(moves.weight[edges], number)]
            state, labels[line] = int(moves.source[edge]), moves.label[edge]
        labels[labels == len(self.automaton.members)] = self.automaton.label[-1]
        return self.scores.tokens(labels, None if numbers is None else numbers[:, 1:])

    def _over(self, states: StateWeights, line: int, given: list[int], cut: float) -> StateWeights:
        """What leads over a mask and the given tokens after it, as their classes; also added to `moves`."""
        automaton, scores = self.automaton, self.scores
        alive = np.flatnonzero(states.values > (-np.inf if states.are_logs else 0.0))
        edges = slice(automaton.first_edge[alive[0]], automaton.first_edge[alive[-1] + 1])
        source, label = automaton.source[edges], automaton.weighed_label[edges]
        target = automaton.target[edges]
        if given:
            after = automaton.successors[given[0]]
            for token_class in given[1:]:
                after = automaton.successors[token_class].take(after)
            target = after.take(target)
        size = len(automaton.accepting)
        if not (self.best or states.are_logs) and states.lowest * scores.lowest[line] > SMALLEST_WEIGHT:
            weight = states.values.take(source)
            weight *= scores.chances[line].take(label)
            total = np.bincount(target, weight, size + 1)
            found = StateWeights.of(total[:-1], False, states.scale + scores.top[line], cut)
        else:
            weight, total, logs = self._by_logarithms(states, line, source, label, target)
            found = StateWeights.of(logs[:-1], True, states.scale, cut)
        self.moves.append(Moves(source, label, target, weight, total))
        return found

    def _by_logarithms(
        self, states: StateWeights, line: int, source: NDArray, label: NDArray, target: NDArray
    ) -> tuple[NDArray, NDArray, NDArray]:
        """The same where linear weights would be too small: weights and totals on a scale by target, and logarithms."""
        value = states.logs().take(source) + self.scores.labels[line].take(label)
        most = np.full(len(self.automaton.accepting) + 1, -np.inf)
        np.maximum.at(most, target, value)
        base = np.where(most > -np.inf, most, 0.0)
        weight = np.exp(value - base.take(target))
        if self.best:
            return weight, (most > -np.inf).astype(np.float64), most
        total = np.bincount(target, weight, len(base))
        return weight, total, logarithm(total) + base


def logarithm(values: NDArray) -> NDArray:
    """log, -inf at 0."""
    with np.errstate(divide="ignore"):
        return np.log(values)
