"""Started by torchrun: train with the example's arguments, several times, and write down the weights each process has.

torchrun --nproc_per_node 2 two_processes.py train_unified.py folder '[["--output_dir", ...], ...]'
"""

import json
import runpy
import sys
from pathlib import Path

import torch

if __name__ == "__main__":
    script, folder, runs = sys.argv[1:]
    main = runpy.run_path(script)["main"]
    for number, arguments in enumerate(json.loads(runs)):
        (run,) = main(arguments)
        rank = run.accelerator.process_index
        torch.save([p.detach() for p in run.parameters], Path(folder) / f"weights-{number}-{rank}.pt")
    torch.distributed.destroy_process_group()
