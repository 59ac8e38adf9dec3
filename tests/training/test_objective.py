"""Laws of the training objective."""

import itertools
import math

import pytest
import torch
from torch import Generator

from hf_unified_diffusion.training.layouts import IGNORED_LABEL, block_layout
from hf_unified_diffusion.training.objective import ObjectiveConfig, ScoreNetworkObjective, layout_for
from tests.training.tiny_training import ignorant_model, lively_model, random_batch

MASK, KNOWN = 11, 11  # the mask token, and how many tokens can be predicted


@pytest.mark.parametrize("block_length", [1, 3, 4, 10])
def test_an_ignorant_model_pays_log_vocab_on_both_paths(block_length):
    config = ObjectiveConfig(max_weight=math.inf)
    parts = block_layout(random_batch(3, 10), block_length, MASK, Generator().manual_seed(0), complementary=False)
    losses = ScoreNetworkObjective(ignorant_model(), config)(parts)
    assert losses["causal"].item() == pytest.approx(math.log(KNOWN), rel=1e-5)
    assert losses["canvas"].item() == pytest.approx(math.log(KNOWN), rel=1e-5)
    assert losses["loss"].item() == pytest.approx(1.3 * math.log(KNOWN), rel=1e-5)


def test_weights_are_clipped():
    """At weight 1 for everything the canvas loss is the plain mean over hidden tokens, times their share."""
    parts = block_layout(random_batch(3, 10), 5, MASK, Generator().manual_seed(0))
    losses = ScoreNetworkObjective(lively_model(), ObjectiveConfig(max_weight=1.0))(parts)
    asked = [(target.labels != IGNORED_LABEL).float().mean() for _, target in parts[1:]]
    expected = losses["hidden"] * torch.stack(asked).mean()
    torch.testing.assert_close(losses["canvas"], expected)


def test_the_twin_is_trained_on_the_causal_path_alone():
    config = ObjectiveConfig(canvas=False)
    parts = layout_for(random_batch(2, 8), config, MASK, 1.0, Generator().manual_seed(0))
    losses = ScoreNetworkObjective(lively_model(), config)(parts)
    assert [segment.is_context for segment, _ in parts] == [True]
    assert set(losses) == {"causal", "loss"}
    assert torch.equal(losses["loss"], losses["causal"])


def test_the_causal_loss_is_that_of_the_twin_beside_any_blocks():
    """Clean context does not see the canvas, so both train the same causal path."""
    model, batch = lively_model(), random_batch(2, 8)
    twin, blocks = ObjectiveConfig(canvas=False), ObjectiveConfig(infill_rate=0.0)
    alone, beside = (
        ScoreNetworkObjective(model, config)(layout_for(batch, config, MASK, 1.0, Generator().manual_seed(0)))
        for config in (twin, blocks)
    )
    torch.testing.assert_close(alone["causal"], beside["causal"])


def test_layouts_follow_from_the_generator():
    def drawn(seed: int) -> list[torch.Tensor]:
        parts = layout_for(random_batch(2, 40), ObjectiveConfig(), MASK, 1.0, Generator().manual_seed(seed))
        return [segment.values for segment, _ in parts]

    for seed in range(8):
        again = drawn(seed)
        assert all(torch.equal(x, y) for x, y in zip(drawn(seed), again, strict=True))


@pytest.mark.parametrize("length", [70, 40, 5])
def test_gaps_keep_to_their_lengths_and_leave_half_of_a_long_row(length):
    config = ObjectiveConfig(infill_rate=1.0, infill_lengths=(8, 16))
    found = set()
    for seed in range(30):
        parts = layout_for(random_batch(1, length), config, MASK, 1.0, Generator().manual_seed(seed))
        *context, (first, _), (second, _) = parts
        (gap_length,) = set(first.canvas[0].unique(return_counts=True)[1].tolist())
        assert min(8, length) <= gap_length <= min(16, length)
        count = first.values.shape[1] // gap_length
        assert count == max(1, length // (2 * gap_length))
        given = context[0][0].positions[0].tolist() if context else []
        assert sorted(given + first.positions[0].tolist()) == list(range(length))
        assert not set(first.canvas.flatten().tolist()) & set(second.canvas.flatten().tolist())
        found.add(gap_length)
    assert len(found) > 3 or length == 5


def test_blocks_grow_from_the_shortest_to_all():
    config = ObjectiveConfig(block_lengths=(32, 4, 16, 8))
    grown = [config.growing(progress / 30) for progress in range(31)]
    assert grown[0] == (4,)
    assert all(set(now) <= set(later) for now, later in itertools.pairwise(grown))
    assert set(grown[11]) == {4, 8, 16, 32} == set(config.growing(1.0))


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({"causal_weight": -1.0}, "causal_weight must be 0 or more, got -1.0"),
        ({"block_lengths": ()}, "block_lengths must be one or more"),
        ({"block_lengths": (4, 0)}, "block_lengths must be one or more"),
        ({"infill_rate": 1.5}, "infill_rate must be in \\[0, 1\\], got 1.5"),
        ({"infill_lengths": (9, 8)}, "infill_lengths must be"),
        ({"max_weight": 0.0}, "max_weight must be positive, got 0.0"),
        ({"infill_rate": math.nan}, "infill_rate must be in"),
    ],
)
def test_wrong_settings_name_the_rule(wrong, rule):
    with pytest.raises(ValueError, match=rule):
        ObjectiveConfig(**wrong)
