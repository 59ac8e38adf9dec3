"""Training against the rounding of a shipped checkpoint."""

import pytest
import torch

from hf_unified_diffusion import ArrowQuantConfig
from hf_unified_diffusion.quantization import dequantize, quantize, quantize_calibrated
from hf_unified_diffusion.quantization.modules import quantize_layer
from hf_unified_diffusion.training.quantization_aware import RoundedWeights, rounded, scales_of, spread_over_cells

CONFIG = ArrowQuantConfig(bits=4, group_size=32, int8_modules=[], modules_to_not_convert=[])


def two_layers() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.SiLU(), torch.nn.Linear(96, 8))


@pytest.mark.parametrize("bits", [4, 2])
def test_rounding_is_what_a_checkpoint_holds(bits):
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(1))
    packed, scale = quantize(weight, bits, 32)
    assert torch.equal(rounded(weight, scale.float(), bits), dequantize(packed, scale, bits))


def test_the_pass_sees_rounded_weights_and_the_dense_ones_come_back():
    model = two_layers()
    dense = [p.detach().clone() for p in model.parameters()]
    with RoundedWeights(model, CONFIG).in_place():
        inside = model[0].weight.detach().clone()
        model(torch.ones(3, 64)).square().mean().backward()
    assert not torch.equal(inside, dense[0])
    assert torch.equal(inside, dequantize(*quantize(dense[0], 4, 32), 4))
    assert all(torch.equal(p, d) for p, d in zip(model.parameters(), dense, strict=True))
    assert model[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("bits", [2, 4])
def test_given_codes_are_where_it_starts_and_what_it_ends_with(bits):
    model, inputs = two_layers(), torch.randn(100, 64, generator=torch.Generator().manual_seed(2))
    config = ArrowQuantConfig(bits=bits, group_size=32, int8_modules=[], modules_to_not_convert=[])
    codes = {"0": quantize_calibrated(model[0].weight, inputs.T @ inputs, bits, 32)}
    dense, restored = model[0].weight.detach().clone(), dequantize(*codes["0"], bits)
    rounded_weights = RoundedWeights(model, config, refresh_every=1, codes=codes)
    start = model[0].weight.detach()
    assert torch.all((start - dense).abs() <= (restored - dense).abs() + 1e-6)
    assert not torch.equal(start, restored)
    for _ in range(2):
        with rounded_weights.in_place():
            assert torch.equal(model[0].weight, dequantize(*codes["0"], bits))
    found = rounded_weights.codes()
    assert all(torch.equal(a, b) for a, b in zip(found["0"], codes["0"], strict=True))
    plain = quantize(model[2].weight, bits, 32)
    assert all(torch.equal(a, b) for a, b in zip(found["2"], plain, strict=True))


def test_an_error_inside_leaves_the_dense_weights():
    model = two_layers()
    dense = model[0].weight.detach().clone()
    with pytest.raises(RuntimeError, match="stop"), RoundedWeights(model, CONFIG).in_place():
        raise RuntimeError("stop")
    assert torch.equal(model[0].weight, dense)


def test_a_restored_state_rounds_as_the_unbroken_one():
    model, x = two_layers(), torch.ones(3, 64)
    first = RoundedWeights(model, CONFIG, refresh_every=10)
    with first.in_place():
        pass
    second = RoundedWeights(model, CONFIG, refresh_every=10)
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
        with first.in_place():
            unbroken = model(x)
        with second.in_place():
            assert torch.equal(model(x), unbroken)


def test_it_lowers_the_loss_of_the_rounded_network():
    """At 2 bits: trained through the rounding, the rounded network fits better than one rounded after training."""
    config = ArrowQuantConfig(bits=2, group_size=32, int8_modules=[], modules_to_not_convert=[])
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(2))
    y = torch.randn(64, 8, generator=torch.Generator().manual_seed(3))
    losses = {}
    for aware in (False, True):
        model = two_layers()
        weights, optimizer = RoundedWeights(model, config), torch.optim.Adam(model.parameters(), 1e-3)
        for _ in range(150):
            if aware:
                with weights.in_place():
                    (model(x) - y).square().mean().backward()
            else:
                (model(x) - y).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        with RoundedWeights(model, config).in_place(), torch.no_grad():
            losses[aware] = (model(x) - y).square().mean().item()
    assert losses[True] < losses[False]


@pytest.mark.parametrize("bits", [2, 4])
def test_weights_spread_over_their_cells_round_to_the_levels_they_came_from(bits):
    config = ArrowQuantConfig(bits=bits, group_size=32, int8_modules=["2"], modules_to_not_convert=[])
    model = two_layers()
    layer = quantize_layer(model[0], bits, 32, torch.float32)
    scales = scales_of(torch.nn.Sequential(layer, quantize_layer(model[2], 8, 32, torch.float32)))
    assert list(scales) == ["0"]
    levels = dequantize(layer.weight, scales["0"], bits)
    model[0].weight.data = levels.clone()
    other = model[2].weight.detach().clone()
    spread_over_cells(model, scales, seed=3)
    steps = (model[0].weight - levels).abs() / scales["0"].float().repeat_interleave(32, dim=1)
    assert 0.4 < steps.max() < 0.5
    assert abs(steps.mean() - 0.225) < 0.01
    assert torch.equal(model[2].weight, other)
    weights = RoundedWeights(model, config, refresh_every=1, scales=scales)
    with weights.in_place():
        assert torch.equal(model[0].weight, levels)
    assert torch.equal(weights.codes()["0"][0], layer.weight)


def test_moved_weights_cross_as_many_borders_as_the_movement_asks_for():
    """A twentieth of a step moves a network that nearest rounding alone would leave where it is."""
    model = torch.nn.Sequential(torch.nn.Linear(512, 512))
    scales = scales_of(torch.nn.Sequential(quantize_layer(model[0], 4, 32, torch.float32)))
    weights = RoundedWeights(model, CONFIG, scales=scales)
    with weights.in_place():
        levels = model[0].weight.detach().clone()
    inside = levels.abs() < 6 * scales["0"].float().repeat_interleave(32, dim=1)  # the outermost levels have one border
    step = scales["0"].float().repeat_interleave(32, dim=1)
    for spread, share in ((False, 0.0), (True, 0.1 / 0.9)):
        model[0].weight.data = levels.clone()
        if spread:
            spread_over_cells(model, scales, seed=0)
        model[0].weight.data += 0.15 * step
        with weights.in_place():
            moved = ((model[0].weight - levels) / step)[inside].mean().item()
        assert abs(moved - share) < 0.01


@pytest.mark.parametrize(
    ("scales", "message"),
    [({"4": torch.ones(8, 3)}, "layers of 4 bits"), ({"2": torch.ones(8, 2)}, "one for 32 of 8 x 96 weights")],
)
def test_scales_of_another_network_are_refused(scales, message):
    with pytest.raises(ValueError, match=message):
        RoundedWeights(two_layers(), CONFIG, scales=scales)
