"""One face: each modality gets the noise of its kind."""

import pytest
import torch
from torch import Generator

from hf_unified_diffusion.contracts import MODALITIES, TOKEN_MODALITIES
from hf_unified_diffusion.processes import COSINE, GaussianFlow, Masked, NoiseScheduler, shifted

MASK = 9


@pytest.fixture
def noise():
    return NoiseScheduler(Masked(MASK), GaussianFlow(COSINE))


@pytest.mark.parametrize("modality", MODALITIES)
def test_each_modality_is_corrupted_by_its_own_process(noise, modality):
    is_token = modality in TOKEN_MODALITIES
    x_0 = torch.ones(64, 10, dtype=torch.int64) if is_token else torch.ones(64, 10, 3)
    t = torch.full((64,), 0.5)
    x_t = noise.corrupt(x_0, modality, t, Generator().manual_seed(0))
    direct = (noise.masked if is_token else noise.gaussian).corrupt(x_0, t, Generator().manual_seed(0))
    assert torch.equal(x_t, direct)
    assert not torch.equal(x_t, x_0)


def test_mask_probability_is_the_share_that_is_hidden(noise):
    t = torch.tensor([0.1, 0.5, 0.9])
    x_t = noise.corrupt(torch.zeros(3, 20_000, dtype=torch.int64), "text", t, Generator().manual_seed(1))
    torch.testing.assert_close((x_t == MASK).float().mean(1), noise.mask_probability(t), atol=0.015, rtol=0)


def test_noise_std_is_the_deviation_of_the_noise(noise):
    t = torch.tensor([0.1, 0.5, 0.9])
    x_t = noise.corrupt(torch.ones(3, 20_000, 1), "audio", t, Generator().manual_seed(1))
    torch.testing.assert_close(x_t.std((1, 2)), noise.noise_std(t), atol=0.015, rtol=0)


def test_the_network_is_told_the_noise_level(noise):
    t = torch.tensor([0.3])
    assert torch.equal(noise.network_time("code", t), noise.mask_probability(t))
    assert torch.equal(noise.network_time("image", t), noise.noise_std(t))


def test_weights_are_those_of_the_processes(noise):
    t = torch.tensor([0.3])
    assert torch.equal(noise.loss_weight("text", t), noise.masked.loss_weight(t))
    assert torch.equal(noise.loss_weight("avatar", t), noise.gaussian.loss_weight(t))


def test_times_and_grids(noise):
    t = noise.sample_times(8, Generator().manual_seed(0), low=0.1)
    assert ((t > 0.1) & (t <= 1)).all()
    assert noise.time_grid(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert (noise.time_grid(4, shifted(2.0))[1:-1] > noise.time_grid(4)[1:-1]).all()


def test_a_new_modality_is_one_entry():
    noise = NoiseScheduler(Masked(MASK), kinds={"touch": "continuous"})
    assert noise.process("touch") is noise.gaussian


def test_bad_input_is_refused(noise):
    with pytest.raises(ValueError, match=r"modality must be one of \['audio', .*\], got 'smell'"):
        noise.corrupt(torch.zeros(1, 1), "smell", torch.ones(1), Generator())
    with pytest.raises(ValueError, match="kind of modality 'touch' must be one of .*, got 'analog'"):
        NoiseScheduler(Masked(MASK), kinds={"touch": "analog"})
