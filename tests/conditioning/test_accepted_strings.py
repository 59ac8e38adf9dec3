"""The dynamic program against enumeration: every canvas of a small vocabulary, accepted or not, with its weight."""

import itertools
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hf_unified_diffusion.conditioning.accepted_strings import AcceptedStrings
from hf_unified_diffusion.conditioning.byte_automaton import byte_automaton
from hf_unified_diffusion.conditioning.text_patterns import full_match
from hf_unified_diffusion.conditioning.token_automaton import TokenVocabulary, token_automaton
from tests.chi_square import fits

PIECES = (b"a", b"b", b"ab", b"ba", b"c", None, None)  # then the end token, the mask
END, MASK = 5, 6
PATTERNS = ["(ab)*c?", "a[bc]{1,3}", "(a|b)*a(a|b)", "c|ab|abab", "b+a+|c*"]
VOCABULARIES = {
    "end is padding": TokenVocabulary(PIECES, (END,), END),
    "padding of its own": TokenVocabulary((*PIECES, None), (END,), 7),
}
LENGTH = 4


def automaton_of(pattern, vocabulary):
    return token_automaton(byte_automaton(full_match(pattern), 100), vocabulary)


def accepted(pattern, vocabulary, probs, tokens, may_end, prefix=b""):
    """canvas -> weight, by the definition: the text up to the end matches, and only padding follows."""
    found = {}
    for canvas in itertools.product(range(len(vocabulary.pieces)), repeat=len(tokens)):
        if any(t >= 0 and t != c for t, c in zip(tokens, canvas, strict=True)):
            continue
        size = canvas.index(END) if END in canvas else len(canvas)
        if (size < len(canvas) and not may_end) or set(canvas[size + 1 :]) - {vocabulary.pad_token_id}:
            continue
        spelled = [vocabulary.pieces[token] for token in canvas[:size]]
        if None in spelled or not re.fullmatch(pattern, (prefix + b"".join(spelled)).decode()):
            continue
        asked = [i for i in range(min(size + 1, len(canvas))) if tokens[i] < 0]
        found[canvas] = math.prod(probs[i, canvas[i]] for i in asked)
    return found


def problem(pattern, vocabulary, tokens, seed, may_end=True, best=False, scale=2.0):
    generator = np.random.default_rng(seed)
    logits = scale * generator.standard_normal((len(tokens), len(vocabulary.pieces)))
    automaton = automaton_of(pattern, vocabulary)
    tokens = np.array(tokens)
    probs = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    place = (tokens, 0, automaton.reachable(0, may_end))
    return probs, lambda best: AcceptedStrings(automaton, logits[tokens < 0], *place, best=best), logits


tokens_with_holes = st.lists(st.sampled_from([-1, -1, -1, 0, 1, 4, END]), min_size=LENGTH, max_size=LENGTH)


@settings(max_examples=40, deadline=None)
@given(
    pattern=st.sampled_from(PATTERNS),
    vocabulary=st.sampled_from(list(VOCABULARIES.values())),
    tokens=tokens_with_holes,
    seed=st.integers(0, 99),
    may_end=st.booleans(),
)
@example("a[bc]{1,3}", VOCABULARIES["end is padding"], [-1, -1, -1, END], 99, True)  # an early end is the likeliest
def test_equals_enumeration(pattern, vocabulary, tokens, seed, may_end):
    """Weight, likeliest string and marginals, given tokens and suffixes included; refused where nothing is accepted."""
    probs, strings_of, logits = problem(pattern, vocabulary, tokens, seed, may_end)
    weights = accepted(pattern, vocabulary, probs, tokens, may_end)
    if not weights:
        with pytest.raises(ValueError, match="room for an accepted text around its given tokens"):
            strings_of(False)
        return
    masks = [i for i, token in enumerate(tokens) if token < 0]
    strings, total = strings_of(False), sum(weights.values())
    offset = sum(np.logaddexp.reduce(logits[i]) for i in masks)
    assert strings.log_weight == pytest.approx(math.log(total) + offset, abs=1e-9)
    best = max(weights, key=weights.__getitem__)
    assert strings_of(True).likeliest().tolist() == [best[i] for i in masks]
    if masks:
        marginals = strings.marginal_logits()
        marginals = np.exp(marginals - np.logaddexp.reduce(marginals, axis=1, keepdims=True))
        expected = np.zeros_like(marginals)
        for canvas, weight in weights.items():
            for line, position in enumerate(masks):
                expected[line, canvas[position]] += weight / total
        np.testing.assert_allclose(marginals, expected, atol=1e-9)


@pytest.mark.parametrize("tokens", [[-1] * 4, [-1, -1, 1, -1], [-1, -1, -1, 4]])
@pytest.mark.parametrize("pattern", ["(a|b|c)*", "(ab)*c?|b+c"])
def test_draws_have_the_probabilities_of_enumeration(pattern, tokens):
    vocabulary = VOCABULARIES["end is padding"]
    probs, strings_of, _ = problem(pattern, vocabulary, tokens, seed=3, scale=1.0)
    weights = accepted(pattern, vocabulary, probs, tokens, may_end=True)
    strings, canvases = strings_of(False), list(weights)
    place = {tuple(c for c, t in zip(canvas, tokens, strict=True) if t < 0): i for i, canvas in enumerate(canvases)}
    numbers = np.random.default_rng(0).random((4000, tokens.count(-1), 3))
    drawn = torch.tensor([place[tuple(strings.draw(row).tolist())] for row in numbers])
    expected = torch.tensor([weights[canvas] for canvas in canvases])
    assert fits(drawn, expected / expected.sum())


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("may_end", [True, False])
def test_reachability_equals_enumeration(pattern, may_end):
    """What may follow a prefix within a length: the rule that blocks go by."""
    vocabulary = VOCABULARIES["end is padding"]
    automaton = automaton_of(pattern, vocabulary)
    flat = np.full((LENGTH, len(vocabulary.pieces)), 0.1)
    for prefix in ([], [0], [1], [2], [4], [0, 1], [1, 0], [2, 2]):
        state = automaton.advance(0, prefix)
        spelled = b"".join(vocabulary.pieces[token] for token in prefix)
        for length in range(LENGTH + 1):
            weights = accepted(pattern, vocabulary, flat, [-1] * length, may_end, prefix=spelled)
            assert (state >= 0 and bool(automaton.reachable(length, may_end)[state])) == bool(weights)


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_forced_tokens_of_no_probability_are_written_all_the_same(scale, dtype):
    """Long canvases, and logits that no exponential holds."""
    automaton = automaton_of("(ab)*c", VOCABULARIES["end is padding"])
    logits = (scale * np.random.default_rng(0).standard_normal((101, 7))).astype(dtype)
    logits[:, 4] = -100 * scale
    finals = automaton.reachable(0, may_end=False)
    tokens = np.full(101, -1)
    for strings in (AcceptedStrings(automaton, logits, tokens, 0, finals, best=best) for best in (False, True)):
        drawn = strings.likeliest() if strings.best else strings.draw(np.full((101, 3), 0.5))
        assert re.fullmatch(b"(ab)*c", b"".join(PIECES[token] for token in drawn.tolist()))
    assert not np.isnan(AcceptedStrings(automaton, logits, tokens, 0, finals).marginal_logits()).any()


def by_logarithms(automaton, logits, tokens, finals):
    """log weight and marginals (masks, tokens) of all accepted strings, by the definition, in logarithms throughout."""
    after = automaton.next_state[:, automaton.class_of]
    allowed = [after >= 0 if token < 0 else (after >= 0) & (np.arange(after.shape[1]) == token) for token in tokens]
    steps, line = [], 0
    for token, may in zip(tokens, allowed, strict=True):
        asked = np.zeros(after.shape[1]) if token >= 0 else logits[line]
        step = np.where(may, asked, -np.inf)
        step[-1] = np.where(may[-1], np.logaddexp.reduce(asked) if token < 0 else 0.0, -np.inf)  # padding weighs 1
        steps.append(step)
        line += token < 0
    rests = [np.where(finals, 0.0, -np.inf)]
    for step in steps[::-1]:
        rests.insert(0, np.logaddexp.reduce(step + np.where(after >= 0, rests[0][after], -np.inf), axis=1))
    reached = np.where(np.arange(len(finals)) == 0, 0.0, -np.inf)
    marginals = []
    for token, step, rest in zip(tokens, steps, rests[1:], strict=True):
        ways = reached[:, None] + step
        if token < 0:
            used = ways + np.where(after >= 0, rest[after], -np.inf) - rests[0][0]
            marginals.append(np.exp(np.logaddexp.reduce(used, axis=0)))
        reached = np.full(len(finals), -np.inf)
        np.logaddexp.at(reached, after[after >= 0], ways[after >= 0])
    return rests[0][0], np.array(marginals)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("pattern", "last", "scale", "passes"),
    [
        ("(a|b|c){10,400}", -1, 1.0, 1),  # the counts of characters far from the mean are left out
        ("(a|b|c){10,400}", -1, 30.0, 1),
        ("c{0,400}|a+", 0, 1.0, 2),  # what is unlikely for long is all that is accepted in the end
        ("c{0,400}|a+", 0, 30.0, 2),
        ("c{150}b|a{151}", -1, 1.0, 2),  # the same where what was likely for long ends all but impossibly
        ("c{150}b|a{151}", -1, 1e3, 2),  # and no exponential holds the other
    ],
)
def test_equals_logarithms_where_weights_are_too_small(pattern, last, scale, passes, dtype, monkeypatch):
    """States that are left out as negligible are, and come back where they are not."""
    automaton = token_automaton(byte_automaton(full_match(pattern), 1000), VOCABULARIES["end is padding"])
    tokens = np.array([-1] * 150 + [last])
    logits = scale * np.random.default_rng(0).standard_normal((int((tokens < 0).sum()), 7)).astype(dtype)
    logits[:, 4] += 2 * scale
    logits[:, 5:] = -10 * scale  # the end and the mask, which are not accepted
    logits[-1, 1] = -1e6 * scale
    finals = automaton.reachable(0, may_end=False)
    needed, forward = [], AcceptedStrings._forward
    monkeypatch.setattr(AcceptedStrings, "_forward", lambda *args: needed.append(forward(*args)) or needed[-1])
    strings = AcceptedStrings(automaton, logits, tokens, 0, finals)
    assert len(needed) == passes
    assert needed[0] > -np.inf  # some were left out
    log_weight, expected = by_logarithms(automaton, logits.astype(np.float64), tokens, finals)
    assert strings.log_weight == pytest.approx(log_weight, rel=1e-6 if dtype is np.float32 else 1e-11)
    marginals = strings.marginal_logits().astype(np.float64)
    marginals = np.exp(marginals - np.logaddexp.reduce(marginals, axis=1, keepdims=True))
    np.testing.assert_allclose(marginals, expected, atol=1e-5 if dtype is np.float32 else 1e-9)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_bad_logits(value):
    automaton = automaton_of("a*", VOCABULARIES["end is padding"])
    logits = np.zeros((2, 7))
    logits[1, 0] = value
    with pytest.raises(ValueError, match="logits must have a finite one and neither NaN nor inf"):
        AcceptedStrings(automaton, logits, np.full(2, -1), 0, automaton.reachable(0, True))
