"""Whatever the network's logits are, the text is what its constraint says: every way of writing, any steps."""

import json
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from hf_unified_diffusion import MaskedDiffusionScheduler, SchemaConstraint, UnifiedDiffusionTextPipeline
from hf_unified_diffusion.codecs.text_codec import TextCodec
from hf_unified_diffusion.pipelines.constrained_rows import vocabulary_of
from tests.conditioning.random_schemas import SCHEMAS, shown

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["age"],
}
WAYS = {
    "one canvas": {"block_length": None},
    "blocks": {"block_length": 7},
    "checked drafts": {"block_length": 5, "check_drafts": True},
    "guidance": {"block_length": 9, "guidance_scale": 2.0, "negative_prompt": "n"},
    "greedy": {"block_length": 8, "temperature": 0.0},
    "few tokens": {"block_length": None, "temperature": 0.7, "top_k": 2, "top_p": 0.5},
    "entropy bound": {"block_length": None, "entropy_bound": 0.5},
}


def is_person(text):
    return Draft202012Validator(PERSON).is_valid(json.loads(text))


@pytest.mark.parametrize("steps", [1, 4, 16])
@pytest.mark.parametrize("way", list(WAYS))
def test_every_way_of_writing_validates(pipe, way, steps):
    options = WAYS[way]
    steps = max(steps, -(-34 // (options["block_length"] or 34)))
    prompts = ["x", "A longer prompt: "]
    output = pipe(
        prompts,
        json_schema=PERSON,
        max_new_tokens=34,
        num_inference_steps=steps,
        num_return_sequences=2,
        seed=0,
        **options,
    )
    assert all(map(is_person, output.completions)), output.completions
    assert len(set(output.completions)) > 1 or way == "greedy"


@pytest.mark.parametrize("ordering", ["confidence", "margin", "entropy", "random"])
def test_remasking_and_orders(model, tokenizer, pipe, ordering):
    pipe.scheduler.register_to_config(remask_rate=0.2)
    output = pipe(
        "x", json_schema=PERSON, max_new_tokens=30, num_inference_steps=8, block_length=None, ordering=ordering, seed=1
    )
    assert is_person(output.completions[0])


@settings(max_examples=12, deadline=None)
@given(SCHEMAS, st.integers(0, 99), st.sampled_from([1, 3]), st.sampled_from([None, 64]))
def test_random_schemas(shared_pipe, schema, seed, steps, block_length):
    """At the least length, and with room to spare."""
    constraint = SchemaConstraint.from_json_schema(schema)
    codec, end = TextCodec(shared_pipe.tokenizer), shared_pipe.tokenizer.eos_token_id
    least = constraint.automaton(vocabulary_of(codec, len(codec.tokenizer), [end], end)).shortest()
    for length in (least, least + 12):
        size = length if block_length is None else max(1, length // steps)
        options = {"max_new_tokens": length, "block_length": size, "num_inference_steps": -(-length // size) * steps}
        text = shared_pipe("x", constraint=constraint, seed=seed, **options).completions[0]
        assert Draft202012Validator(schema).is_valid(json.loads(text)), (shown(schema), text)


@pytest.fixture(scope="module")
def shared_pipe(model, tokenizer):
    pipe = UnifiedDiffusionTextPipeline(
        model, MaskedDiffusionScheduler(mask_token_id=tokenizer.mask_token_id), tokenizer
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_rows_do_not_depend_on_their_batch(pipe):
    prompts, options = (
        ["a", "bcd", "An e"],
        {"regex": "[a-z ]{3,20}", "max_new_tokens": 12, "num_inference_steps": 6, "block_length": 6},
    )
    together = pipe(prompts, seed=3, **options).completions
    generators = [torch.Generator().manual_seed(7 + i) for i in range(3)]
    rows = pipe(prompts, generator=generators, **options).completions
    alone = [
        pipe(p, generator=[torch.Generator().manual_seed(7 + i)], **options).completions[0]
        for i, p in enumerate(prompts)
    ]
    assert rows == alone and all(re.fullmatch("[a-z ]{3,20}", text) for text in together)


@pytest.mark.parametrize("steps", [1, 5])
def test_between_prompt_and_suffix(pipe, steps):
    output = pipe("f(", suffix=")", regex="\\d+(, \\d+){2}", max_new_tokens=9, num_inference_steps=steps, seed=0)
    assert re.fullmatch("f\\(\\d+(, \\d+){2}\\)", output.texts[0]) and len(output.completion_ids[0]) == 9


@pytest.mark.parametrize("steps", [1, 5])
def test_canvas_with_given_tokens(pipe, tokenizer, steps):
    """Tokens in the middle and at the end stay; what is around them fits."""
    start, end = TextCodec(tokenizer).encode(['{"age": ', '"}'])
    mask = [tokenizer.mask_token_id]
    canvas = torch.tensor([start + mask * 12 + end])
    schema = {"type": "object", "properties": {"age": {"type": "integer"}, "name": {"type": "string"}}}
    output = pipe("x", canvas=canvas, json_schema=schema, num_inference_steps=steps, seed=0)
    ids = output.completion_ids[0].tolist()
    assert ids[: len(start)] == start and ids[-len(end) :] == end
    assert set(json.loads(output.completions[0])) == {"age", "name"}


def test_checked_drafts_are_what_the_causal_path_writes(pipe):
    """Greedy, the text does not depend on how it was drafted."""
    options = {"regex": "(ab|ba|c){2,9}d", "max_new_tokens": 14, "temperature": 0.0, "check_drafts": True, "seed": 0}
    ways = [pipe("x", block_length=b, num_inference_steps=n, **options) for b, n in ((1, 14), (4, 4), (6, 12))]
    assert len({way.completions[0] for way in ways}) == 1
    assert re.fullmatch("(ab|ba|c){2,9}d", ways[0].completions[0])


def test_tools_and_code(code_pipe):
    tool = {
        "type": "function",
        "function": {"name": "get", "parameters": {"properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}},
    }
    text = code_pipe("def f():", tools=[tool], max_new_tokens=48, num_inference_steps=4, seed=0).completions[0]
    assert json.loads(text) in [{"name": "get", "arguments": {"n": n}} for n in (1, 2)]


BAD = {
    "too short": ({"json_schema": PERSON, "max_new_tokens": 4, "num_inference_steps": 1}, "max_new_tokens must be"),
    "no such length": ({"regex": "(abcdef){3}", "suffix": "x", "max_new_tokens": 19}, "has exactly as many tokens"),
    "two of them": ({"json_schema": PERSON, "regex": "a"}, "at most one of"),
    "unsupported": ({"json_schema": {"not": {}}}, "'not' at #"),
    "no constraint": ({"constraint": "a"}, "constraint must be a SchemaConstraint, got str"),
    "explosion": ({"regex": "(a|b)*a(a|b){18}"}, "at most 20000 states"),
    "stop": ({"regex": "a+", "stop": "b"}, "stop, end_rules, at_bound must be left out with a constraint"),
    "pattern": ({"regex": 3}, "a pattern must be a string, got int"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(BAD))
def test_refused_before_any_pass(pipe, model, case):
    options, message = BAD[case]
    called = []
    handle = model.register_forward_hook(lambda *call: called.append(call))
    try:
        with pytest.raises(ValueError, match=message):
            pipe("x", **options)
    finally:
        handle.remove()
    assert not called


def test_a_canvas_that_contradicts_is_refused(pipe, tokenizer):
    given_ids = TextCodec(tokenizer).encode(["z"])[0]
    canvas = torch.tensor([[tokenizer.mask_token_id, *given_ids, tokenizer.mask_token_id]])
    with pytest.raises(ValueError, match="room for an accepted text around its given tokens"):
        pipe("x", canvas=canvas, regex="[a-y]+", num_inference_steps=1)
