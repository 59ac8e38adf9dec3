"""LoRA on the packed layers of the embedded checkpoint: what training gains, and what merging keeps of it.

Merging rounds the sum of weights and adapter anew. Ceiling: the same adapter merged into dense float32 weights, which
loses nothing. Control: the checkpoint without the adapter.
"""

from pathlib import Path

import peft
import torch
from measure import argument_parser, held_out, report, start
from transformers import AutoTokenizer

from hf_unified_diffusion import UnifiedDiffusionModel
from hf_unified_diffusion.modeling.embedded import EMBEDDED_CHECKPOINT
from hf_unified_diffusion.quantization import QuantizedWeight, bits_per_weight

TARGETS = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]


def rows_of(tokenizer, shards: Path, split: str, modality: str, count: int, length: int) -> torch.Tensor:
    """Token rows of the first documents of a split, int64 (count, length)."""
    text = "\n\n".join(row["text"] for row in held_out(shards, modality, split)[:200])
    return torch.tensor(tokenizer(text)["input_ids"][: count * length]).view(count, length)


@torch.no_grad()
def answers(model: torch.nn.Module, rows: torch.Tensor) -> tuple[float, torch.Tensor]:
    """(causal perplexity, log-probabilities) of rows."""
    model.eval()
    out = [model(input_ids=row[None], labels=row[None]) for row in rows]
    real = [x.logits[0].log_softmax(-1).clamp_min(-100) for x in out]
    return torch.stack([x.loss for x in out]).mean().exp().item(), torch.stack(real)


def train(model: torch.nn.Module, rows: torch.Tensor, learning_rate: float) -> None:
    """One pass over the rows, two at a time."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    model.train()
    for batch in rows.split(2):
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def moved_codes(before: dict[str, torch.Tensor], model: torch.nn.Module) -> float:
    """Share of the targets' packed bytes that the merge changed."""
    after = {name: module.weight for name, module in model.named_modules() if isinstance(module, QuantizedWeight)}
    targets = [name for name in after if name.endswith(tuple(TARGETS))]
    changed = sum(int((after[name] != before[name]).sum()) for name in targets)
    return changed / sum(after[name].numel() for name in targets)


parser = argument_parser(__doc__)
parser.add_argument("--shards", type=Path, default=Path("data/shards"), help="as `make data` writes them")
parser.add_argument("--modality", default="code", help="to fine-tune on")
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--rank", type=int, default=16)
parser.add_argument("--learning_rate", type=float, default=1e-3)
parser.add_argument("--length", type=int, default=128, help="tokens of a row")
args, shown = start(parser)
source = args.checkpoint or EMBEDDED_CHECKPOINT
tokenizer = AutoTokenizer.from_pretrained(source)
train_rows = rows_of(tokenizer, args.shards, "train", args.modality, 2 * args.steps, args.length)
test_rows = rows_of(tokenizer, args.shards, "test", args.modality, 12, args.length)

base = UnifiedDiffusionModel.from_pretrained(source, dtype=torch.float32)
codes = {n: m.weight.clone() for n, m in base.named_modules() if isinstance(m, QuantizedWeight)}
before, control = answers(base, test_rows)
config = peft.LoraConfig(r=args.rank, lora_alpha=args.rank, target_modules=TARGETS)
adapted = peft.get_peft_model(base, config)
train(adapted, train_rows, args.learning_rate)
unmerged, wanted = answers(adapted, test_rows)
adapter = {name: tensor.clone() for name, tensor in peft.get_peft_model_state_dict(adapted).items()}

merged_model = adapted.merge_and_unload()
merged, given = answers(merged_model, test_rows)
share = moved_codes(codes, merged_model)

dense = peft.get_peft_model(UnifiedDiffusionModel.from_pretrained(source).dequantize(torch.float32), config)
peft.set_peft_model_state_dict(dense, adapter)
dense = dense.merge_and_unload()
ceiling, exact = answers(dense, test_rows)


def distance(logs: torch.Tensor) -> float:
    """KL(unmerged || other) in nats per token."""
    return (wanted.exp() * (wanted - logs)).sum(-1).mean().item()


rows = [
    {"network": "without the adapter (control)", "perplexity": before, "KL from unmerged": distance(control)},
    {"network": "adapter, not merged", "perplexity": unmerged, "KL from unmerged": 0.0},
    {"network": "merged into the packed weights", "perplexity": merged, "KL from unmerged": distance(given)},
    {"network": "merged into dense float32 (ceiling)", "perplexity": ceiling, "KL from unmerged": distance(exact)},
]
notes = [
    f"Of the gain in log-perplexity, the merged network keeps "
    f"{(torch.tensor(before / merged).log() / torch.tensor(before / unmerged).log()).item():.0%}; "
    f"the merge changed {share:.1%} of the packed bytes of the adapted layers "
    f"({bits_per_weight(merged_model):.2f} bits per weight in all).",
]
report("lora_merge", {f"Held-out {args.modality}": rows}, shown, notes, args.output)
