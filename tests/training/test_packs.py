"""Laws of packs: what goes in comes out, within its size, checked; and training reads it as it reads the shards."""

import json
import lzma
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_unified_diffusion.training.latent_data import CaptionedLatents, LatentShards
from hf_unified_diffusion.training.pack_blocks import (
    STEP,
    latent_blocks,
    latents_of,
    rounded_values,
    token_blocks,
    tokens_of,
    turned_back,
)
from hf_unified_diffusion.training.pack_files import (
    packed_arrays,
    strings_of_arrays,
    strings_to_arrays,
    unpacked_arrays,
)
from hf_unified_diffusion.training.pack_speech import speech_blocks, speech_of
from hf_unified_diffusion.training.packs import (
    PackSource,
    blocks_of,
    open_packed_latents,
    open_packed_tokens,
    size_of,
    write_packs,
)
from hf_unified_diffusion.training.speech_data import SpokenRows, open_speech
from hf_unified_diffusion.training.token_data import PackedTokens
from tests.tiny import tiny_tokenizer
from tests.training.tiny_latents import blobs
from tests.training.tiny_speech import write_speech


def random_documents(lengths: list[int], seed: int = 0) -> PackedTokens:
    """Documents of random tokens of the given lengths."""
    tokens = np.random.default_rng(seed).integers(0, 12288, sum(lengths), dtype=np.uint16)
    documents = np.repeat(np.arange(len(lengths), dtype=np.uint32), lengths)
    return PackedTokens(tokens, documents, "text", 3 * len(tokens))


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=20), size=st.integers(1, 90))
@settings(max_examples=60, deadline=None)
def test_tokens_are_the_same_in_blocks_of_whole_documents(lengths, size):
    packed = random_documents(lengths)
    blocks = [unpacked_arrays(packed_arrays(block)) for block in token_blocks(packed, size)]
    found = tokens_of(blocks, "text")
    assert np.array_equal(found.tokens, packed.tokens)
    assert np.array_equal(found.documents, packed.documents)
    assert all(len(block["tokens"]) >= size for block in blocks[:-1])
    assert 0 <= packed.num_bytes - found.num_bytes < len(blocks)


@given(lists=st.lists(st.lists(st.text(max_size=8), max_size=4), max_size=5))
@settings(max_examples=60, deadline=None)
def test_strings_survive(lists):
    assert strings_of_arrays("captions", strings_to_arrays("captions", lists)) == lists


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> LatentShards:
    return blobs(tmp_path_factory.mktemp("blobs"), {(2, 2): 5, (1, 3): 4})


@pytest.mark.parametrize(("precision", "error"), [("float16", 0.0), ("int8", 0.5 / 127), ("principal", STEP)])
def test_a_micro_batch_of_a_pack_is_that_of_the_shards(pictures, precision, error):
    blocks = [unpacked_arrays(packed_arrays(block)) for block in latent_blocks(pictures, precision, values=40)]
    assert len(blocks) > 1
    packed = latents_of(blocks, "image")
    ours, theirs = (CaptionedLatents(shards, tiny_tokenizer(), tokens=8) for shards in (packed, pictures))
    for turn in range(6):
        a, b = ours.batch(turn, seed=3), theirs.batch(turn, seed=3)
        assert np.array_equal(a.context, b.context)
        assert np.array_equal(a.positions, b.positions)
        largest = float(np.abs(np.concatenate([pictures.table.latents([i]).ravel() for i in range(9)])).max())
        assert float((a.values - b.values).abs().max()) <= error * largest + 1e-6


def test_along_principal_axes_what_is_related_takes_little_room_and_little_is_lost():
    random = np.random.default_rng(0)
    related = (random.normal(size=(4000, 3)) @ random.normal(size=(3, 64))).astype(np.float32)
    numbers = related + random.normal(scale=0.05, size=related.shape).astype(np.float32)
    principal, plain = (rounded_values(numbers, precision) for precision in ("principal", "int8"))
    assert len(packed_arrays(principal)) < 0.2 * len(packed_arrays(plain))
    error = turned_back(principal)["values"].astype(np.float32) - numbers
    assert np.square(error).mean() < 0.01 * numbers.var()
    assert turned_back(plain) is plain


def test_speech_of_a_pack_is_that_of_the_shards(tmp_path):
    folder = write_speech(tmp_path / "speech", {"train": 4})
    shards = open_speech((folder / "train").glob("*.parquet"), tmp_path / "cache")
    blocks = [unpacked_arrays(packed_arrays(block)) for block in speech_blocks(shards, faces=False, values=20_000)]
    assert len(blocks) > 1
    packed = speech_of(blocks)
    ours, theirs = (SpokenRows(speech, tiny_tokenizer(), tokens=60) for speech in (packed, shards))
    largest = max(float(shards.sound(place).abs().max()) for place in range(len(shards)))
    for turn in range(4):
        a, b = ours.batch(turn, seed=2), theirs.batch(turn, seed=2)
        assert [row.phoneme_ids for row in a.rows] == [row.phoneme_ids for row in b.rows]
        assert [row.places for row in a.rows] == [pytest.approx(row.places, abs=0.011) for row in b.rows]
        assert [row.reference is None for row in a.rows] == [row.reference is None for row in b.rows]
        for x, y in zip(a.sounds, b.sounds, strict=True):
            assert x.shape == y.shape
            assert float((x - y).abs().max()) <= 0.5 / 127 * largest + 1e-6
    with pytest.raises(ValueError, match="a pack must hold face_values"):
        packed.face(0)


def test_another_precision_is_refused(pictures):
    with pytest.raises(ValueError, match="precision must be one of"):
        next(latent_blocks(pictures, "int3"))


@pytest.fixture(scope="module")
def packs(tmp_path_factory, pictures) -> list[Path]:
    """Three packs of 400 kB of more text than they hold, and of all pictures."""
    folder, common = tmp_path_factory.mktemp("packs"), tmp_path_factory.mktemp("common")
    (common / "tokenizer.json").write_text("{}")
    text = random_documents([500] * 900)
    sources = [PackSource("text", token_blocks(text, 20_000), 3), PackSource("image", latent_blocks(pictures, "int8"))]
    held_out = {"text": next(token_blocks(random_documents([50, 60], seed=1)))}
    return write_packs(folder, common, held_out, sources, limit_bytes=500_000, max_packs=3)


def test_packs_keep_their_size_and_together_the_order(packs):
    assert [pack.name for pack in packs] == ["pack-000", "pack-001", "pack-002"]
    assert {path.name for path in packs[0].parent.iterdir()} == {pack.name for pack in packs}
    assert all(size_of(pack) <= 500_000 for pack in packs)
    found, all_of_it = open_packed_tokens(packs, "train", "text"), random_documents([500] * 900)
    assert 100_000 < len(found) < len(all_of_it)
    assert np.array_equal(found.tokens, all_of_it.tokens[: len(found)])
    assert np.array_equal(found.documents, all_of_it.documents[: len(found)])
    assert len(open_packed_latents(packs[:1], "train", "image")) == 9
    for pack in packs:
        unseen = open_packed_tokens([pack], "validation", "text")
        assert np.array_equal(unseen.tokens, random_documents([50, 60], seed=1).tokens)


def test_what_is_not_there_or_not_as_it_was_is_refused(packs, tmp_path):
    with pytest.raises(ValueError, match="packs must hold 'audio' for train"):
        blocks_of(packs, "train", "audio")
    with pytest.raises(ValueError, match=r"a pack must have a pack\.json"):
        blocks_of([tmp_path], "train", "text")
    with pytest.raises(FileExistsError, match="packs must go where none are"):
        write_packs(packs[0].parent, tmp_path, {}, [], 1, 1)
    (file, *_) = sorted((packs[2] / "train").glob("text-*"))
    content = file.read_bytes()
    try:
        file.write_bytes(content[:-9] + b"x" + content[-8:])
        with pytest.raises(ValueError, match="must be as it was packed, got another content"):
            blocks_of(packs, "train", "text")
    finally:
        file.write_bytes(content)
    manifest = (packs[2] / "pack.json").read_text()
    try:
        (packs[2] / "pack.json").write_text(json.dumps(json.loads(manifest) | {"format": 2}))
        with pytest.raises(ValueError, match="a pack must be of format 1, got 2"):
            blocks_of(packs, "train", "text")
    finally:
        (packs[2] / "pack.json").write_text(manifest)


def test_a_pack_too_small_for_a_block_says_so(tmp_path):
    common = tmp_path / "common"
    common.mkdir()
    with pytest.raises(ValueError, match="must take a block of text"):
        write_packs(
            tmp_path, common, {}, [PackSource("text", token_blocks(random_documents([999]), 1))], (1 << 18) + 9, 1
        )


def test_no_file_decides_how_much_memory_it_takes():
    bomb = lzma.compress(bytes(1 << 25))
    with pytest.raises(ValueError, match="one whole xz stream of at most"):
        unpacked_arrays(bomb)
    with pytest.raises(ValueError, match="one whole xz stream of at most"):
        unpacked_arrays(packed_arrays({"a": np.ones(99)})[:-9])
    for content in (b"no stream of any kind", lzma.compress(b"no safetensors")):
        with pytest.raises(ValueError, match="must be safetensors in xz"):
            unpacked_arrays(content)
