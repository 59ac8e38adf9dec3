"""The mask rule, written down once more as sentences, decides what can influence what."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from hf_unified_diffusion.contracts import Segment
from hf_unified_diffusion.modeling.attention_rule import ContextCache, TokenRoles, plan_attention, visible
from tests.modeling.tiny import MODALITIES, double_model

WIDTH = MODALITIES["audio"]["width"]


@st.composite
def runs(draw):
    """Segments of one row: dicts with what decides who sees whom."""
    found = []
    for _ in range(draw(st.integers(1, 4))):
        length = draw(st.integers(1, 4))
        roles = st.lists(st.integers(0, 1), min_size=length, max_size=length)
        run = {"length": length, "is_context": draw(st.booleans()), "real": [1] * length, "document": [0] * length}
        if draw(st.booleans()):
            run["real"] = draw(roles)
        if draw(st.booleans()):
            run["document"] = draw(roles)
        run["canvas"] = [1 + c for c in draw(roles)] if draw(st.booleans()) else [1] * length
        run["reach"] = [draw(st.integers(0, 8))] * length if draw(st.booleans()) else [99] * length
        found.append(run)
    return found


def tokens_of(found):
    """One dict a token, context tokens ranked in their order."""
    tokens, rank = [], 0
    for run in found:
        for i in range(run["length"]):
            token = {name: run[name][i] for name in ("real", "document", "canvas", "reach")}
            token |= {"is_context": run["is_context"], "rank": rank}
            rank += run["is_context"]
            tokens.append(token)
    return tokens


def sees(query, key) -> bool:
    """The rule in sentences."""
    if not (query["real"] and key["real"]):
        return not query["real"] and not key["real"]
    if query["document"] != key["document"]:
        return False
    if key["is_context"]:
        return key["rank"] <= query["rank"] if query["is_context"] else key["rank"] < query["reach"]
    return not query["is_context"] and query["canvas"] == key["canvas"]


def segments_of(found, values: Tensor) -> list[Segment]:
    """The runs as segments; the same roles for every row of `values` (B, n, width)."""
    batch, segments, start = len(values), [], 0
    for run in found:
        rows = {name: torch.tensor(run[name]).expand(batch, -1) for name in ("real", "document", "canvas", "reach")}
        part = values[:, start : start + run["length"]]
        start += run["length"]
        segment = Segment("audio", part, mask=rows["real"].bool(), document=rows["document"])
        if not run["is_context"]:
            time = torch.full((batch,), 0.5)
            segment = Segment(
                "audio",
                part,
                time=time,
                mask=segment.mask,
                document=segment.document,
                canvas=rows["canvas"],
                reach=rows["reach"],
            )
        segments.append(segment)
    return segments


@settings(deadline=None, max_examples=60)
@given(runs())
def test_a_token_influences_exactly_those_that_may_see_it(found):
    """Through one layer its viewers, through two the viewers of its viewers, and no others."""
    tokens, model = tokens_of(found), double_model()
    rule = torch.tensor([[sees(q, k) for k in tokens] for q in tokens])
    real = torch.tensor([bool(token["real"]) for token in tokens])
    expected = (rule.double() @ rule.double()) > 0
    values = torch.randn(1, len(tokens), WIDTH, dtype=torch.float64, generator=Generator().manual_seed(0))
    changed = torch.cat([values, values + torch.eye(len(tokens), dtype=torch.float64)[:, :, None]])
    hidden = torch.cat(model.features(segments_of(found, changed))[0], dim=1)
    effect = (hidden[1:] - hidden[:1]).abs().amax(dim=-1).T  # (viewer, changed token)
    both_real = real[:, None] & real[None, :]
    assert (effect[both_real & expected] > 1e-9).all()
    assert (effect[~expected] < 1e-12).all()


def roles_of_tokens(tokens) -> TokenRoles:
    document = torch.tensor([[t["document"] if t["real"] else -1 for t in tokens]])
    is_context = torch.tensor([[t["is_context"] for t in tokens]])
    rank = torch.tensor([[t["rank"] for t in tokens]])
    reach = torch.tensor([[t["reach"] for t in tokens]])
    own_canvas = torch.tensor([[t["canvas"] for t in tokens]])
    return TokenRoles(document, torch.where(is_context, 0, own_canvas), rank, torch.where(is_context, rank + 1, reach))


@settings(deadline=None)
@given(runs())
def test_every_token_sees_itself(found):
    """So no row of the softmax is empty, padding included."""
    roles = roles_of_tokens(tokens_of(found))
    assert visible(roles, roles)[0, 0].diagonal().all()


@settings(deadline=None)
@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5))
def test_the_cheap_plan_is_the_rule(num_cached, num_context, num_canvas):
    """Without padding, packing or limits the plan builds no mask, and hides what the rule hides."""
    if num_context + num_canvas == 0:
        return
    cache = cache_of(num_cached)
    new = roles_of_tokens(tokens_of([run_of(num_context, True), run_of(num_canvas, False)]))
    new = TokenRoles(new.document, new.canvas, new.rank + num_cached, new.reach + num_cached * (new.canvas == 0))
    cheap = plan_attention(None, num_context, num_context + num_canvas, cache)
    exact = plan_attention(new, num_context, num_context + num_canvas, cache)
    num_keys = num_cached + num_context
    if num_context:
        assert torch.equal(
            as_mask(cheap.context_mask, num_context, num_keys, cheap.context_is_causal), exact.context_mask
        )
    if num_canvas:
        assert torch.equal(as_mask(cheap.canvas_mask, num_canvas, num_keys + num_canvas, False), exact.canvas_mask)


def run_of(length, is_context):
    same = {"real": [1] * length, "document": [0] * length, "canvas": [1] * length, "reach": [99] * length}
    return {"length": length, "is_context": is_context, **same}


def cache_of(length) -> ContextCache:
    cache = ContextCache()
    if length:
        cache.append(0, torch.zeros(1, 1, length, 2), torch.zeros(1, 1, length, 2))
    return cache


def as_mask(mask, num_queries, num_keys, is_causal) -> Tensor:
    full = torch.ones(1, 1, num_queries, num_keys, dtype=torch.bool)
    return full.tril() if is_causal else full if mask is None else mask


@given(runs())
@settings(deadline=None)
def test_the_additive_mask_hides_the_same(found):
    tokens = sorted(tokens_of(found), key=lambda token: not token["is_context"])
    num_context = sum(token["is_context"] for token in tokens)
    plan = plan_attention(roles_of_tokens(tokens), num_context, len(tokens), ContextCache())
    added = plan.additive(torch.bfloat16)
    for mask, bias in ((plan.context_mask, added.context_mask), (plan.canvas_mask, added.canvas_mask)):
        if mask is not None:
            assert torch.equal(bias == 0, mask)
            assert torch.equal(bias == float("-inf"), ~mask)


def test_a_padded_cache_needs_roles():
    cache = cache_of(3)
    cache.document = torch.tensor([[-1, 0, 0]])
    with pytest.raises(ValueError, match="a cache of padded context needs the roles of the new tokens"):
        plan_attention(None, 1, 1, cache)
