"""Checked drafts are distributed as the causal path's own tokens, however they were drafted."""

import itertools

import pytest
import torch

from hf_unified_diffusion.pipelines.draft_check import Sampling, check_draft
from hf_unified_diffusion.processes.randomness import spawn_generators

ROWS, VOCAB, LENGTH = 20_000, 4, 3
PLAIN = Sampling(1.0, 0, 1.0)


@pytest.fixture(scope="module")
def causal():
    """Next-token logits after each prefix of up to LENGTH tokens, by a table."""
    generator = torch.Generator().manual_seed(0)
    prefixes = [p for n in range(LENGTH + 1) for p in itertools.product(range(VOCAB), repeat=n)]
    return {prefix: 1.5 * torch.randn(VOCAB, generator=generator) for prefix in prefixes}


def targets(causal, draft):
    rows = [[causal[tuple(row[:n])] for n in range(LENGTH + 1)] for row in draft.tolist()]
    return torch.stack([torch.stack(row) for row in rows])


def first_tokens(draft, verdict):
    """The accepted tokens and the one after them; -1 beyond."""
    place = torch.arange(LENGTH + 1)
    tokens = torch.nn.functional.pad(draft, (0, 1), value=-1)
    tokens = torch.where(place == verdict.accepted[:, None], verdict.next_token[:, None], tokens)
    return tokens.masked_fill(place > verdict.accepted[:, None], -1)


def assert_distributed(tokens, expected):
    """Each frequency within five standard deviations of its probability."""
    freq = torch.bincount(tokens, minlength=VOCAB) / len(tokens)
    slack = 5 * (expected * (1 - expected) / len(tokens)).sqrt() + 1e-9
    assert ((freq - expected).abs() <= slack).all(), (freq, expected)


@pytest.mark.parametrize("one_pass", [True, False])
@pytest.mark.parametrize("sampling", [PLAIN, Sampling(0.7, 3, 1.0), Sampling(1.3, 0, 0.8)])
def test_output_is_distributed_as_the_causal_path(causal, one_pass, sampling):
    logits = torch.randn(LENGTH, VOCAB, generator=torch.Generator().manual_seed(1)).expand(ROWS, -1, -1)
    draft = torch.stack(
        [
            torch.multinomial(logits[0, i].softmax(-1), ROWS, True, generator=torch.Generator().manual_seed(i))
            for i in range(LENGTH)
        ],
        dim=1,
    )
    if not one_pass:  # tokens that know each other, as drafts of several passes do
        draft[:, 1] = (draft[:, 0] + (draft[:, 2] > 1)) % VOCAB
    target = targets(causal, draft)
    real = torch.ones(ROWS, LENGTH, dtype=torch.bool)
    verdict = check_draft(draft, real, target, logits if one_pass else None, sampling, spawn_generators(0, ROWS))
    tokens = first_tokens(draft, verdict)
    shaped = {prefix: shape(row, sampling) for prefix, row in causal.items()}
    assert_distributed(tokens[:, 0], shaped[()])
    for first in range(VOCAB):
        chosen = (tokens[:, 0] == first) & (tokens[:, 1] >= 0)
        if chosen.sum() > 100:
            assert_distributed(tokens[chosen, 1], shaped[(first,)])


def shape(logits, sampling):
    """Temperature, top-k and top-p by their definitions, for one line."""
    probs = (logits / sampling.temperature).softmax(-1)
    if sampling.top_k:
        probs = probs.where(probs >= probs.topk(sampling.top_k).values[-1], torch.tensor(0.0))
        probs = probs / probs.sum()
    order = probs.argsort(descending=True)
    before = probs[order].cumsum(0) - probs[order]
    kept = torch.zeros_like(probs, dtype=torch.bool).scatter(0, order, before < sampling.top_p)
    probs = probs.where(kept, torch.tensor(0.0))
    return probs / probs.sum()


def test_a_draft_from_the_target_is_accepted_whole(causal):
    draft = torch.randint(0, VOCAB, (500, LENGTH), generator=torch.Generator().manual_seed(0))
    target = targets(causal, draft)
    real = torch.ones_like(draft, dtype=torch.bool)
    verdict = check_draft(draft, real, target, target[:, :-1], PLAIN, spawn_generators(0, 500))
    assert (verdict.accepted == LENGTH).all()


def test_the_ratio_rule_accepts_more_than_matching(causal):
    logits = torch.zeros(ROWS, LENGTH, VOCAB)
    draft = torch.randint(0, VOCAB, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    target, real = targets(causal, draft), torch.ones_like(draft, dtype=torch.bool)
    accepted = [
        check_draft(draft, real, target, q, PLAIN, spawn_generators(0, ROWS)).accepted.float().mean()
        for q in (logits, None)
    ]
    assert accepted[0] > accepted[1]


def test_greedy_takes_the_likeliest_and_draws_nothing(causal):
    draft = torch.tensor(list(itertools.product(range(VOCAB), repeat=LENGTH)))
    target, real = targets(causal, draft), torch.ones_like(draft, dtype=torch.bool)
    verdict = check_draft(draft, real, target, target[:, :-1], Sampling(0.0, 0, 1.0), [])
    for row, accepted, token in zip(
        draft.tolist(), verdict.accepted.tolist(), verdict.next_token.tolist(), strict=True
    ):
        greedy = []
        while len(greedy) <= accepted:
            greedy.append(int(causal[tuple(greedy)].argmax()))
        assert [*row[:accepted], token] == greedy
        assert accepted == LENGTH or row[accepted] != token


@pytest.mark.parametrize("one_pass", [True, False])
def test_rows_and_padding_do_not_matter(causal, one_pass):
    draft = torch.randint(0, VOCAB, (4, LENGTH), generator=torch.Generator().manual_seed(3))
    logits = torch.randn(4, LENGTH, VOCAB, generator=torch.Generator().manual_seed(4))
    real = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0]], dtype=torch.bool)
    target, generators = targets(causal, draft), spawn_generators(0, 4)
    together = check_draft(draft, real, target, logits if one_pass else None, PLAIN, generators)
    for row, count in enumerate([3, 2, 1]):
        one = slice(row, row + 1)
        alone = check_draft(
            draft[one, :count],
            real[one, :count],
            target[one, : count + 1],
            logits[one, :count] if one_pass else None,
            PLAIN,
            spawn_generators(0, 4)[one],
        )
        assert alone.accepted[0] == together.accepted[row] <= count
        assert alone.next_token[0] == together.next_token[row]
