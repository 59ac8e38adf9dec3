"""Bulk generation with Ray Data: is every prompt written exactly once, though a driver and a worker are killed?

    python benchmarks/ray_batch.py --prompts 500 --workers 2

A driver in a process of its own is killed (SIGKILL) when a fifth of the prompts is written. A second one goes on, and a
worker of it is killed when half is written. A sample of the texts is compared with what one process writes alone.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from time import perf_counter

import ray
from measure import argument_parser, described, report, start

from hf_unified_diffusion.ray_batch import PromptWriter, Results, written

SUBJECTS = ("The history of", "A short walk to", "The price of", "My first day at", "How to repair", "A letter about")
THINGS = ("the bicycle", "the harbour", "a wooden chair", "the old library", "bread", "a small engine", "the garden")
ROWS_PER_FILE = 10


def prompts(count: int) -> list[dict[str, object]]:
    """Prompts with their ids."""
    pairs = [f"{subject} {thing}" for subject in SUBJECTS for thing in THINGS]
    return [{"id": number, "prompt": pairs[number % len(pairs)]} for number in range(count)]


def drive(folder: Path, args: dict, kill_worker_after: int | None) -> dict[str, object]:
    """Write what is not written yet; kills a worker, once, when so many rows are new."""
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
    data = ray.data.from_items(prompts(args["prompts"]), override_num_blocks=-(-args["prompts"] // ROWS_PER_FILE))
    options = {"max_new_tokens": args["tokens"], "num_steps": args["steps"]}
    results = written(data, folder, args["workers"], ROWS_PER_FILE, checkpoint=args["checkpoint"], options=options)
    rows, killed = 0, None
    for batch in results.iter_batches(batch_size=ROWS_PER_FILE, prefetch_batches=0):
        rows += len(batch["id"])
        if kill_worker_after is not None and killed is None and rows >= kill_worker_after:
            killed = int(batch["pid"][-1])
            os.kill(killed, signal.SIGKILL)
    ray.shutdown()
    return {"told": rows, "worker killed": killed is not None}


def killed_driver(folder: Path, arguments: dict, rows: int) -> int:
    """Start a driver in a process of its own, kill it when so many rows are written; gives how many there were."""
    call = f"import ray_batch, pathlib; ray_batch.drive(pathlib.Path({str(folder)!r}), {arguments!r}, None)"
    driver = subprocess.Popen([sys.executable, "-c", call], cwd=Path(__file__).parent)
    while len(list(folder.glob("*.parquet"))) * ROWS_PER_FILE < rows:
        if driver.poll() is not None:
            raise RuntimeError(f"the driver must be at work when it is killed, got its end with {driver.returncode}")
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    return len(Results(folder).ids())


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--compared", type=int, default=20, help="texts compared with those of one process")
    args, settings = start(parser)
    given = {name: getattr(args, name) for name in ("prompts", "workers", "tokens", "steps", "checkpoint")}
    with tempfile.TemporaryDirectory() as root:
        folder, began = Path(root) / "results", perf_counter()
        folder.mkdir()
        first = killed_driver(folder, given, args.prompts // 5)
        second = drive(folder, given, args.prompts // 2 - first)
        seconds, table = perf_counter() - began, Results(folder).table()
        ids = Counter(Results(folder).ids())
        exactly_once = sum(ids[number] == 1 for number in range(args.prompts))
        options = {"max_new_tokens": args.tokens, "num_steps": args.steps}
        alone = PromptWriter(Path(root) / "alone", args.checkpoint, options=options)
        sample = prompts(args.prompts)[:: max(1, args.prompts // args.compared)]
        alone({name: [row[name] for row in sample] for name in ("id", "prompt")})
        texts = dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))
        equal = sum(texts[row["id"]] == row["text"] for row in alone.results.table().to_pylist())
        print(json.dumps({"ids exactly once": exactly_once, "ids": sorted(ids) == list(range(args.prompts))}))
        row = {
            "prompts": args.prompts,
            "written when the driver was killed": first,
            "told to the second driver": second["told"],
            "a worker killed": second["worker killed"],
            "ids exactly once": exactly_once,
            "ids twice": sum(count > 1 for count in ids.values()),
            "errors": len(table) - table["error"].null_count,
            "texts equal to one process'": f"{equal} of {len(sample)}",
            "seconds": seconds,
        }
        report(
            "ray_batch",
            {"Exactly once": [row]},
            settings,
            [described(alone.engine.model, alone.engine.tokenizer)],
            args.output,
        )
        alone.engine.close()


if __name__ == "__main__":
    main()
