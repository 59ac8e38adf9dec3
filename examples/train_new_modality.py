"""Give a checkpoint a modality it has never seen, and train its head alone; nothing else of the network changes.

    python examples/train_new_modality.py --data_file elevation.npz --output_dir runs/elevation

The data is a two-dimensional array of numbers (.npy, or a key of an .npz): patches are tokens, rows of patches are
sequences. The lowest share of its rows is held out. What trains is the modality's embedding, projection and head.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from jaxtyping import Float
from torch import Generator, Tensor, nn
from transformers import HfArgumentParser

from hf_unified_diffusion import Segment, UnifiedDiffusionModel
from hf_unified_diffusion.modeling.embedded import EMBEDDED_CHECKPOINT
from hf_unified_diffusion.processes.gaussian import GaussianFlow
from hf_unified_diffusion.processes.times import antithetic_times
from hf_unified_diffusion.quantization import dequantize_model, num_weights
from hf_unified_diffusion.training.run import LearningRate, adamw
from hf_unified_diffusion.training.run_log import append_record

FLOW = GaussianFlow()


@dataclass
class Arguments:
    """Command line."""

    data_file: str
    output_dir: str
    data_key: str | None = None  # of an .npz; the largest array by default
    model_name_or_path: str = str(EMBEDDED_CHECKPOINT)
    modality: str = "elevation"
    patch_size: int = 8
    sequence_length: int = 16  # patches
    validation_share: float = 0.2
    train_batch_size: int = 8
    max_train_steps: int = 60
    learning_rate: float = 1e-2
    warmup_steps: int = 5
    validation_steps: int = 20
    push_to_hub: bool = False
    hub_model_id: str | None = None
    seed: int = 0


def load_patches(args: Arguments) -> tuple[Float[Tensor, "train length width"], Float[Tensor, "held_out length width"]]:
    """Sequences of patches, of zero mean and unit variance over the training part."""
    given = np.load(args.data_file, allow_pickle=False)
    if not isinstance(given, np.ndarray):
        given = given[args.data_key or max(given.files, key=lambda name: given[name].size)]
    if given.ndim != 2:
        raise ValueError(f"data must be a two-dimensional array, got {given.ndim} dimensions")
    size, length = args.patch_size, args.sequence_length
    height, width = (side // size for side in given.shape)
    grid = torch.from_numpy(given[: height * size, : width * size].astype(np.float32))
    patches = grid.view(height, size, width, size).transpose(1, 2).flatten(2)
    sequences = patches.unfold(1, length, length).transpose(2, 3)  # (rows of patches, sequences, length, width)
    train_rows = height - max(1, round(height * args.validation_share))
    train, held_out = sequences[:train_rows].flatten(0, 1), sequences[train_rows:].flatten(0, 1)
    mean, deviation = train.mean(), train.std()
    return (train - mean) / deviation, (held_out - mean) / deviation


def trained_parts(model: UnifiedDiffusionModel, modality: str) -> list[nn.Parameter]:
    """Freeze all but what belongs to the modality."""
    model.requires_grad_(False)
    parts = [model.modality_embedding[modality]]
    parts += [*model.projections[modality].parameters(), *model.heads[modality].parameters()]
    for parameter in parts:
        parameter.requires_grad_(True)
    return parts


def loss_of(model: nn.Module, x_0: Tensor, t: Tensor, modality: str, generator: Generator) -> Float[Tensor, ""]:
    """Mean squared error of the clean sample."""
    x_t = FLOW.corrupt(x_0, t, generator)
    clean = model(segments=[Segment(modality, x_t, time=t)]).predictions[0]
    return FLOW.loss(clean.float(), x_0, x_t, t).mean()


@torch.no_grad()
def evaluate(model: nn.Module, held_out: Tensor, modality: str) -> float:
    """The loss on held-out sequences, at the same times and noise each time."""
    generator = Generator().manual_seed(1)
    t = (torch.arange(len(held_out)) + 0.5) / len(held_out)
    return loss_of(model, held_out, t, modality, generator).item()


def main(argv: Sequence[str] | None = None) -> list[float]:
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses(args=argv)
    accelerator, out = Accelerator(), Path(args.output_dir)
    set_seed(args.seed)
    train, held_out = (part.to(accelerator.device) for part in load_patches(args))
    model = UnifiedDiffusionModel.from_pretrained(args.model_name_or_path)
    dequantize_model(model)
    model.add_modality(args.modality, width=args.patch_size**2)
    parts = trained_parts(model, args.modality)
    share = sum(part.numel() for part in parts) / num_weights(model)
    accelerator.print(f"{sum(part.numel() for part in parts):,} parameters train ({share:.2%})")
    network, optimizer = accelerator.prepare(model, adamw(parts, weight_decay=0.0, beta2=0.98))
    rate, generator = LearningRate(args.learning_rate, args.warmup_steps), Generator().manual_seed(args.seed)
    losses = [evaluate(model, held_out, args.modality)]
    control = held_out.square().mean().item()
    accelerator.print(f"step 0: held-out error {losses[-1]:.4f}; of answering with the training mean: {control:.4f}")
    for step in range(args.max_train_steps):
        for group in optimizer.param_groups:
            group["lr"] = rate.at(step, step / args.max_train_steps)
        rows = torch.randint(0, len(train), (args.train_batch_size,), generator=generator)
        t = antithetic_times(args.train_batch_size, generator)
        loss = loss_of(network, train[rows], t, args.modality, generator)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        record = {"step": step + 1, "loss": loss.item()}
        if (step + 1) % args.validation_steps == 0 or step + 1 == args.max_train_steps:
            losses.append(evaluate(model, held_out, args.modality))
            record["validation"] = losses[-1]
            accelerator.print(f"step {step + 1}: held-out error {losses[-1]:.4f}")
        if accelerator.is_main_process:
            out.mkdir(parents=True, exist_ok=True)
            append_record(out / "log.jsonl", record)
    if accelerator.is_main_process:
        supported = model.checkpoint_facts.pop("supported_modalities", [])
        about = {f"held-out error of {args.modality}": losses[-1], "of answering with the mean": control}
        model.checkpoint_facts |= {"evaluation": about, "supported_modalities": sorted({*supported, args.modality})}
        model.save_pretrained(out / "model")
        (out / "losses.json").write_text(json.dumps(losses))
        if args.push_to_hub:
            model.push_to_hub(args.hub_model_id or out.name)
    return losses


if __name__ == "__main__":
    main()
