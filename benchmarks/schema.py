"""Schema-constrained generation: does every text parse and validate, what does it cost, how large are the automata?

    python benchmarks/schema.py

Generation i takes schema i of a hundred (`schemas.py`), and 1, 4 or 16 steps in turn. Beside it the same prompts, seeds
and lengths without the constraint, and again with up to `--retries` new seeds until one validates (an own loop). Times
are of texts of equal length and steps, end tokens switched off for both.
"""

import json
from collections.abc import Callable, Mapping
from itertools import chain
from statistics import median

from jsonschema import Draft202012Validator
from measure import Row, argument_parser, described, interleaved_seconds, load_pipelines, report, start
from schemas import Schema, all_schemas, named
from tqdm.auto import tqdm

from hf_unified_diffusion import SchemaConstraint
from hf_unified_diffusion.codecs.text_codec import TextCodec
from hf_unified_diffusion.conditioning.token_automaton import TokenAutomaton
from hf_unified_diffusion.pipelines.constrained_rows import vocabulary_of
from hf_unified_diffusion.pipelines.pipeline_text import UnifiedDiffusionTextPipeline

STEPS = (1, 4, 16)
LENGTHS = (32, 64, 128, 256)  # the smallest that has twice the room the shortest text needs
PROMPT = "A JSON document that follows this schema:\n{schema}\n\nThe document:\n"
PROMPT_CHARACTERS = 600  # of the schema, which may be long
TIMED = {
    "a person": named({"name": {"type": "string"}, "tags": {"type": "array", "items": {"type": "string"}}}, "name"),
    "any value": {},
    "text of 10 to 1000 characters": {"type": "string", "minLength": 10, "maxLength": 1000},
}


def verdict(text: str, schema: Schema) -> tuple[bool, bool]:
    """Whether a text parses, and whether it validates."""
    try:
        value = json.loads(text)
    except ValueError:
        return False, False
    return True, Draft202012Validator(schema).is_valid(value)


def built(pipe: UnifiedDiffusionTextPipeline) -> dict[str, list[tuple[Schema, TokenAutomaton]]]:
    """The automata by kind of schema."""
    config = pipe.transformer.config
    vocabulary = vocabulary_of(
        TextCodec(pipe.tokenizer), config.vocab_size, pipe._end_token_ids(), pipe._pad_token_id()
    )
    return {
        kind: [(schema, SchemaConstraint.from_json_schema(schema).automaton(vocabulary)) for schema in schemas]
        for kind, schemas in all_schemas().items()
    }


def size_table(automata: Mapping[str, list[tuple[Schema, TokenAutomaton]]]) -> list[Row]:
    """What building takes, and how large the automata are."""
    rows: list[Row] = []
    for kind, pairs in automata.items():
        found = [automaton for _, automaton in pairs]
        rows.append(
            {
                "kind": kind,
                "schemas": len(found),
                "seconds, median": median(a.seconds for a in found),
                "seconds, most": max(a.seconds for a in found),
                "states, median": median(len(a.accepting) for a in found),
                "states, most": max(len(a.accepting) for a in found),
                "edges, most": max(len(a.source) for a in found),
                "token classes, most": max(a.next_state.shape[1] for a in found),
                "KiB, most": max(a.num_bytes for a in found) // 1024,
            }
        )
    return rows


def validity_table(pipe: UnifiedDiffusionTextPipeline, pairs: list[tuple[Schema, TokenAutomaton]], args) -> list[Row]:
    """Shares that parse and validate, by steps and by way of writing."""
    counts: dict[tuple[int, str], list[tuple[bool, bool]]] = {}
    for number in tqdm(range(args.first, args.first + args.num), desc="generations"):
        schema, automaton = pairs[number % len(pairs)]
        steps = STEPS[(number + number // len(pairs)) % len(STEPS)]
        length = next(size for size in LENGTHS if size >= 2 * automaton.shortest())
        prompt = PROMPT.format(schema=json.dumps(schema, ensure_ascii=False)[:PROMPT_CHARACTERS])
        options = {"max_new_tokens": length, "num_inference_steps": steps}
        options["block_length"] = 32 if steps * 32 >= length else None

        def write(seed: int, constraint: Schema | None, prompt=prompt, options=options) -> str:
            return pipe(prompt, json_schema=constraint, seed=seed, **options).completions[0]

        seed = args.seed + number
        counts.setdefault((steps, "constrained"), []).append(verdict(write(seed, schema), schema))
        if number % args.baseline_every == 0:
            tries = [verdict(write(seed, None), schema)]
            counts.setdefault((steps, "unconstrained"), []).append(tries[0])
            while not tries[-1][1] and len(tries) <= args.retries:
                tries.append(verdict(write(seed + 1_000_000 * len(tries), None), schema))
            counts.setdefault((steps, f"unconstrained, {args.retries} retries"), []).append(max(tries))
    return [
        {
            "steps": steps,
            "way": way,
            "texts": len(found),
            "parse": sum(parses for parses, _ in found) / len(found),
            "validate": sum(valid for _, valid in found) / len(found),
        }
        for (steps, way), found in sorted(counts.items())
    ]


def overhead_table(pipe: UnifiedDiffusionTextPipeline, args) -> list[Row]:
    """Seconds of 128 tokens at 16 steps with and without each constraint, taking turns."""
    pipe.transformer.config.eos_token_id = None  # a text that ends early would take less time
    rows: list[Row] = []
    for block_length in (32, None):

        def writer(schema: Schema | None, block_length=block_length) -> Callable[[], object]:
            options = {"max_new_tokens": 128, "num_inference_steps": 16, "block_length": block_length}
            return lambda: pipe("Data: ", json_schema=schema, seed=args.seed, output_type="seq", **options)

        functions = {name: writer(schema) for name, schema in {"unconstrained": None, **TIMED}.items()}
        seconds = interleaved_seconds(functions, args.repeats, args.clock)
        for name in TIMED:
            ratio = seconds[name] / seconds["unconstrained"]
            rows.append(
                {"blocks": block_length or "one canvas", "schema": name, "seconds": seconds[name], "ratio": ratio}
            )
    return rows


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--num", type=int, default=1000, help="constrained generations")
    parser.add_argument("--first", type=int, default=0, help="the number of the first one, to share them out")
    parser.add_argument("--baseline_every", type=int, default=10, help="one in so many is also written unconstrained")
    parser.add_argument("--retries", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5, help="of the timed generations")
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: for one thread on a busy machine"
    )
    parser.add_argument(
        "--parts", nargs="+", choices=["size", "validity", "overhead"], default=["size", "validity", "overhead"]
    )
    args, settings = start(parser)
    pipe = load_pipelines(args)["text"]
    automata = built(pipe)
    tables: dict[str, list[Row]] = {}
    if "size" in args.parts:
        tables["Automata of the schemas"] = size_table(automata)
    if "validity" in args.parts:
        tables["Texts that parse and validate"] = validity_table(pipe, list(chain(*automata.values())), args)
    if "overhead" in args.parts:
        tables["128 tokens at 16 steps, against unconstrained"] = overhead_table(pipe, args)
    notes = [described(pipe.transformer, pipe.tokenizer)]
    report("schema", tables, settings, notes, args.output)


if __name__ == "__main__":
    main()
