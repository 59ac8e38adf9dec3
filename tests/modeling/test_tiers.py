"""Laws of the tiers and of the planner: bounds counted on shapes, arithmetic beside a measured process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_unified_diffusion import UnifiedDiffusionModel, quantization
from hf_unified_diffusion.modeling.embedded import EMBEDDED_CHECKPOINT
from hf_unified_diffusion.modeling.memory_plan import plan_memory, plan_model, recommended
from hf_unified_diffusion.modeling.tiers import TIERS, tier, without_memory
from hf_unified_diffusion.quantization import ArrowQuantConfig, bits_per_weight, num_weights, stored_bytes
from tests.tiny import tiny_model

GIGABYTE = 10**9
WRITER = Path(__file__).parents[2] / "benchmarks" / "limited_writer.py"


@pytest.mark.parametrize("name", TIERS)
def test_a_tier_keeps_its_bounds(name: str) -> None:
    chosen = tier(name)
    model = without_memory(chosen.config(), chosen.quantization())
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    assert 0.8 * chosen.max_parameters < num_weights(model) < chosen.max_parameters
    assert model.trunk_share() >= 0.9
    assert set(model.heads) == set(chosen.modalities)
    if chosen.max_file_bytes is not None:
        plan = plan_model(model, model.config, GIGABYTE)
        assert stored_bytes(model) < plan.file_bytes < chosen.max_file_bytes
    policy = chosen.quantization()
    plan = policy.bits_of_layers(without_memory(chosen.config()))
    assert set(plan.values()) == {policy.bits, 8}
    assert plan["token_embedding"] == plan["heads.text.down"] == 8


def test_requirement_14_names_them() -> None:
    assert (tier("edge").max_parameters, tier("edge").max_file_bytes) == (100_000_000, 35_000_000)
    assert (tier("workstation").max_parameters, tier("workstation").max_file_bytes) == (600_000_000, 200_000_000)
    assert tier("cloud").max_parameters == 3_000_000_000
    assert {"text", "audio"} <= set(tier("edge").modalities)
    assert {"text", "audio", "image"} <= set(tier("workstation").modalities)
    assert {"text", "code", "audio", "image", "avatar"} == set(tier("cloud").modalities)
    with pytest.raises(ValueError, match="tier must be one of .* got 'phone'"):
        tier("phone")


def test_four_bits_do_not_fit_the_workstation_tier() -> None:
    chosen = tier("workstation")
    four = without_memory(chosen.config(), ArrowQuantConfig(4, int8_modules=[], modules_to_not_convert=[]))
    assert bits_per_weight(four) < 4.3
    assert stored_bytes(four) > 1.4 * chosen.max_file_bytes
    # at 600M and the 4.25 bits of INT4 in groups of 64
    assert 1.5 * chosen.max_file_bytes < 600_000_000 * 4.25 / 8


def test_the_embedded_checkpoint_has_the_shape_of_its_tier() -> None:
    config = UnifiedDiffusionModel.config_class.from_pretrained(EMBEDDED_CHECKPOINT)
    assert {name: getattr(config, name) for name in tier("edge").shape} == dict(tier("edge").shape)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_shapes_without_memory_are_those_of_the_model(bits: int) -> None:
    policy = ArrowQuantConfig(bits, group_size=8)
    model = quantization.quantize_model(tiny_model(), policy)
    shapes = without_memory(tiny_model().config, policy)
    assert num_weights(shapes) == num_weights(model) and stored_bytes(shapes) == stored_bytes(model)
    real = {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in shapes.state_dict().items()} == real


def test_the_plan_is_what_a_process_takes(tmp_path: Path) -> None:
    model = UnifiedDiffusionModel.from_pretrained()
    plans = [plan_model(model, model.config, room, 64 + 8) for room in (0, 10 * GIGABYTE)]
    assert (plans[0].cache_bytes, plans[1].cache_bytes) == (0, plans[1].all_dense_bytes)
    command = [sys.executable, WRITER, EMBEDDED_CHECKPOINT, 64, 8, 0, 10 * GIGABYTE]
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    measured = json.loads(ran.stdout)
    for plan, cache in zip(plans, (0, 10 * GIGABYTE), strict=True):
        peak = measured[f"wrote, cache {cache}"]["peak"]
        assert abs(plan.total_bytes - peak) < 0.12 * peak, (cache, plan.total_bytes, peak)


def test_more_memory_never_plans_less() -> None:
    ranks = []
    for memory in (GIGABYTE // 2, GIGABYTE, 2 * GIGABYTE, 4 * GIGABYTE, 8 * GIGABYTE, 32 * GIGABYTE):
        plans = plan_memory(memory)
        assert [plan.tier for plan in plans] == list(TIERS)
        assert all(plan.total_bytes <= memory for plan in plans if plan.fits)
        best = recommended(plans)
        ranks.append(-1 if best is None else list(TIERS).index(best.tier))
    assert ranks == sorted(ranks) and ranks[0] == -1 and ranks[-1] == 2
    edge = [plan_memory(memory)[0] for memory in (GIGABYTE // 2, GIGABYTE, 2 * GIGABYTE)]
    assert [plan.fits for plan in edge] == [False, True, True]
    assert edge[1].cache_bytes < edge[2].cache_bytes == edge[2].all_dense_bytes


def test_halving_the_dtype_halves_what_is_dense() -> None:
    full, half = (plan_memory(8 * GIGABYTE, dtype=dtype)[0] for dtype in (torch.float32, torch.bfloat16))
    assert full.all_dense_bytes == 2 * half.all_dense_bytes
    assert full.context_bytes == 2 * half.context_bytes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"memory_bytes": 0}, "memory_bytes must be at least 1, got 0"),
        ({"memory_bytes": 1, "context_length": 0}, "context_length must be at least 1, got 0"),
        ({"memory_bytes": 1, "modalities": ["smell"]}, "modalities must be among those of a tier"),
    ],
)
def test_bad_input_names_the_rule(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_memory(**arguments)


def test_only_tiers_with_the_modalities_are_planned() -> None:
    assert [plan.tier for plan in plan_memory(GIGABYTE, ["text", "image"])] == ["workstation", "cloud"]
