"""Laws of layouts: what is hidden, what a block sees, and that each layout equals its blocks taken one by one."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Generator

from hf_unified_diffusion import UnifiedDiffusionModel
from hf_unified_diffusion.training.layouts import (
    IGNORED_LABEL,
    block_layout,
    hide_exactly,
    infill_layout,
    next_token_target,
)
from tests.chi_square import fits
from tests.training.tiny_training import lively_model, random_batch

MASK = 11
shapes = pytest.mark.parametrize(("length", "block_length"), [(12, 4), (10, 4), (7, 16), (5, 1), (9, 9)])


@pytest.fixture
def generator():
    return Generator().manual_seed(0)


@pytest.fixture(scope="module")
def model():
    return lively_model()


def blocks_of(length: int, block_length: int) -> list[slice]:
    return [slice(start, min(start + block_length, length)) for start in range(0, length, block_length)]


@shapes
def test_exactly_k_of_the_n_tokens_of_a_block_are_hidden_and_its_time_is_k_over_n(length, block_length, generator):
    hidden, time = hide_exactly(50, length, block_length, generator)
    for block in blocks_of(length, block_length):
        count, size = hidden[:, block].sum(dim=1), block.stop - block.start
        assert count.min() >= 1
        assert torch.equal(time[:, block], (count / size)[:, None].expand(-1, size))


def test_every_count_of_hidden_tokens_is_drawn_equally_often(generator):
    """Stratified: over 600 blocks of six, each count comes a hundred times."""
    _, time = hide_exactly(200, 18, 6, generator)
    counts = torch.bincount((time[:, ::6] * 6).round().long().flatten(), minlength=7)[1:]
    assert (counts - 100).abs().max() <= 1


def test_counts_of_a_shorter_last_block_are_uniform(generator):
    _, time = hide_exactly(3000, 7, 4, generator)
    assert fits((time[:, -1] * 3).round().long() - 1, torch.full((3,), 1 / 3))


def test_every_place_is_as_likely_to_be_hidden(generator):
    hidden, time = hide_exactly(6000, 7, 7, generator)
    alone = hidden[(time[:, 0] * 7).round() == 1]
    assert fits(alone.long().argmax(dim=1), torch.full((7,), 1 / 7))


@shapes
def test_weights_of_a_block_sum_to_its_length(length, block_length, generator):
    """Weighting k hidden tokens by n / k, a canvas answers for n tokens whatever k is."""
    _, (_, target) = block_layout(random_batch(20, length), block_length, MASK, generator, complementary=False)
    for block in blocks_of(length, block_length):
        torch.testing.assert_close(
            target.weight[:, block].sum(dim=1), torch.full((20,), float(block.stop - block.start))
        )


@shapes
def test_complementary_canvases_label_every_token_once(length, block_length, generator):
    batch = random_batch(20, length)
    _, *canvases = block_layout(batch, block_length, MASK, generator)
    first, second = (target.labels for _, target in canvases)
    assert ((first == IGNORED_LABEL) ^ (second == IGNORED_LABEL)).all()
    assert torch.equal(torch.maximum(first, second), batch.tokens)
    assert not set(canvases[0][0].canvas.flatten().tolist()) & set(canvases[1][0].canvas.flatten().tolist())


@shapes
def test_a_canvas_shows_masks_where_it_is_asked_and_the_truth_elsewhere(length, block_length, generator):
    batch = random_batch(20, length)
    for segment, target in block_layout(batch, block_length, MASK, generator)[1:]:
        asked = target.labels != IGNORED_LABEL
        assert (segment.values[asked] == MASK).all()
        assert torch.equal(segment.values[~asked], batch.tokens[~asked])
        assert torch.equal(target.weight > 0, asked)


@torch.no_grad()
def features(model: UnifiedDiffusionModel, parts) -> list[torch.Tensor]:
    return list(model.features([segment for segment, _ in parts])[0])


@torch.no_grad()
@shapes
def test_the_layout_equals_each_block_alone_after_its_clean_prefix(model, length, block_length, generator):
    batch = random_batch(3, length)
    parts = block_layout(batch, block_length, MASK, generator)
    found = features(model, parts)
    torch.testing.assert_close(found[0], model.features([parts[0][0]])[0][0])
    for (segment, _), together in zip(parts[1:], found[1:], strict=True):
        for block in blocks_of(length, block_length):
            time, cache = segment.time[:, block.start], None
            if block.start:
                cache = model(batch.tokens[:, : block.start], use_cache=True).cache
            alone = model(segment.values[:, block], timestep=time, cache=cache).logits
            logits = model.decode(together[:, block], "text")
            torch.testing.assert_close(logits, alone, atol=1e-4, rtol=1e-4)


def changed(batch, places):
    """The same sequences with other tokens at some places."""
    tokens = batch.tokens.clone()
    tokens[:, places] = (tokens[:, places] + 1) % MASK
    return replace(batch, tokens=tokens)


def test_a_gap_sees_both_sides_and_the_context_never_sees_the_gap(model):
    batch = random_batch(2, 12)

    def outcome(given):
        return features(model, infill_layout(given, [4], 4, MASK, Generator().manual_seed(3)))

    context, canvas = outcome(batch)
    for side in (0, 3, 8, 11):
        assert (outcome(changed(batch, [side]))[1] - canvas).abs().amax(dim=(1, 2)).min() > 1e-3
    assert torch.equal(outcome(changed(batch, [4, 5, 6, 7]))[0], context)


def test_a_gap_is_the_same_alone_in_its_place(model, generator):
    """Infilling by default positions: prefix, canvas and suffix in reading order."""
    batch = random_batch(2, 12)
    parts = infill_layout(batch, [4], 4, MASK, generator)
    (prefix_and_suffix, _), (gap, _) = parts
    segments = [
        replace(prefix_and_suffix, values=batch.tokens[:, :4], positions=None, document=None),
        replace(gap, positions=None, document=None, canvas=None, reach=None),
        replace(prefix_and_suffix, values=batch.tokens[:, 8:], positions=None, document=None),
    ]
    with torch.no_grad():
        (_, alone, _), _ = model.features(segments)
    torch.testing.assert_close(features(model, parts)[1], alone, atol=1e-5, rtol=1e-4)


def test_a_gap_as_long_as_the_sequence_needs_no_context(generator):
    ((segment, target),) = infill_layout(random_batch(2, 6), [0], 6, MASK, generator)
    assert not segment.is_context
    torch.testing.assert_close(target.weight.sum(dim=1), torch.full((2,), 6.0))


def test_several_gaps_see_the_given_tokens_around_them_and_not_each_other(model):
    batch = random_batch(2, 12)

    def outcome(given):
        return features(model, infill_layout(given, [1, 7], 3, MASK, Generator().manual_seed(3)))[1]

    canvas = outcome(batch)
    for given in (0, 4, 6, 10, 11):
        assert (outcome(changed(batch, [given])) - canvas).abs().amax(dim=(1, 2)).min() > 1e-3
    other_gap = outcome(changed(batch, [7, 8, 9]))
    assert torch.equal(other_gap[:, :3], canvas[:, :3])
    assert not torch.equal(other_gap[:, 3:], canvas[:, 3:])


def test_complementary_gaps_ask_for_every_token_of_the_gaps_once(generator):
    parts = infill_layout(random_batch(3, 12), [1, 7], 3, MASK, generator, complementary=True)
    (_, (_, first), (_, second)) = parts
    assert torch.equal((first.labels != -100), (second.labels == -100))


def nats(model, parts) -> list[torch.Tensor]:
    """Cross-entropy at each place of each part, 0 where nothing is asked."""
    found = zip(features(model, parts), parts, strict=True)
    return [
        F.cross_entropy(model.decode(hidden, "text").transpose(1, 2), target.labels, reduction="none")
        for hidden, (_, target) in found
    ]


@pytest.mark.parametrize(
    "layout",
    [
        lambda batch, generator: block_layout(batch, 4, MASK, generator),
        lambda batch, generator: block_layout(batch, 12, MASK, generator),
        lambda batch, generator: infill_layout(batch, [1, 7], 3, MASK, generator, complementary=True),
    ],
    ids=["blocks", "whole", "infill"],
)
def test_documents_never_leak(model, layout):
    """Whatever stands in document A, the losses of B, which shares a row and a block with it, are the same."""
    batch = random_batch(2, 12, documents=[7] * 5 + [8] * 7)
    other = changed(batch, [0, 1, 2, 3, 4])
    before, after = (layout(given, Generator().manual_seed(1)) for given in (batch, other))
    moved = 0.0
    for (segment, _), x, y in zip(before, nats(model, before), nats(model, after), strict=True):
        of_b = segment.document == 8
        assert torch.equal(x[of_b], y[of_b])
        moved += (x - y)[~of_b].abs().sum()
    assert moved > 0


def test_each_token_predicts_the_next_of_its_document():
    batch = random_batch(1, 6, documents=[0, 0, 0, 1, 1, 2])
    labels = next_token_target(batch).labels[0]
    truth = batch.tokens[0]
    assert labels.tolist() == [truth[1], truth[2], IGNORED_LABEL, truth[4], IGNORED_LABEL, IGNORED_LABEL]
