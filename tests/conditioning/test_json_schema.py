"""Whatever an automaton of a schema accepts validates; what it cannot promise is refused, naming the keyword."""

import json
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from hf_unified_diffusion.conditioning.byte_automaton import byte_automaton
from hf_unified_diffusion.conditioning.json_numbers import DECIMALS, number_between
from hf_unified_diffusion.conditioning.json_schema import schema_expression
from hf_unified_diffusion.conditioning.schema_constraint import SchemaConstraint
from tests.conditioning.random_schemas import SCHEMAS, random_text, shown


def automaton_of(schema):
    return byte_automaton(schema_expression(schema, 16, 2), 20_000)


@settings(max_examples=60, deadline=None)
@given(SCHEMAS, st.integers(0, 99))
def test_every_accepted_text_validates(schema, seed):
    text = random_text(automaton_of(schema), seed)
    assert Draft202012Validator(schema).is_valid(json.loads(text)), (shown(schema), text)


@settings(max_examples=100, deadline=None)
@given(
    low=st.decimals(-300, 300, places=2),
    size=st.decimals(0, 300, places=2),
    excluded=st.tuples(st.booleans(), st.booleans()),
    value=st.decimals(-400, 400, places=3),
    whole=st.booleans(),
)
def test_bounds_of_numbers_are_exact(low, size, excluded, value, whole):
    high = low + size
    value = value if abs(value - low) > 1 and abs(value - high) > 1 else low  # hit the bounds themselves often
    expression = number_between(Fraction(str(low)), Fraction(str(high)), *excluded, whole)
    is_inside = (low < value if excluded[0] else low <= value) and (value < high if excluded[1] else value <= high)
    fits = is_inside and (not whole or value == int(value))
    if expression is None:
        assert not fits or not whole
        return
    text = f"{value:f}" if value else "0"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    assert byte_automaton(expression, 5000).accepts(text) == fits


def test_an_excluded_bound_that_floats_reach_by_rounding_is_not_written():
    automaton = automaton_of({"type": "number", "exclusiveMinimum": 0.1})
    assert not automaton.accepts("0.1000000000000000000001") and automaton.accepts("0." + "1" * DECIMALS)


@pytest.mark.parametrize(
    ("schema", "allowed", "refused"),
    [
        ({"enum": ["é", 1, None]}, ['"é"', "1", "null"], ["é", '"1"', '"\\u00e9"']),
        ({"type": "string"}, ['"a\\n\\"🙂"', '""'], ['"a\n"', '"\\x"', '"']),
        ({"type": "string", "pattern": "^a.*$"}, ['"a"', '"a\\"b"'], ['"b"', '"a"b"']),
        ({"type": "array", "items": {"type": "null"}, "maxItems": 1}, ["[]", "[null]"], ["[null, null]", "[", "[,]"]),
        (
            {"type": "object", "properties": {"a": {"const": 1}, "b": {"const": 2}}},
            ['{"a": 1, "b": 2}', '{"b": 2}', "{}"],
            ['{"b": 2, "a": 1}', "{, }"],
        ),
        ({"allOf": [{"type": "integer"}, {"minimum": 3}, {"maximum": 4}]}, ["3", "4"], ["2", "5"]),
        ({"type": "integer", "enum": [1, "x"]}, ["1"], ['"x"']),
        ({"oneOf": [{"type": "string"}, {"type": "null"}]}, ["null"], ["1"]),
        (
            {"type": "object", "properties": {"next": {"$ref": "#"}}, "additionalProperties": False},
            ['{"next": {"next": {}}}'],
            ['{"next": 1}'],
        ),
    ],
)
def test_examples(schema, allowed, refused):
    automaton = automaton_of(schema)
    assert all(automaton.accepts(text) for text in allowed)
    assert not any(automaton.accepts(text) for text in refused)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "integer", "multipleOf": 3}, "'multipleOf' at #"),
        ({"type": "array", "items": {"uniqueItems": True}}, "'uniqueItems' at #/items"),
        ({"not": {"type": "null"}}, "'not' at #"),
        ({"type": "string", "format": "color"}, "format must be one of"),
        ({"type": "strin"}, "must follow JSON Schema 2020-12"),
        ({"type": "string", "pattern": "(?=a)"}, "a pattern must be free of lookaround"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "minimum and maximum must leave a number"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "minLength must be at most maxLength, got 3 and 2"),
        ({"type": "array", "minItems": 3, "maxItems": 2}, "minItems must be at most maxItems"),
        ({"allOf": [{"type": "string"}, {"type": "null"}]}, "type must be the same in schemas that are joined"),
        ({"type": "integer", "const": "x"}, "enum and const must agree with the rest"),
        ({"type": "object", "required": ["a"], "additionalProperties": False}, "allow at least one value, got false"),
        ({"properties": {"n": {"$ref": "#"}}, "required": ["n"]}, "end its recursion within 2 levels, got '#'"),
        ({"$ref": "#"}, "end its recursion within 2 levels"),
        ({"$ref": "#/$defs/none"}, "\\$ref must point into the schema itself"),
        ({"$ref": "https://example.com/schema"}, "\\$ref must point into the schema itself"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf must have options that differ"),
        ({"type": "object", "minProperties": 2}, "minProperties above 1"),
        ({"type": "object", "properties": {"a": {}}, "minProperties": 1}, "minProperties must say no more"),
        ({"type": "string", "pattern": "^a$", "minLength": 2}, "must accept at least one text"),
        ({"type": "array", "items": {}, "maxItems": 100_000}, "at most 20000 states"),
        (False, "allow at least one value"),
        ("{", "a schema must be JSON"),
        (3, "a schema must be an object or a boolean, got int"),
        ({"const": float("nan")}, "Out of range float values"),
    ],
)
def test_bad_schemas(schema, message):
    with pytest.raises(ValueError, match=message):
        byte_automaton(SchemaConstraint.from_json_schema(schema).expression(), 20_000)


def test_depth_is_bounded():
    schema = {"type": "null"}
    for _ in range(17):
        schema = {"type": "array", "items": schema}
    with pytest.raises(ValueError, match="nest at most 16 objects and arrays"):
        SchemaConstraint.from_json_schema(schema)
    assert SchemaConstraint.from_json_schema(schema, max_depth=17)


@pytest.mark.parametrize("limits", [{"max_states": 0}, {"max_depth": "3"}, {"max_recursion": True}])
def test_bad_limits(limits):
    with pytest.raises(ValueError, match="must be an integer of at least 1, got"):
        SchemaConstraint.from_json_schema({"type": "null"}, **limits)


def add(a: int, b: int = 0) -> int:
    """Sum of two numbers.

    Args:
        a: the first.
        b: the second.
    """
    return a + b


def test_tools():
    point = {
        "type": "object",
        "properties": {"p": {"$ref": "#/$defs/n"}},
        "required": ["p"],
        "$defs": {"n": {"enum": [7]}},
    }
    tools = [add, {"type": "function", "function": {"name": "at", "parameters": point}}, {"name": "stop"}]
    automaton = byte_automaton(SchemaConstraint.from_tools(tools).expression(), 1000)
    calls = [("add", {"a": 1}), ("add", {"a": 1, "b": -20}), ("at", {"p": 7}), ("stop", {})]
    assert all(automaton.accepts(json.dumps({"name": name, "arguments": values})) for name, values in calls)
    wrong = [("add", {}), ("add", {"a": "1"}), ("at", {"p": 8}), ("sub", {})]
    assert not any(automaton.accepts(json.dumps({"name": name, "arguments": values})) for name, values in wrong)


@pytest.mark.parametrize("tools", [[], "add", [{"parameters": {}}], [{"function": 3}]])
def test_bad_tools(tools):
    with pytest.raises(ValueError, match=r"tools? must"):
        SchemaConstraint.from_tools(tools)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)


@settings(max_examples=30, deadline=None)
@given(JSON)
def test_a_constant_is_itself(value):
    text = json.dumps(value, ensure_ascii=False)
    assume(not any(ord(c) in range(0xD800, 0xE000) for c in text))
    assert automaton_of({"const": value}).accepts(text)
