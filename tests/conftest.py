"""Tests never reach a hub, and each worker keeps to one core."""

import os
from importlib.util import find_spec

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

if find_spec("ray") is None:
    collect_ignore = ["test_ray.py", "test_ray_batch.py"]


@pytest.fixture
def own_accelerator():
    """accelerate keeps one state a process: a script that asks for another precision than the one before is refused."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
