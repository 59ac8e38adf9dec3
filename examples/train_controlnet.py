"""Train a ControlNet on a frozen score network: on examples that the project makes itself, or on your own pictures.

    python examples/train_controlnet.py --task tools --output_dir runs/controlnet-tools --max_train_minutes 10
    python examples/train_controlnet.py --task reasoning --output_dir runs/controlnet-cot --max_train_minutes 10
    python examples/train_controlnet.py --task edges --pretrained_model_name_or_path checkpoint \\
        --train_data_dir photos --output_dir runs/controlnet-edges

Arguments are named as in diffusers' train_controlnet.py. Everything a step does follows from its number and the seed:
`--resume_from_checkpoint latest` goes on as if nothing had happened. The embedded checkpoint is the base by default; a
quantized base is dequantized once.
"""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from PIL import ImageOps
from tqdm.auto import tqdm
from transformers import HfArgumentParser

from hf_unified_diffusion import (
    ArrowQuantConfig,
    Segment,
    UnifiedControlNetModel,
    UnifiedDiffusionImagePipeline,
    UnifiedDiffusionTextPipeline,
)
from hf_unified_diffusion.codecs.text_codec import TextCodec
from hf_unified_diffusion.pipelines.checkpoints import EMBEDDED_CHECKPOINT, load_image_parts, load_parts
from hf_unified_diffusion.quantization import dequantize_model, num_weights, quantize_model
from hf_unified_diffusion.training.captioned_pictures import PictureSource, captions_of
from hf_unified_diffusion.training.control_examples import ControlExample
from hf_unified_diffusion.training.control_objective import ControlObjective, control_layout, encode_examples
from hf_unified_diffusion.training.control_pictures import HintedPictures, edges
from hf_unified_diffusion.training.machine import check_precision, precision_of
from hf_unified_diffusion.training.objective import ObjectiveConfig
from hf_unified_diffusion.training.reasoning_examples import reasoning_example
from hf_unified_diffusion.training.run import LearningRate, Progress, adamw
from hf_unified_diffusion.training.run_log import append_record, forget_after
from hf_unified_diffusion.training.tool_examples import tool_example

EXAMPLES: dict[str, Callable[[str, int, int], ControlExample]] = {"tools": tool_example, "reasoning": reasoning_example}
HINT_SOURCES = {"tools": "tools", "reasoning": "prompt"}  # of requests that give no hint
EDGES = "edges"
TASKS = (*EXAMPLES, EDGES)
PICTURES = ("dataset_name", "dataset_config_name", "train_data_dir", "image_column", "caption_column")
PICTURES += ("streaming", "resolution")


@dataclass
class Arguments:
    """Command line."""

    task: str
    output_dir: str
    pretrained_model_name_or_path: str = str(EMBEDDED_CHECKPOINT)
    controlnet_model_name_or_path: str | None = None  # go on from a trained one, with a new optimizer
    num_blocks: int = 6
    read_layer: int | None = None
    train_batch_size: int = 4
    gradient_accumulation_steps: int = 1
    max_train_steps: int = 1000
    max_train_minutes: float | None = None  # the learning rate then follows the clock
    learning_rate: float = 1e-3
    lr_warmup_steps: int = 20
    adam_beta2: float = 0.99
    adam_weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    mixed_precision: str = "auto"  # auto: bf16 where the machine has units for it
    causal_weight: float = 1.0
    block_lengths: list[int] = field(default_factory=lambda: [8, 16, 32])
    dataset_name: str | None = None  # of edges: on the Hub, or a local folder of Parquet files
    dataset_config_name: str | None = None
    train_data_dir: str | None = None  # of edges: a folder of pictures with metadata.jsonl
    image_column: str = "image"
    caption_column: str = "text"
    streaming: bool = False
    max_train_samples: int | None = None
    max_eval_samples: int = 32
    validation_split_percentage: int = 10
    resolution: int = 256
    proportion_empty_prompts: float = 0.1
    canvas_every: int = 2  # one step in so many has noisy blocks too, the others train the causal path alone
    validation_steps: int = 100
    num_validation_batches: int = 4
    checkpointing_steps: int = 200
    checkpoints_total_limit: int = 2
    resume_from_checkpoint: str | None = None  # a folder "checkpoint-N" of output_dir, or "latest"
    bits: int | None = None  # also write INT8 or INT4 Parquet weights, to output_dir/quantized
    seed: int = 0

    def __post_init__(self):
        if self.task not in TASKS:
            raise ValueError(f"task must be one of {TASKS}, got {self.task!r}")
        check_precision(self.mixed_precision)


class ControlRun:
    """Base, ControlNet, optimizer and examples of a run."""

    def __init__(self, args: Arguments):
        self.args, self.out = args, Path(args.output_dir)
        dtype = precision_of(args.mixed_precision)
        self.accelerator = Accelerator(
            mixed_precision="bf16" if dtype is torch.bfloat16 else "no",
            gradient_accumulation_steps=args.gradient_accumulation_steps,
        )
        set_seed(args.seed)
        self.base, self.scheduler, self.tokenizer = load_parts(args.pretrained_model_name_or_path)
        start = args.controlnet_model_name_or_path
        if start is not None:
            self.controlnet = UnifiedControlNetModel.from_pretrained(start, dtype=torch.float32)
            dequantize_model(self.controlnet)
        else:
            sizes = {"num_blocks": args.num_blocks, "read_layer": args.read_layer}
            modality = "image" if args.task == EDGES else "text"
            sizes |= {"hint_source": HINT_SOURCES.get(args.task)}
            self.controlnet = UnifiedControlNetModel.from_transformer(self.base, modality, **sizes)
        dequantize_model(self.base, dtype)
        self.base.to(dtype)
        objective = ControlObjective(
            self.base, self.controlnet.train(), ObjectiveConfig(causal_weight=args.causal_weight)
        )
        optimizer = adamw(list(self.controlnet.parameters()), args.adam_weight_decay, args.adam_beta2)
        self.accelerator.register_save_state_pre_hook(self._save_controlnet)
        self.accelerator.register_load_state_pre_hook(self._load_controlnet)
        self.objective, self.optimizer = self.accelerator.prepare(objective, optimizer)
        self.codec, self.progress = TextCodec(self.tokenizer), Progress()
        if args.task == EDGES:
            self._read_pictures()

    def _read_pictures(self) -> None:
        """Pictures and their edges of each split, and what draws them."""
        args = self.args
        source = PictureSource(**{name: getattr(args, name) for name in PICTURES})
        image_scheduler, vae = load_image_parts(args.pretrained_model_name_or_path)
        vae.to(self.accelerator.device)
        self.drawer = UnifiedDiffusionImagePipeline(self.base, image_scheduler, self.tokenizer, vae)
        self.drawer.set_progress_bar_config(disable=True)
        limits = {"train": args.max_train_samples, "validation": args.max_eval_samples}
        self.rows = source.splits(limits, args.validation_split_percentage)
        self.pictures = {
            split: HintedPictures.of(rows, source, self.drawer.codec, self.tokenizer, args.train_batch_size, dropped)
            for (split, rows), dropped in zip(self.rows.items(), (args.proportion_empty_prompts, 0.0), strict=True)
        }

    def losses(self, split: str, number: int) -> dict[str, torch.Tensor]:
        """The losses of batch `number` of a split."""
        turn = number * self.accelerator.num_processes + self.accelerator.process_index
        if self.args.task == EDGES:
            parts, hint = self.pictures[split].batch(turn, self.args.seed)
            self.progress.tokens += hint.values.shape[:2].numel()
        else:
            parts, hint = self.text_parts(split, number, turn * self.args.train_batch_size)
        self.progress.positions += sum(s.values.shape[:2].numel() for s in (hint, *(segment for segment, _ in parts)))
        device = self.accelerator.device
        return self.objective([(s.to(device), t.to(device)) for s, t in parts], hint.to(device))

    def text_parts(self, split: str, number: int, first: int) -> tuple[list, Segment]:
        """Layout and hints of the examples from number `first` on."""
        args, config, size = self.args, self.base.config, self.args.train_batch_size
        made = [EXAMPLES[args.task](split, i, args.seed) for i in range(first, first + size)]
        rows = encode_examples(self.codec, made)
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + first)
        turn, rest = divmod(number, args.canvas_every)
        block_length = args.block_lengths[turn % len(args.block_lengths)] if rest == 0 else None
        ids = config.mask_token_id, self.tokenizer.eos_token_id
        self.progress.tokens += sum(len(row.response) for row in rows)
        return control_layout(rows, "text", *ids, block_length, generator)

    def step(self, rate: LearningRate, share: float) -> dict[str, float]:
        """One optimizer step."""
        began, before = time.monotonic(), self.progress.positions
        for group in self.optimizer.param_groups:
            group["lr"] = rate.at(self.progress.step, share)
        micro_steps, record = self.args.gradient_accumulation_steps, {}
        for micro in range(micro_steps):
            with self.accelerator.accumulate(self.objective):
                losses = self.losses("train", self.progress.step * micro_steps + micro)
                self.accelerator.backward(losses["loss"])
                record |= {name: value.item() for name, value in losses.items()}
                if self.accelerator.sync_gradients:
                    norm = self.accelerator.clip_grad_norm_(self.controlnet.parameters(), self.args.max_grad_norm)
                    record["grad_norm"] = float(norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
        seconds = time.monotonic() - began
        self.progress.step, self.progress.seconds = self.progress.step + 1, self.progress.seconds + seconds
        return {**asdict(self.progress), **record, "positions_per_s": (self.progress.positions - before) / seconds}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean losses of held-out batches."""
        counted = self.progress.tokens, self.progress.positions
        found: dict[str, list[float]] = {}
        for number in range(self.args.num_validation_batches):
            for name, value in self.losses("validation", number).items():
                found.setdefault(f"validation/{name}", []).append(value.item())
        self.progress.tokens, self.progress.positions = counted
        return {name: sum(values) / len(values) for name, values in found.items()}

    def sample(self, index: int = 0) -> str:
        """What is written for a held-out example, or the file of what is drawn for one."""
        if self.args.task == EDGES:
            return self.drawn(index)
        example = EXAMPLES[self.args.task]("validation", index, self.args.seed)
        pipe = UnifiedDiffusionTextPipeline(self.base, self.scheduler, self.tokenizer)
        pipe.set_progress_bar_config(disable=True)
        options = {"max_new_tokens": 64, "num_inference_steps": 8, "block_length": 8, "check_drafts": True}
        with self.accelerator.autocast():
            written = pipe(
                example.prompt,
                tools=list(example.tools) or None,
                controlnet=self.controlnet,
                control_hint=example.hint,
                temperature=0.0,
                seed=0,
                **options,
            )
        return f"{example.prompt}{written.completions[0]}   (right: {example.response})"

    def drawn(self, index: int) -> str:
        """The file of a picture from the caption and the edges of a held-out one."""
        row, side = self.rows["validation"][index], self.args.resolution
        caption, *_ = captions_of(row[self.args.caption_column])
        hint = edges(ImageOps.fit(row[self.args.image_column].convert("RGB"), (side, side)))
        picture = self.drawer(
            caption, side, side, controlnet=self.controlnet, control_image=hint, seed=self.args.seed
        ).images[0]
        file = self.out / "validation" / f"step_{self.progress.step}.png"
        file.parent.mkdir(exist_ok=True)
        picture.save(file)
        return str(file)

    def save(self) -> None:
        """Write `checkpoint-N` and drop the oldest beyond the limit."""
        self.accelerator.save_state(str(self.out / f"checkpoint-{self.progress.step}"))
        if self.accelerator.is_main_process:
            for folder in checkpoints(self.out)[: -self.args.checkpoints_total_limit]:
                shutil.rmtree(folder)

    def resume(self, name: str) -> None:
        """Go on from a checkpoint; ValueError where there is none."""
        known = checkpoints(self.out)
        folder = known[-1] if name == "latest" and known else self.out / Path(name).name
        if folder not in known:
            raise ValueError(
                f"resume_from_checkpoint must be one of {[f.name for f in known]} or 'latest', got {name!r}"
            )
        self.accelerator.load_state(str(folder))
        self.progress = Progress(**json.loads((folder / "progress.json").read_text()))

    def _save_controlnet(self, models: list, weights: list, output_dir: str) -> None:
        """The ControlNet alone: the base is as it was."""
        if self.accelerator.is_main_process:
            self.controlnet.save_pretrained(Path(output_dir) / "controlnet")
            (Path(output_dir) / "progress.json").write_text(json.dumps(asdict(self.progress)))
        weights.clear()

    def _load_controlnet(self, models: list, input_dir: str) -> None:
        saved = UnifiedControlNetModel.from_pretrained(Path(input_dir) / "controlnet", dtype=torch.float32)
        self.controlnet.load_state_dict(saved.state_dict())
        models.clear()


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first; one without its progress was cut off, and is none."""
    whole = [path.parent for path in folder.glob("checkpoint-*/progress.json")]
    return sorted(whole, key=lambda path: int(path.name.rpartition("-")[2]))


def main(argv: Sequence[str] | None = None) -> ControlRun:
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses(args=argv)
    run = ControlRun(args)
    accelerator, out = run.accelerator, run.out
    if args.resume_from_checkpoint is not None:
        run.resume(args.resume_from_checkpoint)
    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        (out / "arguments.json").write_text(json.dumps(asdict(args), indent=1))
        forget_after(out / "log.jsonl", run.progress.step)
    trained, base = num_weights(run.controlnet), num_weights(run.base)
    accelerator.print(f"{trained / 1e6:.2f}M parameters train, {trained / base:.1%} of the base's {base / 1e6:.1f}M")
    rate = LearningRate(args.learning_rate, args.lr_warmup_steps, final_share=0.05)
    bar = tqdm(total=args.max_train_steps, initial=run.progress.step, disable=not accelerator.is_main_process)
    bounds = args.max_train_steps, args.max_train_minutes
    while run.progress.share(*bounds) < 1:
        record = run.step(rate, run.progress.share(*bounds))
        finished = run.progress.share(*bounds) >= 1
        bar.update()
        bar.set_postfix(loss=f"{record['loss']:.3f}", pos_s=f"{record['positions_per_s']:.0f}")
        if finished or run.progress.step % args.validation_steps == 0:
            record |= run.validate()
            if accelerator.is_main_process:
                bar.write(f"step {run.progress.step}: {json.dumps(record)}\n{run.sample()}")
        if accelerator.is_main_process:
            append_record(out / "log.jsonl", record)
        if finished or run.progress.step % args.checkpointing_steps == 0:
            run.save()
    bar.close()
    if accelerator.is_main_process:
        write(run)
    return run


def write(run: ControlRun) -> None:
    """The trained ControlNet, and its quantized twin if that is asked for."""
    run.controlnet.eval().save_pretrained(run.out)
    if run.args.bits is not None:
        twin = UnifiedControlNetModel.from_pretrained(run.out, dtype=torch.float32)
        quantize_model(twin, ArrowQuantConfig(run.args.bits, 64, int8_modules=[], modules_to_not_convert=[]))
        training = {"task": run.args.task, **asdict(run.progress)}
        twin.save_pretrained(run.out / "quantized", metadata={"training": training, "license": "apache-2.0"})


if __name__ == "__main__":
    main()
