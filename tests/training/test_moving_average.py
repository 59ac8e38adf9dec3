"""The moving average is diffusers' own, step for step, and gives back what it borrowed."""

import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import nn

from hf_unified_diffusion.training.moving_average import MovingAverage


def moving_parameters() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(5))]


def move(parameters: list[nn.Parameter]) -> None:
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn_like(parameter))


@pytest.mark.parametrize("decay", [0.0, 0.6, 0.999, 1.0])
def test_it_is_the_average_of_diffusers(decay):
    parameters = moving_parameters()
    ours = MovingAverage(parameters, decay)
    theirs = EMAModel(parameters, decay=decay, use_ema_warmup=True, power=0.75)
    for _ in range(20):
        move(parameters)
        ours.step(parameters)
        theirs.step(parameters)
        for x, y in zip(ours.shadow_params, theirs.shadow_params, strict=True):
            torch.testing.assert_close(x, y)
    resumed = MovingAverage(parameters, decay)
    resumed.load_state_dict(theirs.state_dict())
    assert resumed.steps == ours.steps == 20
    assert all(torch.equal(x, y) for x, y in zip(resumed.shadow_params, theirs.shadow_params, strict=True))


def test_the_weights_come_back_and_nothing_comes_back_twice():
    parameters = moving_parameters()
    average = MovingAverage(parameters, 0.9)
    move(parameters)
    trained = [p.detach().clone() for p in parameters]
    average.put_into(parameters)
    assert all(torch.equal(p, a) for p, a in zip(parameters, average.shadow_params, strict=True))
    average.take_out_of(parameters)
    assert all(torch.equal(p, t) for p, t in zip(parameters, trained, strict=True))
    with pytest.raises(RuntimeError, match="take_out_of must follow put_into"):
        average.take_out_of(parameters)
