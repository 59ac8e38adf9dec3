"""Started by torchrun (see resume.py): train without a fault, then with one process killed; started again, resume.

    torchrun --nproc_per_node 2 --max_restarts 1 killed_training.py train_unified.py folder 1 5 '["--tokenizer", ...]'

Process 1 kills itself (SIGKILL) in micro-batch 5 of the second run. Each process writes down which data it read.
"""

import hashlib
import json
import os
import runpy
import signal
import sys
from pathlib import Path

import torch

from hf_unified_diffusion.training.run import TrainingRun, was_saved


def watched(log: Path, rank: int, fatal: int | None) -> None:
    """Let every process write down its micro-batches, and one of them die in one."""
    parts = TrainingRun.parts

    def made(run: TrainingRun, index: int, progress: float):
        process, batch = run.accelerator.process_index, run.batch(index)
        tensors = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
        digest = hashlib.sha256(b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors)).hexdigest()
        with log.open("a") as file:
            file.write(json.dumps([process, index, digest]) + "\n")
        if process == rank and index == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return parts(run, index, progress)

    TrainingRun.parts = made


def main() -> None:
    """The unbroken run and the one with the fault, or after a restart the rest of the latter."""
    script, folder, rank, fatal, arguments = sys.argv[1:]
    train, out, given = runpy.run_path(script)["main"], Path(folder), json.loads(arguments)
    process = os.environ["RANK"]
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        plan = [("unbroken", None), ("killed", int(fatal))]
    else:
        plan = [("killed", None)]
    parts = TrainingRun.parts
    for name, fatal_index in plan:
        TrainingRun.parts = parts
        watched(out / f"{name}-data-{process}.jsonl", int(rank), fatal_index)
        resume = ["--resume"] if was_saved(out / name) else []
        (run,) = train([*given, "--output_dir", str(out / name), *resume])
        torch.save([p.detach() for p in run.parameters], out / f"{name}-weights-{process}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
