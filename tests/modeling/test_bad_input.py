"""Bad input gives a ValueError that states the rule and the value, and nothing else."""

import math

import pytest
import torch
from transformers import DynamicCache

from hf_unified_diffusion.contracts import Condition, Segment
from tests.modeling.tiny import CONDITION_SIZE, MASK, VOCAB_SIZE, open_model, places, random_ids, shared_model

IDS = random_ids(2, 4)
HALF = torch.full((2,), 0.5)
AUDIO = torch.zeros(2, 3, 6)


def text(**given):
    return [Segment("text", IDS, **given)]


@pytest.mark.parametrize(
    ("segments", "rule"),
    [
        ([], "at least one segment, got none"),
        ([Segment("txt", IDS)], r"modality must be one of \['audio', 'code', 'image', 'text'\], got 'txt'"),
        ([Segment("text", IDS.float())], r"text tokens must be int64 \(batch, length\), got torch.float32 \(2, 4\)"),
        ([Segment("text", IDS.bool())], "text tokens must be int64 .*, got torch.bool"),
        ([Segment("text", IDS[0])], r"text tokens must be int64 \(batch, length\), got torch.int64 \(4,\)"),
        ([Segment("text", torch.tensor(3))], r"text tokens must be int64 \(batch, length\), got torch.int64 \(\)"),
        ([Segment("text", IDS[:, :0])], r"text values must have at least one row and one token, got \(2, 0\)"),
        ([Segment("text", IDS[:0])], r"text values must have at least one row and one token, got \(0, 4\)"),
        ([Segment("text", IDS + VOCAB_SIZE)], rf"text tokens must be in \[0, {VOCAB_SIZE - 1}\], got"),
        ([Segment("text", IDS - 100)], rf"text tokens must be in \[0, {VOCAB_SIZE - 1}\], got -"),
        ([Segment("audio", IDS)], r"audio values must be float \(batch, length, 6\), got torch.int64 \(2, 4\)"),
        ([Segment("audio", AUDIO[..., :5])], r"audio values must be float \(batch, length, 6\), got .* \(2, 3, 5\)"),
        ([Segment("audio", AUDIO + math.nan)], "audio values must be finite, got nan"),
        ([Segment("audio", AUDIO), Segment("text", IDS[:1])], r"segments must share one batch size, got \[2, 1\]"),
        (text(mask=torch.ones(2, 3, dtype=torch.bool)), r"mask of text must be torch.bool \(2, 4\), got .* \(2, 3\)"),
        (text(mask=torch.ones(2, 4)), r"mask of text must be torch.bool \(2, 4\), got torch.float32"),
        (text(document=torch.zeros(2, 4)), r"document of text must be torch.int64 \(2, 4\), got torch.float32"),
        (text(canvas=IDS), "canvas belongs to a canvas, got one for text without a time"),
        (text(reach=IDS), "reach belongs to a canvas, got one for text without a time"),
        (text(time=HALF, canvas=IDS * 0), "canvas of text must be at least 1, got 0"),
        (text(time=HALF[:1]), r"time of text must be float of shape \(2,\) or \(2, 4\), got torch.float32 \(1,\)"),
        (text(time=HALF.long()), r"time of text must be float .*, got torch.int64 \(2,\)"),
        (text(time=HALF * 3), r"time of text must be in \[0, 1\], got 1.5"),
        (text(time=-HALF), r"time of text must be in \[0, 1\], got -0.5"),
        (text(time=HALF * math.nan), r"time of text must be in \[0, 1\], got nan"),
        (text(time=HALF, target_time=HALF * 4), r"target_time of text must be in \[0, 1\], got 2.0"),
        (text(time=HALF, guidance=HALF * math.nan), "guidance of text must be finite, got nan"),
        (text(time=HALF, guidance=HALF[:, None]), r"guidance of text must be float of shape \(2,\) or \(2, 4\)"),
        (text(guidance=HALF), "guidance of text needs a time, got none"),
        (text(target_time=HALF), "target_time of text needs a time, got none"),
        (text(positions=places(0, 3, 2)), r"positions of text must be \(2, 4\) or \(2, 4, 3\), got \(2, 3\)"),
        (text(positions=torch.zeros(2, 4, 2)), r"positions of text must be .*, got \(2, 4, 2\)"),
        (text(positions=places(0, 4, 2) * math.inf), "positions of text must be finite, got nan"),
        ([Segment("text", random_ids(1, 257))], "at most 256 tokens fit the context, got 257"),
    ],
)
def test_bad_segments(segments, rule):
    with pytest.raises(ValueError, match=rule):
        shared_model()(segments=segments)


@pytest.mark.parametrize(
    ("tokens", "mask"),
    [
        (torch.zeros(1, 3, CONDITION_SIZE), torch.ones(1, 3, dtype=torch.bool)),
        (torch.zeros(2, 3, 5), torch.ones(2, 3, dtype=torch.bool)),
        (torch.zeros(2, 3, CONDITION_SIZE), torch.ones(2, 4, dtype=torch.bool)),
        (torch.zeros(2, 3, CONDITION_SIZE), torch.ones(2, 3)),
        (torch.zeros(2, 0, CONDITION_SIZE), torch.ones(2, 0, dtype=torch.bool)),
        (torch.zeros(2, 3, CONDITION_SIZE, dtype=torch.int64), torch.ones(2, 3, dtype=torch.bool)),
        (torch.zeros(2, CONDITION_SIZE), torch.ones(2, dtype=torch.bool)),
    ],
)
def test_bad_conditions(tokens, mask):
    with pytest.raises(
        ValueError, match=rf"condition tokens must be float \(2, n, {CONDITION_SIZE}\) with a bool mask"
    ):
        shared_model()(IDS, condition=Condition(tokens, mask))


def test_a_condition_that_is_not_finite():
    tokens = torch.full((2, 1, CONDITION_SIZE), math.inf)
    with pytest.raises(ValueError, match="condition tokens must be finite, got inf"):
        shared_model()(IDS, condition=Condition(tokens, torch.ones(2, 1, dtype=torch.bool)))


def test_conditions_of_two_widths():
    mask = torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="conditions must share one width, got 3 and 4"):
        Condition(torch.zeros(1, 2, 3), mask).join(Condition(torch.zeros(1, 2, 4), mask))


def test_a_cache_that_does_not_fit():
    model = shared_model()
    cache = model(IDS, use_cache=True).cache
    with pytest.raises(ValueError, match="the cache must have the batch's 1 rows, got 2"):
        model(IDS[:1], cache=cache)
    with pytest.raises(ValueError, match="at most 256 tokens fit the context, got 257"):
        model(random_ids(2, 253), cache=cache)
    with pytest.raises(ValueError, match="the cache must have the model's 3 layers, got 2"):
        open_model(num_hidden_layers=3)(IDS, cache=cache)
    with pytest.raises(ValueError, match="cache must be a ContextCache, got DynamicCache"):
        model(IDS, cache=DynamicCache())


def test_input_ids_or_segments():
    model = shared_model()
    for given in ({}, {"input_ids": IDS, "segments": text()}):
        with pytest.raises(ValueError, match="give either input_ids or segments, and not both"):
            model(**given)
    for name, value in (("labels", IDS), ("timestep", HALF), ("attention_mask", IDS > 0), ("loss_weight", HALF)):
        with pytest.raises(ValueError, match="belong to input_ids"):
            model(segments=text(), **{name: value})


@pytest.mark.parametrize("all_real", [True, False])
def test_an_attention_mask_of_another_shape(all_real):
    with pytest.raises(ValueError, match=r"mask of text must be torch.bool \(2, 4\), got torch.bool \(2, 3\)"):
        shared_model()(IDS, attention_mask=torch.full((2, 3), all_real))


def test_bad_labels():
    model = shared_model()
    with pytest.raises(ValueError, match=r"labels must be int64 \(2, 4\), got torch.int64 \(2, 3\)"):
        model(IDS, labels=IDS[:, :3])
    with pytest.raises(ValueError, match=r"labels must be int64 \(2, 4\), got torch.float32"):
        model(IDS, labels=IDS.float())
    with pytest.raises(ValueError, match=r"loss_weight must be float of shape \(2,\) or \(2, 4\), got .* \(3,\)"):
        model(IDS, timestep=HALF, labels=IDS, loss_weight=torch.ones(3))


def test_a_refused_call_leaves_the_cache_as_it_was():
    model = shared_model()
    cache = model(IDS, use_cache=True).cache
    with pytest.raises(ValueError, match="modality must be one of"):
        model(segments=[Segment("text", IDS), Segment("video", IDS, time=HALF)], cache=cache, use_cache=True)
    assert len(cache) == 4
    assert cache.next_position.tolist() == [4, 4]


def test_a_taken_or_wrong_modality():
    model = open_model()
    with pytest.raises(
        ValueError, match=r"modality 'audio' exists; the model has \['audio', 'code', 'image', 'text'\]"
    ):
        model.add_modality("audio", width=3)
    with pytest.raises(ValueError, match="modality 'depth' must have a positive width, got None"):
        model.add_modality("depth")
    assert "depth" not in model.config.modalities
    assert model.config.mask_token_id == MASK
