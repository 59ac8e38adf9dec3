"""Everything from the data to the quantized files, the report and the model card, by one configuration file.

    python examples/make_checkpoint.py --dry_run                 # the plan: state, FLOPs and hours on this machine
    python examples/make_checkpoint.py                           # do what is left; run again after any interruption
    python examples/make_checkpoint.py --until joint -- --mixed_precision no

Each step is done when its own record says so: a file that it writes, or the progress of a stage. Delete it to do
a step again. Words after `--` go to the training script, before what the file says.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from hf_unified_diffusion.training.machine import matmul_rate, precision_of
from hf_unified_diffusion.training.recipe import Step, read_recipe

ROOT = Path(__file__).parents[1]


def print_plan(steps: Sequence[Step], flops_per_s: float) -> None:
    """One line a step."""
    print(f"training at {flops_per_s / 1e12:.3f} TFLOP/s\n\n| step | state | positions | FLOPs | hours |")
    print("|---|---|---|---|---|")
    for step in steps:
        state = "done" if step.is_done else "to do"
        cost = f"{step.positions:.2e} | {step.flops:.2e} | {step.hours(flops_per_s):.2f}" if step.flops else "- | - | -"
        print(f"| {step.name} | {state} | {cost} |")
    left = [step for step in steps if not step.is_done]
    print(f"\nleft: {sum(s.flops for s in left):.2e} FLOPs, {sum(s.hours(flops_per_s) for s in left):.2f} hours")


def run(step: Step) -> None:
    """One step in a process of its own; the plan ends where it fails."""
    print(f"== {step.name}", flush=True)
    began = time.monotonic()
    done = subprocess.run([sys.executable, str(ROOT / step.command[0]), *step.command[1:]], check=False)
    # the report ends in 1 where a figure fell or a benchmark failed, and is written all the same
    if done.returncode and not (step.name == "report" and Path(step.command[-1], "evaluation.json").exists()):
        raise SystemExit(f"step {step.name!r} failed with exit code {done.returncode}: {' '.join(step.command)}")
    print(f"== {step.name}: {time.monotonic() - began:.0f} s", flush=True)


def main(argv: Sequence[str] | None = None) -> list[Step]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configuration", type=Path, default=ROOT / "examples" / "unified.toml")
    parser.add_argument("--dry_run", action="store_true", help="print the plan and stop")
    parser.add_argument("--until", help="the last step to do")
    parser.add_argument("--matmul_share", type=float, default=0.5, help="of the matmul rate, that training reaches")
    parser.add_argument("overrides", nargs="*", help="arguments of the training script, after --")
    args = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    flops_per_s = args.matmul_share * matmul_rate(device, precision_of("auto"))
    steps = read_recipe(args.configuration, flops_per_s, args.overrides)
    names = [step.name for step in steps]
    if args.until is not None and args.until not in names:
        parser.error(f"until must be one of {names}, got {args.until!r}")
    steps = steps if args.until is None else steps[: names.index(args.until) + 1]
    print_plan(steps, flops_per_s)
    left = [] if args.dry_run else [step for step in steps if not step.is_done]
    for step in left:
        run(step)
    return left


if __name__ == "__main__":
    main()
