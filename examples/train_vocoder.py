"""Train the vocoder on the speech shards; it starts as an analytic one, and may be stopped and resumed.

    OMP_NUM_THREADS=1 python examples/train_vocoder.py --output_dir runs/vocoder --max_train_minutes 60
    OMP_NUM_THREADS=1 python examples/train_vocoder.py --output_dir runs/vocoder --resume
    OMP_NUM_THREADS=1 python examples/train_vocoder.py --output_dir runs/vocoder --export_dir my-vocoder --bits 8

Minutes are of the process' own work, so that a busy machine does not shorten a run. `OUTPUT_DIR/model` has the moving
average of the weights as safetensors, `OUTPUT_DIR/samples` what it makes of held-out speech. Shards that are written
meanwhile (`make data-speech`) are read too. With `--export_dir` nothing is trained: the averaged weights are rounded to
`--bits` and written as Parquet.
"""

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import soundfile
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers.training_utils import EMAModel
from tqdm.auto import tqdm
from transformers import HfArgumentParser

from hf_unified_diffusion import ArrowQuantConfig
from hf_unified_diffusion.codecs.mel import log_mel
from hf_unified_diffusion.folders import replacing
from hf_unified_diffusion.modeling.configuration_vocoder import UnifiedVocoderConfig
from hf_unified_diffusion.modeling.vocoder import UnifiedVocoderModel
from hf_unified_diffusion.quantization.quantizer_arrowquant import quantize_model
from hf_unified_diffusion.training.run import LearningRate, adamw
from hf_unified_diffusion.training.run_log import append_record, forget_after
from hf_unified_diffusion.training.speech_clips import SpeechClips
from hf_unified_diffusion.training.vocoder_objective import VocoderLossConfig, VocoderObjective

STATE = "state.pt"
SAMPLES = 4


@dataclass
class Arguments:
    """Command line; names as in the scripts of diffusers."""

    output_dir: str
    train_data_dir: str = "data/speech/train"
    validation_data_dir: str = "data/speech/validation"
    model_name_or_path: str | None = None  # a vocoder to go on from; it brings the two sizes below
    hidden_size: int = 320
    num_hidden_layers: int = 7
    clip_frames: int = 64  # 0.8 s
    train_batch_size: int = 8
    max_train_steps: int = 1_000_000
    max_train_minutes: float = 60.0  # the learning rate follows them
    learning_rate: float = 1e-3
    warmup_steps: int = 50
    weight_decay: float = 0.01
    adam_beta2: float = 0.98
    max_grad_norm: float = 1.0
    ema_decay: float = 0.998
    validation_minutes: float = 5.0
    validation_clips: int = 16
    checkpointing_minutes: float = 5.0
    resume: bool = False
    export_dir: str | None = None
    bits: int = 8
    seed: int = 0

    def __post_init__(self):
        for name in ("clip_frames", "train_batch_size", "max_train_steps", "validation_clips"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_train_minutes <= 0:
            raise ValueError(f"max_train_minutes must be above 0, got {self.max_train_minutes}")


def initial_vocoder(args: Arguments) -> UnifiedVocoderModel:
    """The analytic vocoder, or a trained one with its rounded weights as floats."""
    if args.model_name_or_path is None:
        shape = {"hidden_size": args.hidden_size, "num_hidden_layers": args.num_hidden_layers}
        return UnifiedVocoderModel(UnifiedVocoderConfig(intermediate_size=3 * args.hidden_size, **shape))
    vocoder = UnifiedVocoderModel.from_pretrained(args.model_name_or_path, dtype=torch.float32)
    return vocoder.dequantize() if getattr(vocoder, "is_quantized", False) else vocoder


class VocoderRun:
    """Vocoder, optimizer, average and data of a run.

    Usage: `run = VocoderRun(args); run.follow()`
    """

    def __init__(self, args: Arguments):
        self.args, self.out = args, Path(args.output_dir)
        self.accelerator = Accelerator(mixed_precision="no")
        set_seed(args.seed)
        self.vocoder = initial_vocoder(args)
        optimizer = adamw(list(self.vocoder.parameters()), args.weight_decay, args.adam_beta2)
        objective = VocoderObjective(self.vocoder, VocoderLossConfig())
        self.objective, self.optimizer = self.accelerator.prepare(objective, optimizer)
        self.parameters = list(self.vocoder.parameters())
        self.ema = EMAModel(self.parameters, decay=args.ema_decay, use_ema_warmup=True, power=0.75)
        self.step, self.seconds = 0, 0.0
        if args.resume:
            self.load()
        samples = args.clip_frames * self.vocoder.config.hop
        self.clips = SpeechClips(Path(args.train_data_dir), samples, args.seed + self.step)
        self.held_out = SpeechClips(Path(args.validation_data_dir), samples, seed=0).batch(args.validation_clips)

    @property
    def progress(self) -> float:
        """How much of the minutes or of the steps is used up."""
        return max(self.seconds / 60 / self.args.max_train_minutes, self.step / self.args.max_train_steps)

    def train_step(self) -> dict[str, float]:
        """One step of the optimizer; returns what is logged of it."""
        began = time.process_time()
        losses = self.objective(self.clips.batch(self.args.train_batch_size).to(self.accelerator.device))
        self.accelerator.backward(losses["loss"])
        norm = float(self.accelerator.clip_grad_norm_(self.parameters, self.args.max_grad_norm))
        if not math.isfinite(norm):
            raise FloatingPointError(f"the gradient must be finite, got norm {norm} in step {self.step + 1}")
        rate = LearningRate(self.args.learning_rate, self.args.warmup_steps, final_share=0.02)
        for group in self.optimizer.param_groups:
            group["lr"] = rate.at(self.step, self.progress)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.parameters)
        self.step, self.seconds = self.step + 1, self.seconds + time.process_time() - began
        record = {name: value.item() for name, value in losses.items()}
        return {"step": self.step, "seconds": self.seconds, **record, "grad_norm": norm}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Losses of held-out clips by the averaged weights, and samples: as it was, and as the vocoder makes it."""
        folder = self.out / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        with self.averaged() as vocoder:
            losses = VocoderObjective(vocoder, VocoderLossConfig())(self.held_out)
            made = vocoder(log_mel(self.held_out[:SAMPLES])).clamp(-1, 1)
        for index in range(len(made)):
            for name, sound in (("held-out", self.held_out[index]), (f"step-{self.step:06d}", made[index])):
                soundfile.write(folder / f"{index}-{name}.wav", sound.numpy(), self.vocoder.config.sampling_rate_hz)
        return {f"validation/{name}": value.item() for name, value in losses.items()}

    def save(self) -> None:
        """Write the averaged vocoder and the state, each beside its place, and swap them in."""
        state = {
            "vocoder": self.vocoder.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        torch.save(state, self.out / f"{STATE}.partial")
        (self.out / f"{STATE}.partial").rename(self.out / STATE)
        with self.averaged() as vocoder, replacing(self.out / "model") as partial:
            vocoder.save_pretrained(partial)

    def load(self) -> None:
        """Go on from the state."""
        state = torch.load(self.out / STATE, weights_only=True, map_location=self.accelerator.device)
        self.vocoder.load_state_dict(state["vocoder"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.load_state_dict(state["ema"])
        self.step, self.seconds = state["step"], state["seconds"]

    @contextmanager
    def averaged(self) -> Iterator[UnifiedVocoderModel]:
        """The vocoder with the average of its weights; the trained ones come back afterwards."""
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        try:
            yield self.vocoder
        finally:
            self.ema.restore(self.parameters)

    def follow(self) -> None:
        """Step, log, validate and save until the minutes or the steps are used up."""
        args, out = self.args, self.out
        out.mkdir(parents=True, exist_ok=True)
        (out / "arguments.json").write_text(json.dumps(asdict(args), indent=1))
        forget_after(out / "log.jsonl", self.step)
        count = sum(parameter.numel() for parameter in self.parameters)
        self.accelerator.print(f"{count / 1e6:.2f}M parameters, {self.clips.seconds / 60:.1f} minutes of speech")
        bar = tqdm(total=60 * args.max_train_minutes, initial=self.seconds, bar_format="{l_bar}{bar}| {postfix}")
        saved = validated = -math.inf  # by the wall clock
        while self.progress < 1:
            record = self.train_step()
            finished = self.progress >= 1
            now = time.monotonic()
            if finished or now - validated > 60 * args.validation_minutes:
                self.clips.refresh()
                record |= self.validate() | {"minutes_of_speech": self.clips.seconds / 60}
                bar.write(json.dumps(record))
                validated = now
            append_record(out / "log.jsonl", record)
            bar.update(self.seconds - bar.n)
            bar.set_postfix(step=self.step, loss=f"{record['loss']:.3f}", mel=f"{record['mel']:.3f}")
            if finished or now - saved > 60 * args.checkpointing_minutes:
                self.save()
                saved = now
        bar.close()


def export(args: Arguments) -> UnifiedVocoderModel:
    """Round the averaged vocoder of a run and write it as Parquet."""
    vocoder = UnifiedVocoderModel.from_pretrained(Path(args.output_dir) / "model", dtype=torch.float32)
    quantize_model(vocoder, ArrowQuantConfig(args.bits, 64, int8_modules=[], modules_to_not_convert=["envelope"]))
    progress = json.loads((Path(args.output_dir) / "log.jsonl").read_text().splitlines()[-1])
    training = {name: progress[name] for name in ("step", "seconds")}
    vocoder.save_pretrained(args.export_dir, metadata={"training": training, "license": "apache-2.0"})
    return vocoder


def main(argv: Sequence[str] | None = None) -> UnifiedVocoderModel:
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses(args=argv)
    if args.export_dir is not None:
        return export(args)
    run = VocoderRun(args)
    run.follow()
    return run.vocoder.eval()


if __name__ == "__main__":
    main()
