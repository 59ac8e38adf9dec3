"""The two doors to Ray, on a cluster of this machine alone: a worker that is killed, and a server."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import save_tiny_checkpoint


@pytest.mark.parametrize(("door", "told"), [("batch", "24 prompts once"), ("serve", '"answered": 3')])
def test_ray_in_a_process_of_its_own(tmp_path, door, told):
    command = [
        sys.executable,
        "-m",
        "tests.ray_program",
        door,
        str(save_tiny_checkpoint(tmp_path / "tiny")),
        str(tmp_path),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    assert ran.returncode == 0 and told in ran.stdout, ran.stderr[-4000:]
