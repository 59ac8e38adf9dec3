"""ControlNets: do they raise right argument values of calls, and give reasoning with right answers?

    python benchmarks/controlnets.py --tools runs/controlnet-tools --reasoning runs/controlnet-reasoning

Examples are of splits that no training saw: "test" has phrasings and values of its own, "unseen" tools of its own too.
Beside each ControlNet the same prompts, seeds and lengths without it: for calls under the same schema, also with the
tools in the prompt, and under the ControlNet with the hint of another example; for questions plain, and with a worked
example in the prompt. Differences are paired. The ceiling is 1: the right responses get it by the same check.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from measure import Mean, Row, argument_parser, described, load_pipelines, report, start
from tqdm.auto import tqdm

from hf_unified_diffusion import UnifiedControlNetModel
from hf_unified_diffusion.pipelines.pipeline_text import UnifiedDiffusionTextPipeline
from hf_unified_diffusion.quantization import bits_per_weight, dequantize_model, num_weights, stored_bytes
from hf_unified_diffusion.training.control_examples import ControlExample
from hf_unified_diffusion.training.reasoning_examples import reasoning_example, structure_of
from hf_unified_diffusion.training.run_log import read_records
from hf_unified_diffusion.training.tool_examples import tool_example

Options = Mapping[str, object]
Write = Callable[[list[str], Options], list[str]]
BLOCK = 8
ROWS = 10  # questions of a batch; rows do not depend on each other
TOLD = ("schema alone", "schema alone, tools in the prompt", "ControlNet", "ControlNet, hint of another")
WAYS = {"drafts checked": True, "diffusion alone": False}


def writer(pipe: UnifiedDiffusionTextPipeline, args, check_drafts: bool) -> Write:
    """(prompts, options) -> completions, at temperature 0."""
    steps = args.max_new_tokens // BLOCK * (1 if check_drafts else args.steps_per_block)
    settings = {"max_new_tokens": args.max_new_tokens, "num_inference_steps": steps, "block_length": BLOCK}

    def write(prompts: list[str], options: Options) -> list[str]:
        output = pipe(prompts, check_drafts=check_drafts, temperature=0.0, seed=args.seed, **settings, **options)
        return output.completions

    return write


def right_values(text: str, example: ControlExample) -> tuple[float, float, float]:
    """The share of right argument values, whether all are right, and whether it is the right tool.

    Raises ValueError for what is no JSON: under a schema there is none.
    """
    call, right = json.loads(text), json.loads(example.response)
    given = call["arguments"]
    same = [given.get(name) == value and name in given for name, value in right["arguments"].items()]
    same = same if call["name"] == right["name"] else [False] * len(same)
    return sum(same) / len(same), float(call == right), float(call["name"] == right["name"])


def tool_table(write: Write, way: str, controlnet: UnifiedControlNetModel, split: str, num: int) -> list[Row]:
    """Calls with the ControlNet and without."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for index in tqdm(range(num), desc=f"{split}, {way}"):
        example, other = tool_example(split, index), tool_example(split, index + num)
        schema = {"tools": list(example.tools)}
        under = {**schema, "controlnet": controlnet, "control_hint": [example.hint, other.hint]}
        written = write([example.prompt, f"Tools:\n{example.hint}\n{example.prompt}"], schema)
        written += write([example.prompt, example.prompt], under)
        for name, text in zip(TOLD, written, strict=True):
            found.setdefault(name, []).append(right_values(text, example))
    names = ("right values", "calls all right", "right tool")
    return [
        {"split": split, "way": way, "with": name, "calls": num}
        | {column: Mean.of([row[i] for row in rows]) for i, column in enumerate(names)}
        | {"right values, less schema alone": gain(rows, found["schema alone"])}
        for name, rows in found.items()
    ]


def gain(rows: Sequence[Sequence[float]], baseline: Sequence[Sequence[float]], column: int = 0) -> Mean:
    """The paired difference of a column."""
    return Mean.of([mine[column] - theirs[column] for mine, theirs in zip(rows, baseline, strict=True)])


def judged(text: str, example: ControlExample) -> tuple[float, float]:
    """Whether it has the structure, and whether its answer is right; without the structure its last number counts."""
    answer = structure_of(text)
    numbers = re.findall(r"-?\d+", text)
    said = answer if answer is not None else int(numbers[-1]) if numbers else None
    return float(answer is not None), float(said == example.answer)


def reasoning_table(write: Write, way: str, controlnet: UnifiedControlNetModel, num: int) -> list[Row]:
    """Questions with the ControlNet and without."""
    shot = reasoning_example("train", 0)
    found: dict[str, list[tuple[float, float]]] = {}
    for first in tqdm(range(0, num, ROWS), desc=f"reasoning, {way}"):
        examples = [reasoning_example("test", index) for index in range(first, min(first + ROWS, num))]
        prompts, hints = [example.prompt for example in examples], [example.hint for example in examples]
        asked = {
            "prompt alone": (prompts, {}),
            "worked example in the prompt": ([f"{shot.prompt}{shot.response}\n\n{prompt}" for prompt in prompts], {}),
            "ControlNet": (prompts, {"controlnet": controlnet, "control_hint": hints}),
        }
        for name, (given, options) in asked.items():
            texts = write(given, {**options, "stop": "\n\n"})
            found.setdefault(name, []).extend(judged(*each) for each in zip(texts, examples, strict=True))
    return [
        {"way": way, "with": name, "questions": num}
        | {"structure": Mean.of([row[0] for row in rows]), "right answers": Mean.of([row[1] for row in rows])}
        | {"right answers, less prompt alone": gain(rows, found["prompt alone"], 1)}
        for name, rows in found.items()
    ]


def size_row(name: str, folder: Path, controlnet: UnifiedControlNetModel, base: int) -> Row:
    """Parameters and training of a ControlNet."""
    logs = [path for path in (folder / "log.jsonl", folder.parent / "log.jsonl") if path.exists()]
    last = read_records(logs[0])[-1] if logs else {}
    return {
        "ControlNet": name,
        "parameters": num_weights(controlnet),
        "share of the base": num_weights(controlnet) / base,
        "bits per weight": bits_per_weight(controlnet),
        "MB": stored_bytes(controlnet) / 1e6,
        "steps": last.get("step", "unknown"),
        "training minutes": last["seconds"] / 60 if last else "unknown",
    }


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--tools", type=Path, help="folder of the ToolSchema-ControlNet")
    parser.add_argument("--reasoning", type=Path, help="folder of the CoT-ControlNet")
    parser.add_argument("--num", type=int, default=100, help="examples of each split")
    parser.add_argument("--splits", nargs="+", choices=["test", "unseen"], default=["test", "unseen"])
    parser.add_argument("--ways", nargs="+", choices=sorted(WAYS), default=list(WAYS))
    parser.add_argument("--max_new_tokens", type=int, default=72)
    parser.add_argument("--steps_per_block", type=int, default=4, help="of diffusion alone")
    args, settings = start(parser)
    settings |= {name: path.name for name in ("tools", "reasoning") if (path := getattr(args, name)) is not None}
    pipe = load_pipelines(args)["text"]
    base, tables = num_weights(pipe.transformer), {"Size": []}
    dequantize_model(pipe.transformer, pipe.transformer.dtype)
    for name in ("tools", "reasoning"):
        folder = getattr(args, name)
        if folder is None:
            continue
        controlnet = UnifiedControlNetModel.from_pretrained(folder).to(args.device, pipe.transformer.dtype).eval()
        tables["Size"].append(size_row(name, folder, controlnet, base))
        for way in args.ways:
            write = writer(pipe, args, WAYS[way])
            if name == "tools":
                for split in args.splits:
                    rows = tool_table(write, way, controlnet, split, args.num)
                    tables.setdefault("Calls of tools, held out", []).extend(rows)
            else:
                rows = reasoning_table(write, way, controlnet, args.num)
                tables.setdefault("Questions, held out", []).extend(rows)
    if not tables["Size"]:
        raise SystemExit("give at least one of --tools and --reasoning")
    notes = [
        described(pipe.transformer, pipe.tokenizer),
        "Means with 95% intervals over independent examples; the right responses score 1 by construction.",
    ]
    (*others, last) = (name for name in ("tools", "reasoning") if getattr(args, name) is not None)
    report("controlnets" if others else f"controlnets_{last}", tables, settings, notes, args.output)


if __name__ == "__main__":
    main()
