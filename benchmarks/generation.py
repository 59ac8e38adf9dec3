"""What the checkpoint writes: functions from held-out docstrings, and prose after held-out beginnings.

    python benchmarks/generation.py [--num_functions 100] [--num_texts 50]

Code: the share of 100 held-out signatures with docstring whose completion parses. A docstring alone is a valid
function, so an empty completion parses too: the stricter column also asks for a statement after the docstring. What
the bound on the length cut counts twice: as it was written, and cut back to whole statements (the pipeline's default).
Prose: SmolLM2's perplexity of what was written against that of the held-out continuation, each cut to the same number
of tokens, with the unigram entropy of both: low perplexity is cheap where entropy is low (arXiv:2409.02908).
"""

import argparse
import ast
import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from judge import Judge
from measure import Mean, Row, argument_parser, described, held_out, load_pipelines, report, start
from tqdm.auto import tqdm

from hf_unified_diffusion.codecs.text_codec import TextCodec
from hf_unified_diffusion.conditioning.energies_text import CausalLikelihood
from hf_unified_diffusion.pipelines.code_boundaries import parses, whole_statements
from hf_unified_diffusion.pipelines.pipeline_text import UnifiedDiffusionTextPipeline
from hf_unified_diffusion.training.data_sources import source_model_path

# name -> (block length, tokens committed in a step, whether the causal path checks the drafts)
SETTINGS = {
    "blocks of 32, 4 tokens a step": (32, 4, False),
    "blocks of 16, 2 tokens a step": (16, 2, False),
    "blocks of 4, 1 token a step": (4, 1, False),
    "checked drafts of 8, 1 step": (8, 8, True),
}
LONGEST_PROMPT = 192  # tokens of a docstring prompt
SHORTEST_TEXT = 16  # tokens below which a text counts as ended too early


def adds_a_statement(prompt: str, completion: str) -> bool:
    """Whether prompt and completion parse as a function with a body beside its docstring."""
    if not parses(prompt + completion):
        return False
    body = ast.parse(prompt + completion).body
    return bool(body) and len(getattr(body[0], "body", ())) > 1


def unigram_entropy(tokens: Sequence[int]) -> float:
    """Entropy of the empirical distribution of a text's tokens, in nats, at most log of their number."""
    counts, total = Counter(tokens).values(), len(tokens)
    return -sum(count / total * math.log(count / total) for count in counts)


def choose_functions(rows: list[dict], codec: TextCodec, count: int, chance: random.Random) -> list[dict]:
    """Held-out pairs, in chance order, whose prompts are short enough."""
    pairs = [row for row in rows if row["prompt"]]
    chance.shuffle(pairs)
    lengths = map(len, codec.encode([row["prompt"] for row in pairs]))
    return [row for row, length in zip(pairs, lengths, strict=True) if length <= LONGEST_PROMPT][:count]


def choose_texts(
    rows: list[dict], codec: TextCodec, count: int, length: int, prefix: int, chance: random.Random
) -> list[tuple[str, list[int]]]:
    """(beginning, tokens that follow) from the starts of held-out lines; sources take turns, documents by chance."""
    by_source: dict[str, list[str]] = {}
    for row in rows:
        by_source.setdefault(row["source"], []).append(row["text"])
    chosen: list[tuple[str, list[int]]] = []
    names = sorted(by_source)
    for turn in range(200 * count):
        text = chance.choice(by_source[names[turn % len(names)]])
        lines = [0, *(i + 1 for i, letter in enumerate(text) if letter == "\n" and text[i + 1 : i + 2].isalpha())]
        place = chance.choice(lines)
        (ids,) = codec.encode([text[place : place + 12 * (length + prefix)]])
        beginning = codec.decode(ids[:prefix])
        # a beginning cut inside a letter would not come back; whitespace at its end would join the first token written
        whole = codec.encode([beginning])[0] == ids[:prefix] and not beginning[-1:].isspace()
        if len(ids) >= length + prefix and whole and all(beginning != other for other, _ in chosen):
            chosen.append((beginning, ids[prefix : prefix + length]))
        if len(chosen) == count:
            return chosen
    raise ValueError(f"the test split must give {count} texts of {length + prefix} tokens, got {len(chosen)}")


def write(
    pipe: UnifiedDiffusionTextPipeline, prompts: list[str], setting: str, args: argparse.Namespace
) -> tuple[list[str], list[list[int]], dict[str, Any]]:
    """Completions and their tokens in a setting, prompts of similar length together, and how they came about."""
    block_length, tokens_per_step, check_drafts = SETTINGS[setting]
    new_tokens, temperature = {
        "text": (args.text_tokens, args.temperature),
        "code": (args.code_tokens, args.code_temperature),
    }[pipe.modality]
    raw = {"only_whole_statements": False} if pipe.modality == "code" else {}
    ranked = args.num_candidates > 1 and pipe.modality == "text"
    candidates = {"energies": [CausalLikelihood()], "num_candidates": args.num_candidates} if ranked else {}
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    texts, ids, passes, finished = [""] * len(prompts), [[]] * len(prompts), 0, [False] * len(prompts)
    began = perf_counter()
    for first in tqdm(range(0, len(order), args.batch_size), desc=setting, leave=False):
        chosen = order[first : first + args.batch_size]
        output = pipe(
            [prompts[i] for i in chosen],
            max_new_tokens=new_tokens,
            num_inference_steps=-(-new_tokens // tokens_per_step),
            block_length=block_length,
            check_drafts=check_drafts,
            temperature=temperature,
            top_p=args.top_p,
            seed=args.seed + first,
            **raw,
            **candidates,
        )
        passes += output.num_forward_passes
        written = zip(chosen, output.completions, output.completion_ids, output.finished, strict=True)
        for i, text, tokens, done in written:
            texts[i], ids[i], finished[i] = text, tokens.tolist(), done
    seconds = perf_counter() - began
    batches = -(-len(prompts) // args.batch_size)
    return texts, ids, {"finished": finished, "passes": passes / batches, "seconds": seconds}


def code_row(name: str, prompts: list[str], bodies: list[str], effort: dict[str, Any]) -> Row:
    """A line of the table of functions."""
    count, finished = len(prompts), effort.get("finished", [True] * len(prompts))
    shown = [
        body if done else body[: whole_statements(prompt, body)]
        for prompt, body, done in zip(prompts, bodies, finished, strict=True)
    ]
    return {
        "setting": name,
        "functions": count,
        "parses as written": sum(parses(p + b) for p, b in zip(prompts, bodies, strict=True)) / count,
        "parses, cut to whole statements": sum(parses(p + b) for p, b in zip(prompts, shown, strict=True)) / count,
        "and adds a statement": sum(map(adds_a_statement, prompts, shown)) / count,
        "characters": sum(map(len, bodies)) / count,
        "ended by itself": sum(finished) / count,
        "passes": effort.get("passes", math.nan),
        "seconds": effort.get("seconds", math.nan),
    }


def shuffled(text: str, chance: random.Random, codec: TextCodec) -> str:
    """The tokens of a text in chance order."""
    (ids,) = codec.encode([text])
    chance.shuffle(ids)
    return codec.decode(ids)


def functions(pipe: UnifiedDiffusionTextPipeline, args: argparse.Namespace, samples: dict[str, list]) -> list[Row]:
    """The table of functions: settings, the real bodies as ceiling, and two controls."""
    codec, chance = TextCodec(pipe.tokenizer), random.Random(args.seed)
    pairs = choose_functions(held_out(args.shards, "code", args.split), codec, args.num_functions, chance)
    prompts, bodies = [row["prompt"] for row in pairs], [row["text"] for row in pairs]
    table = []
    for setting in args.settings:
        written, _, effort = write(pipe, prompts, setting, args)
        table.append(code_row(setting, prompts, written, effort))
        samples[f"code, {setting}"] = [
            prompt + body for prompt, body in list(zip(prompts, written, strict=True))[: args.num_samples]
        ]
    table.append(code_row("the real body", prompts, bodies, {}))
    table.append(code_row("control: tokens of the real body shuffled", prompts, [
        shuffled(body, chance, codec) for body in bodies
    ], {}))  # fmt: skip
    table.append(code_row("control: nothing", prompts, [""] * len(prompts), {}))
    return table


def prose_row(
    name: str, judge: Judge, codec: TextCodec, beginnings: list[str], tokens: list[list[int]], real: list[list[int]]
) -> Row:
    """A line of the table of prose: texts against the real ones of the same number of tokens."""
    long_enough = [i for i, ids in enumerate(tokens) if len(ids) >= SHORTEST_TEXT]
    row: dict[str, object] = {"setting": name, "texts": len(tokens), "too short": len(tokens) - len(long_enough)}
    if not long_enough:
        return row | dict.fromkeys(PROSE_COLUMNS, math.nan)
    givens = [beginnings[i] for i in long_enough]
    pairs = {"": [tokens[i] for i in long_enough], "real": [real[i][: len(tokens[i])] for i in long_enough]}
    perplexity, entropy = {}, {}
    for whose, rows in pairs.items():
        nats, counts = judge.score([(given, codec.decode(ids)) for given, ids in zip(givens, rows, strict=True)])
        perplexity[whose] = math.exp(nats.sum().item() / counts.sum().item())
        entropy[whose] = Mean.of([unigram_entropy(ids) for ids in rows])
    values = (
        sum(map(len, pairs[""])) / len(givens),
        perplexity[""],
        perplexity["real"],
        perplexity[""] / perplexity["real"],
        entropy[""],
        entropy["real"],
    )
    return row | dict(zip(PROSE_COLUMNS, values, strict=True))


PROSE_COLUMNS = ("tokens", "perplexity", "of the real text", "ratio", "unigram entropy", "of the real text's")


def prose(pipe: UnifiedDiffusionTextPipeline, args: argparse.Namespace, samples: dict[str, list]) -> list[Row]:
    """The table of prose: settings, and the real texts shuffled as control."""
    codec, chance = TextCodec(pipe.tokenizer), random.Random(args.seed)
    rows = held_out(args.shards, "text", args.split)
    chosen = choose_texts(rows, codec, args.num_texts, args.text_tokens, args.prefix_tokens, chance)
    beginnings, real = [beginning for beginning, _ in chosen], [ids for _, ids in chosen]
    written = {}
    for setting in args.settings:
        texts, ids, effort = write(pipe, beginnings, setting, args)
        written[setting] = (ids, effort)
        samples[f"text, {setting}"] = [
            beginning + " ⟶ " + text
            for beginning, text in list(zip(beginnings, texts, strict=True))[: args.num_samples]
        ]
    mixed = [chance.sample(ids, len(ids)) for ids in real]
    judge = Judge.from_gguf(source_model_path(), args.device)
    table = []
    for name, (ids, effort) in [*written.items(), ("control: the real tokens shuffled", (mixed, {}))]:
        row = prose_row(name, judge, codec, beginnings, ids, real)
        table.append(row | {"passes": effort.get("passes", math.nan), "seconds": effort.get("seconds", math.nan)})
    return table


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--shards", type=Path, default=Path("data/shards"))
    parser.add_argument("--split", choices=["test", "validation"], default="test", help="choose settings on validation")
    parser.add_argument("--num_functions", type=int, default=100, help="0: no table of functions")
    parser.add_argument("--num_texts", type=int, default=50, help="0: no table of prose")
    parser.add_argument("--num_samples", type=int, default=3, help="of each setting, the first ones, kept in the JSON")
    parser.add_argument("--code_tokens", type=int, default=96, help="at most, for a function")
    parser.add_argument("--text_tokens", type=int, default=128, help="at most, for a text")
    parser.add_argument("--prefix_tokens", type=int, default=16, help="of a held-out text, given")
    parser.add_argument("--temperature", type=float, default=1.0, help="of prose")
    parser.add_argument("--code_temperature", type=float, default=0.3)
    parser.add_argument("--top_p", type=float, default=1.0)
    parser.add_argument("--num_candidates", type=int, default=1, help="texts to draw a likely one of")
    parser.add_argument("--batch_size", type=int, default=10)
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    args, settings = start(parser)
    pipelines = load_pipelines(args)
    samples: dict[str, list] = {}
    tables = {}
    if args.num_functions:
        tables["Functions from held-out docstrings"] = functions(pipelines["code"], args, samples)
    if args.num_texts:
        tables["Prose after held-out beginnings"] = prose(pipelines["text"], args, samples)
    if args.num_samples:
        shown = [{"setting": name, "text": text} for name, texts in samples.items() for text in texts]
        tables["The first ones, in the order of the seed"] = shown
    pipe = pipelines["text"]
    report("generation", tables, settings, [described(pipe.transformer, pipe.tokenizer)], args.output)


if __name__ == "__main__":
    main()
