"""Train the image codec: a small `diffusers.AutoencoderDC` on the captioned pictures, with latents made for diffusion.

    OMP_NUM_THREADS=1 python examples/train_image_codec.py --output_dir runs/image_codec --max_train_minutes 60
    OMP_NUM_THREADS=1 python examples/train_image_codec.py --output_dir runs/image_codec --resume --export_only

It starts as the best linear codec; only the decoder is trained, so the latents stay the same from then on. The finished
codec is `OUTPUT_DIR/vae` (Parquet, INT8), with the moving average of the weights. `--resume` goes on from the last
checkpoint; pictures are then drawn anew. Shards that change while it runs are found at the next pass over the pictures.
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
from diffusers.training_utils import EMAModel
from tqdm.auto import tqdm
from transformers import HfArgumentParser

from hf_unified_diffusion.modeling.diffusers_weights import save_diffusers_model
from hf_unified_diffusion.quantization.parquet_writer import fsync_path
from hf_unified_diffusion.training.codec_initialization import initialize_linear
from hf_unified_diffusion.training.codec_objective import (
    CHANNELS,
    DECODER_LAYERS,
    ENCODER_LAYERS,
    CodecLossConfig,
    CodecObjective,
    EarlyFeatures,
    convolutional_autoencoder,
    decoder_parameters,
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
    latent_channels: int = 128
    channels: list[int] = field(default_factory=lambda: list(CHANNELS))
    encoder_layers: list[int] = field(default_factory=lambda: list(ENCODER_LAYERS))
    decoder_layers: list[int] = field(default_factory=lambda: list(DECODER_LAYERS))
    resolution: int = 128
    large_resolution: int = 256
    large_share: float = 0.15  # of the steps: a quarter of the pictures at the large resolution
    train_batch_size: int = 16
    max_train_steps: int = 1_000_000
    max_train_minutes: float = 60.0  # the learning rate follows the clock
    learning_rate: float = 5e-4
    linear_rate_share: float = 0.1  # of it, for what the linear start has set already
    warmup_steps: int = 100
    adam_beta2: float = 0.98
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999  # at most; it starts lower
    edge_weight: float = 0.5
    perceptual_weight: float = 0.1
    perceptual_steps: int = 2  # the perceptual loss counts in every so many steps
    latent_noise: float = 0.05
    initialization_pictures: int = 1600  # views at `resolution`, and an eighth as many at `large_resolution`
    mixed_precision: str = "auto"
    validation_minutes: float = 3.0
    validation_pictures: int = 32
    checkpointing_minutes: float = 5.0
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
def validate(training: "CodecTraining", pictures: torch.Tensor) -> dict[str, float]:
    """PSNR in dB of held-out pictures by the averaged weights."""
    objective, parameters = training.objective, training.parameters
    objective.eval()
    training.ema.store(parameters)
    training.ema.copy_to(parameters)
    found = []
    for batch in pictures.split(4):
        with training.accelerator.autocast():
            found.append(psnr_db(objective.reconstruct(batch, noise=0.0).float(), batch))
    training.ema.restore(parameters)
    objective.train()
    return {"validation/psnr_db": torch.cat(found).mean().item()}


def held_out_pictures(args: Arguments) -> torch.Tensor:
    """The first pictures of the validation split, the same ones each time."""
    rows = PictureViews(Path(args.validation_data_dir), seed=0)
    found = [
        pixels_of(png, args.large_resolution)
        for png, _ in zip(rows.pass_once(), range(args.validation_pictures), strict=False)
    ]
    return torch.stack(found).to(memory_format=torch.channels_last)


class CodecTraining:
    """An objective, its optimizer and the moving average of what it trains; where the run is."""

    def __init__(self, args: Arguments):
        self.args = args
        dtype = precision_of(args.mixed_precision)
        self.accelerator = Accelerator(mixed_precision="bf16" if dtype is torch.bfloat16 else "no")
        losses = CodecLossConfig(
            edge_weight=args.edge_weight, perceptual_weight=args.perceptual_weight, latent_noise=args.latent_noise
        )
        shape = args.latent_channels, args.channels, args.encoder_layers, args.decoder_layers
        vae = convolutional_autoencoder(*shape).to(memory_format=torch.channels_last)
        self.objective = CodecObjective(vae, losses).to(self.accelerator.device)
        self.features = EarlyFeatures().to(self.accelerator.device) if args.perceptual_weight > 0 else None
        groups = zip(decoder_parameters(vae), (1.0, args.linear_rate_share), strict=True)
        self.optimizer = torch.optim.Adam(
            [{"params": parameters, "share": share} for parameters, share in groups], betas=(0.9, args.adam_beta2)
        )
        self.parameters = list(vae.decoder.parameters())
        self.step, self.seconds = 0, 0.0

    def start(self) -> None:
        """The best linear codec of the training pictures."""
        args = self.args
        views = PictureViews(Path(args.train_data_dir), args.seed, recolour=False)
        count = args.initialization_pictures
        sizes = ((count, args.resolution), (max(1, count // 8), args.large_resolution))
        initialize_linear(self.objective.vae, [views.batch(*size).to(self.accelerator.device) for size in sizes])
        self.average()

    def average(self) -> None:
        """A moving average that begins at the weights as they are."""
        self.ema = EMAModel(self.parameters, decay=self.args.ema_decay, use_ema_warmup=True)

    def restore(self, path: Path) -> None:
        """Go on from what `save` wrote."""
        state = torch.load(path, weights_only=True, map_location=self.accelerator.device)
        self.objective.vae.load_state_dict(state["vae"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average()
        self.ema.load_state_dict(state["ema"])
        self.step, self.seconds = state["step"], state["seconds"]

    def save(self, path: Path) -> None:
        """Weights, average and optimizer, written beside and swapped in."""
        state = {
            "vae": self.objective.vae.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        fsync_path(partial)
        partial.rename(path)

    def done(self) -> float:
        """The share of the minutes or of the steps that is used up; it ends at 1."""
        return max(self.seconds / 60 / self.args.max_train_minutes, self.step / self.args.max_train_steps)

    def train_step(self, views: PictureViews) -> dict[str, float]:
        """One step of the optimizer; returns what is logged of it."""
        args, accelerator, began = self.args, self.accelerator, time.monotonic()
        self.objective.features = self.features if self.step % args.perceptual_steps == 0 else None
        is_large = views.rng.random() < args.large_share
        size = max(1, args.train_batch_size // 4) if is_large else args.train_batch_size
        side = args.large_resolution if is_large else args.resolution
        pixels = views.batch(size, side).to(accelerator.device)
        with accelerator.autocast():
            losses = self.objective(pixels)
        accelerator.backward(losses["loss"])
        norm = accelerator.clip_grad_norm_(self.parameters, args.max_grad_norm)
        rate = LearningRate(args.learning_rate, args.warmup_steps, final_share=0.01).at(self.step, self.done())
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.parameters)
        self.step, self.seconds = self.step + 1, self.seconds + time.monotonic() - began
        record = {name: value.item() for name, value in losses.items()}
        progress = {"step": self.step, "seconds": self.seconds, "side": side, "lr": rate, "grad_norm": float(norm)}
        return {**record, "psnr_db": -10 * math.log10(record["squared"] / 4), **progress}


def export(training: CodecTraining, folder: Path) -> None:
    """The averaged autoencoder as Parquet, INT8; one that is there is replaced."""
    training.ema.copy_to(training.parameters)
    vae = training.objective.vae.to(memory_format=torch.contiguous_format).eval()
    save_diffusers_model(vae, folder, {"license": "apache-2.0", "steps": training.step}, int8=True)


def main(argv: Sequence[str] | None = None) -> CodecObjective:
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses(args=argv)
    out = Path(args.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    set_seed(args.seed)
    training = CodecTraining(args)
    if args.resume:
        training.restore(out / STATE)
    else:
        training.start()
    if not args.export_only:
        (out / "arguments.json").write_text(json.dumps(asdict(args), indent=1))
        follow(training, out)
    export(training, out / "vae")
    return training.objective


def follow(training: CodecTraining, out: Path) -> None:
    """Step, log, validate and save until the minutes or the steps are used up."""
    args = training.args
    trained = sum(parameter.numel() for parameter in training.parameters)
    print(f"{trained / 1e6:.2f}M parameters in {training.accelerator.mixed_precision}")
    forget_after(out / "log.jsonl", training.step)
    views = PictureViews(Path(args.train_data_dir), args.seed + training.step)
    held_out = held_out_pictures(args).to(training.accelerator.device)
    minutes = 60 * args.max_train_minutes
    bar = tqdm(total=minutes, initial=training.seconds, unit="s", bar_format="{l_bar}{bar}| {postfix}")
    saved = validated = training.seconds
    bar.write(f"start: {validate(training, held_out)}")
    training.objective.train()
    while training.done() < 1:
        record = training.train_step(views)
        if training.done() >= 1 or training.seconds - validated > 60 * args.validation_minutes:
            record |= validate(training, held_out)
            bar.write(f"step {training.step}, {training.seconds / 60:.1f} min: {record['validation/psnr_db']:.2f} dB")
            validated = training.seconds
        append_record(out / "log.jsonl", record)
        bar.update(training.seconds - bar.n)
        bar.set_postfix(step=training.step, loss=f"{record['loss']:.3f}", psnr=f"{record['psnr_db']:.2f}")
        if training.done() >= 1 or training.seconds - saved > 60 * args.checkpointing_minutes:
            training.save(out / STATE)
            saved = training.seconds
    bar.close()


if __name__ == "__main__":
    main()
