"""Train the memory conditioner: cross-attention and projections only, the rest of the network frozen.

    python examples/train_memory_conditioner.py --output_dir runs/memory
    python examples/merge_parts.py runs/memory/conditioner.safetensors  # into the embedded checkpoint

Only the last layer's cross-attention trains: what it reads is computed once, and steps are cheap.
Passages of training documents with four memories each: other passages of the same document (right), the nearest of
another (near) or any (wrong); some rows have no right one (retrieval dropout). The losses are the network's own, of the
causal path and of the canvas. Validation compares right, near, wrong and no memories. Without a memory the network
stays what it was, bit for bit.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as parquet
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor
from tqdm.auto import tqdm
from transformers import AutoTokenizer

from hf_unified_diffusion import Condition, UnifiedDiffusionModel
from hf_unified_diffusion.conversion.merging import write_part
from hf_unified_diffusion.memory.memory_conditioner import memory_condition, read_texts
from hf_unified_diffusion.modeling.embedded import EMBEDDED_CHECKPOINT
from hf_unified_diffusion.quantization import dequantize_model
from hf_unified_diffusion.training.layouts import IGNORED_LABEL, TokenBatch
from hf_unified_diffusion.training.memory_pairs import KINDS, MemoryMix, MemoryPairs, Passages, cut_passages
from hf_unified_diffusion.training.memory_start import (
    after_last_attention,
    before_last_attention,
    conditioner_modules,
    start_conditioner,
)
from hf_unified_diffusion.training.objective import ObjectiveConfig, layout_for
from hf_unified_diffusion.training.run import LearningRate, adamw
from hf_unified_diffusion.training.run_log import append_record
from hf_unified_diffusion.training.token_data import plain_text_tokenizer

DOCUMENTS_AT_ONCE = 4

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--checkpoint", type=Path, default=EMBEDDED_CHECKPOINT)
parser.add_argument("--shards", type=Path, default=Path("data/shards"), help="as `make data` writes them")
parser.add_argument("--output_dir", type=Path, default=Path("runs/memory"))
parser.add_argument("--compute_minutes", type=float, default=9.0, help="for what the frozen network computes once")
parser.add_argument("--minutes", type=float, default=9.0, help="of training; the learning rate follows the clock")
parser.add_argument("--documents", type=int, default=4000, help="of each split's texts, at most")
parser.add_argument("--passage_length", type=int, default=96, help="in tokens")
parser.add_argument("--memory_length", type=int, default=48, help="in tokens")
parser.add_argument("--rows", type=int, default=8, help="of a step")
parser.add_argument("--learning_rate", type=float, default=4e-4)
parser.add_argument("--evaluation_minutes", type=float, default=2.0)
parser.add_argument("--seed", type=int, default=0)


def read_documents(folder: Path, count: int, tokenizer, seed: int) -> list:
    """Token ids of at most `count` texts of a split, as many of each source as its share."""
    texts = []
    for file in sorted(folder.glob("*.parquet")):
        rows = parquet.read_table(file, columns=["prompt", "text"], filters=[("modality", "==", "text")]).to_pylist()
        texts += [row["prompt"] + row["text"] for row in rows]
    if not texts:
        raise ValueError(f"the split must hold texts (run `make data`), got none in {folder.name}")
    chosen = torch.randperm(len(texts), generator=Generator().manual_seed(seed))[:count].tolist()
    backend = plain_text_tokenizer(tokenizer)
    encoded = backend.encode_batch([texts[i][:8000] for i in chosen], add_special_tokens=False)
    return [torch.tensor(encoding.ids).numpy() for encoding in encoded]


@dataclass(frozen=True)
class Computed:
    """What the frozen network makes of passages and memories, computed once: half precision holds it."""

    pairs: MemoryPairs
    x: Float[Tensor, "rows positions width"]  # what the last cross-attention reads: clean context, then canvas
    labels: Int[Tensor, "rows positions"]
    weight: Float[Tensor, "rows positions"]
    means: Float[Tensor, "items width"]
    texts: Float[Tensor, "items length features"]


@torch.no_grad()
def compute(
    model: UnifiedDiffusionModel, passages: Passages, minutes: float, mask_token_id: int, seed: int
) -> Computed:
    """As many documents as the minutes allow, some at a time."""
    generator, config = Generator().manual_seed(seed), ObjectiveConfig(infill_rate=0.0, complementary=False)
    found: dict[str, list] = {name: [] for name in ("x", "labels", "weight", "means", "texts")}
    total, end, document = int(passages.row_document[-1]) + 1, time.monotonic() + 60 * minutes, 0
    bar = tqdm(total=total, desc="documents", unit="doc")
    while document < total and time.monotonic() < end:
        stop = document + DOCUMENTS_AT_ONCE
        rows, items = (
            texts[(owner >= document) & (owner < stop)]
            for texts, owner in ((passages.rows, passages.row_document), (passages.items, passages.item_document))
        )
        parts = layout_for(TokenBatch(rows, torch.zeros_like(rows), "text"), config, mask_token_id, 1.0, generator)
        found["x"].append(before_last_attention(model, [segment for segment, _ in parts]).half())
        found["labels"].append(torch.cat([target.labels for _, target in parts], dim=1))
        found["weight"].append(torch.cat([target.weight.clamp(max=config.max_weight) for _, target in parts], dim=1))
        means, texts = read_texts(model, items)
        found["means"].append(means.half())
        found["texts"].append(texts.half())
        bar.update(min(stop, total) - document)
        document = min(stop, total)
    embeddings = model.token_embedding.weight.detach()
    joined = {name: torch.cat(values) for name, values in found.items()}
    return Computed(MemoryPairs(passages.first(document), embeddings), **joined)


def condition_of(model: UnifiedDiffusionModel, computed: Computed, items: Int[Tensor, "rows slots"]) -> Condition:
    """Memories as the conditioner gives them."""
    texts = computed.texts[items].flatten(1, 2).float()
    mask = torch.ones(texts.shape[:2], dtype=torch.bool)
    return memory_condition(model, computed.means[items].float(), mask[:, : items.shape[1]], texts, mask)


def losses_of(
    model: UnifiedDiffusionModel, computed: Computed, rows: Tensor, condition: Condition | None
) -> dict[str, Tensor]:
    """The loss, next tokens and canvas counting the same, and nats per token of both."""
    hidden = after_last_attention(model, computed.x[rows].float(), condition)
    labels, weight = computed.labels[rows], computed.weight[rows]
    asked, length = labels != IGNORED_LABEL, labels.shape[1] // 2
    nats = F.cross_entropy(model.decode(hidden[asked], "text").float(), labels[asked], reduction="none")
    is_canvas = (torch.arange(2 * length) >= length).expand_as(labels)[asked]
    loss = (nats * weight[asked]).sum() / length / len(rows)
    return {"loss": loss, "causal": nats[~is_canvas].mean(), "hidden": nats[is_canvas].mean()}


@torch.no_grad()
def evaluate(model: UnifiedDiffusionModel, computed: Computed) -> dict[str, float]:
    """Held-out nats per token with each kind of memory and without, on the same rows and masks."""
    found: dict[str, float] = {}
    for kind in (*KINDS, "none"):
        chunks, generator = torch.arange(len(computed.x)).split(8), Generator().manual_seed(0)
        for rows in chunks:
            items = computed.pairs.draw(rows, "right" if kind == "none" else kind, generator)
            losses = losses_of(model, computed, rows, None if kind == "none" else condition_of(model, computed, items))
            for name in ("causal", "hidden"):
                share = losses[name].item() * len(rows) / len(computed.x)
                found[f"{kind}/{name}"] = found.get(f"{kind}/{name}", 0.0) + share
    return {name: round(value, 4) for name, value in found.items()}


def main() -> None:
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(args.checkpoint)
    model = UnifiedDiffusionModel.from_pretrained(args.checkpoint, dtype=torch.float32).eval()
    dequantize_model(model)
    computed = {}
    for split, minutes in (("validation", 0.1 * args.compute_minutes), ("train", 0.9 * args.compute_minutes)):
        documents = read_documents(args.shards / split, args.documents, tokenizer, args.seed)
        passages = cut_passages(documents, args.passage_length, args.memory_length)
        computed[split] = compute(model, passages, minutes, tokenizer.mask_token_id, args.seed)
        print(f"{split}: {len(computed[split].x)} passages, {len(computed[split].means)} memories", flush=True)
    train, held_out = computed["train"], computed["validation"]
    texts = train.texts[:64].flatten(0, 1).float()
    parameters = start_conditioner(model, texts, Generator().manual_seed(args.seed))
    optimizer, rate = adamw(parameters, weight_decay=0.0, beta2=0.98), LearningRate(args.learning_rate, 20)
    print(f"{sum(p.numel() for p in parameters) / 1e6:.2f}M parameters train", flush=True)
    log, step, seconds, evaluated = args.output_dir / "log.jsonl", 0, 0.0, 0.0
    log.write_text("")
    while seconds < 60 * args.minutes:
        began, generator = time.monotonic(), Generator().manual_seed(args.seed * 1_000_003 + step)
        rows = torch.randint(0, len(train.x), (args.rows,), generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = rate.at(step, seconds / 60 / args.minutes)
        items = train.pairs.draw(rows, MemoryMix(), generator)
        losses = losses_of(model, train, rows, condition_of(model, train, items))
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, error_if_nonfinite=True)
        optimizer.step()
        optimizer.zero_grad()
        step, seconds = step + 1, seconds + time.monotonic() - began
        record = {"step": step, "seconds": round(seconds, 1), "positions": step * rows.numel() * train.x.shape[1]}
        record |= {name: round(value.item(), 4) for name, value in losses.items()}
        if step == 1 or seconds - evaluated > 60 * args.evaluation_minutes or seconds >= 60 * args.minutes:
            evaluated = seconds
            record |= evaluate(model, held_out)
            print(json.dumps(record), flush=True)
            save(model, args.output_dir, {name: record[name] for name in ("step", "positions", "seconds")})
        append_record(log, record)


def save(model: UnifiedDiffusionModel, folder: Path, progress: dict[str, float]) -> None:
    """Write what trained, and how far it is."""
    tensors = {
        f"{name}.{key}": value
        for name, module in conditioner_modules(model).items()
        for key, value in module.state_dict().items()
    }
    write_part(tensors, folder / "conditioner.safetensors", progress)


if __name__ == "__main__":
    main()
