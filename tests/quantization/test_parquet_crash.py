"""A writer that is killed or meets an I/O error at any step leaves the old weights or the new ones, whole."""

import subprocess
import sys
from pathlib import Path


def test_a_fault_at_any_step_leaves_whole_weights(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "tests.quantization.crash_parquet", str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout) > 50
