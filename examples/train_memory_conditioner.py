"""Train the memory conditioner: cross-attention and projections only, the rest of the network frozen.

    python examples/train_memory_conditioner.py --minutes 20 --output_dir runs/memory
    python examples/merge_memory_conditioner.py runs/memory          # into the embedded checkpoint

Passages of training documents with four memories each: other passages of the same document (right), the nearest of
another (near) or any (wrong); some rows have no right one (retrieval dropout). The losses are the network's own, of the
causal path and of the canvas. Validation compares right, near, wrong and no memories. Without a memory the network
stays what it was, bit for bit.
"""

import argparse
import json
import time
from pathlib import Path

import pyarrow.parquet as parquet
import torch
from safetensors.torch import save_file
from torch import Generator
from tqdm.auto import tqdm
from transformers import AutoTokenizer

from hf_unified_diffusion import Condition, UnifiedDiffusionModel
from hf_unified_diffusion.memory.memory_conditioner import memory_condition, read_texts
from hf_unified_diffusion.modeling.embedded import EMBEDDED_CHECKPOINT
from hf_unified_diffusion.training.machine import fast_dtype
from hf_unified_diffusion.training.memory_pairs import KINDS, MemoryMix, MemoryPairs
from hf_unified_diffusion.training.memory_start import conditioner_modules, start_conditioner
from hf_unified_diffusion.training.objective import ObjectiveConfig, ScoreNetworkObjective, layout_for
from hf_unified_diffusion.training.run import LearningRate, adamw
from hf_unified_diffusion.training.token_data import plain_text_tokenizer

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--checkpoint", type=Path, default=EMBEDDED_CHECKPOINT)
parser.add_argument("--shards", type=Path, default=Path("data/shards"), help="as `make data` writes them")
parser.add_argument("--output_dir", type=Path, default=Path("runs/memory"))
parser.add_argument("--minutes", type=float, default=20.0, help="of training; the learning rate follows the clock")
parser.add_argument("--documents", type=int, default=8000, help="of each split's texts, at most")
parser.add_argument("--passage_length", type=int, default=96, help="in tokens")
parser.add_argument("--memory_length", type=int, default=48, help="in tokens")
parser.add_argument("--rows", type=int, default=6, help="of a step")
parser.add_argument("--learning_rate", type=float, default=1e-3)
parser.add_argument("--evaluation_rows", type=int, default=24)
parser.add_argument("--evaluation_minutes", type=float, default=4.0)
parser.add_argument("--seed", type=int, default=0)


def read_documents(folder: Path, count: int, tokenizer, seed: int) -> list:
    """Token ids of at most `count` texts of a split, as many of each source as its share."""
    texts = []
    for file in sorted(folder.glob("*.parquet")):
        rows = parquet.read_table(file, columns=["prompt", "text", "modality"]).to_pylist()
        texts += [row["prompt"] + row["text"] for row in rows if row["modality"] == "text"]
    if not texts:
        raise ValueError(f"the split must hold texts (run `make data`), got none in {folder.name}")
    chosen = torch.randperm(len(texts), generator=Generator().manual_seed(seed))[:count].tolist()
    backend = plain_text_tokenizer(tokenizer)
    encoded = backend.encode_batch([texts[i][:8000] for i in chosen], add_special_tokens=False)
    return [torch.tensor(encoding.ids).numpy() for encoding in encoded]


def condition_of(model: UnifiedDiffusionModel, memories: torch.Tensor) -> Condition:
    """Memories (rows, slots, length) as the conditioner gives them."""
    rows, slots, length = memories.shape
    items, texts = read_texts(model, memories.flatten(0, 1))
    mask = torch.ones(rows, slots * length, dtype=torch.bool)
    return memory_condition(
        model, items.view(rows, slots, -1), mask[:, :slots], texts.view(rows, slots * length, -1), mask
    )


@torch.no_grad()
def evaluate(objective: ScoreNetworkObjective, pairs: MemoryPairs, rows: int, mask_token_id: int) -> dict[str, float]:
    """Held-out nats per token, causal and hidden, with each kind of memory and without, on the same rows and masks."""
    found: dict[str, float] = {}
    for kind in (*KINDS, "none"):
        for start in range(0, rows, 8):
            generator = Generator().manual_seed(start)
            batch, memories = pairs.rows(8, "right" if kind == "none" else kind, generator)
            noise = Generator().manual_seed(start)
            parts = layout_for(batch, objective.config, mask_token_id, 1.0, noise)
            losses = objective(parts, None if kind == "none" else condition_of(objective.model, memories))
            for name in ("causal", "hidden"):
                found[f"{kind}/{name}"] = found.get(f"{kind}/{name}", 0.0) + losses[name].item() / len(range(0, rows, 8))
    return {name: round(value, 4) for name, value in found.items()}


def main() -> None:
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(args.checkpoint)
    model = UnifiedDiffusionModel.from_pretrained(args.checkpoint, dtype=torch.float32)
    if getattr(model, "is_quantized", False):  # the frozen weights compute densely, with the values of their codes
        model.dequantize(torch.float32)
    embeddings = model.token_embedding.weight.detach()
    sizes = (args.passage_length, embeddings, args.memory_length)
    train = MemoryPairs(read_documents(args.shards / "train", args.documents, tokenizer, args.seed), *sizes)
    held_out = MemoryPairs(read_documents(args.shards / "validation", args.documents, tokenizer, args.seed), *sizes)
    print(f"{len(train)} passages to train on, {len(held_out)} held out")
    _, memories = train.rows(32, "right", Generator().manual_seed(args.seed))
    _, texts = read_texts(model, memories.flatten(0, 1))
    parameters = start_conditioner(model, texts.flatten(0, 1), Generator().manual_seed(args.seed))
    optimizer = adamw(parameters, weight_decay=0.0, beta2=0.98)
    config = ObjectiveConfig(causal_weight=1.0, infill_rate=0.15)
    objective, rate = ScoreNetworkObjective(model.train(), config), LearningRate(args.learning_rate, 20)
    print(f"{sum(p.numel() for p in parameters) / 1e6:.2f}M parameters train")
    log, step, positions, seconds, evaluated = args.output_dir / "log.jsonl", 0, 0, 0.0, 0.0
    log.write_text("")
    bar = tqdm(total=round(60 * args.minutes), unit="s")
    while seconds < 60 * args.minutes:
        began = time.monotonic()
        generator = Generator().manual_seed(args.seed * 1_000_003 + step)
        batch, memories = train.rows(args.rows, MemoryMix(), generator)
        parts = layout_for(batch, config, tokenizer.mask_token_id, 1.0, generator)
        for group in optimizer.param_groups:
            group["lr"] = rate.at(step, seconds / 60 / args.minutes)
        with torch.autocast("cpu", fast_dtype(), enabled=fast_dtype() is not torch.float32):
            losses = objective(parts, condition_of(model, memories))
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, error_if_nonfinite=True)
        optimizer.step()
        optimizer.zero_grad()
        step, positions = step + 1, positions + sum(segment.values.numel() for segment, _ in parts)
        taken = time.monotonic() - began
        seconds += taken
        record = {"step": step, "seconds": round(seconds, 1), "positions": positions}
        record |= {name: round(value.item(), 4) for name, value in losses.items()}
        bar.update(taken)
        bar.set_postfix(loss=record["loss"], step=step)
        if step == 1 or seconds - evaluated > 60 * args.evaluation_minutes or seconds >= 60 * args.minutes:
            evaluated = seconds
            record |= evaluate(objective, held_out, args.evaluation_rows, tokenizer.mask_token_id)
            record["gates"] = [round(p.item(), 4) for p in parameters if p.numel() == 1]
            bar.write(json.dumps(record))
            save(model, args.output_dir, {"step": step, "positions": positions, "seconds": round(seconds, 1)})
        with log.open("a") as file:
            file.write(json.dumps(record) + "\n")


def save(model: UnifiedDiffusionModel, folder: Path, progress: dict[str, float]) -> None:
    """Write what trained, and how far it is; each file appears whole or not at all."""
    tensors = {
        f"{name}.{key}": value.detach().contiguous()
        for name, module in conditioner_modules(model).items()
        for key, value in module.state_dict().items()
    }
    save_file(tensors, folder / "conditioner.partial")
    (folder / "conditioner.partial").replace(folder / "conditioner.safetensors")
    (folder / "progress.json").write_text(json.dumps(progress))


if __name__ == "__main__":
    main()
