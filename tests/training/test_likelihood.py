"""Laws of held-out likelihood: bounds, exact sums, and what they are sums of."""

import itertools
import math

import pytest
import torch
from torch import Generator

from hf_unified_diffusion.contracts import Segment
from hf_unified_diffusion.training.layouts import IGNORED_LABEL, TokenBatch, block_layout
from hf_unified_diffusion.training.likelihood import (
    ORDERS,
    Likelihood,
    canvas_nats,
    causal_nats,
    held_out_likelihood,
    unmasking_nats,
)
from tests.training.tiny_training import ignorant_model, lively_model, random_batch

MASK, KNOWN = 11, 11
FIXED_ORDERS = [order for order in ORDERS if order != "random"]
every_order = pytest.mark.parametrize("order", ORDERS)
every_path = pytest.mark.parametrize(
    ("block_length", "order"),
    [(None, None), *itertools.product((1, 3, 4, 10, 99), (None, *FIXED_ORDERS)), (1, "random"), (4, "random")],
)


@pytest.fixture(scope="module")
def model():
    return lively_model()


def seeded() -> Generator:
    return Generator().manual_seed(0)


@every_path
@pytest.mark.parametrize("documents", [[0] * 10, [0] * 4 + [1] * 6], ids=["whole", "packed"])
def test_an_ignorant_model_pays_log_vocab_for_each_token(documents, block_length, order):
    """Exactly, but for draws that spend a mask on a document's first token, whose cost is left out."""
    model, batch, sizes = ignorant_model(), random_batch(3, 10, documents), torch.ones(12, dtype=torch.int64)
    found = held_out_likelihood(model, [batch], sizes, block_length, draws=60, order=order)
    is_exact = block_length in (None, 1) or order is not None
    assert found.nats_per_token == pytest.approx(math.log(KNOWN), rel=1e-5 if is_exact else 0.06)


@torch.no_grad()
def test_the_bound_of_single_token_blocks_is_the_exact_chain_rule_sum(model):
    batch = random_batch(2, 7)
    total = torch.zeros(2)
    for i in range(1, 7):
        cache = model(batch.tokens[:, :i], use_cache=True).cache
        canvas = torch.full((2, 1), MASK)
        logits = model(canvas, timestep=torch.ones(2), cache=cache).logits[:, 0]
        total -= logits.log_softmax(dim=-1).gather(1, batch.tokens[:, i : i + 1])[:, 0]
    bound, tokens = canvas_nats(model, batch, 1, 1, seeded())
    torch.testing.assert_close(bound, total, atol=1e-4, rtol=1e-4)
    assert tokens.tolist() == [6, 6]
    for order in ORDERS:
        torch.testing.assert_close(unmasking_nats(model, batch, 1, order)[0], bound, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_causal_nats_are_the_models_own_loss(model):
    batch = random_batch(1, 9)
    nats, tokens = causal_nats(model, batch)
    torch.testing.assert_close(nats / tokens, model(batch.tokens, labels=batch.tokens).loss[None])


@torch.no_grad()
@pytest.mark.parametrize("block_length", [1, 4, 10])
def test_evaluation_with_a_cache_or_without_context_equals_the_training_layout(model, block_length):
    """The clean copy is computed once for all draws, and not at all for one block: the result is that of training."""
    batch = random_batch(3, 10)
    parts = block_layout(batch, block_length, MASK, seeded(), complementary=False)
    hidden, _ = model.features([segment for segment, _ in parts])
    target = parts[1][1]
    log_probs = model.decode(hidden[1], "text").log_softmax(dim=-1)
    nats = -log_probs.gather(2, batch.tokens[..., None])[..., 0] * target.weight
    nats = nats.masked_fill(target.labels == IGNORED_LABEL, 0.0)[:, 1:].sum(dim=1)
    torch.testing.assert_close(canvas_nats(model, batch, block_length, 1, seeded())[0], nats, atol=1e-3, rtol=1e-4)


def test_a_block_longer_than_the_sequence_is_the_sequence(model):
    batch = random_batch(3, 10)
    for order in FIXED_ORDERS:
        assert torch.equal(unmasking_nats(model, batch, 10, order)[0], unmasking_nats(model, batch, 64, order)[0])
    batch = random_batch(3, 4)
    assert torch.equal(unmasking_nats(model, batch, 4, "random")[0], unmasking_nats(model, batch, 64, "random")[0])


@every_order
@pytest.mark.parametrize("block_length", [1, 2, 3, 4])
def test_probabilities_of_all_sequences_sum_to_one(order, block_length):
    """Three tokens, a given first token and three more: 27 sequences, one sampler."""
    model = lively_model(vocab_size=4)
    tokens = torch.tensor([[1, *rest] for rest in itertools.product(range(3), repeat=3)])
    nats, counted = unmasking_nats(model, TokenBatch(tokens, torch.zeros_like(tokens), "text"), block_length, order)
    assert counted.tolist() == [3] * 27
    assert (-nats).exp().sum().item() == pytest.approx(1, abs=1e-4)
    assert (-nats).exp().std() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("order", FIXED_ORDERS)
def test_unmasking_nats_are_those_of_the_sampler_step_by_step(model, order):
    """One row, one block: fill the most confident (or leftmost) place, one forward pass each, from scratch."""
    batch = random_batch(1, 6)
    truth, hidden, total = batch.tokens[0], [1, 2, 3, 4, 5], 0.0
    while hidden:
        canvas = truth.clone()
        canvas[hidden] = MASK
        segment = Segment("text", canvas[None], time=torch.tensor([len(hidden) / 6]))
        log_probs = model(segments=[segment]).logits[0].log_softmax(dim=-1)
        place = hidden[0] if order == "left_to_right" else max(hidden, key=lambda i: log_probs[i].max().item())
        total -= log_probs[place, truth[place]].item()
        hidden.remove(place)
    assert unmasking_nats(model, batch, 6, order)[0].item() == pytest.approx(total, rel=1e-4)


@torch.no_grad()
def test_random_order_is_the_mean_over_all_orders(model):
    """One row, one block, every order of its four unknown places filled from scratch."""
    batch, likelihood = random_batch(1, 5), 0.0
    truth = batch.tokens[0]
    for order in itertools.permutations(range(1, 5)):
        nats = 0.0
        for done, place in enumerate(order):
            canvas = truth.clone()
            canvas[list(order[done:])] = MASK
            segment = Segment("text", canvas[None], time=torch.tensor([(4 - done) / 5]))
            nats -= model(segments=[segment]).logits[0].log_softmax(dim=-1)[place, truth[place]].item()
        likelihood += math.exp(-nats) / 24
    assert unmasking_nats(model, batch, 5, "random")[0].item() == pytest.approx(-math.log(likelihood), rel=1e-4)


def test_random_order_costs_no_more_than_its_bound(model):
    """The bound is the mean of -log over orders, the likelihood -log of the mean (Jensen); no token is given here."""
    batch = random_batch(16, 9)
    exact, _ = unmasking_nats(model, batch, 3, "random")
    draws = torch.stack([canvas_nats(model, batch, 3, 1, Generator().manual_seed(i))[0] for i in range(100)])
    slack = 4 * draws.sum(dim=1).std() / math.sqrt(len(draws))
    assert exact.sum() < draws.sum(dim=1).mean() + slack


def test_the_orders_are_different_samplers(model):
    nats = [unmasking_nats(model, random_batch(4, 8), 4, order)[0] for order in ORDERS]
    for one, other in itertools.combinations(nats, 2):
        assert (one - other).abs().max() > 1e-2


@every_path
def test_other_documents_do_not_matter(model, block_length, order):
    """Four documents of one token each are not answered for; the fifth costs the same whatever they say."""
    batch = random_batch(2, 8, documents=[0, 1, 2, 3, 4, 4, 4, 4])
    other = TokenBatch(batch.tokens.clone(), batch.documents, "text")
    other.tokens[:, :4] = (other.tokens[:, :4] + 3) % KNOWN
    sizes = torch.ones(12, dtype=torch.int64)
    found, same = (held_out_likelihood(model, [b], sizes, block_length, order=order) for b in (batch, other))
    assert found == same


def test_the_interval_covers_the_mean_as_often_as_it_says():
    generator, covered = seeded(), 0
    for _ in range(400):
        tokens = torch.randint(20, 60, (64,), generator=generator)
        nats = 2.5 * tokens + 8 * torch.randn(64, generator=generator)
        found = Likelihood.of(nats, tokens, tokens)
        covered += abs(found.nats_per_token - 2.5) < found.confidence
    assert 0.90 < covered / 400 < 0.99


def test_the_interval_shrinks_with_the_root_of_the_rows():
    nats, tokens = 30 + torch.randn(6400, generator=seeded()), torch.full((6400,), 10)
    few, many = (Likelihood.of(nats[:n], tokens[:n], tokens[:n]).confidence for n in (100, 6400))
    assert few / many == pytest.approx(8, rel=0.3)
    assert Likelihood.of(nats[:1], tokens[:1], tokens[:1]).confidence == math.inf


def test_bits_per_byte_and_nats_per_token_are_the_same_information(model):
    batch, sizes = random_batch(3, 10), torch.arange(12)
    found = held_out_likelihood(model, [batch], sizes, 4)
    num_bytes = sizes[batch.tokens[:, 1:]].sum().item()
    assert found.bits_per_byte * num_bytes * math.log(2) == pytest.approx(found.nats_per_token * 27)
    assert found.perplexity == pytest.approx(math.exp(found.nats_per_token))


def test_the_model_is_evaluated_and_its_mode_given_back():
    model, batch, sizes = lively_model(dropout=0.5).train(), random_batch(3, 10), torch.ones(12, dtype=torch.int64)
    assert held_out_likelihood(model, [batch], sizes, None) == held_out_likelihood(model, [batch], sizes, None)
    assert model.training
    with pytest.raises(ValueError, match="order must be one of"):
        held_out_likelihood(model, [batch], sizes, 4, order="backwards")
    assert model.training


@pytest.mark.parametrize(
    ("batches", "block_length", "order", "rule"),
    [
        ([], 4, None, "at least one batch, got none"),
        ([random_batch(2, 4)], 0, None, "block_length must be at least 1, got 0"),
        ([random_batch(2, 4)], None, "confidence", "the causal path has no order"),
        ([random_batch(2, 12)], 99, "random", "blocks of at most 10 tokens, got 12"),
    ],
)
def test_what_has_no_likelihood_says_why(model, batches, block_length, order, rule):
    with pytest.raises(ValueError, match=rule):
        held_out_likelihood(model, batches, torch.ones(12, dtype=torch.int64), block_length, order=order)
