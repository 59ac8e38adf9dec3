"""What a text must be: a JSON Schema, a call of one of some tools, or a regular expression."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from transformers.utils import get_json_schema

from .byte_automaton import byte_automaton
from .expressions import Expression
from .json_schema import schema_expression
from .text_patterns import full_match
from .token_automaton import TokenAutomaton, TokenVocabulary, token_automaton

MAX_STATES = 20_000


@dataclass(frozen=True)
class SchemaConstraint:
    """A text that is always one of a regular language; every generation under it parses and validates.

    Usage:
        constraint = SchemaConstraint.from_json_schema({
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}, "days": {"enum": [1, 3, 7]}},
            "required": ["city", "days"],
        })
        answer = pipe("The weather in Paris for a week as JSON: ", constraint=constraint, max_new_tokens=48)
        json.loads(answer.completions[0])  # {"city": ..., "days": 7}

    Attributes:
        kind: "json_schema" or "regex".
        source: the schema as JSON, or the pattern.
        max_states: how large its automaton may be.
        max_depth: how deep objects and arrays may nest.
        max_recursion: how often a `$ref` may be inside itself.
    """

    kind: str
    source: str
    max_states: int = MAX_STATES
    max_depth: int = 16
    max_recursion: int = 2

    def __post_init__(self) -> None:
        for name in ("max_states", "max_depth", "max_recursion"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        self.expression()

    @classmethod
    def from_json_schema(cls, schema: Mapping[str, Any] | bool | str, **limits: int) -> "SchemaConstraint":
        """JSON that a schema (2020-12) validates, on one line, written as `json.dumps` writes it.

        Supported: `type`, `enum`, `const`, `properties`, `required`, `additionalProperties`, `items`, `prefixItems`,
        `minItems`, `maxItems`, `minLength`, `maxLength`, `pattern`, `format` (some), the four bounds of numbers,
        `anyOf`, `oneOf` of options that exclude each other, `allOf`, `$ref` within the schema, and annotations. Other
        keywords are refused. Properties come in the schema's order, others only where none is named; numbers without
        bounds have at most 15 digits before and 6 after the point.

        Args:
            schema: as Python objects or as a JSON string.
            limits: `max_states`, `max_depth`, `max_recursion`.

        Raises:
            ValueError: for a schema that is malformed, unsupported, unsatisfiable or too large; it names the keyword.

        Usage: `SchemaConstraint.from_json_schema({"type": "integer", "minimum": 1, "maximum": 6})`
        """
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except json.JSONDecodeError as error:
                raise ValueError(f"a schema must be JSON, got {schema!r}: {error}") from error
        if not isinstance(schema, Mapping | bool):
            raise ValueError(f"a schema must be an object or a boolean, got {type(schema).__name__}")
        try:
            source = json.dumps(schema, ensure_ascii=False, allow_nan=False)
        except (TypeError, RecursionError) as error:
            raise ValueError(f"a schema must be plain JSON, got one that is not: {error}") from error
        return cls("json_schema", source, **limits)

    @classmethod
    def from_tools(cls, tools: Sequence[Mapping[str, Any] | Callable], **limits: int) -> "SchemaConstraint":
        """A call of one of some tools: `{"name": ..., "arguments": {...}}`.

        Args:
            tools: as for a chat template of transformers: `{"type": "function", "function": {"name": ...,
                "parameters": ...}}`, the inner part alone, or functions with type hints and a docstring.
            limits: as for `from_json_schema`.

        Raises:
            ValueError: for no tools, a tool without a name, or parameters that `from_json_schema` refuses.

        Usage: `SchemaConstraint.from_tools([get_weather])`
        """
        if not isinstance(tools, Sequence) or isinstance(tools, str) or not tools:
            raise ValueError(f"tools must be a list of at least one tool, got {tools!r}")
        calls = [call_schema(tool, f"#/anyOf/{number}/properties/arguments") for number, tool in enumerate(tools)]
        return cls.from_json_schema({"anyOf": calls}, **limits)

    @classmethod
    def from_regex(cls, pattern: str, max_states: int = MAX_STATES) -> "SchemaConstraint":
        """A text that matches a regular expression (of Python's `re`) as a whole.

        `\\d`, `\\s` and `\\w` stand for ASCII characters.

        Raises:
            ValueError: for a pattern that is malformed, matches nothing, looks around or refers back, or is too large.

        Usage: `SchemaConstraint.from_regex(r"(yes|no)( because [a-z ]{1,40})?")`
        """
        if not isinstance(pattern, str):
            raise ValueError(f"a pattern must be a string, got {type(pattern).__name__}")
        return cls("regex", pattern, max_states)

    def expression(self) -> Expression:
        """The tree of the texts that are allowed."""
        try:
            if self.kind == "regex":
                return full_match(self.source)
            return schema_expression(json.loads(self.source), self.max_depth, self.max_recursion)
        except RecursionError as error:
            raise ValueError("a constraint must nest less deeply, got one that Python cannot walk through") from error

    def automaton(self, vocabulary: TokenVocabulary) -> TokenAutomaton:
        """Its automaton over tokens; the last ones are kept.

        Raises:
            ValueError: where it would be too large, or accepts nothing.

        Usage: `automaton = constraint.automaton(TokenVocabulary(pieces, (0,), 0))`
        """
        return built_automaton(self, vocabulary)


@lru_cache(maxsize=64)
def built_automaton(constraint: SchemaConstraint, vocabulary: TokenVocabulary) -> TokenAutomaton:
    """Build the automaton of a constraint over the tokens of a vocabulary, or find it."""
    try:
        return token_automaton(byte_automaton(constraint.expression(), constraint.max_states), vocabulary)
    except RecursionError as error:
        raise ValueError("a constraint must nest less deeply, got one that Python cannot walk through") from error


def call_schema(tool: Mapping[str, Any] | Callable, place: str) -> dict[str, Any]:
    """The schema of a call of a tool; `place` is where its parameters will stand."""
    definition = tool if isinstance(tool, Mapping) else get_json_schema(tool)
    function = definition.get("function", definition)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError(f"a tool must have a name, got {definition!r}")
    parameters = function.get("parameters", {"type": "object", "properties": {}, "additionalProperties": False})
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": moved(parameters, place)},
        "required": ["name", "arguments"],
    }


def moved(schema: Any, place: str) -> Any:
    """A schema whose references hold when it stands inside another one."""
    if isinstance(schema, Mapping):
        return {
            key: place + value[1:]
            if key == "$ref" and isinstance(value, str) and value[:1] == "#"
            else moved(value, place)
            for key, value in schema.items()
        }
    return [moved(part, place) for part in schema] if isinstance(schema, list) else schema
