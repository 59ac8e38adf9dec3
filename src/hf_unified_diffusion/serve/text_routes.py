"""/v1/completions and /v1/chat/completions."""

import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any
from uuid import uuid4

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response

from ..pipelines.named_controlnets import TOOLS
from .asking import asks_for, check_model, made_for, services, text_options, while_connected
from .bodies import ChatBody, CompletionBody, StreamOptions, TextBody
from .chat import NEXT_TURN, constraint_of, prompt_of
from .errors import ClientGoneError
from .generation import Ask, Generation, Made
from .streaming import Channel, EventStream, TextStreamer, events

router = APIRouter()
Json = dict[str, Any]


class Face:
    """How completions look; `Chat` looks another way."""

    prefix, whole, part = "cmpl", "text_completion", "text_completion"

    def __init__(self, model: str):
        self.common = {"id": f"{self.prefix}-{uuid4().hex}", "created": int(time.time()), "model": model}

    def choice(self, index: int, made: Made) -> Json:
        """A whole answer."""
        return {"index": index, "text": made.output, "finish_reason": self.reason(made), "logprobs": None}

    def opening(self) -> list[Json]:
        """The chunks before the first text."""
        return []

    def delta(self, text: str) -> Json:
        """The part of a chunk's choice that carries text."""
        return {"text": text}

    def ending(self, made: Made, rest: str) -> tuple[Json, str]:
        """The last part with content, and the reason of the end."""
        return self.delta(rest), self.reason(made)

    def reason(self, made: Made) -> str:
        """Why a text ended."""
        return "stop" if made.finished else "length"

    def answer(self, choices: list[Json], usage: Json) -> Json:
        """A whole answer."""
        return {**self.common, "object": self.whole, "choices": choices, "usage": usage}

    def chunk(self, part: Json, reason: str | None = None, **more: Any) -> Json:
        """A part of an answer."""
        choice = {"index": 0, **part, "finish_reason": reason, "logprobs": None, **more}
        return {**self.common, "object": self.part, "choices": [choice]}


class Chat(Face):
    """How chats look; with tools the text is a call."""

    prefix, whole, part = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, model: str, is_call: bool):
        super().__init__(model)
        self.is_call = is_call

    def choice(self, index: int, made: Made) -> Json:
        message = {"role": "assistant", **self.content(made.output), "refusal": None}
        return {"index": index, "message": message, "finish_reason": self.reason(made), "logprobs": None}

    def content(self, text: str) -> Json:
        """A message's content, or its calls."""
        if not self.is_call:
            return {"content": text}
        call = json.loads(text)
        function = {"name": call["name"], "arguments": json.dumps(call["arguments"], ensure_ascii=False)}
        return {
            "content": None,
            "tool_calls": [{"id": f"call_{uuid4().hex}", "type": "function", "function": function}],
        }

    def opening(self) -> list[Json]:
        return [self.chunk({"delta": {"role": "assistant", "content": None if self.is_call else ""}})]

    def delta(self, text: str) -> Json:
        return {"delta": {"content": text} if text else {}}

    def ending(self, made: Made, rest: str) -> tuple[Json, str]:
        if not self.is_call:
            return super().ending(made, rest)
        calls = [{"index": 0, **call} for call in self.content(made.output)["tool_calls"]]
        return {"delta": {"tool_calls": calls}}, self.reason(made)

    def reason(self, made: Made) -> str:
        return "tool_calls" if self.is_call else super().reason(made)


def usage_of(generation: Generation, prompts: list[str], made: list[Made]) -> Json:
    """Tokens read and written."""
    read = sum(map(len, generation.codec.encode(prompts)))
    written = sum(row.num_tokens for row in made)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


async def answered(http: HttpRequest, body: TextBody, asks: list[Ask], prompts: list[str], face: Face) -> Response:
    """The answer as a whole, or as events."""
    if body.stream:
        return await streamed(http, body, asks, face)
    if body.stream_options is not None:
        raise ValueError("stream_options must be left out unless stream is true, got stream=False")
    made = await made_for(http, asks, body.timeout_s)
    choices = [face.choice(index, row) for index, row in enumerate(made)]
    return JSONResponse(face.answer(choices, usage_of(services(http)[0], prompts, made)))


async def streamed(http: HttpRequest, body: TextBody, asks: list[Ask], face: Face) -> Response:
    """Events; what goes wrong before the first one still has a status of its own."""
    if len(asks) > 1:
        raise ValueError(f"stream must be false for several prompts or choices, got {len(asks)} of them")
    chunks = streamed_chunks(http, asks[0], body, face)
    try:
        first = await while_connected(http, anext(chunks))
    except ClientGoneError:
        services(http)[0].metrics.cancelled.inc()
        raise

    async def all_chunks() -> AsyncGenerator[Json]:
        async with aclosing(chunks):
            yield first
            async for chunk in chunks:
                yield chunk

    return EventStream(events(all_chunks()))


async def streamed_chunks(http: HttpRequest, ask: Ask, body: TextBody, face: Face) -> AsyncGenerator[Json]:
    """The chunks of an answer; closed early, it cancels what runs."""
    generation, settings = services(http)
    options = body.stream_options or StreamOptions()
    channel, told = Channel(), 0
    streamer = streamer_of(generation, ask, options.include_drafts, channel)
    timeout_s = settings.timeout_s if body.timeout_s is None else body.timeout_s
    request = generation.submit_streamed(ask, streamer, timeout_s)
    request.add_done_callback(lambda _: channel.tell(None))
    try:
        opening = face.opening()
        async for seen in channel:
            while opening:
                yield opening.pop(0)
            if seen.draft is None:
                told += len(seen.text)
                yield face.chunk(face.delta(seen.text))
            else:
                yield face.chunk(face.delta(""), draft=seen.draft)
        made = await request
        for chunk in opening:
            yield chunk
        last, reason = face.ending(made, made.output[told:])
        yield face.chunk(last)
        yield face.chunk(face.delta(""), reason)
        if options.include_usage:
            usage = usage_of(generation, [ask.prompt], [made])
            yield {**face.common, "object": face.part, "choices": [], "usage": usage}
    finally:
        if not request.done():
            request.cancel()
            generation.metrics.cancelled.inc()


def streamer_of(generation: Generation, ask: Ask, with_drafts: bool, channel: Channel) -> TextStreamer:
    """What turns an ask's tokens into text."""
    is_free = not ask.options.keys() & {"json_schema", "tools"}
    opening = generation.codec.heal(ask.prompt)[1] if is_free else ""
    # code is cut at whole statements at its end, a gap is followed by its suffix, and a call is told as a whole
    is_final = ask.modality == "text" and not ask.options.keys() & {"suffix", "tools"}
    mask_token_id, stop = generation.engine.model.config.mask_token_id, list(ask.options.get("stop", []))
    return TextStreamer(generation.codec, opening, stop, is_final, with_drafts, mask_token_id, channel.tell)


@router.post("/v1/completions")
async def completions(body: CompletionBody, http: HttpRequest) -> Response:
    """Text or code after a prompt, or between it and a suffix."""
    check_model(http, body.model)
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    options = text_options(body, body.max_tokens, suffix=body.suffix, stop=body.stop_strings)
    asks = asks_for(prompts, body, body.modality, options)
    return await answered(http, body, asks, prompts, Face(body.model))


@router.post("/v1/chat/completions")
async def chat_completions(body: ChatBody, http: HttpRequest) -> Response:
    """The next turn of a chat: text, JSON that follows a schema, or a call of a tool."""
    check_model(http, body.model)
    engine = services(http)[0].engine
    tokenizer, constraint = engine.tokenizer, constraint_of(body)
    is_controlled = "tools" in constraint and tokenizer.chat_template is None and TOOLS in engine.controlnets.names
    prompt, stop = prompt_of(body, tokenizer, names_tools=not is_controlled), body.stop_strings
    if constraint and stop:
        raise ValueError(f"stop must be left out with a schema or a tool, which say where a text ends, got {stop}")
    if not constraint and tokenizer.chat_template is None:
        stop = [*stop, NEXT_TURN]
    options = text_options(body, body.max_completion_tokens or body.max_tokens, stop=stop, **constraint)
    if is_controlled:
        options["controlnet"] = TOOLS
    return await answered(
        http, body, asks_for([prompt], body, "text", options), [prompt], Chat(body.model, "tools" in constraint)
    )
