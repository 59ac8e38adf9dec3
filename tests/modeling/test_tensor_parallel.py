"""The tensor-parallel and the fully sharded plan, on two processes of one machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.modeling.tiny import open_model, tiny_config

ROOT = Path(__file__).parents[2]


def test_two_processes_answer_and_train_as_one(tmp_path):
    """In one start of torchrun: starting costs far more than these small networks."""
    open_model(use_qk_norm=True, attention_bias=True).save_pretrained(tmp_path / "answering")
    open_model().save_pretrained(tmp_path / "training")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
        "CUDA_VISIBLE_DEVICES": "",
    }
    program = Path(__file__).with_name("sharded_program.py")
    done = subprocess.run(
        [*launcher, program, tmp_path / "answering", tmp_path / "training"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "answered and trained over 2 processes" in done.stdout
    assert "will not be applied" not in done.stderr  # every rule of a plan names something


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
