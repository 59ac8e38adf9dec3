"""Does each energy move what it measures, do two move both, and what happens to wishes that are hard?

    python benchmarks/energies.py

Texts: one prompt and one seed each, written plainly (the control) and under the energy. A case counts as moved where
its energy is below the control's; controls of energy 0 are as wished already, and cannot move. Pictures and sounds:
samples of Gaussian data by its exact denoiser, since no network is needed to show what the wrapper does.
"""

from collections.abc import Callable, Iterator

import torch
from measure import Row, argument_parser, described, load_pipelines, report, start
from tqdm.auto import tqdm

from hf_unified_diffusion import (
    CausalLikelihood,
    ForbiddenWords,
    KeepPixels,
    Length,
    Loudness,
    Palette,
    RequiredWords,
    with_energies,
)
from hf_unified_diffusion.conditioning.energies_text import TextEnergy, Writing
from hf_unified_diffusion.conditioning.energy import EnergyModel
from hf_unified_diffusion.conditioning.rejection import kept
from hf_unified_diffusion.pipelines.diffusion_core import diffuse
from hf_unified_diffusion.pipelines.pipeline_text import UnifiedDiffusionTextPipeline
from hf_unified_diffusion.processes.gaussian import GaussianFlow

OPENINGS = (
    "The history of",
    "A short note about",
    "In this chapter we describe",
    "The man said that",
    "Most people like",
)
TOPICS = ("the bicycle", "the sea", "music", "a small town", "the winter", "bread", "the law", "a computer")
PROMPTS = [f"{opening} {topic}" for opening in OPENINGS for topic in TOPICS]
WISHES: dict[str, tuple[list[TextEnergy], dict]] = {
    "forbidden words": ([ForbiddenWords([" the", " of", " and"])], {}),
    "required words": ([RequiredWords(["river", "green"])], {}),
    "length, 6 to 9 tokens": ([Length(6, 9)], {}),
    "causal likelihood, 32 candidates": ([CausalLikelihood()], {"num_candidates": 32}),
    "forbidden and required words": ([ForbiddenWords([" the", " of", " and"]), RequiredWords(["river"])], {}),
    "required words and length": ([RequiredWords(["river"]), Length(12, 20)], {}),
}
SHAPE, STEPS = (3, 8, 8), 8


def text_rows(pipe: UnifiedDiffusionTextPipeline, args) -> Iterator[list[Row]]:
    """Each wish on every prompt, against the same prompt and seed without it, wish by wish."""
    settings = {"max_new_tokens": args.tokens, "num_inference_steps": args.steps}
    prompts = PROMPTS[:: len(PROMPTS) // args.num][: args.num]
    wishes = {name: WISHES[name] for name in args.wishes}
    measures = {energy: Unweighted(energy) for energies, _ in wishes.values() for energy in energies}
    controls = [
        pipe(
            prompt, energies=list(measures.values()), num_candidates=1, energy_retries=0, seed=args.seed + i, **settings
        )
        for i, prompt in enumerate(tqdm(prompts, desc="control"))
    ]
    for name, (energies, options) in wishes.items():
        rows: list[Row] = []
        outputs = [
            pipe(prompt, energies=energies, seed=args.seed + i, **settings, **options)
            for i, prompt in enumerate(tqdm(prompts, desc=name))
        ]
        histories = [output.energy_history[0] for output in outputs]
        chosen = [history[kept(history)] for history in histories]
        for energy in energies:
            before = [output.energy_history[0][0].energies[measures[energy].name] for output in controls]
            after = [attempt.energies[energy.name] for attempt in chosen]
            could = [(b, a) for b, a in zip(before, after, strict=True) if b > 0]
            rows.append(
                {
                    "wish": name,
                    "measured": energy.name,
                    "texts": len(after),
                    "control's energy": sum(before) / len(before),
                    "energy": sum(after) / len(after),
                    "could move": len(could),
                    "moved": sum(a < b for b, a in could) / max(1, len(could)),
                    "accepted": sum(attempt.accepted[energy.name] for attempt in chosen) / len(chosen),
                    "at the first attempt": sum(h[0].accepted[energy.name] for h in histories) / len(histories),
                    "attempts": sum(map(len, histories)) / len(histories),
                    "passes": sum(output.num_forward_passes for output in outputs) / len(outputs),
                }
            )
        yield rows


class Unweighted:
    """An energy that is measured only: the text is written plainly."""

    weight, needs_candidates = 0.0, False

    def __init__(self, energy: TextEnergy):
        self.name = str(energy)
        self.of_text, self.accepts = energy.of_text, energy.accepts

    def of_canvas(self, writing: Writing) -> None:
        """Nothing is shaped."""


def hard_table(pipe: UnifiedDiffusionTextPipeline, args) -> list[Row]:
    """A wish that begins too weak, and one that its constraint contradicts."""
    weak = {"energies": [ForbiddenWords(["e", "a"], weight=0.5)], "energy_retries": 6}
    never = {"energies": [ForbiddenWords(["a"])], "regex": "(yes|no)a{3,9}", "energy_retries": 3}
    rows: list[Row] = []
    for name, options in {"no e and no a, weight 0.5 at first": weak, "contradicts the constraint": never}.items():
        settings = {"max_new_tokens": 16, "num_inference_steps": 4, **options}
        histories = [
            pipe(prompt, seed=args.seed + i, **settings).energy_history[0]
            for i, prompt in enumerate(tqdm(PROMPTS[: args.num], desc=name))
        ]
        rows.append(
            {
                "wish": name,
                "texts": len(histories),
                "accepted at first": sum(h[0].is_accepted for h in histories) / len(histories),
                "accepted at last": sum(h[-1].is_accepted for h in histories) / len(histories),
                "attempts, mean": sum(map(len, histories)) / len(histories),
                "attempts, most": max(map(len, histories)),
                "bound": options["energy_retries"] + 1,
            }
        )
    return rows


def gaussian_denoiser(x_t, t, condition=None):
    """E[x_0 | x_t] where clean samples are standard normal, in closed form."""
    t = t.view(-1, 1, 1, 1)
    return (1 - t) * x_t / ((1 - t) ** 2 + t**2)


def sampled(denoiser: Callable, count: int, seed: int) -> torch.Tensor:
    """Samples of the flow, 8 Euler steps."""
    flow, generator = GaussianFlow(), torch.Generator().manual_seed(seed)
    times = torch.linspace(1, 1 / STEPS, STEPS)

    def step(clean, t, x_t):
        return flow.reverse(clean, x_t, t.expand(count), (t - 1 / STEPS).clamp_min(0).expand(count), generator)

    return diffuse(denoiser, step, flow.prior((count, *SHAPE), generator), times)


def continuous_table(args) -> list[Row]:
    """Each ready energy, and two at once, on samples of Gaussian data."""
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[..., :4] = True
    pixels, loudness = KeepPixels(torch.full(SHAPE, 0.8), mask), Loudness(-20.0)
    palette = Palette(torch.tensor([[1.0, -1.0, -1.0], [-1.0, -1.0, 1.0]]))
    half = [KeepPixels(pixels.target, mask, weight=0.5), Palette(palette.colors, weight=0.5)]
    wishes: dict[str, list[EnergyModel]] = {
        "keep pixels": [pixels],
        "palette": [palette],
        "loudness": [loudness],
        "pixels and palette, half each": list(half),
    }
    rows: list[Row] = []
    control = sampled(gaussian_denoiser, args.samples, args.seed)
    for name, energies in wishes.items():
        found = sampled(with_energies(gaussian_denoiser, energies, 1.0), args.samples, args.seed)
        for energy in energies:
            before, after = energy(control), energy(found)
            rows.append(
                {
                    "wish": name,
                    "measured": energy.name,
                    "samples": args.samples,
                    "control's energy": float(before.mean()),
                    "energy": float(after.mean()),
                    "moved": float((after < before).float().mean()),
                    "accepted": float(energy.accepts(found).float().mean()),
                }
            )
    return rows


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--num", type=int, default=len(PROMPTS), help="prompts")
    parser.add_argument("--samples", type=int, default=200, help="of the Gaussian data")
    parser.add_argument("--tokens", type=int, default=32, help="of a text")
    parser.add_argument("--steps", type=int, default=STEPS, help="of a text")
    parser.add_argument("--wishes", nargs="+", choices=list(WISHES), default=list(WISHES), help="of texts, to measure")
    args, settings = start(parser)
    pipe = load_pipelines(args)["text"]
    notes = [described(pipe.transformer, pipe.tokenizer)]
    texts = f"Texts of {args.tokens} tokens at {args.steps} steps"
    tables: dict[str, list[Row]] = {f"Samples of Gaussian data at {STEPS} steps": continuous_table(args), texts: []}
    for rows in text_rows(pipe, args):
        tables[texts] += rows
        report("energies", tables, settings, notes, args.output)
    tables["Rejection and retries"] = hard_table(pipe, args)
    report("energies", tables, settings, notes, args.output)


if __name__ == "__main__":
    main()
