"""The tensor-parallel plan, on two processes of one machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.modeling.tiny import open_model, tiny_config

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("tensor_parallel_program.py")


def test_two_processes_answer_as_one(tmp_path):
    open_model(use_qk_norm=True, attention_bias=True).save_pretrained(tmp_path)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*launcher, str(PROGRAM), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "sharded over 2 processes" in done.stdout


@pytest.mark.parametrize("part", ["self_attn", "cross_attn", "mlp"])
def test_the_plan_names_every_projection(part):
    """All linear layers of the trunk are split, columns first and rows last."""
    plan = tiny_config().base_model_tp_plan
    model = open_model()
    layer = model.shared_transformer.layers[1]
    for name, _ in getattr(layer, part).named_modules():
        if name.endswith("_proj"):
            ends = name in ("o_proj", "down_proj")
            assert plan[f"shared_transformer.layers.*.{part}.{name}"] == ("rowwise" if ends else "colwise")
