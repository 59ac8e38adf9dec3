"""Fine-tune a checkpoint on your own text or code: the whole network, LoRA, or LoRA on 4-bit weights (QLoRA).

    python examples/finetune_text.py --train_file notes.txt --output_dir runs/notes --use_lora
    python examples/finetune_text.py --dataset_name folder --output_dir runs/mine --use_lora --quantization arrowquant
    ACCELERATE_USE_CPU=1 torchrun --nproc_per_node 2 examples/finetune_text.py ... --resume_from_checkpoint

Flags are those of transformers' language-modelling and diffusers' LoRA scripts. `--dataset_name` is a name on the Hub
or a local folder; files are .txt (a document a line, or a paragraph with `--sample_by paragraph`), .parquet or .json.
"""

import itertools
import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import set_seed
from datasets import load_dataset
from peft import LoraConfig, inject_adapter_in_model
from transformers import AutoTokenizer, BitsAndBytesConfig, HfArgumentParser

from hf_unified_diffusion import (
    ArrowQuantConfig,
    MaskedDiffusionScheduler,
    UnifiedDiffusionCodePipeline,
    UnifiedDiffusionModel,
    UnifiedDiffusionTextPipeline,
)
from hf_unified_diffusion.hub import push_adapter
from hf_unified_diffusion.modeling.adapters import save_adapter
from hf_unified_diffusion.modeling.embedded import EMBEDDED_CHECKPOINT
from hf_unified_diffusion.quantization import dequantize_model, num_weights
from hf_unified_diffusion.training.likelihood import held_out_likelihood
from hf_unified_diffusion.training.mixture import TokenRows
from hf_unified_diffusion.training.objective import ObjectiveConfig, ScoreNetworkObjective
from hf_unified_diffusion.training.run import LearningRate, RunSettings, TrainingRun
from hf_unified_diffusion.training.run_log import append_record, forget_after
from hf_unified_diffusion.training.token_data import PackedTokens, bytes_per_token, pack_texts

PIPELINES = {"text": UnifiedDiffusionTextPipeline, "code": UnifiedDiffusionCodePipeline}
QUANTIZATIONS = ("none", "arrowquant", "bitsandbytes")
BUILDERS = {".txt": "text", ".parquet": "parquet", ".json": "json", ".jsonl": "json"}
ADAPTER = "default"
EVALUATION_BATCH = 4  # rows


@dataclass
class Arguments:
    """Command line."""

    output_dir: str
    model_name_or_path: str = str(EMBEDDED_CHECKPOINT)
    modality: str = "text"
    dataset_name: str | None = None  # on the Hub, or a local folder
    dataset_config_name: str | None = None
    train_file: str | None = None
    validation_file: str | None = None
    text_column_name: str = "text"
    sample_by: str = "line"  # of .txt files
    streaming: bool = False  # fetch only as many documents as are asked for
    max_train_samples: int | None = None  # documents
    max_eval_samples: int = 64
    validation_split_percentage: int = 5  # of the training documents, where there is no validation set
    block_size: int = 128  # tokens of a row
    per_device_train_batch_size: int = 4
    gradient_accumulation_steps: int = 1
    max_steps: int = 100
    learning_rate: float = 1e-4
    warmup_steps: int = 10
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    ema_decay: float = 0.0  # of few steps the average lags behind
    mixed_precision: str = "no"
    gradient_checkpointing: bool = False
    use_lora: bool = False
    lora_rank: int = 8
    lora_alpha: int = 16
    lora_target_modules: list[str] = field(default_factory=lambda: ["q_proj", "v_proj", "up_proj", "down_proj"])
    quantization: str = "none"  # of frozen weights, under LoRA
    causal_weight: float = 1.0
    block_lengths: list[int] = field(default_factory=lambda: [4, 8, 16])
    complementary: bool = False
    eval_steps: int = 50
    evaluation_rows: int = 16
    evaluation_block_length: int = 8
    validation_prompt: str | None = None
    save_steps: int = 50
    resume_from_checkpoint: bool = False
    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_public: bool = False
    seed: int = 0

    def __post_init__(self):
        if (self.dataset_name is None) == (self.train_file is None):
            raise ValueError("give either dataset_name or train_file, and not both")
        if self.quantization not in QUANTIZATIONS:
            raise ValueError(f"quantization must be one of {QUANTIZATIONS}, got {self.quantization!r}")
        if self.quantization != "none" and not self.use_lora:
            raise ValueError(f"quantized weights do not train: set use_lora, got quantization={self.quantization!r}")


def documents(args: Arguments) -> tuple[list[str], list[str]]:
    """Training and validation documents."""
    name = args.dataset_name
    options: dict = {"streaming": args.streaming}
    if name is None:
        suffix = Path(args.train_file).suffix
        if suffix not in BUILDERS:
            raise ValueError(f"train_file must end in one of {sorted(BUILDERS)}, got {args.train_file!r}")
        files = {"train": args.train_file, "validation": args.validation_file}
        name, options["data_files"] = BUILDERS[suffix], {split: file for split, file in files.items() if file}
        if name == "text":
            options["sample_by"] = args.sample_by
    splits = load_dataset(name, args.dataset_config_name, **options)
    wanted = {"train": args.max_train_samples, "validation": args.max_eval_samples}
    found = {
        split: [row[args.text_column_name] for row in itertools.islice(splits[split], wanted[split])]
        for split in splits
        if split in wanted
    }
    found = {split: [text for text in texts if text.strip()] for split, texts in found.items()}
    if "validation" not in found:
        count = max(1, len(found["train"]) * args.validation_split_percentage // 100)
        found["validation"], found["train"] = found["train"][:count], found["train"][count:]
    return found["train"], found["validation"]


def load_model(args: Arguments) -> UnifiedDiffusionModel:
    """The network: dense, or with packed weights to put LoRA on."""
    path = args.model_name_or_path
    if args.quantization == "bitsandbytes":
        dense = UnifiedDiffusionModel.from_pretrained(path, dtype=torch.float32)
        dequantize_model(dense)
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
        with TemporaryDirectory() as folder:
            dense.save_pretrained(folder)
            model = UnifiedDiffusionModel.from_pretrained(folder, quantization_config=config)
        for layer in model.modules():
            # in eval() bitsandbytes packs weights anew for CPUs with AVX-512's bf16, and no gradient passes them then
            if hasattr(layer, "support_avx512bf16_for_cpu"):
                layer.support_avx512bf16_for_cpu = False
        model.checkpoint_facts = dense.checkpoint_facts
        return model
    model = UnifiedDiffusionModel.from_pretrained(path)
    quantized = getattr(model, "is_quantized", False)
    if args.quantization == "arrowquant" and not quantized:
        model = UnifiedDiffusionModel.from_pretrained(path, quantization_config=ArrowQuantConfig(bits=4))
    elif args.quantization == "none":
        if quantized:
            model.dequantize(torch.float32)
        model.to(torch.float32)
    return model


def build_model(args: Arguments) -> UnifiedDiffusionModel:
    """What is trained: every weight, or the adapter alone."""
    model = load_model(args)
    if args.use_lora:
        model.requires_grad_(False)
        targets = args.lora_target_modules
        with warnings.catch_warnings():
            # PEFT 0.21 asks transformers 5.24 for a property that it deprecates
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
            config = LoraConfig(r=args.lora_rank, lora_alpha=args.lora_alpha, target_modules=targets)
            inject_adapter_in_model(config, model, adapter_name=ADAPTER)
        for layer in model.shared_transformer.layers:  # no token of text or code reads a condition
            if layer.cross_attn is not None:
                layer.cross_attn.requires_grad_(False)
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    return model.train()


def save_trained(model: UnifiedDiffusionModel, folder: Path, base: str, use_lora: bool) -> None:
    """The adapter in PEFT's format, or the whole checkpoint."""
    if not use_lora:
        model.save_pretrained(folder)
        return
    model.peft_config[ADAPTER].base_model_name_or_path = base
    save_adapter(model, folder, ADAPTER)


def evaluate(run: TrainingRun, held_out: list, args: Arguments) -> dict[str, float]:
    """Held-out nats per token, by the causal path and by blocks (a bound), and a sample where a prompt is given."""
    sizes = bytes_per_token(run.tokenizer)
    with run.averaged() as model:
        found = {
            name: held_out_likelihood(model.eval(), held_out, sizes, block_length, draws=1, seed=1)
            for name, block_length in (("causal", None), ("canvas", args.evaluation_block_length))
        }
        if args.validation_prompt is not None:
            scheduler = MaskedDiffusionScheduler(mask_token_id=model.config.mask_token_id)
            pipe = PIPELINES[args.modality](model, scheduler, run.tokenizer)
            pipe.set_progress_bar_config(disable=True)
            prompt = args.validation_prompt
            written = pipe(prompt, max_new_tokens=32, num_inference_steps=16, block_length=8, seed=args.seed).texts[0]
            run.accelerator.print(f"step {run.progress.step}: {written!r}")
        model.train()
    return {f"validation/{name}/nats_per_token": round(value.nats_per_token, 4) for name, value in found.items()}


def held_out_rows(packed: PackedTokens, args: Arguments) -> list:
    """Batches of validation rows, the same at every evaluation."""
    length = args.block_size
    rows = min(args.evaluation_rows, (len(packed) - length) // length)
    if rows < 1:
        raise ValueError(f"validation documents must fill a row of {length} tokens, got {len(packed)}")
    batch = min(EVALUATION_BATCH, rows)
    source = TokenRows(packed, batch, length)
    return [source.batch(turn, seed=0) for turn in range(rows // batch)]


def main(argv: Sequence[str] | None = None) -> TrainingRun:
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses(args=argv)
    out = Path(args.output_dir)
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    set_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path)
    train, validation = documents(args)
    packed = pack_texts(train, tokenizer, args.modality, args.seed)
    data = [TokenRows(packed, args.per_device_train_batch_size, args.block_size)]
    held_out = held_out_rows(pack_texts(validation, tokenizer, args.modality, args.seed), args)
    model = build_model(args)
    config = ObjectiveConfig(
        causal_weight=args.causal_weight,
        block_lengths=tuple(args.block_lengths),
        complementary=args.complementary,
    )
    settings = RunSettings(
        seed=args.seed,
        weight_decay=args.weight_decay,
        max_grad_norm=args.max_grad_norm,
        ema_decay=args.ema_decay,
    )
    save = partial(save_trained, base=args.model_name_or_path, use_lora=args.use_lora)
    objective = ScoreNetworkObjective(model, config)
    run = TrainingRun(accelerator, objective, data, tokenizer, settings, save_model=save)
    trained, total = sum(p.numel() for p in run.parameters), num_weights(model)
    accelerator.print(f"{trained:,} of {total:,} parameters train ({trained / total:.2%})")
    if args.resume_from_checkpoint:
        run.restore(out)
    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        (out / "arguments.json").write_text(json.dumps(asdict(args), indent=1))
        forget_after(out / "log.jsonl", run.progress.step)
    found = follow(run, args, held_out)
    if args.push_to_hub and accelerator.is_main_process:
        push(args, found)
    return run


def follow(run: TrainingRun, args: Arguments, held_out: list) -> dict[str, float]:
    """Step, log, evaluate and save; gives the last evaluation."""
    rate, found = LearningRate(args.learning_rate, args.warmup_steps), evaluate(run, held_out, args)
    run.accelerator.print(f"step {run.progress.step}: {json.dumps(found)}")
    first = run.progress.step
    while run.progress.step < args.max_steps:
        record = run.step(rate, run.progress.step / args.max_steps)
        step, finished = run.progress.step, run.progress.step == args.max_steps
        if finished or step % args.eval_steps == 0:
            found = evaluate(run, held_out, args)
            record |= found
            run.accelerator.print(f"step {step}: {json.dumps(found)}")
            run.model.checkpoint_facts["evaluation"] = found
        if run.accelerator.is_main_process:
            append_record(Path(args.output_dir) / "log.jsonl", record)
        if finished or (step - first) % args.save_steps == 0:
            run.save(Path(args.output_dir))
    return found


def push(args: Arguments, found: dict[str, float]) -> None:
    """Send what was saved, with its figures on the card."""
    repo_id = args.hub_model_id or Path(args.output_dir).name
    folder = Path(args.output_dir) / "model"
    if args.use_lora:
        push_adapter(folder, repo_id, private=not args.hub_public, numbers=found)
    else:
        UnifiedDiffusionModel.from_pretrained(folder).push_to_hub(repo_id, private=not args.hub_public)


if __name__ == "__main__":
    main()
