"""How fills are scored."""

import math
import random

import pytest
import torch
from infilling import (
    FILLS,
    LONGEST,
    PREFIX,
    SCORES,
    SHORTEST,
    SUFFIX,
    Gap,
    batches,
    by_diffusion,
    canvas_bounds,
    causal_nats,
    choose_gaps,
    left_to_right,
    ranked,
    tables_of,
)
from torch import Generator

from hf_unified_diffusion.codecs.text_codec import TextCodec
from hf_unified_diffusion.pipelines.pipeline_text import UnifiedDiffusionTextPipeline
from hf_unified_diffusion.schedulers.scheduling_masked_diffusion import MaskedDiffusionScheduler
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture
def gaps() -> list[Gap]:
    codec, chance = TextCodec(tiny_tokenizer()), random.Random(0)
    rows = [{"source": "s", "prompt": "", "text": "".join(chance.choices("abcdefg ", k=400))}]
    return choose_gaps(rows, codec, "text", 6, chance)


def test_gaps_have_the_lengths_they_should(gaps: list[Gap]) -> None:
    assert {(len(gap.prefix), len(gap.suffix)) for gap in gaps} == {(PREFIX, SUFFIX)}
    assert all(SHORTEST <= gap.length <= LONGEST for gap in gaps)


def test_batches_hold_every_gap_once_and_one_length_each(gaps: list[Gap]) -> None:
    groups = batches(gaps, 2)
    assert sorted(id(gap) for group in groups for gap in group) == sorted(map(id, gaps))
    assert all(len({gap.length for gap in group}) == 1 and len(group) <= 2 for group in groups)


def test_both_ways_fill_the_gap_and_the_given_tokens_come_back(gaps: list[Gap]) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    pipe = UnifiedDiffusionTextPipeline(
        model, MaskedDiffusionScheduler(mask_token_id=tokenizer.mask_token_id), tokenizer
    )
    pipe.set_progress_bar_config(disable=True)
    (group, *_) = batches(gaps, 4)
    fills, changed = by_diffusion(pipe, group, 4, seed=0)
    assert changed == 0
    for rows in ([few[0] for few in fills], left_to_right(model, group)):
        assert [len(row) for row in rows] == [gap.length for gap in group]
        assert not any(tokenizer.mask_token_id in row or tokenizer.eos_token_id in row for row in rows)


@torch.no_grad()
def test_causal_nats_are_those_of_the_whole_row_without_a_cache(gaps: list[Gap]) -> None:
    model = tiny_model()
    (group, *_) = batches(gaps, 2)
    found = causal_nats(model, group, {"true": [gap.true for gap in group]})["true"].sum(dim=1)
    for gap, nats in zip(group, found.tolist(), strict=True):
        row = torch.tensor([[*gap.prefix, *gap.true, *gap.suffix]])
        log_probs = model(row).logits.log_softmax(dim=-1)[0, :-1].gather(1, row[0, 1:, None])
        assert nats == pytest.approx(-log_probs[PREFIX - 1 :].sum().item(), rel=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("draws", [1, 3])
def test_a_network_that_knows_nothing_pays_log_v_a_token(gaps: list[Gap], draws: int) -> None:
    model = tiny_model()
    for parameter in model.parameters():
        parameter.zero_()
    (group, *_) = batches(gaps, 4)
    fills = {"true": [gap.true for gap in group]}
    each = math.log(model.config.vocab_size - 1)  # the mask token is never predicted
    found = canvas_bounds(model, group, fills, draws, Generator().manual_seed(0))["true"]
    assert found.tolist() == pytest.approx([each * group[0].length] * len(group), rel=1e-5)
    joint = causal_nats(model, group, fills)["true"].sum(dim=1)
    assert joint.tolist() == pytest.approx([each * (group[0].length + SUFFIX)] * len(group), rel=1e-5)


def test_the_gain_is_positive_where_diffusion_needs_fewer_nats() -> None:
    scores = {score: {fill: [9.0, 9.0] for fill in FILLS} for score in SCORES}
    for score in SCORES:
        scores[score] |= {"diffusion": [1.0, 2.0], "left to right": [2.0, 4.0]}
    for row in tables_of(scores, ["text", "code"])["Gain over left to right, nats per gap: diffusion"]:
        assert (row["all"].value, row["text"].value, row["code"].value, row["share won"]) == (1.5, 1.0, 2.0, 1.0)


def test_ranking_keeps_the_candidate_of_fewest_nats(gaps: list[Gap]) -> None:
    model, chance = tiny_model(), random.Random(1)
    (group, *_) = batches(gaps, 4)
    candidates = [[chance.choices(range(1, 200), k=gap.length) for _ in range(5)] for gap in group]
    joint = causal_nats(model, group, {"kept": ranked(model, group, candidates)})["kept"].sum(dim=1)
    for i in range(5):
        others = causal_nats(model, group, {"one": [rows[i] for rows in candidates]})["one"].sum(dim=1)
        assert bool((joint <= others + 1e-4).all())
