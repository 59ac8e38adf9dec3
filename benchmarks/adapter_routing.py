"""LoRA adapters of the autoregressive side: three subjects of SmolLM2, and a router that picks by the prompt.

    python benchmarks/adapter_routing.py

For each subject an adapter is trained by PEFT for a few steps on training documents and loaded into an engine with
some of their beginnings as examples. Prompts are beginnings of held-out documents. Counted: prompts for which the
router picks the subject's adapter (chance is a third), texts of `adapter="auto"` that are those of the adapter named,
and texts that are those of transformers' `generate` with PEFT's own model. Nats a token are of the document after the
prompt: without an adapter, with the one picked, and the mean of the two others, which is the control.
"""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from jaxtyping import Int
from measure import Mean, Row, argument_parser, held_out, report, start
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from tqdm.auto import trange
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from hf_unified_diffusion import ArrowEngine
from hf_unified_diffusion.pipelines.autoregressive_writer import AutoregressiveWriter
from hf_unified_diffusion.training.data_sources import source_model_path

SUBJECTS = {"bible": ("text", "prose_bible"), "cmake": ("text", "docs_cmake"), "python": ("code", "python_packages")}
LORA = LoraConfig(
    r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "up_proj", "down_proj"], task_type="CAUSAL_LM"
)
EXAMPLES, PROMPT_TOKENS, PASSAGE_TOKENS, NEW_TOKENS = 16, 24, 128, 8
Passages = Int[Tensor, "passages length"]


def passages(
    shards: Path, split: str, subject: str, tokenizer: PreTrainedTokenizerFast, count: int, seed: int
) -> Passages:
    """A passage of each of so many documents of a subject, drawn; shorter documents are left out."""
    modality, source = SUBJECTS[subject]
    texts = [row["text"][:4000] for row in held_out(shards, modality, split) if row["source"] == source]
    generator, found = torch.Generator().manual_seed(seed), []
    for place in torch.randperm(len(texts), generator=generator).tolist():
        ids = tokenizer(texts[place], add_special_tokens=False, return_tensors="pt")["input_ids"][0]
        if len(ids) >= PASSAGE_TOKENS:
            found.append(ids[:PASSAGE_TOKENS])
        if len(found) == count:
            break
    return torch.stack(found)


def train_adapter(model: PreTrainedModel, rows: Passages, folder: Path, args: argparse.Namespace) -> PreTrainedModel:
    """Train one on passages in their order and save it; gives the model as it was."""
    torch.manual_seed(args.seed)
    adapted = get_peft_model(model, LORA)
    optimizer = torch.optim.AdamW((p for p in adapted.parameters() if p.requires_grad), lr=args.learning_rate)
    adapted.train()
    for step in trange(args.train_steps, desc=folder.name):
        batch = rows[torch.arange(step * args.batch_size, (step + 1) * args.batch_size) % len(rows)]
        adapted(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    adapted.save_pretrained(folder)
    return adapted.eval().unload()


@contextmanager
def applied(model: PeftModel, name: str | None) -> Iterator[None]:
    """PEFT's model under an adapter, or under none."""
    if name is None:
        with model.disable_adapter():
            yield
        return
    model.set_adapter(name)
    yield


@torch.no_grad()
def nats(model: PeftModel, name: str | None, row: Int[Tensor, "length"]) -> float:
    """Mean nats a token of a passage after the prompt, under an adapter or under none."""
    labels = row.clone()
    labels[:PROMPT_TOKENS] = -100
    with applied(model, name):
        return model(input_ids=row[None], labels=labels[None]).loss.item()


def routed(
    engine: ArrowEngine,
    theirs: PeftModel,
    tokenizer: PreTrainedTokenizerFast,
    rows: dict[str, Passages],
    num_compared: int,
) -> list[Row]:
    """A line for each subject."""
    router, table = engine._adapters_of("ar").router, []
    options = {"mode": "ar", "max_new_tokens": NEW_TOKENS, "temperature": 0}
    for subject, its in rows.items():
        prompts = [tokenizer.decode(row[:PROMPT_TOKENS]) for row in its]
        picked = [router.choose(prompt) for prompt in prompts]
        texts = [engine.generate(prompt, adapter="auto", **options) for prompt in prompts[:num_compared]]
        compared = list(zip(prompts, picked, strict=True))[:num_compared]
        named = [engine.generate(prompt, adapter=name, **options) for prompt, name in compared]
        expected = [written(theirs, tokenizer, *pair) for pair in compared]
        others = [[name for name in rows if name != chosen] for chosen in picked]
        table.append(
            {
                "subject": subject,
                "prompts": len(prompts),
                "its adapter picked": sum(name == subject for name in picked),
                "texts compared": num_compared,
                "auto equals the one named": sum(map(str.__eq__, texts, named)),
                "equal to transformers and PEFT": sum(map(str.__eq__, texts, expected)),
                "nats a token, no adapter": Mean.of([nats(theirs, None, row) for row in its]),
                "the one picked": Mean.of([nats(theirs, *pair) for pair in zip(picked, its, strict=True)]),
                "control: the others": Mean.of(
                    [nats(theirs, name, row) for row, names in zip(its, others, strict=True) for name in names]
                ),
            }
        )
    return table


@torch.no_grad()
def written(model: PeftModel, tokenizer: PreTrainedTokenizerFast, prompt: str, name: str | None) -> str:
    """What transformers' own `generate` writes under an adapter, or under none."""
    inputs = tokenizer(prompt, return_tensors="pt")
    with applied(model, name):
        ids = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return prompt + tokenizer.decode(ids, skip_special_tokens=True)


def beginnings(rows: Passages, tokenizer: PreTrainedTokenizerFast) -> Sequence[str]:
    """What the router knows of an adapter."""
    return [tokenizer.decode(row[:PROMPT_TOKENS]) for row in rows[:EXAMPLES]]


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--shards", type=Path, default=Path("data/shards"))
    parser.add_argument("--prompts", type=int, default=12, help="of each subject")
    parser.add_argument("--compared", type=int, default=4, help="texts of each subject")
    parser.add_argument("--train_steps", type=int, default=16)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    args, settings = start(parser)
    file = source_model_path()
    writer = AutoregressiveWriter.from_pretrained(file, dtype=torch.float32)
    model, tokenizer = writer.model, writer.tokenizer
    with TemporaryDirectory() as temporary:
        folders = {name: Path(temporary) / name for name in SUBJECTS}
        engine = ArrowEngine.from_pretrained(args.checkpoint, ar_model=file)
        count = args.train_steps * args.batch_size
        for name, folder in folders.items():
            rows = passages(args.shards, "train", name, tokenizer, count, args.seed)
            model = train_adapter(model, rows, folder, args)
            engine.load_adapter(folder, name, side="ar", examples=beginnings(rows, tokenizer))
        first, *rest = folders
        theirs = PeftModel.from_pretrained(model.to(engine.ar.model.dtype), folders[first], adapter_name=first).eval()
        for name in rest:
            theirs.load_adapter(folders[name], name)
        asked = {n: passages(args.shards, "test", n, tokenizer, args.prompts, args.seed) for n in SUBJECTS}
        table = routed(engine, theirs, tokenizer, asked, args.compared)
    report("adapter_routing", {"Adapters of SmolLM2": table}, settings, [], args.output)


if __name__ == "__main__":
    main()
