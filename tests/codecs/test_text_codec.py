"""Laws of the text codec: text in, the same text out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_unified_diffusion.codecs.text_codec import TextCodec, pad_right

texts = st.text(st.characters(exclude_categories=["Cs"])) | st.lists(
    st.sampled_from(["<mask>", "<|endoftext|>", "x", " ", "\n", "é"])
).map("".join)


def make_codec():
    """Every byte is a token."""
    entries = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "<mask>"]
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(entries)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    return TextCodec(
        PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end, pad_token=end, mask_token="<mask>")
    )


CODEC = make_codec()


@settings(deadline=None)
@given(given_texts=st.lists(texts, min_size=1, max_size=3))
def test_text_survives_and_never_becomes_control_tokens(given_texts):
    encoded = CODEC.encode(given_texts)
    assert [CODEC.decode(ids) for ids in encoded] == given_texts
    assert not {0, 257} & {token for ids in encoded for token in ids}


@given(prompt=st.text("ab \n\t", max_size=8))
def test_healing_splits_off_whitespace_that_a_token_starts_with(prompt):
    before, opening = CODEC.heal(prompt)
    assert before + opening == prompt
    assert CODEC.starting_with(opening).any()
    assert (opening == "") == (not prompt.strip() or not prompt[-1].isspace())
    if opening:
        assert before and opening.isspace()


@pytest.mark.parametrize("text", ["", "a", " ", "\n", "é", "\t", "\r\n"])
def test_tokens_starting_with_a_text_decode_to_such_texts(text):
    found = CODEC.starting_with(text)
    for token in range(1, 257):
        spelled = CODEC.tokenizer.convert_ids_to_tokens(token)
        data = bytes(CODEC.tokenizer.backend_tokenizer.decoder.decode([spelled]), "utf8")
        if len(data) == 1:
            assert bool(found[token]) == data.startswith(text.encode())


def test_control_tokens_decode_to_nothing():
    assert CODEC.decode([0, *CODEC.encode(["a"])[0], 257]) == "a"
    assert CODEC.decode([]) == ""


@given(rows=st.lists(st.lists(st.integers(1, 9), max_size=5), min_size=1, max_size=4).filter(any))
def test_padding_is_told_apart(rows):
    ids, mask = pad_right(rows, 0)
    mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
    assert ids.dtype == torch.int64
    assert [row[real].tolist() for row, real in zip(ids, mask, strict=True)] == rows
    assert (ids[~mask] == 0).all()


@pytest.mark.parametrize("rows", [[[1, 2], [3, 4]], [[5]]])
def test_no_mask_without_padding(rows):
    assert pad_right(rows, 0)[1] is None
