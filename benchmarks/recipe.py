"""`make checkpoint` end to end with a tiny configuration: corpus, source model, stages, rounding, report, card; twice.

    python benchmarks/recipe.py

Two layers of the source model, a few steps a stage, two small sources of the corpus. The first call is stopped in the
middle of a stage, the second finishes, the third finds nothing to do and writes nothing.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from measure import Row, report

ROOT = Path(__file__).parents[1]
MAKE = [sys.executable, str(ROOT / "examples" / "make_checkpoint.py")]
TINY = """
[all]
output_dir = "{folder}/stages"
tokenizer = "{folder}/tokenizer"
shards = "{folder}/shards"
sequence_length = 64
train_batch_size = 2
evaluation_rows = 4
evaluation_steps = 1000
ema_decay = 0.9
warmup_steps = 2
checkpointing_steps = 2

[prepare.corpus]
record = "{folder}/shards/train"
command = ["examples/prepare_data.py", "--shards", "{folder}/shards", "--report", "{folder}",
           "--sources", "docs_varnish", "python_algorithms"]

[prepare.source]
record = "{folder}/source/config.json"
command = ["examples/prepare_source.py", "--model_dir", "{folder}/source", "--tokenizer_dir", "{folder}/tokenizer"]

[stages.causal]
initial_model = "{folder}/source"
from_autoregressive = true
layers = [0, 29]
canvas = false
max_train_steps = 8

[stages.text]
infill_rate = 0.2
max_train_steps = 4

[stages.quantization_aware]
quantization_bits = 4
quantization_group_size = 96
max_train_steps = 3

[distillation]
output_dir = "{folder}/checkpoint"
bits = 4
loss_budget = 5.0
calibration_rows = 4
max_train_steps = 3
sequence_length = 64
train_batch_size = 2
evaluation_rows = 4
shards = "{folder}/shards"
cache = "{folder}/stages/tokens"
base_model = "HuggingFaceTB/SmolLM2-135M-Instruct"

[report]
output_dir = "{folder}/report"
arguments = ["--quick", "--only", "invariance"]
card = "{folder}/card.md"
"""


def call(configuration: Path, kill_after: Path | None = None) -> tuple[float, str]:
    """Seconds and output of one call; killed, children too, when a file is there."""
    began = time.monotonic()
    command = [*MAKE, "--configuration", str(configuration)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    while kill_after is not None and process.poll() is None and not kill_after.exists():
        time.sleep(0.2)
    if kill_after is not None:
        os.killpg(process.pid, signal.SIGKILL)
    output = process.communicate()[0]
    if kill_after is None and process.returncode:
        raise SystemExit(f"make_checkpoint must end well, got {process.returncode}:\n{output}")
    return time.monotonic() - began, output


def files_of(folder: Path) -> dict[str, int]:
    """When each file was written last."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/recipe"), help="an empty folder, or none")
    parser.add_argument("--output", type=Path, default=Path("out"))
    args = parser.parse_args()
    folder = args.work.resolve()
    folder.mkdir(parents=True)
    configuration = folder / "tiny.toml"
    configuration.write_text(TINY.format(folder=folder))
    progress = folder / "stages" / "causal" / "state" / "progress.json"
    killed, _ = call(configuration, kill_after=progress)
    at = json.loads(progress.read_text())["step"]
    finished, output = call(configuration)
    before = files_of(folder)
    again, _ = call(configuration)
    metadata = json.loads((folder / "checkpoint" / "metadata.json").read_text())
    rows: list[Row] = [
        {"call": f"first, killed in the stage causal with step {at} saved", "s": killed, "files changed": "-"},
        {"call": "second, to the end", "s": finished, "files changed": "-"},
        {"call": "third", "s": again, "files changed": str(changed(before, folder))},
    ]
    stages: list[Row] = [{"stage": name, **stage} for name, stage in metadata["training"].items()]
    size = sum(path.stat().st_size for path in (folder / "checkpoint").iterdir()) / 1e6
    notes = [
        f"Checkpoint: {metadata['parameters'] / 1e6:.1f}M parameters, {size:.1f} MB.",
        "Plan as the second call printed it:\n\n" + output[: output.index("\n== ")],
    ]
    report("recipe", {"Calls": rows, "Stages": stages}, {"configuration": "tiny, see the script"}, notes, args.output)


def changed(before: dict[str, int], folder: Path) -> int:
    """How many files are new, gone or written anew."""
    now = files_of(folder)
    return sum(before.get(name) != now.get(name) for name in before.keys() | now.keys())


if __name__ == "__main__":
    main()
