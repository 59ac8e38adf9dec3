"""LoRA on the packed layers of the embedded checkpoint: what training gains, and what each way of merging keeps of it.

Ways: codes rounded anew; rounded anew by the second moments of each layer's inputs (GPTQ); codes and scales fitted by
these, starting from those there; the adapted layers at INT8; and the codes as they are, with the adapter beside them in
INT8, which is what `merge_and_unload` does. Ceiling: the same adapter merged into dense float32 weights. Control: the
checkpoint without the adapter.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from measure import Row, argument_parser, held_out, report, start
from torch import Tensor, nn
from transformers import AutoTokenizer

from hf_unified_diffusion import UnifiedDiffusionModel
from hf_unified_diffusion.modeling.embedded import EMBEDDED_CHECKPOINT
from hf_unified_diffusion.quantization import num_weights, quantize, quantize_calibrated, stored_bytes
from hf_unified_diffusion.quantization.calibrated_rounding import SWEEPS, Rounding, damped
from hf_unified_diffusion.quantization.calibration import input_moments
from hf_unified_diffusion.quantization.integer import levels_of, pack_levels

TARGETS = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
LOW_RANK = 4
Rule = Callable[[Any, Tensor, Tensor], None]  # of a layer, the wanted change of its matrix, the moments of its inputs


def rows_of(tokenizer, shards: Path, split: str, modality: str, count: int, length: int) -> Tensor:
    """Token rows of the first documents of a split, int64 (count, length)."""
    text = "\n\n".join(row["text"] for row in held_out(shards, modality, split)[:200])
    return torch.tensor(tokenizer(text)["input_ids"][: count * length]).view(count, length)


@torch.no_grad()
def answers(model: nn.Module, rows: Tensor) -> tuple[float, Tensor]:
    """(causal nats per token, log-probabilities) of rows."""
    model.eval()
    out = [model(input_ids=row[None], labels=row[None]) for row in rows]
    real = [x.logits[0].log_softmax(-1).clamp_min(-100) for x in out]
    return torch.stack([x.loss for x in out]).mean().item(), torch.stack(real)


def train(model: nn.Module, rows: Tensor, learning_rate: float) -> None:
    """One pass over the rows, two at a time."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    model.train()
    for batch in rows.split(2):
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def put(layer: Any, packed: Tensor, scale: Tensor, bits: int) -> None:
    """Give a layer other codes."""
    layer.weight, layer.weight_scale, layer.bits = nn.Parameter(packed, requires_grad=False), scale, bits


def rounded_anew(layer: Any, delta: Tensor, moments: Tensor) -> None:
    """The nearest levels of the sum."""
    put(layer, *quantize(layer.dequantized() + delta, layer.bits, layer.group_size), layer.bits)


def rounded_by_inputs(layer: Any, delta: Tensor, moments: Tensor) -> None:
    """Column by column, each making up for those before it, and then in turn with the scales."""
    put(layer, *quantize_calibrated(layer.dequantized() + delta, moments, layer.bits, layer.group_size), layer.bits)


def fitted_by_inputs(layer: Any, delta: Tensor, moments: Tensor) -> None:
    """Scales and codes in turn, from those there; no row ends further from the sum than without the adapter."""
    target = layer.dequantized() + delta
    metric, levels = damped(moments, target.shape[1]), levels_of(layer.weight, layer.bits).view_as(target)
    there = found = Rounding(target, metric, levels, layer.weight_scale.float(), layer.bits)
    for _ in range(SWEEPS):
        found = found.with_fitted_scales().revised()
    best = there.better_rows(found)
    put(layer, pack_levels(best.levels, layer.bits), best.scale.to(layer.weight_scale.dtype), layer.bits)


def rounded_to_int8(layer: Any, delta: Tensor, moments: Tensor) -> None:
    """The sum at eight bits, one scale a row."""
    put(layer, *quantize(layer.dequantized() + delta, 8), 8)


def beside_at_low_rank(layer: Any, delta: Tensor, moments: Tensor) -> None:
    """The codes as they are, and the strongest directions of the adapter in INT8."""
    left, strength, right = torch.svd_lowrank(delta, 4 * LOW_RANK)
    layer.merge(left[:, :LOW_RANK] * strength[:LOW_RANK], right.T[:LOW_RANK])


RULES: dict[str, Rule] = {
    "codes rounded anew": rounded_anew,
    "codes rounded anew by the inputs": rounded_by_inputs,
    "codes and scales fitted by the inputs": fitted_by_inputs,
    "adapted layers at INT8": rounded_to_int8,
    f"codes kept, rank {LOW_RANK} of the adapter beside": beside_at_low_rank,
}


@torch.no_grad()
def merged_by(rule: Rule, source: object, deltas: Mapping[str, Tensor], moments: Mapping[str, Tensor]) -> nn.Module:
    """A fresh network with the adapter merged by a rule."""
    model = UnifiedDiffusionModel.from_pretrained(source, dtype=torch.float32)
    for name, seen in moments.items():  # closed layers see nothing, and their adapters have learned nothing
        rule(model.get_submodule(name), deltas[name], seen)
    return model


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
before, control = answers(base, test_rows)
shipped_bytes, count = stored_bytes(base), num_weights(base)
config = peft.LoraConfig(r=args.rank, lora_alpha=args.rank, target_modules=TARGETS)
adapted = peft.get_peft_model(base, config)
train(adapted, train_rows, args.learning_rate)
after, wanted = answers(adapted, test_rows)
adapter = {name: tensor.clone() for name, tensor in peft.get_peft_model_state_dict(adapted).items()}
layers = {name: x for name, x in adapted.base_model.model.named_modules() if isinstance(x, peft.tuners.lora.LoraLayer)}
deltas = {name: layer.get_delta_weight("default").detach() for name, layer in layers.items()}
steps = {name: layer.get_base_layer().weight_scale.float().mean() for name, layer in layers.items()}
share_of_a_step = torch.stack([deltas[name].square().mean().sqrt() / steps[name] for name in deltas]).mean().item()
moments = input_moments(adapted, layers, [{"input_ids": batch} for batch in train_rows.split(2)])


def row(network: str, nats: float, logs: Tensor, num_bytes: int) -> Row:
    """A line of the table; KL(unmerged || this) in nats per token."""
    return {
        "network": network,
        "perplexity": math.exp(nats),
        "gain kept": f"{(before - nats) / (before - after):.1%}",
        "KL from unmerged": (wanted.exp() * (wanted - logs)).sum(-1).mean().item(),
        "bits per weight": 8 * num_bytes / count,
    }


rows = [row("without the adapter (control)", before, control, shipped_bytes)]
rows.append(row("adapter, not merged", after, wanted, stored_bytes(adapted)))
for name, rule in RULES.items():
    model = merged_by(rule, source, deltas, moments)
    rows.append(row(name, *answers(model, test_rows), stored_bytes(model)))
    print(rows[-1], flush=True)
merged = adapted.merge_and_unload()
rows.append(
    row("codes kept, the adapter beside: merge_and_unload()", *answers(merged, test_rows), stored_bytes(merged))
)
dense = peft.get_peft_model(UnifiedDiffusionModel.from_pretrained(source).dequantize(torch.float32), config)
peft.set_peft_model_state_dict(dense, adapter)
dense = dense.merge_and_unload()
rows.append(row("merged into dense float32 (ceiling)", *answers(dense, test_rows), stored_bytes(dense)))
notes = [
    f"The adapter changes a weight by {share_of_a_step:.1%} of the step between its levels (root mean square, mean of "
    f"{len(deltas)} layers). Moments are those of the training rows, with the adapter. Bits per weight: all that is "
    "stored, over the weights of the network itself.",
]
report("lora_merge", {f"Held-out {args.modality}": rows}, shown, notes, args.output)
