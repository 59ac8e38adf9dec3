"""The engine: its autoregressive side against transformers', many callers against one, tokenizing against plain Python.

    python benchmarks/engine.py

Both models stay loaded. Sides: SmolLM2-135M-Instruct through `engine.generate(mode="ar")` and through transformers'
`generate` with the same settings and seed, token for token. Callers: threads that ask one engine at the same moment;
each answer is compared with that to the same request alone. Tokenizing: the checkpoint's fast tokenizer against a
plain Python byte-level BPE with the same merges (equal tokens are checked), on held-out text.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from time import perf_counter

import torch
from measure import Row, argument_parser, held_out, interleaved_seconds, report, start
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedTokenizerFast

from hf_unified_diffusion import ArrowEngine
from hf_unified_diffusion.training.data_sources import source_model_path

PROMPTS = ("Once upon a time", "The capital of France is", "def fibonacci(n):", "To be, or not", "In 1969,")
SETTINGS: dict[str, tuple[dict, dict]] = {  # ours, transformers'
    "greedy": ({"temperature": 0}, {"do_sample": False}),
    "temperature 0.8": ({"temperature": 0.8}, {"do_sample": True, "temperature": 0.8}),
    "top_p 0.9": ({"top_p": 0.9}, {"do_sample": True, "top_p": 0.9}),
}
NEW_TOKENS = 24


def sides(engine: ArrowEngine) -> list[Row]:
    """Whether the engine's autoregressive side gives transformers' own texts."""
    file, rows = source_model_path(), []
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True)
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    for name, (ours, theirs) in SETTINGS.items():
        equal = 0
        for seed, prompt in enumerate(PROMPTS):
            inputs = tokenizer(prompt, return_tensors="pt")
            torch.manual_seed(seed)
            ids = model.generate(**inputs, max_new_tokens=NEW_TOKENS, **theirs)[0, inputs["input_ids"].shape[1] :]
            expected = prompt + tokenizer.decode(ids, skip_special_tokens=True)
            equal += engine.generate(prompt, mode="ar", max_new_tokens=NEW_TOKENS, seed=seed, **ours) == expected
        engine.diffuse("The other side", max_new_tokens=4, seed=0)  # both stay loaded
        rows.append({"setting": name, "prompts": len(PROMPTS), "equal to transformers' generate": equal})
    return rows


def callers(engine: ArrowEngine, count: int) -> list[Row]:
    """Whether callers at the same moment get what each gets alone."""
    requests = [
        {
            "prompt": PROMPTS[i % len(PROMPTS)],
            "modality": ("text", "code")[i % 2],
            "seed": i,
            "max_new_tokens": 8 + i % 9,
        }
        for i in range(count)
    ]
    begin = perf_counter()
    alone = [engine.diffuse(**request) for request in requests]
    middle = perf_counter()
    with ThreadPoolExecutor(count) as pool:
        together = list(pool.map(lambda request: engine.diffuse(**request), requests))
    end = perf_counter()
    equal = sum(one == other for one, other in zip(alone, together, strict=True))
    seconds = {"one after the other, s": middle - begin, "at once, s": end - middle}
    return [{"callers": count, "equal to the answer alone": equal, **seconds}]


class PlainBPE:
    """Byte-level BPE as one would write it down: the earliest merge of a word, again and again; nothing is cached."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
        self.ids = model["vocab"]
        merges = (tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"])
        self.ranks = {merge: rank for rank, merge in enumerate(merges)}
        self.words = tokenizer.backend_tokenizer.pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)

    def __call__(self, text: str) -> list[int]:
        return [self.ids[piece] for word, _ in self.words.pre_tokenize_str(text) for piece in self.merged(word)]

    def merged(self, word: str) -> list[str]:
        """The pieces of a word."""
        pieces = list(word)
        while len(pieces) > 1:
            pairs = list(pairwise(pieces))
            best = min(pairs, key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if best not in self.ranks:
                break
            place = pairs.index(best)
            pieces[place : place + 2] = ["".join(best)]
        return pieces


def tokenizing(tokenizer: PreTrainedTokenizerFast, text: str) -> list[Row]:
    """Characters a second, and the ratio."""
    plain = PlainBPE(tokenizer)
    fast_ids, plain_ids = tokenizer.encode(text), plain(text)
    seconds = interleaved_seconds({"fast": lambda: tokenizer.encode(text), "plain": lambda: plain(text)}, repeats=3)
    return [
        {
            "characters": len(text),
            "tokens": len(fast_ids),
            "equal tokens": fast_ids == plain_ids,
            "fast, characters a second": len(text) / seconds["fast"],
            "plain Python, characters a second": len(text) / seconds["plain"],
            "ratio": seconds["plain"] / seconds["fast"],
        }
    ]


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--shards", type=Path, default=Path("data/shards"))
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--characters", type=int, default=100_000, help="of held-out text, to tokenize")
    args, settings = start(parser)
    engine = ArrowEngine.from_pretrained(args.checkpoint, ar_model=source_model_path(), max_waiting=args.callers)
    text = "\n".join(row["text"] for row in held_out(args.shards, "text"))[: args.characters]
    tables = {
        "The autoregressive side": sides(engine),
        "Many callers": callers(engine, args.callers),
        "Tokenizing": tokenizing(engine.tokenizer, text),
    }
    report("engine", tables, settings, [], args.output)


if __name__ == "__main__":
    main()
