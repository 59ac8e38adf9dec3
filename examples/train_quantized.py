"""Quantization-aware fine-tuning with self-distillation: INT2 and INT4 that answer as the dense network does.

    python examples/train_quantized.py runs/edge/model --bits 2 --output_dir runs/edge_int2 --loss_budget 0.077

The student computes with rounded weights, which start from calibrated codes; the teacher is the network it was. Nothing
is written unless the held-out loss of the rounded network, read in every way, is at most `--loss_budget` nats per token
above the dense one's: 0.077 are 8% of perplexity, 0.02 are 2%.
"""

import argparse
import copy
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm
from transformers import AutoTokenizer

from hf_unified_diffusion import ArrowQuantConfig, UnifiedDiffusionModel
from hf_unified_diffusion.conversion.export import write_checkpoint
from hf_unified_diffusion.quantization import bits_per_weight, calibrated_codes, quantize_model
from hf_unified_diffusion.quantization.integer import Codes
from hf_unified_diffusion.training.calibration_rows import calibration_batches
from hf_unified_diffusion.training.distillation import DistillationObjective
from hf_unified_diffusion.training.likelihood import held_out_likelihood
from hf_unified_diffusion.training.machine import fast_dtype
from hf_unified_diffusion.training.mixture import TokenRows
from hf_unified_diffusion.training.objective import ObjectiveConfig
from hf_unified_diffusion.training.quantization_aware import RoundedWeights, scales_of
from hf_unified_diffusion.training.run import LearningRate, RunSettings, TrainingRun
from hf_unified_diffusion.training.token_data import PackedTokens, bytes_per_token, pack_shards

WAYS = (None, 4, 16)  # causal, and blocks


def held_out_losses(model: UnifiedDiffusionModel, data: dict[str, PackedTokens], sizes, args) -> dict[str, float]:
    """Validation nats per token by modality and way of reading, under the same masks at each call."""
    losses, length = {}, args.sequence_length
    for modality, packed in data.items():
        count = args.evaluation_rows // args.train_batch_size
        rows = TokenRows(packed, args.train_batch_size, length)
        batches = [rows.batch(turn, seed=0) for turn in range(count)]
        for block_length in WAYS:
            name = f"{modality}/{'causal' if block_length is None else f'block{block_length}'}"
            found = held_out_likelihood(model, batches, sizes, block_length, draws=1, seed=1)
            losses[name] = found.nats_per_token
    return losses


def check_budget(losses: dict[str, float], dense: dict[str, float], budget: float) -> None:
    """End the script where a loss grew by more than the budget."""
    for name, loss in losses.items():
        print(f"{name:14} {dense[name]:.4f} nats per token dense, {loss:.4f} rounded, {loss - dense[name]:+.4f}")
    worst = max(losses[name] - dense[name] for name in losses)
    if not worst <= budget:
        raise SystemExit(f"the loss must grow by at most {budget} nats per token, got {worst:.4f}: nothing is written")


def go_on_from(model: UnifiedDiffusionModel, folder: Path, config: ArrowQuantConfig) -> dict[str, Codes]:
    """Give the network what an earlier run learned, and return that run's codes of the rounded layers.

    Their dense weights stay those of the network until `RoundedWeights` moves them to where they round to the codes.
    """
    earlier = UnifiedDiffusionModel.from_pretrained(folder)
    plan = {name: bits for name, bits in config.bits_of_layers(model).items() if bits < 8}
    scales = scales_of(earlier)
    layers = {name: earlier.get_submodule(name) for name in scales}
    found = {name: layer.bits for name, layer in layers.items()}
    if found != plan or any(layer.group_size != config.group_size for layer in layers.values()):
        raise ValueError(
            f"{folder} must have {len(plan)} layers of {config.bits} bits in groups of {config.group_size}, got "
            f"{len(found)} of {sorted(set(found.values()))} bits"
        )
    codes = {name: (layer.weight.clone(), scales[name]) for name, layer in layers.items()}
    learned = {k: v for k, v in earlier.dequantize().state_dict().items() if k.removesuffix(".weight") not in plan}
    model.load_state_dict(model.state_dict() | learned)
    return codes


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a dense folder with its tokenizer")
    parser.add_argument("--output_dir", type=Path, required=True, help="the checkpoint to write")
    parser.add_argument("--loss_budget", type=float, required=True, help="nats per token that rounding may cost")
    parser.add_argument("--initial_model", type=Path, help="what an earlier run wrote, to go on from; else calibrated")
    parser.add_argument("--bits", type=int, choices=[2, 4], default=2)
    parser.add_argument("--group_size", type=int, default=96)
    parser.add_argument("--int8_modules", nargs="*", default=["embeddings"], help="kept at 8 bits")
    parser.add_argument("--shards", type=Path, default=Path("data/shards"))
    parser.add_argument("--cache", type=Path, default=Path("runs/tokens"), help="of tokenized shards")
    parser.add_argument("--modalities", nargs="+", default=["text", "code"])
    parser.add_argument("--calibration_rows", type=int, default=32)
    parser.add_argument("--sequence_length", type=int, default=256)
    parser.add_argument("--train_batch_size", type=int, default=4)
    parser.add_argument("--max_train_steps", type=int, default=1000)
    parser.add_argument("--max_train_minutes", type=float, help="end sooner, after so many")
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--warmup_steps", type=int, default=20)
    parser.add_argument("--ema_decay", type=float, default=0.98)
    parser.add_argument("--evaluation_rows", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--earlier_stages", type=Path, nargs="*", default=[], help="output_dirs of the stages before")
    parser.add_argument("--license", default="apache-2.0")
    parser.add_argument("--base_model", help="that training started from")
    parser.add_argument(
        "--sources", nargs="*", default=[], help="of the corpus, that it was trained on; all by default"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    dtype = fast_dtype()
    accelerator = Accelerator(mixed_precision="bf16" if dtype is torch.bfloat16 else "no")
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    train, validation = (
        {
            modality: pack_shards(sorted(args.shards.glob(f"{split}/*.parquet")), tokenizer, modality, args.cache)
            for modality in args.modalities
        }
        for split in ("train", "validation")
    )
    sizes = bytes_per_token(tokenizer)
    model = UnifiedDiffusionModel.from_pretrained(args.model, dtype=torch.float32)
    dense = held_out_losses(model, validation, sizes, args)
    quantization = ArrowQuantConfig(
        args.bits, args.group_size, int8_modules=args.int8_modules, modules_to_not_convert=[]
    )
    teacher = copy.deepcopy(model)
    if args.initial_model is not None:
        codes = go_on_from(model, args.initial_model, quantization)
    else:
        batches = calibration_batches(
            train, args.calibration_rows, tokenizer.mask_token_id, args.sequence_length, seed=args.seed
        )
        with torch.autocast(model.device.type, dtype, enabled=dtype is not torch.float32):
            codes = calibrated_codes(model, quantization, batches)
    objective = DistillationObjective(model.train(), teacher, ObjectiveConfig(causal_weight=1.0))
    settings = RunSettings(args.seed, weight_decay=0.0, ema_decay=args.ema_decay)
    data = [TokenRows(packed, args.train_batch_size, args.sequence_length) for packed in train.values()]
    rounded = RoundedWeights(model, quantization, codes=codes)
    run = TrainingRun(accelerator, objective, data, tokenizer, settings, rounded)
    rate = LearningRate(args.learning_rate, args.warmup_steps)
    with tqdm(total=args.max_train_steps, unit="step") as bar:
        bounds = args.max_train_steps, args.max_train_minutes
        while run.progress.step < args.max_train_steps and (share := run.progress.share(*bounds)) < 1:
            record = run.step(rate, share)
            bar.set_postfix({name: f"{value:.3f}" for name, value in record.items() if name.endswith("/loss")})
            bar.update()
    with run.averaged() as averaged:
        # the layers that no calibration row reached are rounded as the dense network's would be
        quantized = quantize_model(copy.deepcopy(averaged).cpu().eval(), quantization, rounded.codes())
    check_budget(held_out_losses(quantized, validation, sizes, args), dense, args.loss_budget)
    stages = {one.name: json.loads((one / "state" / "progress.json").read_text()) for one in args.earlier_stages}
    stage, taken = f"int{args.bits}_distillation", asdict(run.progress)
    if args.initial_model is not None:  # what the earlier run took was taken too
        before = json.loads((args.initial_model / "metadata.json").read_text())["training"][stage]
        taken = {name: value + before[name] for name, value in taken.items()}
    stages[stage] = taken
    facts = {"training": stages, "calibration_rows": args.calibration_rows, "license": args.license}
    facts |= {"base_model": args.base_model, "training_sources": args.sources}
    write_checkpoint(quantized, tokenizer, args.output_dir, args.modalities, **facts)
    print(f"{bits_per_weight(quantized):.2f} bits per weight in {args.output_dir}")


if __name__ == "__main__":
    main()
