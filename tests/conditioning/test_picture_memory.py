"""What a checkpoint remembers of pictures: found by words, kept within half a step, never half written."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator

from hf_unified_diffusion.conditioning.picture_memory import BITS, PictureMemory, colour_of, head_of, words_of
from hf_unified_diffusion.quantization import FormatError, write_parquet_weights

CAPTIONS = [
    ["a red apple", "food fruit ripe"],
    ["two green apples"],
    ["a blue car", "automobile vehicle"],
    ["a glass of water"],
]
GRID, WIDTH = (2, 4), 6


def noise(*shape, seed=0):
    return torch.randn(shape, generator=Generator().manual_seed(seed))


@pytest.fixture
def memory():
    return PictureMemory.of(CAPTIONS, noise(4, 8, WIDTH), GRID, metadata={"sources": [{"name": "ours"}]})


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 4), width=st.integers(1, 9), scale=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
def test_tokens_come_back_within_half_a_step(count, width, scale, seed):
    """Of each number's own scale, where nothing is clipped; clipped ones by what was measured to be the least error."""
    tokens = scale * noise(count, 8, width, seed=seed)
    memory = PictureMemory.of(CAPTIONS[:count], tokens, GRID)
    found = memory.tokens(torch.arange(count))
    assert found.shape == tokens.shape and memory.width == width and len(memory) == count
    steps = memory.scale.float()[:, None, :]
    lowest, highest = -(2 ** (BITS - 1)) * steps, (2 ** (BITS - 1) - 1) * steps
    inside = tokens.clamp(lowest, highest)
    assert bool(((found - inside).abs() <= steps * 0.5001).all())
    assert (found - tokens).square().mean() < 0.05 * tokens.square().mean()


def test_words_decide_and_rare_ones_more(memory):
    assert [int(memory.recall(each[0]).places[0]) for each in CAPTIONS] == [0, 1, 2, 3]
    recalled = memory.recall("a car")
    assert recalled.places.tolist() == [2] and recalled.weights.tolist() == [1.0] and recalled.colours == (None,)
    assert memory.recall("an automobile").places.tolist() == [2]  # a word of another caption
    recalled = memory.recall("red apples")  # both have apples, one is red
    assert recalled.places.tolist() == [0, 1] and recalled.weights[0] > recalled.weights[1]
    assert float(recalled.weights.sum()) == pytest.approx(1)
    assert memory.recall("red apples", num=1).places.tolist() == [0]
    # beside three of trees that agree in a word each, the rarer word decides
    trees = [["an old oak tree"], ["an old ash tree"], ["a rare tree"], ["an old elm tree"]]
    more = PictureMemory.of(trees, noise(4, 8, WIDTH), GRID)
    assert int(more.recall("an old rare tree").places[0]) == 2


def test_a_thing_of_another_colour_is_better_than_another_thing_of_the_colour(memory):
    red, blue = memory.recall("a red apple"), memory.recall("a blue apple")
    assert red.places.tolist() == [0, 1] and red.weights[0] > red.weights[1]
    assert sorted(blue.places.tolist()) == [0, 1]
    # what its own caption says to be of the colour stays as it is
    assert red.colours == (None, "red") and blue.colours == ("blue", "blue")
    assert memory.recall("an apple").colours == (None, None)
    assert memory.recall("blue").places.tolist() == [2] and memory.recall("blue").colours == (None,)
    assert memory.recall("an apple left of a blue car").colours == (None, None)


@pytest.mark.parametrize("prompt", ["", "a the of", "zebra", "日本", "!?"])
def test_nothing_is_recalled_where_no_word_is_shared(memory, prompt):
    recalled = memory.recall(prompt)
    assert len(recalled.places) == len(recalled.weights) == 0


def test_the_order_of_words_and_their_letters_do_not_count(memory):
    for one, other in (("a red apple", "Apple, RED!"), ("glass water", "the water with a glass")):
        found, same = memory.recall(one), memory.recall(other)
        assert torch.equal(found.places, same.places) and torch.equal(found.weights, same.weights)
    assert words_of("Two Glasses, a bus & the boss's dogs") == {"two", "glasse", "bus", "boss", "dog", "s"}


@pytest.mark.parametrize(
    ("caption", "head"),
    [
        ("a red apple", "apple"),
        ("two purple apples left of a blue car", "apple"),
        ("on the table", "table"),
        ("a cat face and a dog", "face"),
        ("a red square on the left", "square"),
        ("blue", None),
        ("a left one", None),
        ("", None),
    ],
)
def test_the_noun_of_a_caption(caption, head):
    assert head_of(caption) == head


@pytest.mark.parametrize(
    ("caption", "colour"),
    [
        ("two purple apples left of a blue car", "purple"),
        ("a car beside a blue apple", None),
        ("a black and white cat", None),
        ("a grey cat", "grey"),
        ("blue", None),
        ("", None),
    ],
)
def test_the_colour_of_a_captions_noun(caption, colour):
    assert colour_of(caption) == colour


def test_the_noun_of_a_prompt_must_be_there_and_sides_and_numbers_are_no_things(memory):
    """A car seat is no car, and two pears are no two apples."""
    assert memory.recall("a blue car seat").places.tolist() == []
    assert memory.recall("two pears").places.tolist() == []
    assert memory.recall("two").places.tolist() == [1]
    assert memory.recall("two apples").places[0] == 1
    # the apples come before the car, of which the prompt speaks as well
    assert sorted(memory.recall("an apple left of a car").places.tolist()) == [0, 1]


def test_saved_and_mapped_it_is_the_same(memory, tmp_path):
    loaded = PictureMemory.load(memory.save(tmp_path / "m.parquet"))
    assert loaded.captions == memory.captions and loaded.grid == GRID and loaded.metadata == memory.metadata
    assert torch.equal(loaded.tokens(torch.arange(4)), memory.tokens(torch.arange(4)))
    assert torch.equal(loaded.recall("red apples").weights, memory.recall("red apples").weights)
    assert memory.save(tmp_path / "n.parquet").read_bytes() == (tmp_path / "m.parquet").read_bytes()


def test_broken_files_are_refused(memory, tmp_path):
    whole = memory.save(tmp_path / "m.parquet").read_bytes()
    file = tmp_path / "broken.parquet"
    generator = Generator().manual_seed(0)
    for place in torch.randint(len(whole), (40,), generator=generator).tolist():
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            found = PictureMemory.load(file).tokens(torch.arange(4))
        except FormatError:
            continue
        assert torch.equal(found, memory.tokens(torch.arange(4)))  # a byte that nobody reads: padding
    said = torch.frombuffer(bytearray(json.dumps(CAPTIONS).encode()), dtype=torch.uint8)
    good = {"captions": said, "tokens.packed": memory.packed, "tokens.scale": memory.scale}
    roles = {"tokens.packed": "packed", "tokens.scale": "scale"}
    cases = [
        (good, {"grid": [3, 4]}),
        (good, {"grid": [2.0, 4]}),
        (good, {"grid": 8}),
        (good, {}),
        ({**good, "captions": said[:-1].clone()}, {"grid": [2, 4]}),
        ({**good, "captions": torch.frombuffer(bytearray(b"[1, 2, 3, 4]"), dtype=torch.uint8)}, {"grid": [2, 4]}),
        ({**good, "captions": torch.frombuffer(bytearray(b"[[1]]"), dtype=torch.uint8)}, {"grid": [2, 4]}),
        ({**good, "tokens.packed": memory.packed[:3].clone()}, {"grid": [2, 4]}),
        ({"captions": said}, {"grid": [2, 4]}),
    ]
    for tensors, metadata in cases:
        write_parquet_weights(file, tensors, metadata, roles={name: roles[name] for name in tensors if name in roles})
        with pytest.raises(FormatError, match="a memory of pictures must hold captions, codes, scales and a grid"):
            PictureMemory.load(file)


@pytest.mark.parametrize(
    ("captions", "tokens", "grid", "message"),
    [
        ([], torch.zeros(0, 8, 2), GRID, "weight must be a non-empty"),
        ([["a"]], torch.zeros(1, 8, 2), GRID, r"every picture must have a caption with a word, got \[\('a',\)\]"),
        ([[]], torch.zeros(1, 8, 2), GRID, "every picture must have a caption"),
        ([["x"]], torch.zeros(1, 7, 2), GRID, r"tokens must be \(pictures, 8, width\), got \(1, 7, 2\)"),
        ([["x"]], torch.full((1, 8, 2), torch.nan), GRID, "must be finite"),
        ([["x"], ["y"]], torch.zeros(1, 8, 2), GRID, "2 pictures of 2 x 4 tokens must have 4-bit codes"),
    ],
)
def test_what_does_not_fit_is_refused(captions, tokens, grid, message):
    with pytest.raises(ValueError, match=message):
        PictureMemory.of(captions, tokens, grid)
