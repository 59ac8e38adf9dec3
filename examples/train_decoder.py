"""Train a decoder along time (`LocalDecoder`) behind a frozen trunk, on speech; nothing else of the network changes.

    python examples/train_decoder.py --speech data/speech --output_dir runs/decoder
    python examples/merge_parts.py runs/decoder/decoder.safetensors --output_dir with_decoder

What the trunk says of noisy clips is computed first and kept in `rows/` of the output folder (about 3.6 kB a token):
a step then costs what the decoder costs. Another run, on another core and with another `--seed`, may compute more of it
at the same time (`--minutes 0`); what is there is read, so that a run with `--compute_minutes 0` only trains. The
learning rate follows the clock; the moving average of the weights is written every few minutes. Layers compute with
the values that they will be rounded to.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Generator
from tqdm.auto import tqdm
from transformers import AutoTokenizer

from hf_unified_diffusion import ArrowQuantConfig, UnifiedDiffusionModel
from hf_unified_diffusion.conversion.merging import write_part
from hf_unified_diffusion.modeling.embedded import EMBEDDED_CHECKPOINT
from hf_unified_diffusion.modeling.local_decoder import LocalDecoder
from hf_unified_diffusion.training.decoder_fitting import (
    HeardRows,
    drawn_times,
    errors_by_time,
    heard_rows,
    random_pieces,
    weighted_loss,
)
from hf_unified_diffusion.training.machine import fast_dtype
from hf_unified_diffusion.training.moving_average import MovingAverage
from hf_unified_diffusion.training.quantization_aware import RoundedWeights
from hf_unified_diffusion.training.run import LearningRate, adamw
from hf_unified_diffusion.training.run_log import append_record
from hf_unified_diffusion.training.speech_data import SpokenRows, open_speech

MODALITY = "audio"
EVALUATED_AT = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 0.95)
FILE_TOKENS = 20_000  # of a file of rows

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--checkpoint", type=Path, default=EMBEDDED_CHECKPOINT)
parser.add_argument("--speech", type=Path, default=Path("data/speech"), help="as `make data-speech` writes it")
parser.add_argument(
    "--train_shards", default="*.parquet", help="pattern of files: better ones that the trunk never heard"
)
parser.add_argument("--output_dir", type=Path, default=Path("runs/decoder"))
parser.add_argument("--rows", type=Path, help="folder of what was computed; default: rows/ of the output folder")
parser.add_argument("--compute_minutes", type=float, default=20.0, help="for what the frozen trunk computes")
parser.add_argument("--copies", type=int, default=6, help="of each clip, at times of their own, behind one context")
parser.add_argument("--minutes", type=float, default=15.0, help="of training; 0: compute only")
parser.add_argument("--max_train_steps", type=int, help="so many steps in place of minutes")
parser.add_argument("--frames", type=int, default=4, help="of a token")
parser.add_argument("--channels", type=int, default=192)
parser.add_argument("--intermediate_size", type=int, default=384)
parser.add_argument("--num_blocks", type=int, default=4)
parser.add_argument("--start", type=Path, help="safetensors of an earlier run, of the same shape")
parser.add_argument("--pieces", type=int, default=24, help="of a step")
parser.add_argument("--piece_tokens", type=int, default=24)
parser.add_argument("--dropout", type=float, default=0.2, help="of what the trunk says")
parser.add_argument("--learning_rate", type=float, default=2e-3)
parser.add_argument("--ema_decay", type=float, default=0.998)
parser.add_argument("--bits", type=int, default=4, choices=(2, 4, 8), help="that it is rounded to as it trains; 8: not")
parser.add_argument("--group_size", type=int, default=96, help="of the checkpoint's quantization")
parser.add_argument("--evaluation_minutes", type=float, default=3.0)
parser.add_argument("--seed", type=int, default=0)


def autocast() -> torch.autocast:
    """In the dtype that this machine is fast in."""
    return torch.autocast("cpu", fast_dtype(), enabled=fast_dtype() is not torch.float32)


def compute(args: argparse.Namespace, split: str, minutes: float) -> None:
    """Write files of rows until the minutes are over; of validation one file, at fixed times, if it is not there."""
    folder = args.rows / split
    folder.mkdir(parents=True, exist_ok=True)
    number = len(list(folder.glob(f"{args.seed}-*.safetensors")))
    if minutes <= 0 or (split == "validation" and any(folder.glob("*.safetensors"))):
        return
    model = UnifiedDiffusionModel.from_pretrained(args.checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(args.checkpoint)
    pattern = args.train_shards if split == "train" else "*.parquet"
    shards = open_speech((args.speech / split).glob(pattern), args.output_dir / f"cache-{args.seed}")
    source = SpokenRows(shards, tokenizer, tokens=320, reference_dropout=0.5, max_reference_tokens=100)
    generator = Generator().manual_seed(args.seed * 1_000_003 + number)
    bar, end, turn = tqdm(unit="tok", desc=split), time.monotonic() + 60 * minutes, number * 1000
    times, last = torch.tensor(EVALUATED_AT), False
    while not last:
        parts: list[HeardRows] = []
        while sum(len(part.x_0) for part in parts) < FILE_TOKENS and not last:
            batch, turn = source.batch(turn, seed=args.seed), turn + 1
            clips = len(batch.rows)
            t = drawn_times(args.copies, clips, generator) if split == "train" else times[:, None].expand(-1, clips)
            with autocast():
                parts.append(heard_rows(model, batch, t, generator))
            bar.update(len(parts[-1].x_0))
            last = time.monotonic() > end
        HeardRows.joined(parts).save(folder / f"{args.seed}-{number:03d}.safetensors")
        number, last = number + 1, last or split == "validation"


def rows_of(folder: Path) -> HeardRows:
    """All that was computed."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"rows must have been computed before training, got none in {folder.name}")
    return HeardRows.joined([HeardRows.load(file) for file in files])


def save(decoder: LocalDecoder, folder: Path, progress: dict[str, float]) -> None:
    """Write the decoder under its names in a network, and how far it is."""
    tensors = {f"decoders.{MODALITY}.{name}": value for name, value in decoder.state_dict().items()}
    write_part(tensors, folder / "decoder.safetensors", progress)


def train(args: argparse.Namespace, decoder: LocalDecoder, rows: HeardRows, held_out: HeardRows) -> None:
    parameters = list(decoder.parameters())
    optimizer, rate = adamw(parameters, weight_decay=0.01, beta2=0.98), LearningRate(args.learning_rate, 50, 0.02)
    average, log = MovingAverage(parameters, args.ema_decay), args.output_dir / "log.jsonl"
    policy = ArrowQuantConfig(args.bits, args.group_size, int8_modules=["write"], modules_to_not_convert=[])
    rounding = RoundedWeights(decoder, policy)
    step, share, seconds, evaluated, bar = 0, 0.0, 0.0, 0.0, tqdm(unit="step")
    while share < 1:
        began, generator = time.monotonic(), Generator().manual_seed(args.seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = rate.at(step, share)
        pieces = random_pieces(rows, args.pieces, args.piece_tokens, generator)
        batch = pieces.with_dropout(args.dropout, generator)
        with autocast(), rounding.in_place():
            loss = weighted_loss(batch.errors(decoder), batch.time)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, error_if_nonfinite=True)
        optimizer.step()
        optimizer.zero_grad()
        average.step(parameters)
        step, seconds = step + 1, seconds + time.monotonic() - began
        share = step / args.max_train_steps if args.max_train_steps else seconds / 60 / args.minutes
        bar.update()
        if step == 1 or seconds - evaluated > 60 * args.evaluation_minutes or share >= 1:
            evaluated = seconds
            average.put_into(parameters)
            with autocast(), RoundedWeights(decoder, policy).in_place():
                found = {f"t{t:g}": round(error, 5) for t, error in errors_by_time(held_out, decoder).items()}
            positions = step * args.pieces * args.piece_tokens
            record = {"step": step, "seconds": round(seconds, 1), "tokens": len(rows.x_0), "positions": positions}
            record["flops"] = 6 * sum(map(torch.numel, parameters)) * positions
            save(decoder, args.output_dir, record)
            average.take_out_of(parameters)
            record |= {"loss": round(loss.item(), 4), **found}
            append_record(log, record)
            print(json.dumps(record), flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    args = parser.parse_args(argv)
    args.rows = args.output_dir / "rows" if args.rows is None else args.rows
    args.output_dir.mkdir(parents=True, exist_ok=True)
    compute(args, "validation", args.compute_minutes)
    compute(args, "train", args.compute_minutes)
    if args.minutes <= 0:
        return
    rows, held_out = rows_of(args.rows / "train"), rows_of(args.rows / "validation")
    torch.manual_seed(args.seed)
    hidden, width = rows.hidden.shape[1], rows.x_0.shape[1]
    decoder = LocalDecoder(hidden, width, args.frames, args.channels, args.intermediate_size, args.num_blocks)
    if args.start is not None:
        prefix = f"decoders.{MODALITY}."
        decoder.load_state_dict({name.removeprefix(prefix): value for name, value in load_file(args.start).items()})
    count = sum(p.numel() for p in decoder.parameters())
    print(f"{len(rows.x_0)} tokens of {len(rows.time)} clips; {count / 1e6:.2f}M parameters train", flush=True)
    print(json.dumps({f"t{t:g}": round(error, 5) for t, error in errors_by_time(held_out, None).items()}), flush=True)
    train(args, decoder, rows, held_out)


if __name__ == "__main__":
    main()
