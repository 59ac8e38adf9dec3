"""What OpenAI's client gets is what the engine gives, whole or in parts, alone or in a batch."""

import asyncio
import json

import pytest
import torch
from jsonschema import Draft202012Validator
from openai import BadRequestError

from hf_unified_diffusion import UnifiedControlNetModel
from hf_unified_diffusion.pipelines.named_controlnets import NamedControlNets
from tests.serve.conftest import MODEL, Held, application, http_client, openai_client

OPTIONS = {"model": MODEL, "max_tokens": 12, "temperature": 1.0, "seed": 3}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Of a city.", "parameters": SCHEMA}}
STOCKS = {"type": "function", "function": {"name": "stocks", "parameters": {"type": "object", "properties": {}}}}


def run(app, ask):
    async def main():
        async with openai_client(app) as client:
            return await ask(client)

    return asyncio.run(main())


def expected(app, prompt, seed=3, **options):
    engine = app.state.generation.engine
    options = {"max_new_tokens": 12, "temperature": 1.0, **options}
    return engine.diffuse(prompt, seed=seed, **options)[len(prompt) :]


def test_a_completion_is_what_the_engine_writes(app):
    answer = run(app, lambda client: client.completions.create(prompt="ab", **OPTIONS))
    (choice,) = answer.choices
    assert choice.text == expected(app, "ab") and choice.finish_reason in ("stop", "length")
    assert answer.usage.prompt_tokens == 2 and 0 < answer.usage.completion_tokens <= 12
    assert answer.model == MODEL and answer.object == "text_completion"


def test_prompts_and_choices_come_in_order_each_with_its_seed(app):
    answer = run(app, lambda client: client.completions.create(prompt=["ab", "xyz"], n=2, **OPTIONS))
    rows = [("ab", 3), ("ab", 4), ("xyz", 5), ("xyz", 6)]
    assert [choice.text for choice in answer.choices] == [expected(app, prompt, seed) for prompt, seed in rows]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]


def test_a_gap_is_filled(app):
    answer = run(app, lambda client: client.completions.create(prompt="ab", suffix="yz", **OPTIONS))
    text = app.state.generation.engine.diffuse("ab", suffix="yz", max_new_tokens=12, temperature=1.0, seed=3)
    assert "ab" + answer.choices[0].text + "yz" == text


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"prompt": "Once upon "},  # the space is written again with the first token
        {"stop": ["e", "zz"]},
        {"suffix": "yz"},
        {"extra_body": {"modality": "code"}},
        {"extra_body": {"num_steps": 6}},
    ],
)
def test_a_stream_is_the_whole_answer_in_parts(app, more):
    request = {"prompt": "ab", **OPTIONS, "max_tokens": 24, **more}

    async def both(client):
        whole = await client.completions.create(**request)
        options = {"include_usage": True}
        chunks = [c async for c in await client.completions.create(**request, stream=True, stream_options=options)]
        return whole, chunks

    whole, chunks = run(app, both)
    *parts, usage = chunks
    assert "".join(chunk.choices[0].text for chunk in parts) == whole.choices[0].text
    assert [chunk.choices[0].finish_reason for chunk in parts][-1] == whole.choices[0].finish_reason
    assert usage.usage == whole.usage and not usage.choices


def test_a_stream_tells_text_before_the_end_and_drafts_where_asked(app):
    body = {"stream_options": {"include_drafts": True}, "num_steps": 8}

    async def streamed(client):
        stream = await client.completions.create(
            prompt="ab", stream=True, extra_body=body, **OPTIONS | {"max_tokens": 64}
        )
        return [chunk.choices[0] async for chunk in stream]

    choices = run(app, streamed)
    drafts = [choice.draft for choice in choices if getattr(choice, "draft", None) is not None]
    assert len(drafts) == 8 and any("░" in draft for draft in drafts)
    assert sum(bool(choice.text) for choice in choices) >= 2


def test_a_chat_without_a_template_is_a_transcript(app):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    ]
    answer = run(app, lambda client: client.chat.completions.create(messages=messages, **OPTIONS))
    text = expected(app, "System: Be brief.\nUser: Hi\nAssistant:", stop=["\nUser:"])
    assert answer.choices[0].message.content == text and answer.choices[0].message.role == "assistant"

    async def streamed(client):
        stream = await client.chat.completions.create(messages=messages, stream=True, **OPTIONS)
        return [chunk.choices[0].delta async for chunk in stream]

    deltas = run(app, streamed)
    assert deltas[0].role == "assistant" and "".join(delta.content or "" for delta in deltas) == text


def test_a_template_of_the_tokenizer_is_used(app):
    tokenizer = app.state.generation.engine.tokenizer
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    try:
        messages = [{"role": "user", "content": "Hi"}]
        answer = run(app, lambda client: client.chat.completions.create(messages=messages, **OPTIONS))
    finally:
        tokenizer.chat_template = None
    assert answer.choices[0].message.content == expected(app, "<user>Hi<assistant>")


@pytest.mark.parametrize("stream", [False, True])
def test_json_follows_its_schema(app, stream):
    wanted = {"type": "json_schema", "json_schema": {"name": "trip", "schema": SCHEMA, "strict": True}}
    request = {"messages": [{"role": "user", "content": "Where?"}], "response_format": wanted, **OPTIONS}

    async def ask(client):
        answer = await client.chat.completions.create(**request | {"max_tokens": 40}, stream=stream)
        if not stream:
            return answer.choices[0].message.content
        return "".join([chunk.choices[0].delta.content or "" async for chunk in answer])

    Draft202012Validator(SCHEMA).validate(json.loads(run(app, ask)))


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_with_arguments_of_its_schema(app, stream):
    request = {
        "messages": [{"role": "user", "content": "Rain?"}],
        "tools": [WEATHER, STOCKS],
        **OPTIONS,
        "max_tokens": 90,
    }
    choice = {"type": "function", "function": {"name": "weather"}}

    async def ask(client):
        answer = await client.chat.completions.create(**request, tool_choice=choice, stream=stream)
        if not stream:
            return answer.choices[0].message.tool_calls, answer.choices[0].finish_reason
        chunks = [chunk.choices[0] async for chunk in answer]
        return [call for chunk in chunks for call in chunk.delta.tool_calls or []], chunks[-1].finish_reason

    (call,), reason = run(app, ask)
    assert call.function.name == "weather" and reason == "tool_calls"
    Draft202012Validator(SCHEMA).validate(json.loads(call.function.arguments))


def test_a_checkpoint_with_a_controlnet_for_tools_calls_them_under_it(tmp_path):
    app = application()
    engine = app.state.generation.engine
    controlnet = UnifiedControlNetModel.from_transformer(engine.model, hint_source="tools", num_blocks=1)
    with torch.no_grad():
        controlnet.residuals[0].weight.normal_(0, 5, generator=torch.Generator().manual_seed(0))
    controlnet.save_pretrained(tmp_path / "controlnets" / "tools")
    engine.controlnets = NamedControlNets(tmp_path)
    request = {"messages": [{"role": "user", "content": "Rain?"}], "tools": [WEATHER, STOCKS], "max_tokens": 90}
    answer = run(app, lambda client: client.chat.completions.create(**OPTIONS | request | {"temperature": 0.01}))
    (call,) = answer.choices[0].message.tool_calls
    given = {"max_new_tokens": 90, "temperature": 0.01, "tools": [WEATHER, STOCKS]}
    told = json.loads(expected(app, "User: Rain?\nCall:\n", controlnet="tools", **given))
    assert {"name": call.function.name, "arguments": json.loads(call.function.arguments)} == told
    assert told != json.loads(expected(app, "User: Rain?\nCall:\n", **given))
    app.state.generation.close()
    engine.close()


def test_requests_of_the_same_settings_run_together_and_get_what_each_gets_alone(app):
    rows = app.state.generation.metrics.batch_rows
    before = rows._sum.get()

    async def ask(client):
        prompts = [f"prompt {number}" for number in range(8)]
        with Held(app) as held_queue:
            asked = [client.completions.create(prompt=prompt, **OPTIONS | {"seed": 7}) for prompt in prompts]
            answers = asyncio.gather(*asked)
            await held_queue.until(8)
        return prompts, await answers

    prompts, answers = run(app, ask)
    assert [answer.choices[0].text for answer in answers] == [expected(app, prompt, 7) for prompt in prompts]
    assert rows._sum.get() - before == 8 and app.state.generation.metrics.registry.get_sample_value(
        "unified_diffusion_batch_rows_bucket", {"le": "4.0"}
    ) < app.state.generation.metrics.registry.get_sample_value("unified_diffusion_batch_rows_count")


def test_a_bad_request_of_a_batch_leaves_the_others_alone(app):
    async def ask(client):
        prompts = ["fine", "far too long " * 200, "fine as well"]
        with Held(app) as held_queue:
            asked = [client.completions.create(prompt=prompt, **OPTIONS) for prompt in prompts]
            answers = asyncio.gather(*asked, return_exceptions=True)
            await held_queue.until(3)
        return await answers

    first, second, third = run(app, ask)
    assert isinstance(second, BadRequestError) and "must fit the context" in second.message
    assert [first.choices[0].text, third.choices[0].text] == [expected(app, "fine"), expected(app, "fine as well")]


@pytest.mark.parametrize(
    ("path", "changes", "param", "rule"),
    [
        ("completions", {"logit_bias": {"5": 1}}, "logit_bias", "logit_bias is not supported here"),
        ("completions", {"max_tokens": 0}, "max_tokens", "greater than or equal to 1, got '0'"),
        ("completions", {"temperature": "hot"}, "temperature", "valid number, got 'hot'"),
        ("completions", {"presence_penalty": 0.5}, "presence_penalty", "less than or equal to 0"),
        ("completions", {"prompt": ""}, None, "at least 1 character"),
        ("completions", {"n": 9}, "n", "less than or equal to 8"),
        ("completions", {"stream": True, "n": 2}, None, "stream must be false for several prompts"),
        ("completions", {"stream_options": {"include_usage": True}}, None, "must be left out unless stream is true"),
        ("completions", {"stream": True, "prompt": "long " * 999}, None, "must fit the context"),
        ("chat/completions", {"messages": []}, "messages", "at least 1 item"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            None,
            "valid string",
        ),
        ("chat/completions", {"tool_choice": "required"}, None, "must not be 'required' without tools"),
        (
            "chat/completions",
            {"tools": [STOCKS], "tool_choice": {"type": "function", "function": {"name": "other"}}},
            None,
            "tool_choice must name one of",
        ),
        (
            "chat/completions",
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}},
            None,
            "not",
        ),
        ("chat/completions", {"response_format": {"type": "json_object"}, "stop": "x"}, None, "stop must be left out"),
    ],
)
def test_what_is_not_supported_is_an_error_in_openais_shape(app, path, changes, param, rule):
    plain = {"prompt": "ab"} if path == "completions" else {"messages": [{"role": "user", "content": "Hi"}]}

    async def ask():
        async with http_client(app) as client:
            return await client.post(f"/v1/{path}", json={**OPTIONS, **plain, **changes})

    response = asyncio.run(ask())
    error = response.json()["error"]
    assert response.status_code == 400 and error["type"] == "invalid_request_error"
    assert rule in error["message"] and (param is None or error["param"] == param)
