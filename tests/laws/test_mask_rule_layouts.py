"""One network, other layouts: cached or not, chained or at once, padded, packed or alone, the outputs are the same."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_unified_diffusion.contracts import Segment
from tests.modeling.tiny import (
    MASK,
    assert_same,
    canvas,
    noised,
    open_model,
    places,
    random_condition,
    random_ids,
    shared_model,
)


def doubled(clean, noisy, time, block, **given):
    """The training layout: a clean causal copy, and noisy blocks that see themselves and what is clean before."""
    batch, length = clean.shape
    index = torch.arange(length)
    return [
        Segment("text", clean, positions=places(0, length, batch), **given),
        Segment(
            "text",
            noisy,
            time=time,
            positions=places(0, length, batch),
            canvas=(1 + index // block).expand(batch, -1),
            reach=(index // block * block).expand(batch, -1),
            **given,
        ),
    ]


@pytest.mark.parametrize("block", [1, 4, 5, 12], ids=["autoregression", "blocks", "ragged blocks", "whole sequence"])
@pytest.mark.parametrize("commit_with_next", [False, True])
def test_chained_blocks_are_the_training_layout(block, commit_with_next):
    """A canvas of one token, a block or everything: one rule, also where the next block's pass commits the last one."""
    model, clean = shared_model(), random_ids(2, 12)
    noisy, time = noised(clean), torch.rand(2, 12, generator=torch.Generator().manual_seed(0))
    causal, at_once = model(segments=doubled(clean, noisy, time, block)).predictions
    cache, chained, context, waiting = None, [], [], None
    for start in range(0, 12, block):
        part = slice(start, start + block)
        segments = [canvas(noisy[:, part], time[:, part])]
        if waiting is not None:
            segments = [waiting, *segments]
        out = model(segments=segments, cache=cache, use_cache=True)
        chained.append(out.predictions[-1])
        cache = out.cache
        if waiting is not None:
            context.append(out.predictions[0])
        waiting = Segment("text", clean[:, part]) if commit_with_next else None
        if not commit_with_next:
            context.append(model(clean[:, part], cache=cache, use_cache=True).logits)
    assert_same(torch.cat(chained, dim=1), at_once)
    seen = torch.cat(context, dim=1) if context else causal[:, :0]
    assert_same(seen, causal[:, : seen.shape[1]])


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 5))
def test_cached_equals_uncached(sizes, length):
    """Context in any pieces, then a canvas: as in one call without a cache."""
    model, total = shared_model(), sum(sizes)
    ids, hidden = random_ids(2, total), random_ids(2, length, seed=1)
    whole = model(segments=[Segment("text", ids), canvas(hidden)]).predictions
    cache, pieces = None, []
    for piece in ids.split(sizes, dim=1):
        out = model(piece, cache=cache, use_cache=True)
        cache = out.cache
        pieces.append(out.logits)
    assert len(cache) == cache.get_seq_length() == total
    assert_same(torch.cat(pieces, dim=1), whole[0])
    before = [key.clone() for key in cache.keys]
    for _ in range(2):  # a canvas reads the cache and leaves it as it was
        assert_same(model(hidden, timestep=torch.full((2,), 0.5), cache=cache).logits, whole[1])
    assert all(torch.equal(old, new) for old, new in zip(before, cache.keys, strict=True))


def test_a_canvas_leaves_the_context_as_it_is():
    """Context outputs and cached keys do not depend on what the canvas holds, not in one bit."""
    model, ids = shared_model(), random_ids(2, 6)
    outputs = [
        model(segments=[Segment("text", ids), canvas(random_ids(2, 4, seed), time)], use_cache=True)
        for seed, time in ((1, 0.1), (2, 0.9))
    ]
    assert torch.equal(outputs[0].predictions[0], outputs[1].predictions[0])
    assert not torch.allclose(outputs[0].predictions[1], outputs[1].predictions[1])
    first, second = (output.cache for output in outputs)
    assert all(torch.equal(a, b) for a, b in zip(first.keys + first.values, second.keys + second.values, strict=True))
    assert len(first) == 6


def test_copies_of_a_cache_grow_apart():
    model, ids = shared_model(), random_ids(2, 6)
    cache = model(ids, use_cache=True).cache
    branch = cache.copy()
    model(ids, cache=branch, use_cache=True)
    assert (len(cache), len(branch)) == (6, 12)
    assert_same(
        model(ids[:1], cache=cache.select(torch.tensor([1]))).logits,
        model(ids[[0, 0]], cache=cache).logits[1:],
    )


lengths = st.lists(st.integers(1, 6), min_size=2, max_size=8)


def padded(rows, side):
    """Rows of tokens in one tensor, and its mask."""
    width = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), width, dtype=torch.int64), torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[i, where], mask[i, where] = row, True
    return ids, mask


def generate(model, prompts, prompt_mask, blocks, block_masks, time, condition=None):
    """Predictions of prompt and canvases, each canvas committed as context by the next one's pass."""
    out = model(prompts, attention_mask=prompt_mask, use_cache=True, condition=condition)
    cache, found, waiting = out.cache, [out.logits], []
    for block, mask in zip(blocks, block_masks, strict=True):
        here = Segment("text", block, time=time, mask=mask)
        out = model(segments=[*waiting, here], cache=cache, use_cache=True, condition=condition)
        found.append(out.predictions[-1])
        waiting = [Segment("text", block, mask=mask)]
    return found


@settings(deadline=None, max_examples=20)
@given(lengths, lengths, st.sampled_from(["left", "right"]), st.booleans())
def test_a_padded_batch_is_its_rows(prompt_lengths, canvas_lengths, side, with_condition):
    """Prompts and canvases of many lengths in one batch give what each row gives alone, with cache and condition."""
    model, batch = shared_model(), min(len(prompt_lengths), len(canvas_lengths))
    prompts = [random_ids(1, n, seed=i)[0] for i, n in enumerate(prompt_lengths[:batch])]
    blocks = [
        [noised(random_ids(1, n, seed=10 + i + k), seed=k)[0] for i, n in enumerate(canvas_lengths[:batch])]
        for k in (0, 1)
    ]
    time = torch.rand(batch, generator=torch.Generator().manual_seed(0))
    condition = random_condition(batch) if with_condition else None
    packs = [padded(rows, side) for rows in blocks]
    together = generate(model, *padded(prompts, side), [p[0] for p in packs], [p[1] for p in packs], time, condition)
    masks = [padded(prompts, side)[1], *(mask for _, mask in packs)]
    for i in range(batch):
        own = None if condition is None else random_row(condition, i)
        rows = [block[i][None] for block in blocks]
        alone = generate(model, prompts[i][None], None, rows, [None, None], time[i : i + 1], own)
        for whole, part, mask in zip(together, alone, masks, strict=True):
            assert_same(whole[i][mask[i]], part[0])


def random_row(condition, row):
    return type(condition)(condition.tokens[row : row + 1], condition.mask[row : row + 1])


def test_a_batch_of_eight_is_eight_batches_of_one():
    model, ids, hidden = shared_model(), random_ids(8, 5), noised(random_ids(8, 4, seed=1))
    time = torch.linspace(0, 1, 8)
    together = model(segments=[Segment("text", ids), canvas(hidden, time)]).predictions
    for i in range(8):
        row = slice(i, i + 1)
        alone = model(segments=[Segment("text", ids[row]), canvas(hidden[row], time[row])]).predictions
        for whole, part in zip(together, alone, strict=True):
            assert_same(whole[row], part)


def packed_parts(documents, block):
    """Documents one after the other in one row, each in its own training layout."""
    clean = torch.cat(documents, dim=1)
    owner = torch.cat([torch.full_like(document, i) for i, document in enumerate(documents)], dim=1)
    parts, canvases, reach, start = [], [], [], 0
    for document in documents:
        index = torch.arange(document.shape[1])
        canvases.append(100 * start + 1 + index // block)
        reach.append(start + index // block * block)
        start += document.shape[1]
    parts.append(Segment("text", clean, document=owner, positions=places(0, start)))
    noisy = noised(clean, seed=3)
    parts.append(
        Segment(
            "text",
            noisy,
            time=torch.full((1, start), 0.5),
            positions=places(0, start),
            document=owner,
            canvas=torch.cat(canvases)[None],
            reach=torch.cat(reach)[None],
        )
    )
    return parts, noisy


def test_packed_documents_are_separate_ones_gradients_included():
    model = open_model().double()
    documents = [random_ids(1, n, seed=n) for n in (3, 5, 4)]
    parts, noisy = packed_parts(documents, block=2)
    packed = [prediction[..., :MASK] for prediction in model(segments=parts).predictions]
    sum(p.square().sum() for p in packed).backward()
    together = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    start = 0
    for document in documents:
        stop = start + document.shape[1]
        time = torch.full((1, stop - start), 0.5)
        alone = model(segments=doubled(document, noisy[:, start:stop], time, block=2)).predictions
        for whole, part in zip(packed, alone, strict=True):
            # positions go on in the packed row: rotary attention sees differences only
            torch.testing.assert_close(whole[:, start:stop], part[..., :MASK], atol=1e-4, rtol=1e-4)
        sum(p[..., :MASK].square().sum() for p in alone).backward()
        start = stop
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            scale = parameter.grad.abs().max()
            assert (together[name] - parameter.grad).abs().max() <= 1e-4 * scale, name


def test_one_document_does_not_touch_another():
    """Changing document A leaves B's outputs as they were, bit by bit, and the gradients that B causes."""
    model = open_model()
    seen = []
    for seed in (1, 2):
        documents = [random_ids(1, 3, seed=seed), random_ids(1, 4, seed=7)]
        parts, _ = packed_parts(documents, block=2)
        parts[1] = canvas(
            torch.cat([noised(documents[0], seed), noised(documents[1], 7)], dim=1),
            parts[1].time,
            **{name: getattr(parts[1], name) for name in ("positions", "document", "canvas", "reach")},
        )
        outputs = model(segments=parts).predictions
        own = [output[:, 3:, :MASK] for output in outputs]
        model.zero_grad()
        sum(output.square().sum() for output in own).backward()
        seen.append((own, model.shared_transformer.layers[0].self_attn.k_proj.weight.grad.clone()))
    (first, gradient), (second, other_gradient) = seen
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    torch.testing.assert_close(gradient, other_gradient, rtol=1e-5, atol=1e-5)


def test_infill_sees_the_suffix():
    """A suffix is context with later positions; what it holds and where it stands matter, and context stays causal."""
    model, prefix, suffix = shared_model(), random_ids(1, 4), random_ids(1, 3, seed=1)
    gap = torch.full((1, 5), MASK)

    def fill(prefix, suffix, at):
        return model(
            segments=[
                Segment("text", prefix, positions=places(0, 4)),
                canvas(gap, 1.0, positions=places(4, 9)),
                Segment("text", suffix, positions=places(at, at + 3)),
            ]
        ).predictions

    base = fill(prefix, suffix, 9)
    other = fill(prefix, random_ids(1, 3, seed=2), 9)
    assert not torch.allclose(base[1], other[1])
    assert not torch.allclose(base[1], fill(prefix, suffix, 20)[1])
    assert torch.equal(base[0], other[0])
    assert not torch.allclose(base[2], fill(random_ids(1, 4, seed=5), suffix, 9)[2])


def test_default_positions_go_on_from_segment_to_segment():
    model, prefix, hidden, suffix = shared_model(), random_ids(2, 4), random_ids(2, 5), random_ids(2, 3, seed=1)
    implied = model(segments=[Segment("text", prefix), canvas(hidden), Segment("text", suffix)], use_cache=True)
    given = model(
        segments=[
            Segment("text", prefix, positions=places(0, 4, 2)),
            canvas(hidden, positions=places(4, 9, 2)),
            Segment("text", suffix, positions=places(9, 12, 2)),
        ],
        use_cache=True,
    )
    for a, b in zip(implied.predictions, given.predictions, strict=True):
        assert torch.equal(a, b)
    assert implied.cache.next_position.tolist() == given.cache.next_position.tolist() == [12, 12]


def test_left_padding_does_not_move_positions():
    """Positions count real tokens, and padding after the last given position moves nothing."""
    model, ids = shared_model(), random_ids(1, 4)
    mask = torch.tensor([[False, False, True, True]])
    given = torch.tensor([[90.0, 90.0, 0.0, 1.0]])
    for positions in (None, given):
        out = model(ids, attention_mask=mask, position_ids=positions, use_cache=True)
        assert out.cache.next_position.tolist() == [2]
        assert_same(out.logits[:, 2:], model(ids[:, 2:]).logits)
