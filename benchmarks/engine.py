"""The engine: its autoregressive side against transformers', many callers against one, tokenizing against plain Python.

    python benchmarks/engine.py

Both models stay loaded. Sides: SmolLM2-135M-Instruct through `engine.generate(mode="ar")` and through transformers'
`generate` with the same settings and seed, token for token. Callers: threads that ask one engine at the same moment;
each answer is compared with that to the same request alone. Tokenizing: the checkpoint's fast tokenizer against a
byte-level BPE in plain Python with the same merges (equal tokens are checked): held-out texts, one a call and all in
one call, where neither keeps words that it has met (the plain one has no cache, the fast one its own); and many
training texts as they are packed, by one tokenizer that remembers what stands between spaces.
"""

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from time import perf_counter

import regex
import torch
from measure import Row, argument_parser, held_out, interleaved_seconds, report, start
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedTokenizerFast

from hf_unified_diffusion import ArrowEngine
from hf_unified_diffusion.training.bulk_tokenizer import BulkTokenizer
from hf_unified_diffusion.training.data_sources import source_model_path
from hf_unified_diffusion.training.token_data import plain_text_tokenizer

PROMPTS = ("Once upon a time", "The capital of France is", "def fibonacci(n):", "To be, or not", "In 1969,")
SETTINGS: dict[str, tuple[dict, dict]] = {  # ours, transformers'
    "greedy": ({"temperature": 0}, {"do_sample": False}),
    "temperature 0.8": ({"temperature": 0.8}, {"do_sample": True, "temperature": 0.8}),
    "top_p 0.9": ({"top_p": 0.9}, {"do_sample": True, "top_p": 0.9}),
}
NEW_TOKENS = 24
TABLES = {
    "sides": "The autoregressive side",
    "callers": "Many callers",
    "tokenizing": "Tokenizing",
    "preparing": "Tokenizing training texts",
}


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


SPLIT = regex.compile(  # GPT-2's, as ByteLevel of tokenizers has it
    r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)
DIGITS = regex.compile(r"(\p{N})")


class PlainBPE:
    """Byte-level BPE in plain Python as one would write it down: the earliest merge of a word, again and again."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        told = json.loads(tokenizer.backend_tokenizer.to_str())
        model, before = told["model"], told["pre_tokenizer"]
        parts = before["pretokenizers"] if before["type"] == "Sequence" else [before]
        self.splits_digits = any(part["type"] == "Digits" and part["individual_digits"] for part in parts)
        self.ids = model["vocab"]
        merges = (tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"])
        self.ranks = {merge: rank for rank, merge in enumerate(merges)}
        visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [byte for byte in range(256) if byte not in visible]
        self.letters = {byte: chr(byte) for byte in visible} | {byte: chr(256 + i) for i, byte in enumerate(others)}

    def __call__(self, text: str) -> list[int]:
        parts = DIGITS.split(text) if self.splits_digits else [text]
        words = (word for part in parts for word in SPLIT.findall(part))
        return [self.ids[piece] for word in words for piece in self.merged(word)]

    def merged(self, word: str) -> list[str]:
        """The pieces of a word."""
        pieces = [self.letters[byte] for byte in word.encode()]
        while len(pieces) > 1:
            pairs = list(pairwise(pieces))
            best = min(pairs, key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if best not in self.ranks:
                break
            place = pairs.index(best)
            pieces[place : place + 2] = ["".join(best)]
        return pieces


def tokenizing(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[Row]:
    """Characters a second, text by text and in one batch, and the ratios."""
    plain = PlainBPE(tokenizer)
    ways: dict[str, Callable[[], list[list[int]]]] = {
        "plain Python": lambda: [plain(text) for text in texts],
        "one text a call": lambda: [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts],
        "all texts in one call": lambda: tokenizer(texts, add_special_tokens=False)["input_ids"],
        "all texts, without offsets": lambda: [
            found.ids for found in tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        ],
    }
    return compared({}, ways, texts, repeats=5)


def preparing(tokenizer: PreTrainedTokenizerFast, shards: Path, characters: int) -> list[Row]:
    """The same for many training texts, each modality by a tokenizer that has met nothing yet."""
    plain, backend, rows = PlainBPE(tokenizer), plain_text_tokenizer(tokenizer), []
    for modality in ("text", "code"):
        texts = begun_texts(shards, modality, "train", characters)

        def in_bulk(texts: list[str] = texts) -> list[list[int]]:
            return list(BulkTokenizer(backend).encode_each(texts))

        ways = {"plain Python": lambda texts=texts: [plain(text) for text in texts], "as data are packed": in_bulk}
        rows += compared({"modality": modality}, ways, texts, repeats=3)
    return rows


def begun_texts(shards: Path, modality: str, split: str, characters: int) -> list[str]:
    """The texts of a split, one after the other, the last one cut, until there are so many characters."""
    texts, room = [], characters
    for row in held_out(shards, modality, split):
        texts.append(row["text"][:room])
        room -= len(texts[-1])
        if not room:
            break
    return texts


def compared(what: Row, ways: Mapping[str, Callable[[], list[list[int]]]], texts: list[str], repeats: int) -> list[Row]:
    """Characters a second of each way and its ratio to plain Python, the first one."""
    expected, characters = ways["plain Python"](), sum(map(len, texts))
    seconds = interleaved_seconds(ways, repeats, warm_up=False)
    return [
        {
            **what,
            "way": name,
            "texts": len(texts),
            "characters": characters,
            "tokens": sum(map(len, expected)),
            "equal tokens": way() == expected,
            "characters a second": characters / seconds[name],
            "times plain Python": seconds["plain Python"] / seconds[name],
        }
        for name, way in ways.items()
    ]


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--shards", type=Path, default=Path("data/shards"))
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--characters", type=int, default=1_000_000, help="of held-out text, to tokenize")
    parser.add_argument("--prepared", type=int, default=20_000_000, help="characters of training texts, to tokenize")
    parser.add_argument("--tables", nargs="+", choices=list(TABLES), default=list(TABLES), help="of what to measure")
    args, settings = start(parser)
    engine = ArrowEngine.from_pretrained(args.checkpoint, ar_model=source_model_path(), max_waiting=args.callers)
    texts = begun_texts(args.shards, "text", "test", args.characters)
    measured: dict[str, Callable[[], list[Row]]] = {
        "sides": lambda: sides(engine),
        "callers": lambda: callers(engine, args.callers),
        "tokenizing": lambda: tokenizing(engine.tokenizer, texts),
        "preparing": lambda: preparing(engine.tokenizer, args.shards, args.prepared),
    }
    tables = {TABLES[name]: measured[name]() for name in args.tables}
    report("engine", tables, settings, [], args.output)


if __name__ == "__main__":
    main()
