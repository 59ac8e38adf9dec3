"""Tests never reach a hub, and each worker keeps to one core."""

import os
from importlib.util import find_spec

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

if find_spec("ray") is None:
    collect_ignore = ["test_ray.py", "test_ray_batch.py"]
