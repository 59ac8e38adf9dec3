"""Rows that are written under a constraint: where each stands in the automaton, and what it may still write."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ..codecs.text_codec import TextCodec
from ..conditioning.accepted_strings import AcceptedStrings
from ..conditioning.schema_constraint import SchemaConstraint
from ..conditioning.token_automaton import TokenAutomaton, TokenVocabulary
from ..processes.categorical import shape_logits
from ..processes.randomness import Generators, ragged_uniform
from ..schedulers.scheduling_masked_diffusion import MaskedDiffusionScheduler

CUT = 1e4  # what top_k and top_p take from a logit: such tokens come only where no other is accepted


def vocabulary_of(
    codec: TextCodec, vocab_size: int, end_token_ids: Sequence[int], pad_token_id: int
) -> TokenVocabulary:
    """What an automaton must know of a pipeline's tokens."""
    return _vocabulary(codec.tokenizer, len(codec.tokenizer), vocab_size, tuple(end_token_ids), pad_token_id)


@lru_cache(maxsize=8)
def _vocabulary(
    tokenizer: PreTrainedTokenizerFast, num_tokens: int, vocab_size: int, ends: tuple[int, ...], pad: int
) -> TokenVocabulary:
    """A tokenizer that has got tokens since is another one: `num_tokens` tells."""
    pieces = TextCodec(tokenizer).token_bytes()
    return TokenVocabulary(tuple(pieces) + (None,) * (vocab_size - num_tokens), ends, pad)


@dataclass
class ConstrainedRows:
    """The rows of a batch under one constraint.

    Attributes:
        automaton: of the constraint.
        scheduler: whose temperature, top_k and top_p apply.
        may_end: whether a row may end before its room is used up.
        states: where each row stands before the canvas.
        room: tokens that each row may still get, the canvas among them.
    """

    automaton: TokenAutomaton
    scheduler: MaskedDiffusionScheduler
    may_end: bool
    states: list[int]
    room: list[int]

    def condition(
        self,
        logits: Float[Tensor, "batch length vocab"],
        canvas: Int[Tensor, "batch length"],
        generators: Generators,
    ) -> tuple[Float[Tensor, "batch length vocab"], Int[Tensor, "batch length"]]:
        """The marginals of each token given that the whole is accepted, and a canvas drawn from all that are.

        A row's canvas ends where its room does; masks beyond are left alone, and so are rows without masks.
        """
        tokens = self._with_holes(canvas)
        conditioned, proposal = logits.clone(), canvas.clone()
        counts = [int((row[:room] < 0).sum()) for row, room in zip(tokens, self.room, strict=True)]
        numbers = ragged_uniform([3 * count for count in counts], generators, torch.device("cpu")).view(-1, 3)
        for row, (drawn, count) in enumerate(zip(numbers.split(counts), counts, strict=True)):
            if count:
                masked = torch.from_numpy(np.flatnonzero(tokens[row][: self.room[row]] < 0)).to(canvas.device)
                marginals, found = self._condition_row(logits[row, masked], tokens[row], row, drawn.numpy())
                conditioned[row, masked] = torch.from_numpy(marginals).to(logits)
                proposal[row, masked] = torch.from_numpy(found).to(canvas)
        return conditioned, proposal

    def _condition_row(
        self, logits: Float[Tensor, "masks vocab"], tokens: np.ndarray, row: int, numbers: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        config = self.scheduler.config
        tokens = tokens[: self.room[row]]
        finals = self.automaton.reachable(self.room[row] - len(tokens), self.may_end)
        values = logits if logits.dtype == torch.float64 else logits.float()
        settings = (config.temperature, config.top_k, config.top_p)
        place = (tokens, self.states[row], finals)
        strings = AcceptedStrings(self.automaton, values.cpu().numpy(), *place)
        marginals = strings.marginal_logits()
        if config.temperature == 0:
            return marginals, AcceptedStrings(self.automaton, values.cpu().numpy(), *place, best=True).likeliest()
        if settings != (1.0, 0, 1.0):
            whole, kept = shape_logits(values, config.temperature), shape_logits(values, *settings)
            shaped = torch.where(kept.isneginf(), whole - CUT, kept)
            strings = AcceptedStrings(self.automaton, shaped.cpu().numpy(), *place)
        return marginals, strings.draw(numbers)

    def check_canvas(self, canvas: Int[Tensor, "batch length"]) -> None:
        """Raise ValueError unless an accepted text fits around the given tokens of each row."""
        finals = self.automaton.reachable(self.room[0] - canvas.shape[1], self.may_end)
        for tokens, state in zip(self._with_holes(canvas), self.states, strict=True):
            anything = np.zeros((int((tokens < 0).sum()), len(self.automaton.class_of)), dtype=np.float32)
            AcceptedStrings(self.automaton, anything, tokens, state, finals)

    def _with_holes(self, canvas: Int[Tensor, "batch length"]) -> np.ndarray:
        """The canvas with -1 for masks."""
        tokens = canvas.cpu().numpy()
        return np.where(tokens == self.scheduler.config.mask_token_id, -1, tokens)

    def allowed_next(
        self, draft: Int[Tensor, "batch length"], real: Bool[Tensor, "batch length"]
    ) -> Bool[Tensor, "batch length+1 vocab"]:
        """Which tokens may come at each place of a draft and after it, its earlier tokens given.

        Places after the end of a row's room allow all.
        """
        automaton = self.automaton
        allowed = np.ones((len(draft), draft.shape[1] + 1, len(automaton.class_of)), dtype=bool)
        for row, (tokens, count) in enumerate(zip(draft.tolist(), real.sum(dim=1).tolist(), strict=True)):
            state = self.states[row]
            for place in range(min(count + 1, self.room[row])):
                after = automaton.next_state[state]
                finals = automaton.reachable(self.room[row] - place - 1, self.may_end)
                allowed[row, place] = ((after >= 0) & finals[after])[automaton.class_of]
                if place < count:
                    state = automaton.advance(state, tokens[place : place + 1])
                if state < 0:
                    break
        return torch.from_numpy(allowed).to(draft.device)

    def advance(self, rows: Sequence[Sequence[int]]) -> None:
        """Each row has got some tokens, no end among them."""
        self.states = [self.automaton.advance(state, new) for state, new in zip(self.states, rows, strict=True)]
        self.room = [room - len(new) for room, new in zip(self.room, rows, strict=True)]

    def keep(self, places: Sequence[int]) -> None:
        """Go on with some rows only."""
        self.states = [self.states[place] for place in places]
        self.room = [self.room[place] for place in places]


def constrain(
    constraint: SchemaConstraint,
    vocabulary: TokenVocabulary,
    scheduler: MaskedDiffusionScheduler,
    count: int,
    room: int,
    fixed_length: bool,
) -> ConstrainedRows:
    """Rows at the start of a constraint.

    Raises:
        ValueError: where no accepted text has a length that fits.
    """
    automaton = constraint.automaton(vocabulary)
    if not automaton.reachable(room, may_end=not fixed_length)[0]:
        rule = "exactly as many" if fixed_length or not vocabulary.end_token_ids else "at most as many"
        raise ValueError(
            f"max_new_tokens must be such that a text of the constraint has {rule} tokens, the shortest having "
            f"{automaton.shortest()}, got {room}"
        )
    return ConstrainedRows(automaton, scheduler, not fixed_length, [0] * count, [room] * count)
