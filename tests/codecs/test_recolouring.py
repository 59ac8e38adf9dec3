"""A thing in shades of one colour: its light and dark stay where they are, and so does what is around it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator

from hf_unified_diffusion.codecs.recolouring import COLOURS, DARKEST, LUMINANCE, in_shades_of


def on_white(thing):
    """A thing of 10 x 10 pixels in [-1, 1] in the middle of a white picture."""
    picture = torch.ones(3, 20, 20)
    picture[:, 5:15, 5:15] = thing
    return picture


def named(colour):
    return torch.tensor([COLOURS[colour] >> shift & 255 for shift in (16, 8, 0)]) / 127.5 - 1


def light(pixels):
    return torch.einsum("c,chw->hw", torch.tensor(LUMINANCE), pixels)


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("was", [(1.0, -1.0, -1.0), (-1.0, -1.0, -1.0), (0.0, 0.0, 0.0)])
def test_what_is_all_of_one_colour_gets_the_new_one(colour, was):
    found = in_shades_of(on_white(torch.tensor(was)[:, None, None]), colour)
    torch.testing.assert_close(found[:, 5:15, 5:15], named(colour)[:, None, None].expand(3, 10, 10))
    assert torch.equal(found[:, :5], torch.ones(3, 5, 20))


@settings(max_examples=50, deadline=None)
@given(colour=st.sampled_from(sorted(COLOURS)), spread=st.floats(0, 1), seed=st.integers(0, 999))
def test_darker_stays_darker_in_one_hue_and_the_background_stays(colour, spread, seed):
    """Of two pixels of the thing the one that was darker is not lighter after; all are mixes with black or white."""
    generator = Generator().manual_seed(seed)
    picture = on_white((torch.rand(3, 10, 10, generator=generator) * 2 - 1) * spread - 0.5 * (1 - spread))
    found = in_shades_of(picture, colour)
    assert found.shape == picture.shape and found.min() >= -1 and found.max() <= 1
    assert torch.equal(found[:, :5], picture[:, :5])
    whole = (picture - 1).abs().amax(dim=0) >= 0.5  # wholly of the thing
    before, after = light(picture)[whole], light(found)[whole]
    assert bool((after[before.argsort()].diff() >= -1e-5).all())
    shown, wanted = (found[:, whole] + 1) / 2, (named(colour)[:, None] + 1) / 2
    darker = shown[:, after < light(named(colour)[:, None, None])[0, 0] - 1e-4]
    assert bool((darker >= wanted * (1 - DARKEST) - 1e-5).all())
    if len(wanted.unique()) > 1:  # the largest channel of the colour is the largest of its shades and tints
        assert bool((shown[int(wanted.argmax())] >= shown.amax(dim=0) - 1e-5).all())


def test_a_thing_is_what_differs_from_the_edges_whatever_these_are():
    picture = torch.full((3, 20, 20), -0.8)
    picture[1] = 0.4
    assert torch.equal(in_shades_of(picture, "red"), picture)  # nothing but background
    picture[:, 8:12, 8:12] = torch.tensor([0.0, -1.0, 1.0])[:, None, None]
    found = in_shades_of(picture, "yellow")
    torch.testing.assert_close(found[:, 9, 9], named("yellow"))
    torch.testing.assert_close(found[:, 0], picture[:, 0])


def test_an_unknown_colour_is_refused():
    with pytest.raises(ValueError, match=r"colour must be one of \['black', .* got 'octarine'"):
        in_shades_of(torch.zeros(3, 8, 8), "octarine")
