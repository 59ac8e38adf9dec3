"""What counts as code, and what entropy says of a text."""

import math
import random

import pytest
from generation import adds_a_statement, choose_texts, unigram_entropy
from hypothesis import given
from hypothesis import strategies as st

from hf_unified_diffusion.codecs.text_codec import TextCodec
from tests.tiny import tiny_tokenizer

tokens = st.lists(st.integers(0, 9), min_size=1, max_size=40)


@given(tokens, st.randoms())
def test_entropy_does_not_see_order_or_names(ids: list[int], chance: random.Random) -> None:
    renamed = [9 - i for i in ids]
    chance.shuffle(renamed)
    assert unigram_entropy(renamed) == pytest.approx(unigram_entropy(ids))


@given(tokens)
def test_entropy_is_between_nothing_and_the_log_of_the_length(ids: list[int]) -> None:
    assert -1e-9 <= unigram_entropy(ids) <= math.log(len(ids)) + 1e-9


def test_entropy_of_one_token_again_and_again_and_of_all_different_ones() -> None:
    assert unigram_entropy([3] * 8) == 0
    assert unigram_entropy(list(range(8))) == pytest.approx(math.log(8))


PROMPT = 'def f(x):\n    """Twice x."""\n'


@pytest.mark.parametrize(
    ("completion", "adds"),
    [("    return 2 * x\n", True), ("    y = x\n    return y + x\n", True), ("", False), ("    return (\n", False)],
)
def test_a_function_needs_a_statement_beside_its_docstring(completion: str, adds: bool) -> None:
    assert adds_a_statement(PROMPT, completion) is adds


def test_held_out_texts_continue_their_beginnings() -> None:
    codec, text = TextCodec(tiny_tokenizer()), "one two three\nfour five six\nseven eight nine ten eleven\n" * 4
    rows = [{"source": source, "text": text + source} for source in "ab"]
    for beginning, ids in choose_texts(rows, codec, 2, 16, 8, random.Random(0)):
        assert beginning + codec.decode(ids) in text + "ab"


def test_a_split_with_too_little_text_is_an_error() -> None:
    with pytest.raises(ValueError, match="2 texts of 24 tokens"):
        choose_texts([{"source": "a", "text": "short"}], TextCodec(tiny_tokenizer()), 2, 16, 8, random.Random(0))
