"""Writing under energies, row by row: shaped logits, candidates by importance weights, checks and retries."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Generator, Tensor

from ..conditioning.energies_text import FromContext, Length, TextEnergy, Writing, WrittenText
from ..conditioning.energy import check_energies, check_scale, with_token_energy
from ..conditioning.rejection import Attempt, accepted_sample, check_retries
from ..contracts import Condition, Denoiser
from ..modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from .candidates import candidate_generators
from .causal_reader import CausalReader
from .text_inputs import TextOptions, TextRows, check_positive
from .text_rows import RowWriter

# (denoiser, the row's writer) -> the denoiser to write with
Shape = Callable[[Denoiser, RowWriter], Denoiser]


@dataclass(frozen=True)
class Run:
    """One pass of the loop over some rows: what was written, the forward passes, the acceptance of drafts."""

    writer: RowWriter
    num_passes: int
    acceptance_rate: float | None


# (rows, generators, shape) -> what is written
Write = Callable[[TextRows, Sequence[Generator], Shape | None], Run]


@dataclass(frozen=True)
class TextEnergies:
    """The energies of a request, checked at the door.

    Attributes:
        scale: eta; 0 is as without energies.
        retries: how often a rejected text is written again.
        growth: what the scale is multiplied by each time.
        num_candidates: texts of each attempt, of which one is drawn by its energies.
    """

    energies: Sequence[TextEnergy]
    scale: float
    retries: int
    growth: float
    num_candidates: int

    def __post_init__(self) -> None:
        check_energies(self.energies, TextEnergy, "a TextEnergy such as ForbiddenWords")
        names = [energy.name for energy in self.energies]
        if len(set(names)) < len(names):
            raise ValueError(f"energies must have names of their own, got {names}")
        check_scale("energy_scale", self.scale)
        check_retries(self.retries, self.growth)
        check_positive("num_candidates", self.num_candidates)
        waiting = [energy.name for energy in self.energies if energy.needs_candidates]
        if waiting and self.num_candidates == 1:
            raise ValueError(f"num_candidates must be at least 2 with {waiting}, got 1: it would do nothing")

    @property
    def is_on(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.energies) and self.scale > 0

    def check(self, options: TextOptions, streams: bool) -> None:
        """Raise ValueError where a request cannot be written under energies."""
        if not self.energies:
            return
        shaping = [energy.name for energy in self.energies if not energy.needs_candidates]
        if options.check_drafts and shaping:
            raise ValueError(f"check_drafts must be False with {shaping}: drafts are checked without them")
        if streams:
            raise ValueError("streamer must be left out with energies: a rejected text is written again")
        for energy in self.energies:
            if isinstance(energy, Length) and options.fixed_length:
                raise ValueError("Length must be left out with a suffix or a canvas: its length is fixed")
            if isinstance(energy, Length) and energy.fewest > options.max_new_tokens:
                raise ValueError(
                    f"the fewest tokens of Length must be at most max_new_tokens ({options.max_new_tokens}), "
                    f"got {energy.fewest}"
                )


@dataclass(frozen=True)
class EnergyWriter:
    """Writes the rows of a request under energies.

    Attributes:
        in_batches: whether `write` takes any number of rows where nothing shapes them.
    """

    given: TextEnergies
    model: UnifiedDiffusionModel
    modality: str
    end_token_ids: tuple[int, ...]
    write: Write
    in_batches: bool = True

    def run(self, rows: TextRows, generators: Sequence[Generator]) -> tuple[Run, list[tuple[Attempt, ...]]]:
        """Write all rows; gives what was written and each row's history."""
        writers, histories = [], []
        first = self._attempts(rows, generators, self.given.scale) if self._only_chooses else []
        for number, generator in enumerate(generators):
            alone, begun = picked(rows, [number]), first[number : number + 1]

            def draw(
                scale: float, alone: TextRows = alone, generator: Generator = generator, begun: list = begun
            ) -> tuple[RowWriter, Attempt]:
                return begun.pop() if begun else self._attempts(alone, [generator], scale)[0]

            writer, history = accepted_sample(draw, self.given.scale, self.given.retries, self.given.growth)
            writers.append(writer)
            histories.append(history)
        together = writers[0].of_rows(rows)
        for number, writer in enumerate(writers):
            together.take(number, writer)
        passes = sum(attempt.num_passes for history in histories for attempt in history)
        return Run(together, passes, None), histories

    @property
    def _only_chooses(self) -> bool:
        """Whether no energy shapes what is written, so that all candidates of all rows can be written at once."""
        return self.in_batches and all(energy.needs_candidates for energy in self.given.energies)

    def _attempts(
        self, rows: TextRows, generators: Sequence[Generator], scale: float
    ) -> list[tuple[RowWriter, Attempt]]:
        """One attempt of each row; the passes of what is written at once count for its first row."""
        count = self.given.num_candidates
        if not self._only_chooses:
            (generator,) = generators
            runs = [self.write(rows, [generator], self._shape(scale)) for _ in range(count)]
            return [self._choice(rows, [run.writer for run in runs], generator, scale, sum(r.num_passes for r in runs))]
        drawn = [each for generator in generators for each in candidate_generators(generator, count)]
        run = self.write(picked(rows, [n for n in range(len(rows)) for _ in range(count)]), drawn, None)
        return [
            self._choice(
                picked(rows, [number]),
                [one_of(run.writer, number * count + place) for place in range(count)],
                generator,
                scale,
                run.num_passes if number == 0 else 0,
            )
            for number, generator in enumerate(generators)
        ]

    def _choice(
        self, row: TextRows, writers: Sequence[RowWriter], generator: Generator, scale: float, num_passes: int
    ) -> tuple[RowWriter, Attempt]:
        """One of the candidates of a row, drawn with the weights exp(-scale * weight * energy)."""
        texts = self._texts(row, writers)
        energies = [{energy.name: energy.of_text(text) for energy in self.given.energies} for text in texts]
        chosen = 0
        if len(writers) > 1:
            weights = {energy.name: scale * energy.weight for energy in self.given.energies}
            totals = [-sum(weights[name] * value for name, value in of.items()) for of in energies]
            probs = torch.tensor(totals, dtype=torch.float64).softmax(dim=0).to(generator.device)
            chosen = int(torch.multinomial(probs, 1, generator=generator))
        accepted = {energy.name: energy.accepts(texts[chosen]) for energy in self.given.energies}
        return writers[chosen], Attempt(scale, energies[chosen], accepted, num_passes)

    def _shape(self, scale: float) -> Shape:
        mask_token_id = self.model.config.mask_token_id

        def shape(denoiser: Denoiser, writer: RowWriter) -> Denoiser:
            def denoise(x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
                writing = Writing(writer.codec, tuple(writer.ids[0]), self.end_token_ids)
                parts = [(energy.weight, energy.of_canvas(writing)) for energy in self.given.energies]
                shaping = [(weight, of) for weight, of in parts if of is not None and weight > 0]
                if not shaping:
                    return denoiser(x_t, t, condition)

                def energy(probs: Tensor) -> Tensor:
                    return torch.stack([weight * of(probs) for weight, of in shaping]).sum(dim=0)

                return with_token_energy(denoiser, energy, scale, mask_token_id)(x_t, t, condition)

            return denoise

        return shape

    def _texts(self, row: TextRows, writers: Sequence[RowWriter]) -> list[WrittenText]:
        """The candidates of a row; what stands before them is read once for all, and only if it is asked for."""
        (read,), (prompt,) = row.read_ids, row.prompt_ids
        behind = CausalReader(self.model, self.modality, read)
        without = behind if read == prompt else CausalReader(self.model, self.modality, prompt)

        def text_of(writer: RowWriter) -> WrittenText:
            ids = tuple(writer.ids[0])
            nats = cache(lambda: behind.nats(ids))

            def saved() -> float:
                if without is behind:
                    return 0.0
                alone = without.nats(ids)
                return float((alone - nats()[len(nats()) - len(alone) :]).sum())

            return WrittenText(writer.completion(0), ids, lambda: float(nats().mean()) if len(nats()) else 0.0, saved)

        return [text_of(writer) for writer in writers]


def by_context(num_candidates: int) -> dict[str, Any]:
    """What a text pipeline is told to choose among candidates by their context; nothing where there is one alone."""
    return {} if num_candidates == 1 else {"energies": (FromContext(),), "num_candidates": num_candidates}


def picked(rows: TextRows, numbers: Sequence[int]) -> TextRows:
    """Some rows of a batch, by their numbers; one may be there several times."""
    lists = {name: [value[n] for n in numbers] for name, value in vars(rows).items() if isinstance(value, list)}
    return replace(rows, **lists, canvas=None if rows.canvas is None else rows.canvas[list(numbers)])


def one_of(writer: RowWriter, row: int) -> RowWriter:
    """What a writer of several rows has of one."""
    alone = writer.of_rows(picked(writer.rows, [row]))
    alone.take(0, writer, row)
    return alone
