"""Train the image codec: a small `diffusers.AutoencoderDC` on the captioned pictures, with latents made for diffusion.

    OMP_NUM_THREADS=1 python examples/train_image_codec.py --output_dir runs/image_codec --max_train_minutes 35
    OMP_NUM_THREADS=1 python examples/train_image_codec.py --output_dir runs/image_codec --resume --export_only

The finished codec is `OUTPUT_DIR/vae` (safetensors); the normalization of the latents is folded into its weights.
`--resume` goes on from the last checkpoint; pictures are then drawn anew. Shards that change while it runs
(`make data-images`) are found at the next pass over the pictures.
"""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from tqdm.auto import tqdm
from transformers import HfArgumentParser

from hf_unified_diffusion.training.codec_initialization import initialize_linear
from hf_unified_diffusion.training.codec_objective import (
    CHANNELS,
    DECODER_LAYERS,
    ENCODER_LAYERS,
    CodecLossConfig,
    CodecObjective,
    EarlyFeatures,
    convolutional_autoencoder,
    fold_normalization,
    psnr_db,
)
from hf_unified_diffusion.training.image_views import PictureViews, pixels_of
from hf_unified_diffusion.training.machine import check_precision, precision_of
from hf_unified_diffusion.training.run import LearningRate
from hf_unified_diffusion.training.run_log import append_record, forget_after

STATE = "state.pt"


@dataclass
class Arguments:
    """Command line; names as in the scripts of diffusers."""

    output_dir: str
    train_data_dir: str = "data/image_pictures/train"
    validation_data_dir: str = "data/image_pictures/validation"
    latent_channels: int = 64
    channels: list[int] = field(default_factory=lambda: list(CHANNELS))
    encoder_layers: list[int] = field(default_factory=lambda: list(ENCODER_LAYERS))
    decoder_layers: list[int] = field(default_factory=lambda: list(DECODER_LAYERS))
    resolution: int = 128
    large_resolution: int = 256
    large_share: float = 0.15  # of the steps: a quarter of the pictures at the large resolution
    train_batch_size: int = 16
    max_train_steps: int = 1_000_000
    max_train_minutes: float = 35.0  # the learning rate follows the clock
    learning_rate: float = 1e-3
    warmup_steps: int = 50
    weight_decay: float = 0.01
    adam_beta2: float = 0.98
    max_grad_norm: float = 1.0
    edge_weight: float = 0.5
    perceptual_weight: float = 0.1
    initialization_pictures: int = 400  # whose principal components the codec starts from
    perceptual_steps: int = 2  # the perceptual loss counts in every so many steps
    latent_noise: float = 0.15
    frozen_statistics_share: float = 0.15  # at the end the latents are normalized as they will be in use
    mixed_precision: str = "auto"
    validation_minutes: float = 3.0
    validation_pictures: int = 32
    checkpointing_minutes: float = 3.0
    resume: bool = False
    export_only: bool = False
    seed: int = 0

    def __post_init__(self):
        check_precision(self.mixed_precision)
        for name in ("train_batch_size", "validation_pictures", "perceptual_steps", "max_train_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_train_minutes <= 0:
            raise ValueError(f"max_train_minutes must be above 0, got {self.max_train_minutes}")


@torch.no_grad()
def validate(objective: CodecObjective, pictures: torch.Tensor, accelerator: Accelerator) -> dict[str, float]:
    """PSNR in dB of held-out pictures as the codec will be used, and how far latents are from unit variance."""
    objective.eval()
    found, latents = [], []
    for batch in pictures.split(4):
        with accelerator.autocast():
            encoded = objective.normalization(objective.vae.encoder(batch).float())
            found.append(psnr_db(objective.vae.decoder(encoded).float(), batch))
        latents.append(encoded)
    objective.train()
    std = torch.cat(latents).std(dim=(0, 2, 3))
    return {
        "validation/psnr_db": torch.cat(found).mean().item(),
        "validation/latent_std_min": std.min().item(),
        "validation/latent_std_max": std.max().item(),
    }


def held_out_pictures(args: Arguments) -> torch.Tensor:
    """The first pictures of the validation split, the same ones each time."""
    rows = PictureViews(Path(args.validation_data_dir), seed=0)
    found = [
        pixels_of(png, args.large_resolution)
        for png, _ in zip(rows.pass_once(), range(args.validation_pictures), strict=False)
    ]
    return torch.stack(found).to(memory_format=torch.channels_last)


def save_state(out: Path, objective: CodecObjective, optimizer, step: int, seconds: float) -> None:
    """Weights, statistics and optimizer, written beside and swapped in."""
    state = {
        "vae": objective.vae.state_dict(),
        "normalization": objective.normalization.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "seconds": seconds,
    }
    torch.save(state, out / f"{STATE}.partial")
    (out / f"{STATE}.partial").rename(out / STATE)


def export(out: Path, objective: CodecObjective) -> None:
    """Write `vae`, the normalization folded in."""
    statistics = objective.normalization
    std = (statistics.running_var + statistics.eps).sqrt()
    folded = fold_normalization(objective.vae, statistics.running_mean, std).to(memory_format=torch.contiguous_format)
    folded.save_pretrained(out / "vae")


def main(argv: Sequence[str] | None = None) -> CodecObjective:
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses(args=argv)
    out = Path(args.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    dtype = precision_of(args.mixed_precision)
    accelerator = Accelerator(mixed_precision="bf16" if dtype is torch.bfloat16 else "no")
    set_seed(args.seed)
    losses = CodecLossConfig(
        edge_weight=args.edge_weight, perceptual_weight=args.perceptual_weight, latent_noise=args.latent_noise
    )
    shape = args.latent_channels, args.channels, args.encoder_layers, args.decoder_layers
    vae = convolutional_autoencoder(*shape).to(memory_format=torch.channels_last)
    objective = CodecObjective(vae, losses).to(accelerator.device)
    features = EarlyFeatures().to(accelerator.device) if args.perceptual_weight > 0 else None
    optimizer = torch.optim.AdamW(
        objective.parameters(), args.learning_rate, betas=(0.9, args.adam_beta2), weight_decay=args.weight_decay
    )
    step, seconds = 0, 0.0
    if not args.resume:
        pictures = PictureViews(Path(args.train_data_dir), args.seed).batch(args.initialization_pictures, 256)
        initialize_linear(objective.vae, pictures.to(accelerator.device))
    else:
        state = torch.load(out / STATE, weights_only=True, map_location=accelerator.device)
        objective.vae.load_state_dict(state["vae"])
        objective.normalization.load_state_dict(state["normalization"])
        optimizer.load_state_dict(state["optimizer"])
        step, seconds = state["step"], state["seconds"]
    if not args.export_only:
        (out / "arguments.json").write_text(json.dumps(asdict(args), indent=1))
        objective, optimizer = accelerator.prepare(objective, optimizer)
        follow(args, accelerator, objective, features, optimizer, step, seconds)
    objective = accelerator.unwrap_model(objective)
    export(out, objective.eval())
    return objective


def follow(
    args: Arguments, accelerator: Accelerator, objective, features, optimizer, step: int, seconds: float
) -> None:
    """Step, log, validate and save until the minutes or the steps are used up."""
    out, inner = Path(args.output_dir), accelerator.unwrap_model(objective)
    parameters = sum(p.numel() for p in inner.vae.parameters())
    accelerator.print(f"{parameters / 1e6:.2f}M parameters in {accelerator.mixed_precision}")
    forget_after(out / "log.jsonl", step)
    views = PictureViews(Path(args.train_data_dir), args.seed + step)
    held_out = held_out_pictures(args).to(accelerator.device)
    bar = tqdm(total=60 * args.max_train_minutes, initial=seconds, unit="s", bar_format="{l_bar}{bar}| {postfix}")
    saved = validated = seconds
    bar.write(f"start: {validate(inner, held_out, accelerator)}")
    inner.train()
    while step < args.max_train_steps and seconds < 60 * args.max_train_minutes:
        started, done = time.monotonic(), max(seconds / 60 / args.max_train_minutes, step / args.max_train_steps)
        record = train_step(args, accelerator, objective, features, optimizer, views, step, done)
        step, seconds = step + 1, seconds + time.monotonic() - started
        finished = step >= args.max_train_steps or seconds >= 60 * args.max_train_minutes
        record |= {"step": step, "seconds": seconds}
        if finished or seconds - validated > 60 * args.validation_minutes:
            record |= validate(inner, held_out, accelerator)
            bar.write(f"step {step}, {seconds / 60:.1f} min: {record['validation/psnr_db']:.2f} dB")
            validated = seconds
        append_record(out / "log.jsonl", record)
        bar.update(seconds - bar.n)
        bar.set_postfix(step=step, loss=f"{record['loss']:.3f}", psnr=f"{record['psnr_db']:.2f}")
        if finished or seconds - saved > 60 * args.checkpointing_minutes:
            save_state(out, inner, optimizer, step, seconds)
            saved = seconds
    bar.close()


def train_step(args, accelerator, objective, features, optimizer, views: PictureViews, step: int, done: float) -> dict:
    """One step of the optimizer; returns what is logged of it."""
    inner = accelerator.unwrap_model(objective)
    inner.normalization.train(done < 1 - args.frozen_statistics_share)
    inner.features = features if step % args.perceptual_steps == 0 else None
    is_large = views.rng.random() < args.large_share
    side, size = (
        (args.large_resolution, max(1, args.train_batch_size // 4))
        if is_large
        else (args.resolution, args.train_batch_size)
    )
    pixels = views.batch(size, side).to(accelerator.device)
    with accelerator.autocast():
        losses = objective(pixels)
    accelerator.backward(losses["loss"])
    norm = accelerator.clip_grad_norm_(inner.vae.parameters(), args.max_grad_norm)
    rate = LearningRate(args.learning_rate, args.warmup_steps, final_share=0.01)
    for group in optimizer.param_groups:
        group["lr"] = rate.at(step, done)
    optimizer.step()
    optimizer.zero_grad()
    record = {name: value.item() for name, value in losses.items()}
    return record | {
        "psnr_db": -10 * math.log10(record["squared"] / 4),
        "grad_norm": float(norm),
        "side": side,
        "lr": optimizer.param_groups[0]["lr"],
    }


if __name__ == "__main__":
    main()
