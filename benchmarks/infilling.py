"""Infilling: gaps between held-out tokens, filled by diffusion, against the same network writing from left to right.

    python benchmarks/infilling.py [--num_gaps 200]

Both fill the same gaps with the same number of tokens; only diffusion sees what comes after. Fills are judged by
 - the network's own causal path: nats of fill and suffix given the prefix, and of the suffix after the fill, exact.
   Writing greedily makes the fill likely by itself, beyond what was really there: see the column of the true tokens;
 - its canvas: the any-order bound on the nats of the fill given both sides (arXiv:2406.03736);
 - SmolLM2: nats of the suffix, the same text for all, after prefix and fill; and of fill and suffix.
Beside them stand the true tokens, random ones as control, and the best of a few sampled fills by the first score
(reranking by the causal path, arXiv:2410.21357). Given tokens that did not come back are counted.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from judge import Judge
from measure import Mean, Row, argument_parser, described, held_out, load_pipelines, report, start
from torch import Generator, Tensor
from tqdm.auto import tqdm

from hf_unified_diffusion.codecs.text_codec import TextCodec
from hf_unified_diffusion.contracts import Segment
from hf_unified_diffusion.modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from hf_unified_diffusion.pipelines.pipeline_text import UnifiedDiffusionTextPipeline
from hf_unified_diffusion.training.data_sources import source_model_path
from hf_unified_diffusion.training.layouts import hide_exactly

PREFIX, SUFFIX, SHORTEST, LONGEST = 48, 32, 8, 16  # tokens
FILLS = ("diffusion", "diffusion, ranked", "left to right", "true", "random")
SCORES = {
    "joint": "own causal path: fill and suffix",
    "after": "own causal path: suffix after fill",
    "bound": "own canvas: fill between both (bound)",
    "suffix": "SmolLM2: suffix after fill",
    "judged": "SmolLM2: fill and suffix",
}


@dataclass(frozen=True)
class Gap:
    """Held-out tokens with a hole: prefix, what was there, suffix, and what was put there by name."""

    modality: str
    prefix: list[int]
    true: list[int]
    suffix: list[int]
    fills: dict[str, list[int]]

    @property
    def length(self) -> int:
        """Tokens of the hole."""
        return len(self.true)


def choose_gaps(rows: list[dict], codec: TextCodec, modality: str, count: int, chance: random.Random) -> list[Gap]:
    """Gaps at chance places of held-out documents, whose sides are the same tokens when they are read as strings."""
    by_source: dict[str, list[str]] = {}
    for row in rows:
        by_source.setdefault(row["source"], []).append(row["prompt"] + row["text"])
    names, gaps = sorted(by_source), []
    for turn in range(200 * count):
        text = chance.choice(by_source[names[turn % len(names)]])
        place = chance.randrange(len(text))
        (ids,) = codec.encode([text[place : place + 1500]])
        gap = chance.randint(SHORTEST, LONGEST)
        ids = ids[chance.randint(1, 4) :][: PREFIX + gap + SUFFIX]  # the first token may be half a word
        prefix, true, suffix = ids[:PREFIX], ids[PREFIX : PREFIX + gap], ids[PREFIX + gap :]
        same = all(codec.encode([codec.decode(x)])[0] == x for x in (prefix, suffix))
        healed = codec.decode(prefix)[-1:].isspace()  # such whitespace would join the first token of a fill
        if len(ids) == PREFIX + gap + SUFFIX and same and not healed:
            gaps.append(Gap(modality, prefix, true, suffix, {"true": true}))
        if len(gaps) == count:
            return gaps
    raise ValueError(f"the test split must give {count} gaps of {modality!r}, got {len(gaps)}")


def batches(gaps: Sequence[Gap], size: int) -> list[list[Gap]]:
    """Gaps of one length and modality together, at most `size`."""
    ordered = sorted(gaps, key=lambda gap: (gap.modality, gap.length))
    groups = [list(group) for _, group in groupby(ordered, key=lambda gap: (gap.modality, gap.length))]
    return [group[i : i + size] for group in groups for i in range(0, len(group), size)]


def by_diffusion(
    pipe: UnifiedDiffusionTextPipeline, gaps: list[Gap], steps: int, seed: int, temperature: float = 0.0, count: int = 1
) -> tuple[list[list[list[int]]], int]:
    """`count` fills by the pipeline of each gap, all of one length, and how many given sides did not come back."""
    codec = TextCodec(pipe.tokenizer)
    output = pipe(
        prompt=[codec.decode(gap.prefix) for gap in gaps],
        suffix=[codec.decode(gap.suffix) for gap in gaps],
        max_new_tokens=gaps[0].length,
        num_inference_steps=min(steps, gaps[0].length),
        temperature=temperature,
        num_return_sequences=count,
        seed=seed,
    )
    changed = 0
    for gap, text in zip([gap for gap in gaps for _ in range(count)], output.texts, strict=True):
        # strings, not ids: whitespace at the end of a prompt may join the first token of the fill
        changed += not text.startswith(codec.decode(gap.prefix))
        changed += not text.endswith(codec.decode(gap.suffix))
    ids = [row.tolist() for row in output.completion_ids]
    return [ids[i : i + count] for i in range(0, len(ids), count)], changed


@torch.no_grad()
def left_to_right(model: UnifiedDiffusionModel, gaps: list[Gap]) -> list[list[int]]:
    """The causal path's greedy continuation of the prefixes, end tokens left out as the pipeline leaves them out."""
    ids = torch.tensor([gap.prefix for gap in gaps], device=model.device)
    ends = model.config.eos_token_id
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    written, cache = [], None
    for _ in range(gaps[0].length):
        output = model(ids, modality=gaps[0].modality, cache=cache, use_cache=True)
        cache, logits = output.cache, output.logits[:, -1]
        logits[:, ends] = -torch.inf
        ids = logits.argmax(dim=-1, keepdim=True)
        written.append(ids)
    return torch.cat(written, dim=1).tolist()


@torch.no_grad()
def causal_nats(
    model: UnifiedDiffusionModel, gaps: list[Gap], fills: dict[str, list[list[int]]]
) -> dict[str, Float[Tensor, "rows two"]]:
    """Exact nats of the fill given the prefix, and of the suffix given both, for each kind of fill."""
    prefix = torch.tensor([gap.prefix for gap in gaps], device=model.device)
    cache = model(prefix[:, :-1], modality=gaps[0].modality, use_cache=True).cache
    found = {}
    for name, rows in fills.items():
        after = torch.tensor([[*fill, *gap.suffix] for gap, fill in zip(gaps, rows, strict=True)], device=model.device)
        ids = torch.cat([prefix[:, -1:], after[:, :-1]], dim=1)
        logits = model(ids, modality=gaps[0].modality, cache=cache).logits
        nats = F.cross_entropy(logits.transpose(1, 2).float(), after, reduction="none")
        parts = nats.double().split([gaps[0].length, SUFFIX], dim=1)
        found[name] = torch.stack([part.sum(dim=1) for part in parts], dim=1).cpu()
    return found


def ranked(model: UnifiedDiffusionModel, gaps: list[Gap], candidates: list[list[list[int]]]) -> list[list[int]]:
    """Of each gap's candidates the one whose fill and suffix are likeliest by the causal path."""
    tries = {str(i): list(rows) for i, rows in enumerate(zip(*candidates, strict=True))}
    joint = torch.stack([nats.sum(dim=1) for nats in causal_nats(model, gaps, tries).values()])
    return [rows[best] for rows, best in zip(candidates, joint.argmin(dim=0).tolist(), strict=True)]


@torch.no_grad()
def canvas_bounds(
    model: UnifiedDiffusionModel, gaps: list[Gap], fills: dict[str, list[list[int]]], draws: int, generator: Generator
) -> dict[str, Float[Tensor, "rows"]]:
    """The any-order bound on the nats of a fill between its sides, a mean over `draws` of which tokens are hidden.

    The same tokens are hidden for every kind of fill.
    """
    modality, length, device = gaps[0].modality, gaps[0].length, model.device
    outside = torch.tensor([gap.prefix + gap.suffix for gap in gaps], device=device)
    places = torch.arange(PREFIX + length + SUFFIX, device=device).float().expand(len(gaps), -1)
    inside = places[:, PREFIX : PREFIX + length]
    around = torch.cat([places[:, :PREFIX], places[:, PREFIX + length :]], dim=1)
    cache = model(segments=[Segment(modality, outside, positions=around)], use_cache=True).cache
    ids = {name: torch.tensor(rows, device=device) for name, rows in fills.items()}
    total = {name: torch.zeros(len(gaps), dtype=torch.float64) for name in fills}
    for _ in range(draws):
        hidden, time = (x.to(device) for x in hide_exactly(len(gaps), length, length, generator))
        for name, clean in ids.items():
            noisy = clean.masked_fill(hidden, model.config.mask_token_id)
            canvas = Segment(modality, noisy, time=time, positions=inside)
            logits = model(segments=[canvas], cache=cache).logits
            nats = F.cross_entropy(logits.transpose(1, 2).float(), clean.masked_fill(~hidden, -100), reduction="none")
            total[name] += (nats / time).double().sum(dim=1).cpu() / draws
    return total


def fill_all(
    pipelines: dict[str, UnifiedDiffusionTextPipeline], gaps: list[Gap], args, chance: random.Random
) -> tuple[list[list[Gap]], int]:
    """Every gap with every fill, in batches, and how many given sides did not come back."""
    filled, changed = [], 0
    model = pipelines["text"].transformer
    special = set(pipelines["text"].tokenizer.all_special_ids)
    ordinary = [i for i in range(model.config.vocab_size) if i not in special]
    for number, group in enumerate(tqdm(batches(gaps, args.batch_size), desc="fill")):
        pipe, seed = pipelines[group[0].modality], args.seed + number
        surest, wrong = by_diffusion(pipe, group, args.steps, seed)
        sampled, also_wrong = by_diffusion(pipe, group, args.steps, seed, args.temperature, args.candidates)
        changed += wrong + also_wrong
        found = {
            "diffusion": [rows[0] for rows in surest],
            "diffusion, ranked": ranked(model, group, sampled),
            "left to right": left_to_right(model, group),
            "random": [chance.choices(ordinary, k=gap.length) for gap in group],
        }
        filled.append(
            [
                replace(gap, fills={**gap.fills, **{name: rows[i] for name, rows in found.items()}})
                for i, gap in enumerate(group)
            ]
        )
    return filled, changed


def score_all(
    pipelines: dict[str, UnifiedDiffusionTextPipeline], groups: list[list[Gap]], judge: Judge, args
) -> dict[str, dict[str, list[float]]]:
    """score -> fill -> nats of each gap, in the order of the groups."""
    model, codec = pipelines["text"].transformer, TextCodec(pipelines["text"].tokenizer)
    scores: dict[str, dict[str, list[float]]] = {score: {fill: [] for fill in FILLS} for score in SCORES}
    generator = Generator().manual_seed(args.seed)
    for group in tqdm(groups, desc="score"):
        fills = {fill: [gap.fills[fill] for gap in group] for fill in FILLS}
        causal = causal_nats(model, group, fills)
        bounds = canvas_bounds(model, group, fills, args.draws, generator)
        for fill in FILLS:
            scores["joint"][fill] += causal[fill].sum(dim=1).tolist()
            scores["after"][fill] += causal[fill][:, 1].tolist()
            scores["bound"][fill] += bounds[fill].tolist()
    gaps = [gap for group in groups for gap in group]
    for fill in FILLS:
        rows = [tuple(codec.decode(ids) for ids in (gap.prefix, gap.fills[fill], gap.suffix)) for gap in gaps]
        nats, _ = judge.score(rows)
        scores["suffix"][fill] = nats[:, 1].tolist()
        scores["judged"][fill] = nats.sum(dim=1).tolist()
    return scores


def tables_of(scores: dict[str, dict[str, list[float]]], modalities: Sequence[str]) -> dict[str, list[Row]]:
    """Means per fill, and the paired gains of diffusion over left to right with their intervals, also by modality."""
    tables = {
        "Nats per gap (lower is better)": [
            {"score": title, **{fill: Mean.of(scores[score][fill]).value for fill in FILLS}}
            for score, title in SCORES.items()
        ]
    }
    for ours in FILLS[:2]:
        rows = []
        for score, title in SCORES.items():
            gains = [b - a for a, b in zip(scores[score][ours], scores[score]["left to right"], strict=True)]
            row: dict[str, object] = {"score": title}
            for name in ("all", *sorted(set(modalities))):
                kept = [gain for gain, modality in zip(gains, modalities, strict=True) if name in ("all", modality)]
                row[name] = Mean.of(kept)
            rows.append(row | {"share won": sum(gain > 0 for gain in gains) / len(gains)})
        tables[f"Gain over left to right, nats per gap: {ours}"] = rows
    return tables


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--shards", type=Path, default=Path("data/shards"))
    parser.add_argument("--num_gaps", type=int, default=200, help="half text, half code")
    parser.add_argument("--steps", type=int, default=LONGEST, help="denoising passes, at most one per token")
    parser.add_argument("--candidates", type=int, default=4, help="sampled fills that are ranked")
    parser.add_argument("--temperature", type=float, default=0.7, help="of the sampled fills")
    parser.add_argument("--draws", type=int, default=4, help="of hidden tokens, for the bound")
    parser.add_argument("--batch_size", type=int, default=16)
    args, settings = start(parser)
    pipelines, chance = load_pipelines(args), random.Random(args.seed)
    codec = TextCodec(pipelines["text"].tokenizer)
    gaps = [
        gap
        for modality in ("text", "code")
        for gap in choose_gaps(held_out(args.shards, modality), codec, modality, args.num_gaps // 2, chance)
    ]
    groups, changed = fill_all(pipelines, gaps, args, chance)
    judge = Judge.from_gguf(source_model_path(), args.device)
    scores = score_all(pipelines, groups, judge, args)
    tables = tables_of(scores, [gap.modality for group in groups for gap in group])
    tables["Given tokens"] = [
        {"gaps": len(gaps), "fills": len(gaps) * (1 + args.candidates), "given sides changed": changed}
    ]
    tables["Some gaps"] = [
        {
            "before": codec.decode(gap.prefix)[-60:],
            **{fill: codec.decode(gap.fills[fill]) for fill in FILLS[:4]},
            "after": codec.decode(gap.suffix)[:60],
        }
        for gap in [group[0] for group in groups[:: max(1, len(groups) // 6)]]
    ]
    pipe = pipelines["text"]
    report("infilling", tables, settings, [described(pipe.transformer, pipe.tokenizer)], args.output)


if __name__ == "__main__":
    main()
