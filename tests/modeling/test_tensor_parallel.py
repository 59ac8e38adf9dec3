"""The tensor-parallel and the fully sharded plan, on two processes of one machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.modeling.tiny import open_model, tiny_config

ROOT = Path(__file__).parents[2]


def on_two_processes(program: str, checkpoint: Path) -> str:
    """What a program prints, run by torchrun."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [*launcher, str(Path(__file__).with_name(program)), str(checkpoint)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "will not be applied" not in done.stderr  # every rule of a plan names something
    return done.stdout


def test_two_processes_answer_as_one(tmp_path):
    open_model(use_qk_norm=True, attention_bias=True).save_pretrained(tmp_path)
    assert "sharded over 2 processes" in on_two_processes("tensor_parallel_program.py", tmp_path)


def test_two_processes_in_shards_train_as_one(tmp_path):
    """FSDP2 by transformers: the same losses and, after three steps, the same weights."""
    open_model().save_pretrained(tmp_path)
    assert "trained over 2 processes" in on_two_processes("fsdp_program.py", tmp_path)


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
