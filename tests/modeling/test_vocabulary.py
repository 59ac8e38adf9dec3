"""Laws of a truncated byte-level BPE: it stops where the full one goes on."""

import argparse
import inspect
import itertools
import json
import textwrap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_unified_diffusion.modeling.vocabulary import MASK_TOKEN, split_digits, truncate_bpe

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CORPUS = [inspect.getsource(argparse), inspect.getsource(textwrap)]
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES_IN_UTF8 = 243

texts = st.text(st.characters(exclude_categories=["Cs"])) | st.lists(
    st.sampled_from(["def ", "self", "  ", "\n", "é", "42", "parser", "🐈"])
).map("".join)


def train(
    alphabet=None, specials_first=True, normalizer=None, pre_tokenizer=None, vocab_size=900
) -> PreTrainedTokenizerFast:
    """A real BPE learned from the standard library's source code; alphabet None lacks bytes that are not there."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIALS if specials_first else [],
        initial_alphabet=alphabet or [],
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    if not specials_first:
        backend.add_special_tokens(SPECIALS)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")


ALPHABET = pre_tokenizers.ByteLevel.alphabet()
QWEN = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
)
SOURCES = {
    "smollm2": train(),
    "gpt2": train(ALPHABET, specials_first=False),
    "qwen": train(ALPHABET, specials_first=False, normalizer=normalizers.NFC(), pre_tokenizer=QWEN),
}
SMALL = {name: truncate_bpe(source, 500) for name, source in SOURCES.items()}
every_source = pytest.mark.parametrize("name", SOURCES)


def merges_of(tokenizer):
    return [tuple(pair) for pair in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]]


RANKS = {name: {pair: rank for rank, pair in enumerate(merges_of(source))} for name, source in SOURCES.items()}
FIRST_RANKS = {name: {pair: rank for rank, pair in enumerate(merges_of(small))} for name, (small, _) in SMALL.items()}


def merge_in_order(symbols, ranks):
    """Byte-pair encoding as its paper writes it: join the earliest learned pair until none is left."""
    symbols = list(symbols)
    while len(symbols) > 1:
        pairs = list(itertools.pairwise(symbols))
        best = min(range(len(pairs)), key=lambda i: ranks.get(pairs[i], len(ranks)))
        if pairs[best] not in ranks:
            break
        symbols[best : best + 2] = ["".join(pairs[best])]
    return symbols


def words_of(tokenizer, text):
    backend = tokenizer.backend_tokenizer
    text = backend.normalizer.normalize_str(text) if backend.normalizer else text
    return [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]


@every_source
def test_every_token_is_a_source_token_or_new(name):
    small, kept_ids = SMALL[name]
    source = SOURCES[name]
    tokens = small.convert_ids_to_tokens(range(len(small)))
    assert kept_ids.shape == (500,) == (len(small),)
    assert kept_ids.dtype == torch.int64
    assert tokens == [
        source.convert_ids_to_tokens(old) if old >= 0 else token
        for token, old in zip(tokens, kept_ids.tolist(), strict=True)
    ]
    new = [token for token, old in zip(tokens, kept_ids.tolist(), strict=True) if old < 0]
    assert new[-1] == MASK_TOKEN
    assert set(new[:-1]) == set(new[:-1]) & set(ALPHABET) - set(source.get_vocab())
    assert len(set(kept_ids.tolist()) - {-1}) == 500 - len(new)
    assert sum(len(token) == 1 for token in tokens) >= BYTES_IN_UTF8


@every_source
def test_merges_are_the_first_ones_and_reach_every_token(name):
    small, _ = SMALL[name]
    merges = list(FIRST_RANKS[name])
    assert merges == list(RANKS[name])[: len(merges)]
    reached = set(ALPHABET) | set(SPECIALS) | {MASK_TOKEN} | {left + right for left, right in merges}
    assert set(small.get_vocab()) <= reached


@every_source
@settings(deadline=None)
@given(text=texts)
def test_tokens_are_the_full_bpe_stopped_early(name, text):
    """Encoding with the first merges, then going on with the rest, is encoding with all of them."""
    small, source = SMALL[name][0], SOURCES[name]
    ranks, first = RANKS[name], FIRST_RANKS[name]
    for word in words_of(source, text):
        stopped = [token.value for token in small.backend_tokenizer.model.tokenize(word)]
        assert stopped == merge_in_order(word, first)
        assert merge_in_order(stopped, ranks) == merge_in_order(word, ranks)


@every_source
@settings(deadline=None)
@given(text=texts)
def test_text_survives_encoding(name, text):
    small, source = SMALL[name][0], SOURCES[name].backend_tokenizer
    expected = source.normalizer.normalize_str(text) if source.normalizer else text
    assert small.decode(small.encode(text)) == expected
    assert small.decode(small.encode(f"{text}{MASK_TOKEN}{text}")) == f"{expected}{MASK_TOKEN}{expected}"


@every_source
def test_reloads_by_auto_tokenizer(name, tmp_path):
    small, _ = SMALL[name]
    small.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = f"don 't {MASK_TOKEN} clean , up .<|im_end|>\n" + CORPUS[1]
    assert loaded.encode(text) == small.encode(text)
    assert loaded.decode(loaded.encode(text)) == text
    assert loaded.get_vocab() == small.get_vocab()
    assert loaded.special_tokens_map == small.special_tokens_map
    assert loaded.all_special_ids == small.all_special_ids


@every_source
def test_specials_come_first_and_end_documents(name):
    small, kept_ids = SMALL[name]
    assert small.convert_ids_to_tokens(range(3)) == SPECIALS
    assert small.eos_token_id == small.pad_token_id == small.bos_token_id == 0
    assert small.mask_token_id == 499
    assert kept_ids[499] == -1
    assert small.encode("<|im_end|>") == [2]


def test_ids_of_a_source_with_specials_first_stay():
    _, kept_ids = SMALL["smollm2"]
    kept = kept_ids[kept_ids >= 0]
    assert torch.equal(kept, torch.arange(len(kept)))


@given(sizes=st.lists(st.integers(260, 800), min_size=2, max_size=2, unique=True).map(sorted))
@settings(deadline=None, max_examples=20)
def test_smaller_vocabularies_nest(sizes):
    less, more = (truncate_bpe(SOURCES["smollm2"], size)[1] for size in sizes)
    assert set(less.tolist()) <= set(more.tolist())


def test_the_source_is_left_as_it_was():
    before = SOURCES["gpt2"].backend_tokenizer.to_str()
    truncate_bpe(SOURCES["gpt2"], 400)
    assert SOURCES["gpt2"].backend_tokenizer.to_str() == before


@pytest.mark.parametrize("size", [-1, 0, 100, 5000])
def test_vocabulary_size_out_of_range(size):
    with pytest.raises(ValueError, match=f"vocab_size must be at .* got {size}$"):
        truncate_bpe(SOURCES["smollm2"], size)


def test_named_sizes_are_the_true_bounds():
    """The least and the greatest vocabulary that the errors name can be had."""
    for wrong in (0, 5000):
        with pytest.raises(ValueError, match="vocab_size must be at") as error:
            truncate_bpe(SOURCES["smollm2"], wrong)
        bound = int("".join(filter(str.isdigit, str(error.value).split("(")[0].split(",")[0])))
        assert len(truncate_bpe(SOURCES["smollm2"], bound)[0]) == bound


def test_bad_sources():
    with pytest.raises(ValueError, match=r"end_token must be one of .* got 'missing'"):
        truncate_bpe(SOURCES["gpt2"], 400, end_token="missing")
    with pytest.raises(ValueError, match="must not hold '<mask>' yet, got it as id 499"):
        truncate_bpe(SMALL["gpt2"][0], 400)
    words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(ValueError, match="must be a BPE after a ByteLevel pre-tokenizer, got WordLevel"):
        truncate_bpe(PreTrainedTokenizerFast(tokenizer_object=words), 400)


def test_digits_stand_alone():
    digits = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trained = train(pre_tokenizer=digits)
    read_from_gguf = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(trained.backend_tokenizer.to_str()))
    read_from_gguf.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    text = "x =    2024"
    assert read_from_gguf.tokenize(text) != trained.tokenize(text)
    split_digits(read_from_gguf)
    assert read_from_gguf.tokenize(text) == trained.tokenize(text)


def test_digits_already_joined():
    joined = train()
    joined.backend_tokenizer.model = models.BPE({"1": 0, "2": 1, "12": 2}, [("1", "2")])
    with pytest.raises(ValueError, match="no entry may join a digit to another character, got '12'"):
        split_digits(joined)
