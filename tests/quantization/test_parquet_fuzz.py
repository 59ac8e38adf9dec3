"""A small run of `make fuzz`: 5,000 mutations in a process with little memory."""

import subprocess
import sys


def test_mutations_give_the_written_tensors_or_a_format_error() -> None:
    program = [sys.executable, "-m", "tests.quantization.fuzz_parquet", "--mutations", "5000", "--seed", "1"]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {line.strip().partition(" ")[2]: int(line.split()[0]) for line in done.stdout.splitlines()}
    assert sum(count for outcome, count in counts.items() if "mutations" not in outcome) == 5000
    # mutations that nothing refuses, or that everything refuses, would test little
    assert sum(count for outcome, count in counts.items() if outcome.endswith("refused")) > 2500
    assert sum(count for outcome, count in counts.items() if outcome.endswith("read")) > 100
