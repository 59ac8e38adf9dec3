"""Tools as a ControlNet reads them: one line each, shorter than their JSON."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers.utils import get_json_schema


def describe_tools(tools: Sequence[Mapping[str, Any] | Callable]) -> str:
    """The hint of the ToolSchema-ControlNet: `name(argument: type, ...)`, and what it does where that is said.

    Args:
        tools: as for a chat template of transformers, as for `SchemaConstraint.from_tools`.

    Raises:
        ValueError: for no tools.

    Usage: `pipe(prompt, tools=tools, controlnet=controlnet, control_hint=describe_tools(tools))`
    """
    if not isinstance(tools, Sequence) or isinstance(tools, str) or not tools:
        raise ValueError(f"tools must be a list of at least one tool, got {tools!r}")
    return "\n".join(describe_tool(tool if isinstance(tool, Mapping) else get_json_schema(tool)) for tool in tools)


def describe_tool(definition: Mapping[str, Any]) -> str:
    """One line."""
    function = definition.get("function", definition)
    properties = function.get("parameters", {}).get("properties", {})
    arguments = ", ".join(f"{name}: {type_of(schema)}" for name, schema in properties.items())
    line = f"{function['name']}({arguments})"
    return f"{line} {function['description']}" if function.get("description") else line


def type_of(schema: Any) -> str:
    """The choices of an argument, else its type."""
    if not isinstance(schema, Mapping):
        return "any"
    if "enum" in schema:
        return "|".join(str(value) for value in schema["enum"])
    kind = schema.get("type", "any")
    return kind if isinstance(kind, str) else "|".join(kind)
