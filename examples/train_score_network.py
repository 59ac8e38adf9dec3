"""Train the score network on tokenized shards: from an autoregressive checkpoint or from scratch, on what is at hand.

    python examples/train_score_network.py --initial_model SmolLM2-folder --from_autoregressive \
        --tokenizer tokenizer-folder --output_dir runs/edge --max_train_steps 2000
    ACCELERATE_USE_CPU=1 torchrun --nproc_per_node 2 examples/train_score_network.py ...

Everything a step does follows from its number and the seed, so `--resume` gives the run it would have been.
`--canvas false` trains the causal path alone: the autoregressive twin that perplexities are compared with.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import set_seed
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser

from hf_unified_diffusion import ArrowQuantConfig, UnifiedDiffusionConfig, UnifiedDiffusionModel
from hf_unified_diffusion.modeling.vocabulary import truncate_bpe
from hf_unified_diffusion.training.likelihood import held_out_likelihood
from hf_unified_diffusion.training.machine import fast_dtype, matmul_rate
from hf_unified_diffusion.training.objective import ObjectiveConfig, ScoreNetworkObjective
from hf_unified_diffusion.training.run import LearningRate, Progress, RunSettings, TrainingRun
from hf_unified_diffusion.training.run_log import append_record, forget_after
from hf_unified_diffusion.training.token_data import PackedTokens, bytes_per_token, pack_shards, starts_for

PRECISIONS = ("auto", "bf16", "no")
EVALUATION_BATCH = 4  # rows


@dataclass
class Arguments:
    """Command line; names as in the scripts of transformers and diffusers."""

    output_dir: str
    tokenizer: str
    shards: str = "data/shards"
    initial_model: str | None = None  # a folder of ours, or with from_autoregressive a Llama- or Qwen-shaped one
    from_autoregressive: bool = False
    layers: list[int] = field(default_factory=list)  # the autoregressive model's layers to keep; all by default
    config: str | None = None  # JSON of UnifiedDiffusionConfig values: start from scratch
    modalities: list[str] = field(default_factory=lambda: ["text", "code"])
    max_train_tokens: int | None = None  # of each modality; fewer tokens, more epochs
    sequence_length: int = 256
    train_batch_size: int = 4
    gradient_accumulation_steps: int = 1
    max_train_steps: int = 1000
    max_train_minutes: float | None = None  # the learning rate then follows the clock
    learning_rate: float = 3e-4
    warmup_steps: int = 50
    weight_decay: float = 0.1
    adam_beta2: float = 0.98
    max_grad_norm: float = 1.0
    dropout: float = 0.0  # whatever the model had before
    ema_decay: float = 0.999
    mixed_precision: str = "auto"  # auto: bf16 where the machine has units for it
    causal_weight: float = 0.3
    canvas: bool = True
    block_lengths: list[int] = field(default_factory=lambda: [4, 8, 16, 32])
    infill_rate: float = 0.25
    complementary: bool = True
    quantization_bits: int | None = None  # train against the rounding to so many bits; may start with --resume
    quantization_group_size: int = 64
    int8_modules: list[str] = field(default_factory=lambda: ["embeddings"])
    compile: bool = False
    gradient_checkpointing: bool = False
    evaluation_steps: int = 100
    evaluation_rows: int = 16
    evaluation_block_lengths: list[int] = field(default_factory=lambda: [4, 16])
    checkpointing_steps: int | None = None
    checkpointing_minutes: float = 5.0
    resume: bool = False
    seed: int = 0

    def __post_init__(self):
        for name in ("max_train_steps", "evaluation_steps", "evaluation_rows", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.mixed_precision not in PRECISIONS:
            raise ValueError(f"mixed_precision must be one of {PRECISIONS}, got {self.mixed_precision!r}")


def build_model(args: Arguments, tokenizer) -> UnifiedDiffusionModel:
    """From scratch, from an autoregressive checkpoint whose tokens the tokenizer keeps, or from one of our own."""
    if args.config is not None:
        special = {"vocab_size": len(tokenizer), "mask_token_id": tokenizer.mask_token_id}
        model = UnifiedDiffusionModel(UnifiedDiffusionConfig(**special, **json.loads(args.config)))
    elif args.from_autoregressive:
        source = AutoModelForCausalLM.from_pretrained(args.initial_model, dtype=torch.float32)
        kept_ids = truncate_bpe(AutoTokenizer.from_pretrained(args.initial_model), len(tokenizer))[1]
        model = UnifiedDiffusionModel.from_source(source, kept_ids, layers=args.layers or None)
    else:
        model = UnifiedDiffusionModel.from_pretrained(args.initial_model, dtype=torch.float32)
        if getattr(model, "is_quantized", False):  # codes do not train: go on from what they stand for
            model.dequantize(torch.float32)
    model.config.dropout = args.dropout
    for layer in model.shared_transformer.layers:
        layer.dropout.p = args.dropout
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if args.compile:
        for layer in model.shared_transformer.layers:
            layer.compile()
    return model.train()


def evaluate(model: UnifiedDiffusionModel, held_out: dict, sizes, args: Arguments) -> dict[str, float]:
    """Held-out nats per token and bits per byte, causal and by block length, for each modality."""
    values = {}
    for modality, batches in held_out.items():
        for block_length in [None, *args.evaluation_block_lengths] if args.canvas else [None]:
            found = held_out_likelihood(model, batches, sizes, block_length, draws=1, seed=1)
            name = f"{modality}/{'causal' if block_length is None else f'block{block_length}'}"
            values[f"{name}/nats_per_token"] = round(found.nats_per_token, 4)
            values[f"{name}/bits_per_byte"] = round(found.bits_per_byte, 4)
    return values


def load_data(args: Arguments, tokenizer, accelerator: Accelerator) -> tuple[dict[str, PackedTokens], dict[str, list]]:
    """Packed training tokens, and batches of held-out rows, by modality."""
    cache = Path(args.output_dir).parent / "tokens"
    packed: dict[str, dict] = {"train": {}, "validation": {}}
    with accelerator.main_process_first():
        for split, by_modality in packed.items():
            for modality in args.modalities:
                shards = Path(args.shards).glob(f"{split}/*.parquet")
                by_modality[modality] = pack_shards(shards, tokenizer, modality, cache)
    train = packed["train"]
    if args.max_train_tokens is not None:
        train = {modality: tokens.first(args.max_train_tokens) for modality, tokens in train.items()}
    length, rows = args.sequence_length, min(EVALUATION_BATCH, args.evaluation_rows)
    batches = args.evaluation_rows // rows
    held_out = {
        modality: [tokens.rows(starts_for(tokens, length, rows, i, 0), length) for i in range(batches)]
        for modality, tokens in packed["validation"].items()
    }
    return train, held_out


def share_done(progress: Progress, args: Arguments) -> float:
    """How much of the steps or of the minutes is used up, whichever ends first; the learning rate follows it."""
    steps = progress.step / args.max_train_steps
    return steps if args.max_train_minutes is None else max(steps, progress.seconds / 60 / args.max_train_minutes)


def main(argv: Sequence[str] | None = None) -> TrainingRun:
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses(args=argv)
    out = Path(args.output_dir)
    dtype = {"auto": fast_dtype(), "bf16": torch.bfloat16, "no": torch.float32}[args.mixed_precision]
    accelerator = Accelerator(
        mixed_precision="bf16" if dtype is torch.bfloat16 else "no",
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        (out / "arguments.json").write_text(json.dumps(asdict(args), indent=1))
    set_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    train, held_out = load_data(args, tokenizer, accelerator)
    config = ObjectiveConfig(
        causal_weight=args.causal_weight,
        canvas=args.canvas,
        block_lengths=tuple(args.block_lengths),
        infill_rate=args.infill_rate,
        complementary=args.complementary,
    )
    settings = RunSettings(
        sequence_length=args.sequence_length,
        rows=args.train_batch_size,
        seed=args.seed,
        weight_decay=args.weight_decay,
        beta2=args.adam_beta2,
        max_grad_norm=args.max_grad_norm,
        ema_decay=args.ema_decay,
    )
    objective = ScoreNetworkObjective(build_model(args, tokenizer), config)
    quantization = None
    if args.quantization_bits is not None:
        quantization = ArrowQuantConfig(args.quantization_bits, args.quantization_group_size, args.int8_modules)
    run = TrainingRun(accelerator, objective, train, tokenizer, settings, quantization)
    if args.resume:
        run.restore(out)
    follow(run, args, held_out, bytes_per_token(tokenizer), dtype)
    return run


def follow(run: TrainingRun, args: Arguments, held_out: dict, sizes, dtype: torch.dtype) -> None:
    """Step, log, evaluate and save until the steps or the minutes are used up."""
    accelerator, out = run.accelerator, Path(args.output_dir)
    is_main = accelerator.is_main_process
    if is_main:
        forget_after(out / "log.jsonl", run.progress.step)
    trained, roof = sum(p.numel() for p in run.parameters), matmul_rate(accelerator.device, dtype)
    accelerator.print(f"{trained / 1e6:.1f}M parameters train; matmul rate {roof / 1e12:.3f} TFLOP/s in {dtype}")
    rate = LearningRate(args.learning_rate, args.warmup_steps)
    bar = tqdm(total=args.max_train_steps, initial=run.progress.step, disable=not is_main, unit="step")
    saved = run.progress.seconds
    while share_done(run.progress, args) < 1:
        record = run.step(rate, share_done(run.progress, args))
        step, finished = run.progress.step, share_done(run.progress, args) >= 1
        record["matmul_share"] = 6 * trained * record["positions_per_s"] / roof
        bar.update()
        bar.set_postfix(pos_s=f"{record['positions_per_s']:.0f}", share=f"{record['matmul_share']:.2f}")
        if is_main and (finished or (step - 1) % args.evaluation_steps == 0):
            with run.averaged() as model:
                found = evaluate(model, held_out, sizes, args)
            bar.write(f"step {step}: {json.dumps(found)}")
            record |= found
        if is_main:
            append_record(out / "log.jsonl", record)
        due = run.progress.seconds - saved > 60 * args.checkpointing_minutes
        if finished or due or (args.checkpointing_steps and step % args.checkpointing_steps == 0):
            run.save(out)
            saved = run.progress.seconds
    bar.close()


if __name__ == "__main__":
    main()
