"""The two doors to Ray, on a cluster of this machine alone: a worker that is killed, and a server."""

import subprocess
import sys
from pathlib import Path

from tests.tiny import save_tiny_checkpoint


def test_a_killed_worker_and_a_server_on_one_cluster(tmp_path):
    """In a process of its own."""
    checkpoint = save_tiny_checkpoint(tmp_path / "tiny")
    command = [sys.executable, "-m", "tests.ray_program", str(checkpoint), str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    assert ran.returncode == 0 and "24 prompts once" in ran.stdout and '"answered": 3' in ran.stdout, ran.stderr[-4000:]
