"""Laws of packed tokens: nothing lost, nothing special slipped in, and an order that the step number decides."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hf_unified_diffusion.training.token_data import (
    MAX_END_TOKENS,
    PackedTokens,
    bytes_per_token,
    pack_shards,
    plain_text_tokenizer,
    starts_for,
)
from tests.tiny import END, MASK, tiny_tokenizer
from tests.training.tiny_training import write_shard

TEXTS = [f"document {i}: caf\u00e9 {'na' * i}!" for i in range(40)]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def merging_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE with merges, one of which looks like the start of a special token."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=[END], show_progress=False)
    backend.train_from_iterator(["<|a <|b |> é漢 the then there"] * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, mask_token=MASK)


def pack(folder, tokenizer, texts=TEXTS, modality="text", seed=0) -> PackedTokens:
    write_shard(folder / "shards" / "a.parquet", texts, modality)
    return pack_shards((folder / "shards").glob("*.parquet"), tokenizer, modality, folder / "cache", seed)


def documents_of(packed: PackedTokens, tokenizer) -> list[str]:
    """The texts in their order; checks that each ends with a run of end tokens."""
    texts = []
    for document in range(packed.documents.max() + 1):
        tokens = packed.tokens[packed.documents == document].tolist()
        end = tokens.count(tokenizer.eos_token_id)
        assert 1 <= end <= MAX_END_TOKENS
        assert tokens[-end:] == [tokenizer.eos_token_id] * end
        texts.append(tokenizer.decode(tokens[:-end]))
    return texts


def test_every_document_is_there_once_shuffled_with_runs_of_end_tokens(tmp_path, tokenizer):
    packed = pack(tmp_path, tokenizer)
    found = documents_of(packed, tokenizer)
    assert sorted(found) == sorted(TEXTS)
    assert found != TEXTS
    assert packed.num_bytes == sum(len(text.encode()) for text in TEXTS)
    assert (packed.documents[1:] >= packed.documents[:-1]).all()
    lengths = {int((packed.tokens[packed.documents == i] == 0).sum()) for i in range(len(TEXTS))}
    assert len(lengths) > 5


def test_packing_is_cached_and_stable(tmp_path, tokenizer):
    first = pack(tmp_path, tokenizer)
    (cached,) = (tmp_path / "cache").iterdir()
    written = cached.stat().st_mtime_ns
    shards = list((tmp_path / "shards").glob("*.parquet"))
    again = pack_shards(shards, tokenizer, "text", tmp_path / "cache")
    assert cached.stat().st_mtime_ns == written
    afresh = pack_shards(shards, tokenizer, "text", tmp_path / "elsewhere")
    for other in (again, afresh):
        assert (other.tokens == first.tokens).all()
        assert (other.documents == first.documents).all()
        assert other.num_bytes == first.num_bytes
    more = [*TEXTS, "one more"]
    assert sorted(documents_of(pack(tmp_path, tokenizer, more), tokenizer)) == sorted(more)


def test_another_seed_is_another_order(tmp_path, tokenizer):
    first, second = (documents_of(pack(tmp_path, tokenizer, seed=seed), tokenizer) for seed in (0, 1))
    assert first != second
    assert sorted(first) == sorted(second)


def test_only_documents_of_the_modality_are_packed(tmp_path, tokenizer):
    write_shard(tmp_path / "shards" / "b.parquet", ["x = 1"], "code")
    assert sorted(documents_of(pack(tmp_path, tokenizer), tokenizer)) == sorted(TEXTS)
    with pytest.raises(ValueError, match=r"no document of modality 'image' in \['a.parquet', 'b.parquet'\]"):
        pack_shards((tmp_path / "shards").glob("*.parquet"), tokenizer, "image", tmp_path / "cache")


def test_special_tokens_written_in_a_document_are_plain_text(tmp_path, tokenizer):
    """A mask token in clean data would be an impossible label: its logit is -inf."""
    text = f"the {MASK} token and {END}, as prose"
    packed = pack(tmp_path, tokenizer, [text] * 3)
    assert not (packed.tokens == tokenizer.mask_token_id).any()
    assert bytes_per_token(tokenizer)[torch.from_numpy(packed.tokens.astype(int))].sum() == 3 * len(text)
    assert tokenizer.encode(MASK) == [tokenizer.mask_token_id]


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=60) | st.sampled_from([MASK, END, "<|a <|", "\ufeff", "\U0001f600"]))
def test_bytes_of_tokens_sum_to_the_bytes_of_any_text(merging_tokenizer, text):
    ids = plain_text_tokenizer(merging_tokenizer).encode(text, add_special_tokens=False).ids
    assert bytes_per_token(merging_tokenizer)[ids].sum() == len(text.encode())


def test_special_tokens_stand_for_no_bytes(merging_tokenizer):
    sizes = bytes_per_token(merging_tokenizer)
    assert "<|" in merging_tokenizer.get_vocab()
    assert sizes[[merging_tokenizer.eos_token_id, merging_tokenizer.mask_token_id]].tolist() == [0, 0]
    assert len(sizes) == len(merging_tokenizer)


def test_rows_are_the_tokens_from_their_starts(tmp_path, tokenizer):
    packed = pack(tmp_path, tokenizer)
    batch = packed.rows(torch.tensor([3, 50]), 20)
    assert batch.tokens.shape == batch.documents.shape == (2, 20)
    assert batch.tokens[1].tolist() == packed.tokens[50:70].tolist()
    assert batch.documents[1].tolist() == packed.documents[50:70].tolist()


def test_the_first_tokens_stand_for_their_share_of_bytes(tmp_path, tokenizer):
    packed = pack(tmp_path, tokenizer)
    half = packed.first(len(packed) // 2)
    assert len(half) == len(packed) // 2 == len(half.documents)
    assert half.num_bytes == pytest.approx(packed.num_bytes / 2, rel=0.01)
    assert packed.first(10**9).num_bytes == packed.num_bytes


@pytest.fixture
def packed(tmp_path, tokenizer) -> PackedTokens:
    return pack(tmp_path, tokenizer)


LENGTH = 16


def epoch_of(packed: PackedTokens, seed: int, first: int = 0) -> list[int]:
    """One epoch read a row a step, from step `first`."""
    per_epoch = (len(packed) - LENGTH) // LENGTH
    return [int(starts_for(packed, LENGTH, 1, first + step, seed)) for step in range(per_epoch)]


def test_an_epoch_visits_each_sequence_once(packed):
    for epoch in range(3):
        starts = sorted(epoch_of(packed, 5, epoch * ((len(packed) - LENGTH) // LENGTH)))
        assert {b - a for a, b in itertools.pairwise(starts)} == {LENGTH}
        assert 0 <= starts[0] < LENGTH
        assert starts[-1] + LENGTH <= len(packed)


def test_epochs_and_seeds_differ_and_steps_are_repeatable(packed):
    per_epoch = (len(packed) - LENGTH) // LENGTH
    assert epoch_of(packed, 5) == epoch_of(packed, 5)
    assert epoch_of(packed, 5) != epoch_of(packed, 6)
    assert epoch_of(packed, 5) != epoch_of(packed, 5, per_epoch)


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_out_what_one_process_would_read(packed, processes):
    for step in range(12):
        shared = [starts_for(packed, LENGTH, 2, step, 1, process, processes).tolist() for process in range(processes)]
        alone = starts_for(packed, LENGTH, 2 * processes, step, 1).tolist()
        assert list(itertools.chain(*shared)) == alone
        assert len(set(alone)) == len(alone)


def test_too_few_tokens_for_a_step_say_so(packed):
    with pytest.raises(ValueError, match=f"{len(packed)} tokens do not fill 2000 rows of 16"):
        starts_for(packed, LENGTH, 1000, 0, 0, num_processes=2)
