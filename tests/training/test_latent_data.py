"""Laws of latent shards: one shape a batch, every sample every epoch, an order and captions that numbers decide."""

from collections import Counter

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_unified_diffusion.training.latent_data import CaptionedLatents, open_latents
from tests.tiny import tiny_tokenizer
from tests.training.tiny_latents import COLOURS, FEATURES, WIDTH, blob, blobs

SHAPES = {(1, 3): 5, (2, 2): 11, (2, 3): 7, (3, 2): 4}
TOKENS = 12


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return blobs(tmp_path_factory.mktemp("latents"), SHAPES)


def batches_per_epoch() -> int:
    return sum(-(-count // (TOKENS // (rows * columns))) for (rows, columns), count in SHAPES.items())


def test_a_micro_batch_is_of_one_shape_and_an_epoch_visits_every_sample(shards):
    for epoch in range(3):
        numbers = range(epoch * batches_per_epoch(), (epoch + 1) * batches_per_epoch())
        drawn = [shards.places(number, TOKENS, seed=3) for number in numbers]
        for shape, places in drawn:
            assert len(places) == TOKENS // (shape[0] * shape[1])
            assert all(
                (shards.table.table[int(i)]["rows"], shards.table.table[int(i)]["columns"]) == shape for i in places
            )
        uses = Counter(np.concatenate([places for _, places in drawn]).tolist())
        assert set(uses) == set(range(len(shards)))
        assert max(uses.values()) <= 2


def test_order_follows_from_number_and_seed_and_changes_with_the_epoch(shards):
    def epoch(first: int, seed: int) -> list[list[int]]:
        return [shards.places(first + i, TOKENS, seed)[1].tolist() for i in range(batches_per_epoch())]

    assert epoch(0, 1) == epoch(0, 1)
    assert epoch(0, 1) != epoch(0, 2)
    assert epoch(0, 1) != epoch(batches_per_epoch(), 1)


def test_values_are_what_the_shard_holds(shards):
    shape, places = shards.places(4, TOKENS, 0)
    values, captions = shards.values(shape, places)
    assert values.shape == (len(places), shape[0] * shape[1], WIDTH)
    assert values.dtype == torch.float32
    for i, place in enumerate(places):
        row = shards.table.table[int(place)]
        assert values[i].flatten().tolist() == row["latents"]
        assert captions[i] == row["captions"]


def test_samples_larger_than_a_batch_come_alone_and_tiny_sets_repeat(tmp_path):
    few = blobs(tmp_path, {(2, 2): 3})
    assert len(few.places(0, tokens=1, seed=0)[1]) == 1
    assert sorted(Counter(few.places(0, tokens=28, seed=0)[1].tolist()).values()) == [2, 2, 3]


def test_contexts_are_bos_and_a_caption_padded_and_hidden(shards):
    source = CaptionedLatents(shards, tiny_tokenizer(), 44, caption_dropout=0.3)
    seen, drops, total = set(), 0, 0
    for turn in range(40):
        batch = source.batch(turn, seed=0)
        mask = torch.ones_like(batch.context, dtype=torch.bool) if batch.context_mask is None else batch.context_mask
        assert batch.num_tokens == batch.values.shape[:2].numel()
        assert batch.positions.shape == (batch.values.shape[1], 3)
        for row, real in zip(batch.context, mask, strict=True):
            assert row[0] == 0 and not row[~real].any()
            assert not real.logical_not().cummax(0).values[real].any()  # padding is on the right
            seen.add(tiny_tokenizer().decode(row[real][1:]))
            drops, total = drops + (int(real.sum()) == 1), total + 1
    assert seen == {"", *COLOURS, *(f"a {colour} blob" for colour in COLOURS)}
    assert abs(drops / total - 0.3) < 4 * (0.3 * 0.7 / total) ** 0.5


@pytest.mark.parametrize(("dropout", "longest"), [(0.0, {"red", "blue", "a re", "a bl"}), (1.0, {""})])
def test_captions_are_cut_and_all_or_none_can_be_dropped(shards, dropout, longest):
    source = CaptionedLatents(shards, tiny_tokenizer(), 44, caption_dropout=dropout, max_caption_tokens=4)
    batches = [source.batch(turn, seed=0) for turn in range(12)]
    rows = [row for batch in batches for row in batch.context]
    assert {tiny_tokenizer().decode(row[row > 0]) for row in rows} == longest


def test_two_processes_take_what_one_takes_in_turns(shards):
    source = CaptionedLatents(shards, tiny_tokenizer(), TOKENS)
    for turn in range(4):
        for process in range(2):
            ours, theirs = source.batch(turn, 5, process, num_processes=2), source.batch(2 * turn + process, 5)
            assert torch.equal(ours.values, theirs.values)
            assert torch.equal(ours.context, theirs.context)


def test_audio_has_no_grid(tmp_path):
    assert CaptionedLatents(blobs(tmp_path, {(1, 6): 4}, "audio"), tiny_tokenizer()).batch(0, 0).positions is None


def written(path, **changes):
    """A shard of one sample, changed."""
    row = blob("red", 2, 2, np.random.default_rng(0)) | changes
    dropped = [name for name, value in row.items() if value is None]
    table = Dataset.from_list([{name: value for name, value in row.items() if value is not None}])
    if not dropped:
        table = table.cast(FEATURES)
    table.to_parquet(str(path))
    return [path]


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"captions": None}, "must have the columns .* got none named \\['captions'\\]"),
        ({"rows": 0}, "rows and columns must be at least 1, got 0"),
        ({"latents": [0.5] * 15}, "15 values do not fill 2 x 2 tokens evenly"),
        ({"latents": [0.5]}, "1 values do not fill 2 x 2 tokens evenly"),
    ],
)
def test_shards_that_do_not_fit_are_refused(tmp_path, changes, rule):
    with pytest.raises(ValueError, match=rule):
        open_latents(written(tmp_path / "one.parquet", **changes), "image", tmp_path / "cache")


def test_a_sample_of_another_width_is_refused(tmp_path):
    written(tmp_path / "a.parquet")
    written(tmp_path / "b.parquet", latents=[0.5] * 12)
    shards = open_latents(tmp_path.glob("*.parquet"), "image", tmp_path / "cache")
    with pytest.raises(ValueError, match="2 x 2 tokens of width 4 must have 16 values, got \\[12, 16\\]"):
        CaptionedLatents(shards, tiny_tokenizer(), 8).batch(0, 0)


def test_wrong_numbers_name_the_rule(shards, tmp_path):
    with pytest.raises(ValueError, match="need at least one Parquet file, got none"):
        open_latents([], "image", tmp_path)
    for name, value in (("tokens", 0), ("max_caption_tokens", 0), ("caption_dropout", 1.5)):
        with pytest.raises(ValueError, match=f"{name} must be .* got {value}"):
            CaptionedLatents(shards, tiny_tokenizer(), **{name: value})
