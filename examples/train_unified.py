"""Train the score network, from an autoregressive checkpoint or from scratch: text, code, latents, and speech.

    python examples/train_unified.py --initial_model SmolLM2-folder --from_autoregressive true \
        --tokenizer tokenizer-folder --output_dir runs/edge --max_train_steps 2000
    python examples/train_unified.py --configuration examples/unified.toml --stages align_pictures joint
    python train_unified.py --packs pack-000 --slice_minutes 9 --resume ...           # where little is installed
    ACCELERATE_USE_CPU=1 torchrun --nproc_per_node 2 examples/train_unified.py ...

Everything a step does follows from its number and the seed, so `--resume true` gives the run it would have been.
`--canvas false` trains the causal path alone: the autoregressive twin that perplexities are compared with.
With a configuration (see `read_stages`) the other arguments go before what its stages say.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import set_seed
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_unified_diffusion import ArrowQuantConfig, UnifiedDiffusionConfig, UnifiedDiffusionModel
from hf_unified_diffusion.modeling.vocabulary import truncate_bpe
from hf_unified_diffusion.quantization import dequantize_model
from hf_unified_diffusion.training.distillation import DistillationObjective
from hf_unified_diffusion.training.held_out import HeldOut, held_out_figures
from hf_unified_diffusion.training.latent_data import CaptionedLatents, LatentShards, open_latents
from hf_unified_diffusion.training.machine import matmul_rate, precision_of
from hf_unified_diffusion.training.mixture import TokenRows
from hf_unified_diffusion.training.objective import ScoreNetworkObjective
from hf_unified_diffusion.training.pack_speech import open_packed_speech
from hf_unified_diffusion.training.packs import open_packed_latents, open_packed_tokens
from hf_unified_diffusion.training.quantization_aware import RoundedWeights, scales_of, spread_over_cells
from hf_unified_diffusion.training.run import LearningRate, TrainingRun, was_saved
from hf_unified_diffusion.training.run_log import append_record, forget_after
from hf_unified_diffusion.training.speech_data import SpokenRows, Utterances, open_speech
from hf_unified_diffusion.training.stages import StageArguments, parse_arguments, read_stages
from hf_unified_diffusion.training.token_data import PackedTokens, bytes_per_token, pack_shards

STARTED = time.monotonic()  # of this call: a slice counts the data and the compiling too
EVALUATION_BATCH = 4  # rows of tokens
EVALUATION_LATENTS = 512  # tokens of a batch of latents


def build_model(args: StageArguments, tokenizer) -> UnifiedDiffusionModel:
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
        dequantize_model(model)
    model.config.dropout = args.dropout
    for layer in model.shared_transformer.layers:
        layer.dropout.p = args.dropout
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if args.compile:
        for layer in model.shared_transformer.layers:
            layer.compile(dynamic=True)  # one graph for layouts of all sizes
    return model.train()


def build_objective(args: StageArguments, model: UnifiedDiffusionModel) -> ScoreNetworkObjective:
    """What the stage minimises; with a teacher, tokens keep to its answers."""
    config = args.objective_config()
    if args.teacher is None:
        return ScoreNetworkObjective(model, config)
    teacher = UnifiedDiffusionModel.from_pretrained(args.teacher)
    return DistillationObjective(model, teacher, config, taught=args.modalities)


def rounding(args: StageArguments, model: UnifiedDiffusionModel) -> RoundedWeights | None:
    """What rounds the weights in every pass, if the stage trains against it."""
    if args.quantization_bits is None:
        return None
    config = ArrowQuantConfig(args.quantization_bits, args.quantization_group_size, args.int8_modules)
    if args.quantization_scales is None:
        return RoundedWeights(model, config)
    scales = scales_of(UnifiedDiffusionModel.from_pretrained(args.quantization_scales))
    spread_over_cells(model, scales, args.seed)
    return RoundedWeights(model, config, scales=scales)


def open_tokens(args: StageArguments, tokenizer, split: str, modality: str) -> PackedTokens:
    """Documents of one split, from packs if there are some."""
    if args.packs:
        return open_packed_tokens([Path(pack) for pack in args.packs], split, modality)
    cache = Path(args.output_dir).parent / "tokens"
    return pack_shards(Path(args.shards).glob(f"{split}/*.parquet"), tokenizer, modality, cache)


def open_samples(args: StageArguments, split: str) -> dict[str, LatentShards]:
    """Samples of one split of the continuous modalities, from packs if there are some."""
    if args.packs:
        packs = [Path(pack) for pack in args.packs]
        return {modality: open_packed_latents(packs, split, modality) for modality in args.latent_folders()}
    cache = Path(args.output_dir).parent / "latents"
    folders = args.latent_folders().items()
    return {name: open_latents(folder.glob(f"{split}/*.parquet"), name, cache) for name, folder in folders}


def open_utterances(args: StageArguments, split: str) -> Utterances:
    """Speech of one split, from packs if there are some."""
    if args.packs:
        return open_packed_speech([Path(pack) for pack in args.packs], split)
    return open_speech(Path(args.speech).glob(f"{split}/*.parquet"), Path(args.output_dir).parent / "speech")


def token_data(args: StageArguments, tokenizer) -> tuple[list[TokenRows], HeldOut]:
    """Training rows and held-out batches of text and code."""
    train, held_out = [], {}
    for modality in args.modalities:
        packed, unseen = (open_tokens(args, tokenizer, split, modality) for split in ("train", "validation"))
        packed = packed if args.max_train_tokens is None else packed.first(args.max_train_tokens)
        train.append(TokenRows(packed, args.train_batch_size, args.sequence_length))
        rows = TokenRows(unseen, min(EVALUATION_BATCH, args.evaluation_rows), args.sequence_length)
        held_out[modality] = [rows.batch(turn, seed=0) for turn in range(args.evaluation_rows // rows.rows)]
    return train, held_out


def latent_data(args: StageArguments, tokenizer) -> tuple[list[CaptionedLatents], HeldOut]:
    """Training samples and held-out batches of the continuous modalities."""
    train, held_out = [], {}
    unseen_samples = open_samples(args, "validation")
    for modality, samples in open_samples(args, "train").items():
        caption = {"caption_dropout": args.caption_dropout, "max_caption_tokens": args.max_caption_tokens}
        train.append(CaptionedLatents(samples, tokenizer, args.latent_batch_tokens, **caption))
        source = CaptionedLatents(unseen_samples[modality], tokenizer, EVALUATION_LATENTS, 0.0, args.max_caption_tokens)
        batches, turn = [], 0
        while sum(len(batch.values) for batch in batches) < args.evaluation_latents:
            batches.append(source.batch(turn, seed=0))
            turn += 1
        held_out[modality] = batches
    return train, held_out


def speech_data(args: StageArguments, tokenizer) -> tuple[list[SpokenRows], HeldOut]:
    """Training rows and held-out batches of speech."""
    if args.speech is None:
        return [], {}
    rows, unseen = (open_utterances(args, split) for split in ("train", "validation"))
    told = {
        "text_dropout": args.caption_dropout,
        "reference_dropout": args.reference_dropout,
        "max_reference_tokens": args.max_reference_tokens,
    }
    train = SpokenRows(rows, tokenizer, args.speech_batch_tokens, **told, faces=args.faces)
    source = SpokenRows(unseen, tokenizer, EVALUATION_LATENTS, text_dropout=0.0, reference_dropout=0.0)
    batches = []
    while sum(len(batch.sounds) for batch in batches) < args.evaluation_latents:
        batches.append(source.batch(len(batches), seed=0))
    return [train], {train.modality: batches}


def train(args: StageArguments) -> TrainingRun:
    """One stage, from its data to its last checkpoint."""
    out = Path(args.output_dir)
    dtype = precision_of(args.mixed_precision)
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
    with accelerator.main_process_first():
        (rows, unseen_rows), (latents, unseen_latents) = token_data(args, tokenizer), latent_data(args, tokenizer)
        spoken, unseen_speech = speech_data(args, tokenizer)
    model = build_model(args, tokenizer)
    for source in latents:
        model.resize_modality(source.modality, source.shards.width)
    settings = args.run_settings()
    sources = (*rows, *latents, *spoken)
    data = [source for source in sources if not settings.shares or source.modality in settings.shares]
    run = TrainingRun(accelerator, build_objective(args, model), data, tokenizer, settings, rounding(args, model))
    if args.resume:
        run.restore(out)
    follow(run, args, unseen_rows | unseen_latents | unseen_speech, bytes_per_token(tokenizer), dtype)
    return run


def follow(run: TrainingRun, args: StageArguments, held_out: HeldOut, sizes, dtype: torch.dtype) -> None:
    """Step, log, evaluate and save until the steps or the minutes are used up."""
    accelerator, out = run.accelerator, Path(args.output_dir)
    is_main = accelerator.is_main_process
    if is_main:
        forget_after(out / "log.jsonl", run.progress.step)
    trained, roof = sum(p.numel() for p in run.parameters), matmul_rate(accelerator.device, dtype)
    accelerator.print(f"{trained / 1e6:.1f}M parameters train; matmul rate {roof / 1e12:.3f} TFLOP/s in {dtype}")
    block_lengths = args.evaluation_block_lengths if args.canvas else []
    rate = LearningRate(args.learning_rate, args.warmup_steps)
    bar = tqdm(total=args.max_train_steps, initial=run.progress.step, disable=not is_main, unit="step")
    saved = run.progress.seconds
    bounds = args.max_train_steps, args.max_train_minutes
    slice_seconds = None if args.slice_minutes is None else 60 * args.slice_minutes
    sliced = False
    while not sliced and run.progress.share(*bounds) < 1:
        record = run.step(rate, run.progress.share(*bounds), run.progress.following(*bounds))
        sliced = slice_seconds is not None and run.agreed(time.monotonic() - STARTED) > slice_seconds
        step, finished = run.progress.step, run.progress.share(*bounds) >= 1
        record["matmul_share"] = 6 * trained * record["positions_per_s"] / roof
        bar.update()
        bar.set_postfix(pos_s=f"{record['positions_per_s']:.0f}", share=f"{record['matmul_share']:.2f}")
        if is_main and (finished or (step - 1) % args.evaluation_steps == 0):
            with torch.compiler.set_stance("force_eager"), run.averaged() as model, run.as_shipped():
                found = held_out_figures(model, held_out, sizes, block_lengths)
            bar.write(f"step {step}: {json.dumps(found)}")
            record |= found
        if is_main:
            append_record(out / "log.jsonl", record)
        due = run.progress.seconds - saved > 60 * args.checkpointing_minutes
        if finished or sliced or due or (args.checkpointing_steps and step % args.checkpointing_steps == 0):
            run.save(out)
            saved = run.progress.seconds
    bar.close()


def is_finished(run: TrainingRun, args: StageArguments) -> bool:
    """Whether a stage has nothing left to do; a slice may end before."""
    return run.progress.share(args.max_train_steps, args.max_train_minutes) >= 1


def main(argv: Sequence[str] | None = None) -> list[TrainingRun]:
    """The stages of a configuration, or the one that the command line describes."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)  # --config is a stage's
    parser.add_argument("--configuration", type=Path)
    parser.add_argument("--stages", nargs="*", default=[])
    given, rest = parser.parse_known_args(argv)
    if given.configuration is None:
        return [train(parse_arguments(rest))]
    runs = []
    for args in read_stages(given.configuration, given.stages, rest).values():
        runs.append(train(replace(args, resume=args.resume and was_saved(Path(args.output_dir)))))
        if not is_finished(runs[-1], args):
            break
    return runs


if __name__ == "__main__":
    main()
