"""The deterministic automaton over UTF-8 bytes of an expression, built within a bound."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .expressions import Both, Chars, Choice, Expression, Listing, Literal, Repeat, Sequence, nfa_size, utf8_runs

NFA_STATES_PER_STATE = 20  # how much larger than the bound the nondeterministic automaton may be
WORK_PER_STATE = 200  # visits of its states that building may take, for each state of the bound


@dataclass(frozen=True)
class ByteAutomaton:
    """A deterministic automaton over bytes; it starts in state 0, and an accepted text can be reached from every state.

    Attributes:
        table: int32 (states, 256), the next state, -1 where there is none.
        accepting: bool (states,).
    """

    table: NDArray[np.int32]
    accepting: NDArray[np.bool_]

    def accepts(self, text: str) -> bool:
        """Usage: `byte_automaton(Literal("a"), 10).accepts("a")`"""
        state = 0
        for byte in text.encode():
            state = int(self.table[state, byte])
            if state < 0:
                return False
        return bool(self.accepting[state])


def byte_automaton(expression: Expression, max_states: int) -> ByteAutomaton:
    """Build the automaton of an expression.

    Raises:
        ValueError: where it takes more than `max_states` states, or accepts nothing.

    Usage: `byte_automaton(Repeat(Literal("ab"), 1, 3), max_states=100)`
    """
    size = nfa_size(expression)
    if size > NFA_STATES_PER_STATE * max_states:
        raise ValueError(
            f"a constraint must fit an automaton of at most {max_states} states, got an expression of {size} positions"
        )
    nfa = Nfa(max_states)
    start, end = nfa.new(), nfa.new()
    nfa.add(expression, start, end)
    numbers = {nfa.closure((start,)): 0}
    order = list(numbers)
    moves: list[list[tuple[int, int, int]]] = []
    for here in order:  # grows while it is read
        moves.append([])
        for low, high, targets in nfa.moves(here):
            there = nfa.closure(targets)
            if there not in numbers:
                numbers[there] = len(order)
                order.append(there)
                check_size(len(order), max_states)
            moves[-1].append((low, high, numbers[there]))
    accepting = [end in states for states in order]
    return trimmed(moves, accepting)


def trimmed(moves: list[list[tuple[int, int, int]]], accepting: list[bool]) -> ByteAutomaton:
    """The automaton without the states that lead nowhere; ValueError where the first is one of them."""
    before: list[list[int]] = [[] for _ in moves]
    for state, ranges in enumerate(moves):
        for _, _, target in ranges:
            before[target].append(state)
    alive = list(accepting)
    waiting = [state for state, accepts in enumerate(accepting) if accepts]
    while waiting:
        for state in before[waiting.pop()]:
            if not alive[state]:
                alive[state] = True
                waiting.append(state)
    if not alive[0]:
        raise ValueError("a constraint must accept at least one text, got one that accepts none")
    number = {state: i for i, state in enumerate(s for s, lives in enumerate(alive) if lives)}
    table = np.full((len(number), 256), -1, dtype=np.int32)
    for state, row in number.items():
        for low, high, target in moves[state]:
            table[row, low : high + 1] = number.get(target, -1)
    return ByteAutomaton(table, np.array([accepting[state] for state in number]))


def product(a: ByteAutomaton, b: ByteAutomaton, max_states: int) -> ByteAutomaton:
    """The automaton of what both accept; errors as `byte_automaton`."""
    numbers, order = {(0, 0): 0}, [(0, 0)]
    moves: list[list[tuple[int, int, int]]] = []
    for here in order:  # grows while it is read
        moves.append([])
        pairs = np.stack([a.table[here[0]], b.table[here[1]]])
        for byte in np.flatnonzero((pairs >= 0).all(axis=0)).tolist():
            there = (int(pairs[0, byte]), int(pairs[1, byte]))
            if there not in numbers:
                numbers[there] = len(order)
                order.append(there)
                check_size(len(order), max_states)
            moves[-1].append((byte, byte, numbers[there]))
    return trimmed(moves, [bool(a.accepting[s] and b.accepting[t]) for s, t in order])


def check_size(num_states: int, max_states: int) -> None:
    """Raise ValueError for an automaton that grows beyond its bound."""
    if num_states > max_states:
        raise ValueError(f"a constraint must fit an automaton of at most {max_states} states, got more")


class Nfa:
    """A nondeterministic automaton that grows expression by expression."""

    def __init__(self, max_states: int) -> None:
        self.max_states, self.work = max_states, WORK_PER_STATE * max_states
        self.silent: list[list[int]] = []
        self.edges: list[list[tuple[int, int, int]]] = []

    def new(self) -> int:
        """A state."""
        self.silent.append([])
        self.edges.append([])
        return len(self.silent) - 1

    def add(self, expression: Expression, start: int, end: int) -> None:
        """Let an expression lead from `start` to `end`."""
        match expression:
            case Chars(ranges):
                self._add_characters(ranges, start, end)
            case Literal(text):
                for byte in text.encode():
                    self.edges[start].append((byte, byte, start := self.new()))
                self.silent[start].append(end)
            case Sequence(parts):
                for part in parts:
                    self.add(part, start, start := self.new())
                self.silent[start].append(end)
            case Choice(options):
                for option in options:
                    self.add(option, start, end_of_option := self.new())
                    self.silent[end_of_option].append(end)
            case Repeat(body, least, most):
                self._add_repeat(body, least, most, start, end)
            case Listing():
                self._add_listing(expression, start, end)
            case Both(first, second):
                a, b = byte_automaton(first, self.max_states), byte_automaton(second, self.max_states)
                self._add_automaton(product(a, b, self.max_states), start, end)

    def _add_characters(self, ranges: tuple[tuple[int, int], ...], start: int, end: int) -> None:
        """Byte runs that end alike share their last states."""
        tails: dict[tuple[tuple[int, int], ...], int] = {(): end}
        for run in utf8_runs(ranges):
            for place in range(len(run) - 1, 0, -1):
                if run[place:] not in tails:
                    tails[run[place:]] = self.new()
                    self.edges[tails[run[place:]]].append((*run[place], tails[run[place + 1 :]]))
            self.edges[start].append((*run[0], tails[run[1:]]))

    def _add_repeat(self, body: Expression, least: int, most: int | None, start: int, end: int) -> None:
        for _ in range(least):
            self.add(body, start, start := self.new())
        if most is None:
            loop = self.new()  # of its own: `start` may be entered again by what is around
            self.silent[start].append(loop)
            self.add(body, loop, back := self.new())
            self.silent[back].append(loop)
            self.silent[loop].append(end)
            return
        for _ in range(most - least):
            self.silent[start].append(end)
            self.add(body, start, start := self.new())
        self.silent[start].append(end)

    def _add_listing(self, listing: Listing, start: int, end: int) -> None:
        """Two tracks: `fresh` while nothing is written, `begun` after the first item. An item is on both."""
        fresh, begun = self.new(), self.new()
        self.silent[start].append(fresh)
        for number, (item, required) in enumerate(listing.items):
            entry, after_fresh, after = self.new(), self.new(), self.new()
            self.silent[fresh].append(entry)
            self.add(Literal(listing.separator), begun, entry)
            self.add(item, entry, after)
            if not required:
                self.silent[fresh].append(after_fresh)
                self.silent[begun].append(after)
            if listing.last_repeats and number == len(listing.items) - 1:
                self.add(Literal(listing.separator), after, entry)
            fresh, begun = after_fresh, after
        self.silent[fresh].append(end)
        self.silent[begun].append(end)

    def _add_automaton(self, automaton: ByteAutomaton, start: int, end: int) -> None:
        states = [self.new() for _ in automaton.table]
        self.silent[start].append(states[0])
        for state, row in zip(states, automaton.table, strict=True):
            self.edges[state] += [(byte, byte, states[row[byte]]) for byte in np.flatnonzero(row >= 0).tolist()]
        for accepting in np.flatnonzero(automaton.accepting).tolist():
            self.silent[states[accepting]].append(end)

    def closure(self, states: tuple[int, ...]) -> frozenset[int]:
        """The states that are reached without a byte, those without a use of their own left out."""
        seen, waiting = set(states), list(states)
        while waiting:
            for state in self.silent[waiting.pop()]:
                if state not in seen:
                    seen.add(state)
                    waiting.append(state)
        self.work -= len(seen)
        if self.work < 0:
            raise ValueError(f"a constraint must be built within {WORK_PER_STATE * self.max_states} steps, got more")
        return frozenset(state for state in seen if self.edges[state] or state == 1)

    def moves(self, states: frozenset[int]) -> Iterator[tuple[int, int, tuple[int, ...]]]:
        """Where bytes lead from a set of states: (first byte, last byte, states)."""
        edges = [edge for state in states for edge in self.edges[state]]
        cuts = sorted({low for low, _, _ in edges} | {high + 1 for _, high, _ in edges})
        for low, after in pairwise(cuts):
            targets = tuple(target for first, last, target in edges if first <= low <= last)
            if targets:
                yield low, after - 1, targets
