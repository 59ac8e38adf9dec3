"""Cutting at spaces changes no id."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from hf_unified_diffusion.modeling.embedded import EMBEDDED_CHECKPOINT
from hf_unified_diffusion.training import bulk_tokenizer
from hf_unified_diffusion.training.bulk_tokenizer import BulkTokenizer, cuts_at_spaces
from hf_unified_diffusion.training.token_data import plain_text_tokenizer

BACKEND = plain_text_tokenizer(AutoTokenizer.from_pretrained(EMBEDDED_CHECKPOINT))
WHITE = " \t\n\r\x0b\x0c\x1c\x1f\x85\xa0\u2003\u2028\u3000"
strange = st.text(st.sampled_from(WHITE + "ab'st1²½Ⅷ_,.<>é中🦀\0\u0301\u200b\ufeff"), max_size=60)


def own_ids(texts, backend=BACKEND):
    return [backend.encode(text, add_special_tokens=False).ids for text in texts]


@settings(deadline=None)
@given(st.lists(st.one_of(strange, st.text(max_size=60)), max_size=5))
def test_ids_are_the_tokenizers_own(texts):
    texts += ["  def f(x):\n        return <mask> it's\t \n\n x <|endoftext|>", "", " "]
    assert BulkTokenizer(BACKEND).encode(texts) == own_ids(texts)


@pytest.mark.parametrize("joined", [1, 2, 7])
def test_stretches_are_encoded_together_and_taken_apart(monkeypatch, joined):
    """A stretch with the separator's own character takes its group apart, and no other."""
    monkeypatch.setattr(bulk_tokenizer, "JOINED", joined)
    texts = ["one two three four five", "a\0b \0 \0\0 c", "six seven <mask>", "\0"]
    assert BulkTokenizer(BACKEND).encode(texts) == own_ids(texts)


def test_a_tokenizer_that_reads_special_tokens_gets_whole_texts():
    backend = AutoTokenizer.from_pretrained(EMBEDDED_CHECKPOINT).backend_tokenizer
    texts = ["a <mask> b", "plain words"]
    assert BulkTokenizer(backend).encode(texts) == own_ids(texts, backend) != own_ids(texts)


def test_what_is_remembered_is_bounded_and_right(monkeypatch):
    monkeypatch.setattr(bulk_tokenizer, "MAX_STRETCHES", 20)
    bulk = BulkTokenizer(BACKEND)
    for start in range(0, 200, 7):
        texts = [" ".join(f"word{i}" for i in range(start, start + 15)), "x" * 100 + " y"]
        assert bulk.encode(texts) == own_ids(texts) == bulk.encode(texts)
        assert len(bulk._known) <= 20 + 15 + 2
        assert max(map(len, bulk._known)) <= bulk_tokenizer.MAX_CHARACTERS


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "NFKC"}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}},
    ],
)
def test_other_tokenizers_get_whole_texts(change):
    told = {**json.loads(BACKEND.to_str()), **change}
    backend = Tokenizer.from_str(json.dumps(told))
    assert cuts_at_spaces(json.loads(BACKEND.to_str())) and not cuts_at_spaces(told)
    texts = ["two words", "ﬁne  print"]
    assert BulkTokenizer(backend).encode(texts) == own_ids(texts, backend)
