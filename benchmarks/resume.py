"""Training in several processes, one of them killed: does the run that goes on end as the one without a fault?

    python benchmarks/resume.py --processes 4 --steps 24

Two runs of a tiny network from the same seed (gloo, CPU). In the second a process gets SIGKILL in a random micro-batch;
torchrun starts all of them again (`--max_restarts 1`), and they go on from the last checkpoint. Compared are the losses
of every step, the data that each process read in every micro-batch, and the weights of every process at the end.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import torch
from measure import argument_parser, report, start

from hf_unified_diffusion.modeling.embedded import EMBEDDED_CHECKPOINT
from hf_unified_diffusion.training.run_log import read_records

HERE = Path(__file__).parent
SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 64,
    "time_embedding_size": 16,
    "head_rank": 4,
}
NAMES = ("unbroken", "killed")
CLOCK = {"seconds", "positions_per_s", "matmul_share"}  # of a record: what no two runs share
COLUMNS = ("document_id", "source", "licence")
LINES = {"text": "The cat sat on the mat, and saw that it was good. ", "code": "def cat(mat):\n    return mat\n\n"}


def write_shards(folder: Path) -> None:
    """One document for each split and modality."""
    for split in ("train", "validation"):
        for modality, line in LINES.items():
            (folder / split).mkdir(parents=True, exist_ok=True)
            row = {**dict.fromkeys(COLUMNS, "x"), "modality": modality, "prompt": "", "text": line * 40}
            parquet.write_table(pa.Table.from_pylist([row]), folder / split / f"{modality}.parquet")


def arguments(shards: Path, tokenizer: Path, steps: int, saved_every: int) -> list[str]:
    """Of the training script."""
    given = {
        "tokenizer": tokenizer,
        "shards": shards,
        "config": json.dumps(SHAPE),
        "sequence_length": 24,
        "train_batch_size": 2,
        "max_train_steps": steps,
        "warmup_steps": 2,
        "evaluation_rows": 4,
        "evaluation_steps": steps,
        "checkpointing_steps": saved_every,
        "mixed_precision": "no",
    }
    return [text for name, value in given.items() for text in (f"--{name}", str(value))]


def train_with_a_kill(folder: Path, given: list[str], processes: int, rank: int, fatal: int) -> float:
    """Both runs, in one command; gives its seconds. `fatal` is the micro-batch in which process `rank` dies."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max_restarts", "1"]
    command += ["--nproc_per_node", str(processes), str(HERE / "killed_training.py")]
    command += [str(HERE.parent / "examples" / "train_unified.py"), str(folder), str(rank), str(fatal)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    # torch 2.13 keeps one store over restarts: a process that is early would read the address of one that is dead
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    began = perf_counter()
    subprocess.run([*command, json.dumps(given)], check=True, env=environment, timeout=3000)
    return perf_counter() - began


def compared(folder: Path, processes: int) -> dict[str, Any]:
    """What the two runs have in common."""
    unbroken, resumed = ([without_clock(r) for r in read_records(folder / n / "log.jsonl")] for n in NAMES)
    data = {name: [data_of(folder, name, process) for process in range(processes)] for name in NAMES}
    weights = [[torch.load(folder / f"{name}-weights-{p}.pt") for p in range(processes)] for name in NAMES]
    same = [all(torch.equal(a, b) for a, b in zip(*pair, strict=True)) for pair in zip(*weights, strict=True)]
    return {
        "steps": len(unbroken),
        "steps with equal records": sum(a == b for a, b in zip(unbroken, resumed, strict=True)),
        "micro-batches read": sum(len(read) for read in data["unbroken"]),
        "of equal data": sum(
            len(set(mine)) == 1 and mine[0] == theirs[0]
            for ours, others in zip(data["killed"], data["unbroken"], strict=True)
            for mine, theirs in ((ours[index], others[index]) for index in others)
        ),
        "read again after the kill": sum(len(each) - 1 for read in data["killed"] for each in read.values()),
        "processes with equal weights": sum(same),
        "last loss": next(value for name, value in unbroken[-1].items() if name.endswith("/loss")),
    }


def without_clock(record: dict[str, float]) -> dict[str, float]:
    """A record of the log without what depends on the machine."""
    return {name: value for name, value in record.items() if name not in CLOCK}


def data_of(folder: Path, name: str, process: int) -> dict[int, list[str]]:
    """Digests of what a process read, by micro-batch; several where it read it several times."""
    read: dict[int, list[str]] = {}
    for line in (folder / f"{name}-data-{process}.jsonl").read_text().splitlines():
        _, index, digest = json.loads(line)
        read.setdefault(index, []).append(digest)
    return read


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--saved_every", type=int, default=5, help="steps between checkpoints")
    args, settings = start(parser)
    choice = random.Random(args.seed)
    rank, fatal = choice.randrange(args.processes), choice.randrange(args.saved_every + 1, args.steps - 1)
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder) / "shards")
        given = arguments(Path(folder) / "shards", EMBEDDED_CHECKPOINT, args.steps, args.saved_every)
        seconds = train_with_a_kill(Path(folder), given, args.processes, rank, fatal)
        row = {"processes": args.processes, "killed process": rank, "in step": fatal + 1}
        row |= {**compared(Path(folder), args.processes), "both runs, s": seconds}
    report("resume", {"A killed process": [row]}, settings, [], args.output)


if __name__ == "__main__":
    main()
