"""A chat as a prompt, and as what the engine is asked for."""

import json
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast

from ..conditioning.tool_hints import describe_tools
from .bodies import ChatBody, JsonSchemaFormat, Message, NamedTool, Tool

SPEAKERS = {"system": "System", "developer": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}
NEXT_TURN = "\nUser:"


def chosen_tools(body: ChatBody) -> list[Tool]:
    """The tools of which one will be called.

    There is always a call where there are tools, unless `tool_choice` is "none": what is written is constrained, and
    nothing decides between a call and a text.

    Raises:
        ValueError: the choice names no tool, or there is none to choose from.
    """
    tools = body.tools or []
    if isinstance(body.tool_choice, NamedTool):
        name = body.tool_choice.function.name
        named = [tool for tool in tools if tool.function.name == name]
        if not named:
            raise ValueError(f"tool_choice must name one of {[tool.function.name for tool in tools]}, got {name!r}")
        return named
    if body.tool_choice == "required" and not tools:
        raise ValueError("tool_choice must not be 'required' without tools, got no tools")
    return [] if body.tool_choice == "none" else tools


def definitions(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Tools as the engine takes them."""
    return [tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in tools]


def constraint_of(body: ChatBody) -> dict[str, Any]:
    """What of the engine's options holds the answer to its form.

    Raises:
        ValueError: a form and tools at once.
    """
    tools, wanted = chosen_tools(body), body.response_format
    if wanted is None or wanted.type == "text":
        return {"tools": definitions(tools)} if tools else {}
    if tools:
        raise ValueError(f"response_format must be text where a tool is called, got {wanted.type!r}")
    return {"json_schema": wanted.json_schema.schema_ if isinstance(wanted, JsonSchemaFormat) else {"type": "object"}}


def prompt_of(body: ChatBody, tokenizer: PreTrainedTokenizerFast, names_tools: bool = True) -> str:
    """The chat in the tokenizer's own template; without one as a transcript, in the words of the trained tool calls.

    Args:
        names_tools: begin a transcript with its tools, which a ControlNet reads elsewhere.
    """
    tools = chosen_tools(body)
    if tokenizer.chat_template is not None:
        turns = [message.model_dump(exclude_none=True) for message in body.messages]
        options: dict[str, Any] = {"tools": definitions(tools)} if tools else {}
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **options)
    lines = [describe_tools(definitions(tools))] if tools and names_tools else []
    lines += [line_of(message) for message in body.messages]
    return "\n".join([*lines, "Call:\n" if tools else "Assistant:"])


def line_of(message: Message) -> str:
    """A turn in a transcript."""
    calls = [{"name": c.function.name, "arguments": json.loads(c.function.arguments)} for c in message.tool_calls or []]
    text = "\n".join([*([message.text] if message.text else []), *map(json.dumps, calls)])
    return f"{SPEAKERS[message.role]}: {text}"
