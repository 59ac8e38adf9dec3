"""Fine-tune what a checkpoint draws with LoRA, on your own pictures with captions.

    python examples/finetune_image_lora.py --pretrained_model_name_or_path checkpoint --train_data_dir photos \\
        --output_dir runs/photos --validation_prompt "a red apple"
    python examples/finetune_image_lora.py ... --resume_from_checkpoint --push_to_hub --hub_model_id me/photos

Flags are those of diffusers' train_text_to_image_lora.py. `--train_data_dir` is a folder of pictures with
metadata.jsonl; `--dataset_name` a name on the Hub or a folder of Parquet files. The checkpoint is a folder of a model
with its autoencoder in `vae`, or of a pipeline.
"""

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import set_seed
from peft import LoraConfig, inject_adapter_in_model
from transformers import HfArgumentParser

from hf_unified_diffusion import UnifiedDiffusionImagePipeline, UnifiedDiffusionModel
from hf_unified_diffusion.hub import push_adapter
from hf_unified_diffusion.modeling.adapters import save_adapter
from hf_unified_diffusion.quantization import dequantize_model, num_weights
from hf_unified_diffusion.training.captioned_pictures import PictureSource
from hf_unified_diffusion.training.flow_evaluation import flow_errors
from hf_unified_diffusion.training.flow_layout import FlowConfig
from hf_unified_diffusion.training.latent_data import CaptionedLatents, LatentBatch
from hf_unified_diffusion.training.objective import ObjectiveConfig, ScoreNetworkObjective
from hf_unified_diffusion.training.run import LearningRate, RunSettings, TrainingRun
from hf_unified_diffusion.training.run_log import append_record, forget_after

ADAPTER = "default"
# the trunk, and where pictures come in and go out
TARGETS = ["q_proj", "v_proj", "up_proj", "down_proj", "projections.image", "heads.image"]


@dataclass
class Arguments:
    """Command line."""

    pretrained_model_name_or_path: str
    output_dir: str
    dataset_name: str | None = None  # on the Hub, or a local folder of Parquet files
    dataset_config_name: str | None = None
    train_data_dir: str | None = None  # a folder of pictures with metadata.jsonl
    image_column: str = "image"
    caption_column: str = "text"
    streaming: bool = False  # fetch only as many pictures as are asked for
    max_train_samples: int | None = None
    max_eval_samples: int = 32
    validation_split_percentage: int = 10  # of the training pictures, where there is no validation set
    resolution: int = 256
    random_flip: bool = False
    train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    max_train_steps: int = 200
    learning_rate: float = 1e-3
    lr_warmup_steps: int = 10
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    ema_decay: float = 0.0  # of few steps the average lags behind
    mixed_precision: str = "no"
    gradient_checkpointing: bool = False
    rank: int = 8
    lora_alpha: int = 16
    lora_target_modules: list[str] = field(default_factory=lambda: list(TARGETS))
    proportion_empty_prompts: float = 0.1  # captions left out, for guidance
    validation_prompt: str | None = None
    num_validation_images: int = 2
    validation_steps: int = 50
    checkpointing_steps: int = 50
    resume_from_checkpoint: bool = False
    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_public: bool = False
    seed: int = 0


def add_lora(model: UnifiedDiffusionModel, args: Arguments) -> None:
    """Freeze the network, in float32, and put a fresh adapter into it."""
    dequantize_model(model)
    model.to(torch.float32).requires_grad_(False)
    config = LoraConfig(r=args.rank, lora_alpha=args.lora_alpha, target_modules=args.lora_target_modules)
    with warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5.24 for a property that it deprecates
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    model.peft_config[ADAPTER].base_model_name_or_path = args.pretrained_model_name_or_path
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    model.train()


def picture_data(
    args: Arguments, pipe: UnifiedDiffusionImagePipeline
) -> tuple[CaptionedLatents, list[LatentBatch], dict[str, int]]:
    """Micro-batches to train on, held-out ones, and how many pictures there are of each."""
    names = ("dataset_name", "dataset_config_name", "train_data_dir", "image_column", "caption_column")
    names += ("streaming", "resolution", "random_flip")
    source = PictureSource(**{name: getattr(args, name) for name in names})
    limits = {"train": args.max_train_samples, "validation": args.max_eval_samples}
    rows = source.splits(limits, args.validation_split_percentage)
    (train,), (held_out,) = (source.latents(rows[split], pipe.codec) for split in ("train", "validation"))
    tokens = (args.resolution // pipe.codec.downsampling) ** 2
    size = min(args.train_batch_size, len(held_out)) * tokens
    data = CaptionedLatents(train, pipe.tokenizer, args.train_batch_size * tokens, args.proportion_empty_prompts)
    validation = CaptionedLatents(held_out, pipe.tokenizer, size, caption_dropout=0.0)
    batches = [validation.batch(turn, seed=0) for turn in range(-(-len(held_out) * tokens // size))]
    return data, batches, {split: len(each) for split, each in rows.items()}


def evaluate(
    run: TrainingRun, pipe: UnifiedDiffusionImagePipeline, held_out: Sequence[LatentBatch], args: Arguments
) -> dict[str, float]:
    """Held-out error of the clean picture (1: knows nothing), and pictures of a prompt where one is given."""
    with run.averaged() as model:
        errors = flow_errors(model, held_out)
        if args.validation_prompt is not None and run.accelerator.is_main_process:
            folder = Path(args.output_dir) / "validation"
            folder.mkdir(parents=True, exist_ok=True)
            options = {"height": args.resolution, "width": args.resolution, "seed": args.seed}
            drawn = pipe(args.validation_prompt, num_images_per_prompt=args.num_validation_images, **options).images
            for number, picture in enumerate(drawn):
                picture.save(folder / f"step_{run.progress.step}_{number}.png")
    return {f"validation/{name}": round(errors[name], 4) for name in ("clean", "velocity", "shuffled")}


def follow(
    run: TrainingRun, pipe: UnifiedDiffusionImagePipeline, held_out: Sequence[LatentBatch], args: Arguments
) -> dict[str, float]:
    """Step, log, evaluate and save; gives the last evaluation."""
    out, rate = Path(args.output_dir), LearningRate(args.learning_rate, args.lr_warmup_steps)
    found = evaluate(run, pipe, held_out, args)
    run.accelerator.print(f"step {run.progress.step}: {json.dumps(found)}")
    if run.accelerator.is_main_process and run.progress.step == 0:
        append_record(out / "log.jsonl", {"step": 0, **found})
    while run.progress.step < args.max_train_steps:
        record = run.step(rate, run.progress.step / args.max_train_steps)
        step, finished = run.progress.step, run.progress.step == args.max_train_steps
        if finished or step % args.validation_steps == 0:
            found = evaluate(run, pipe, held_out, args)
            record |= found
            run.accelerator.print(f"step {step}: {json.dumps(found)}")
        if run.accelerator.is_main_process:
            append_record(out / "log.jsonl", record)
        if finished or step % args.checkpointing_steps == 0:
            run.save(out)
    return found


def main(argv: Sequence[str] | None = None) -> TrainingRun:
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses(args=argv)
    out = Path(args.output_dir)
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    set_seed(args.seed)
    pipe = UnifiedDiffusionImagePipeline.from_pretrained(args.pretrained_model_name_or_path)
    pipe.set_progress_bar_config(disable=True)
    pipe.to(accelerator.device)
    data, held_out, counts = picture_data(args, pipe)
    add_lora(pipe.transformer, args)
    objective = ScoreNetworkObjective(pipe.transformer, ObjectiveConfig(flow=FlowConfig()))
    settings = RunSettings(
        seed=args.seed,
        weight_decay=args.weight_decay,
        max_grad_norm=args.max_grad_norm,
        ema_decay=args.ema_decay,
    )
    save = partial(save_adapter, name=ADAPTER)
    run = TrainingRun(accelerator, objective, [data], pipe.tokenizer, settings, save_model=save)
    trained, total = sum(p.numel() for p in run.parameters), num_weights(pipe.transformer)
    accelerator.print(f"{counts}; {trained:,} of {total:,} parameters train ({trained / total:.2%})")
    if args.resume_from_checkpoint:
        run.restore(out)
    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        (out / "arguments.json").write_text(json.dumps(asdict(args), indent=1))
        forget_after(out / "log.jsonl", run.progress.step or -1)
    found = follow(run, pipe, held_out, args)
    if args.push_to_hub and accelerator.is_main_process:
        push_adapter(out / "model", args.hub_model_id or out.name, private=not args.hub_public, numbers=found)
    return run


if __name__ == "__main__":
    main()
