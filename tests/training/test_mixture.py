"""Laws of the mixture: each modality its share, evenly spread, and none of its micro-batches left out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_unified_diffusion.training.mixture import TokenRows, check_shares, turn_of
from hf_unified_diffusion.training.token_data import PackedTokens

SHARES = st.dictionaries(st.sampled_from(["text", "code", "image", "audio"]), st.integers(1, 9), min_size=1)


@given(SHARES, st.integers(0, 40))
def test_turns_are_counted_without_gaps(shares, start):
    seen = dict.fromkeys(shares, 0)
    for index in range(start + 2 * sum(shares.values())):
        name, turn = turn_of(index, shares)
        assert turn == seen[name]
        seen[name] += 1


@given(SHARES, st.integers(0, 3))
def test_every_round_has_each_share_evenly_spread(shares, rounds):
    size = sum(shares.values())
    names = [turn_of(rounds * size + i, shares)[0] for i in range(size)]
    assert {name: names.count(name) for name in shares} == shares
    for name, share in shares.items():
        for stop in range(size + 1):
            assert abs(names[:stop].count(name) - share * stop / size) <= len(shares)


def test_equal_shares_take_turns():
    assert [turn_of(i, {"text": 1, "code": 1}) for i in range(4)] == [
        ("text", 0),
        ("code", 0),
        ("text", 1),
        ("code", 1),
    ]


@pytest.mark.parametrize(
    ("shares", "rule"),
    [
        ({"text": 1}, "shares must be of the modalities \\['image', 'text'\\], got \\['text'\\]"),
        ({"text": 1, "image": 0}, "share of 'image' must be an integer of at least 1, got 0"),
        ({"text": 1, "image": 0.5}, "share of 'image' must be an integer of at least 1, got 0.5"),
    ],
)
def test_wrong_shares_name_the_rule(shares, rule):
    with pytest.raises(ValueError, match=rule):
        check_shares(shares, ["text", "image"])


def test_wrong_rows_name_the_rule():
    packed = PackedTokens([], [], "text", 0)
    with pytest.raises(ValueError, match="rows must be at least 1, got 0"):
        TokenRows(packed, rows=0)
    with pytest.raises(ValueError, match="length must be at least 2, got 1"):
        TokenRows(packed, length=1)
