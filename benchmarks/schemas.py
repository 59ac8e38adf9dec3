"""A hundred JSON Schemas by kind, for `schema.py`: what the suite of JSON Schema tests, tools, deep, wide, unicode."""

from typing import Any

Schema = dict[str, Any]
STRING, INTEGER = {"type": "string"}, {"type": "integer"}
CITIES = ["Paris", "東京", "São Paulo", "Zürich", "Київ", "القاهرة", "Reykjavík", "서울"]


def named(properties: Schema, *required: str) -> Schema:
    """An object."""
    return {"type": "object", "properties": properties, "required": list(required)}


def tool(tool_name: str, required: int, **parameters: Schema) -> Schema:
    """A call of a tool whose first parameters are required."""
    arguments = named(parameters, *list(parameters)[:required])
    return named({"name": {"const": tool_name}, "arguments": arguments}, "name", "arguments")


def scalars() -> list[Schema]:
    """Types, bounds, lengths, patterns, formats."""
    numbers = [
        {"minimum": 0},
        {"maximum": -1},
        {"minimum": 1, "maximum": 6},
        {"exclusiveMinimum": -3, "exclusiveMaximum": 12},
        {"minimum": 1900, "maximum": 2100},
    ]
    strings: list[Schema] = [{}, {"minLength": 1}, {"maxLength": 8}, {"minLength": 3, "maxLength": 40}]
    strings += [
        {"pattern": p}
        for p in ("^[A-Z]{2}-\\d{4}$", "^(yes|no)$", "[0-9]", "^[a-z]+(_[a-z]+)*$", "^\\S+$", "^.{2,5}$", "colou?r")
    ]
    strings += [{"format": f} for f in ("date", "date-time", "time", "email", "uuid", "ipv4", "uri")]
    strings += [{"pattern": "^[ab]+$", "maxLength": 6}]
    return [
        *({"type": kind} for kind in ("integer", "number", "boolean", "null")),
        *({"type": kind, **bound} for kind in ("integer", "number") for bound in numbers),
        *({"type": "string", **bound} for bound in strings),
    ]


def listed() -> list[Schema]:
    """Enumerations and constants, small, large, and beyond ASCII."""
    return [
        {"enum": ["red", "green", "blue"]},
        {"enum": [1, 2.5, None, True, "x", [1, 2], {"a": "b"}]},
        {"enum": CITIES},
        {"enum": [f"item-{number:04d}" for number in range(1000)]},
        {"enum": [f"{city} №{number}" for city in CITIES for number in range(40)]},
        {"const": "only this"},
        {"const": {"nested": [1, {"deep": 'quo"te\\'}], "emoji": "🙂"}},
        {"type": "integer", "enum": [1, "no", 30]},
    ]


def arrays() -> list[Schema]:
    """Bounds, tuples, nesting."""
    return [
        {"type": "array"},
        {"type": "array", "items": INTEGER},
        {"type": "array", "items": STRING, "minItems": 1, "maxItems": 3},
        {"type": "array", "items": {"type": "boolean"}, "minItems": 4, "maxItems": 4},
        {"type": "array", "items": {"enum": CITIES}, "minItems": 2},
        {"type": "array", "items": {"type": "array", "items": INTEGER, "maxItems": 3}, "maxItems": 3},
        {"type": "array", "prefixItems": [STRING, INTEGER], "items": {"type": "boolean"}},
        {"type": "array", "prefixItems": [STRING, INTEGER], "items": False, "minItems": 2},
        {"type": "array", "items": named({"x": {"type": "number"}, "y": {"type": "number"}}, "x", "y"), "maxItems": 4},
        {"type": "array", "maxItems": 0},
        {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "minItems": 9, "maxItems": 9},
    ]


def objects() -> list[Schema]:
    """Required, optional and free properties."""
    person = {
        "name": STRING,
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": STRING},
    }
    return [
        {"type": "object"},
        {"type": "object", "additionalProperties": INTEGER},
        {"type": "object", "properties": {}, "additionalProperties": False},
        named(person),
        named(person, "name"),
        named(person, "name", "age", "tags"),
        named({"a": INTEGER, "b": INTEGER, "c": INTEGER}, "b"),
        named({"größe": {"type": "number"}, "名前": STRING}, "größe", "名前"),
        named({'quo"ted': {"type": "boolean"}}, 'quo"ted'),
        named({"known": STRING}, "known", "not described"),
        {**named(person, "age"), "additionalProperties": False},
        named({"home": named({"street": STRING, "zip": {"type": "string", "pattern": "^\\d{5}$"}}, "zip")}, "home"),
    ]


def combined() -> list[Schema]:
    """anyOf, oneOf, allOf, several types, references, recursion."""
    node = {"type": "object", "properties": {"value": INTEGER, "next": {"$ref": "#/$defs/node"}}, "required": ["value"]}
    tree = named({"label": STRING, "children": {"type": "array", "items": {"$ref": "#"}, "maxItems": 2}}, "label")
    shapes = [named({"kind": {"const": kind}, "size": INTEGER}, "kind", "size") for kind in ("circle", "square")]
    return [
        {},
        {"type": ["integer", "null"]},
        {"anyOf": [STRING, INTEGER]},
        {"anyOf": [named({"a": INTEGER}, "a"), named({"b": STRING}, "b"), {"type": "null"}]},
        {"oneOf": shapes},
        {"oneOf": [STRING, {"type": "array", "items": STRING}]},
        {"allOf": [{"type": "integer"}, {"minimum": 3}, {"maximum": 9}]},
        {"allOf": [named({"a": INTEGER}, "a"), named({"b": STRING}, "b")]},
        {"$ref": "#/$defs/node", "$defs": {"node": node}},
        tree,
        named({"x": {"$ref": "#/$defs/p"}, "y": {"$ref": "#/$defs/p"}}, "x", "y")
        | {"$defs": {"p": {"type": "number"}}},
        {"type": "object", "properties": {"id": {"$ref": "#/$defs/a~1b"}}, "$defs": {"a/b": {"enum": [1, 2]}}},
    ]


def tools() -> list[Schema]:
    """Calls of tools, as assistants offer them."""
    unit = {"type": "string", "enum": ["celsius", "fahrenheit"]}
    date, email = {"type": "string", "format": "date"}, {"type": "string", "format": "email"}
    limit = {"type": "integer", "minimum": 1, "maximum": 100}
    text = {"type": "string", "minLength": 1}
    weather = tool("get_weather", 1, city=text, unit=unit)
    calls = [
        weather,
        tool("send_email", 3, to=email, subject=text, body=text, cc={"type": "array", "items": email}),
        tool("search_web", 1, query=text, limit=limit),
        tool(
            "book_flight",
            3,
            origin={"type": "string", "pattern": "^[A-Z]{3}$"},
            target={"type": "string", "pattern": "^[A-Z]{3}$"},
            date=date,
            seats={"type": "integer", "minimum": 1, "maximum": 9},
        ),
        tool(
            "set_alarm",
            1,
            time={"type": "string", "pattern": "^([01]\\d|2[0-3]):[0-5]\\d$"},
            days={"type": "array", "items": {"enum": ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]}, "maxItems": 7},
        ),
        tool("run_sql", 1, query=text, read_only={"type": "boolean"}),
        tool(
            "convert_currency",
            3,
            amount={"type": "number", "exclusiveMinimum": 0},
            source={"enum": ["EUR", "USD", "JPY"]},
            target={"enum": ["EUR", "USD", "JPY"]},
        ),
        tool(
            "create_issue",
            2,
            title={"type": "string", "minLength": 1, "maxLength": 80},
            labels={"type": "array", "items": {"enum": ["bug", "docs", "feature"]}},
            assignee={"type": ["string", "null"]},
        ),
        tool(
            "move_robot",
            3,
            x={"type": "number", "minimum": -1, "maximum": 1},
            y={"type": "number", "minimum": -1, "maximum": 1},
            grip={"type": "boolean"},
        ),
        tool("translate", 2, text=text, language={"enum": ["de", "en", "fr", "ja", "uk"]}),
    ]
    return [*calls, {"anyOf": calls[:3]}, {"anyOf": calls}]


def nested(depth: int) -> Schema:
    """Objects inside objects."""
    return named({"level": {"const": depth}, "inner": nested(depth - 1) if depth else INTEGER}, "level", "inner")


def deep_and_wide() -> list[Schema]:
    """Many levels, many properties."""
    wide = [
        named({f"field_{i}": (STRING, INTEGER, {"type": "boolean"})[i % 3] for i in range(n)}, "field_0")
        for n in (10, 20, 40)
    ]
    full = [named({f"f{i}": INTEGER for i in range(n)}, *(f"f{i}" for i in range(n))) for n in (8, 16)]
    lists: Schema = INTEGER
    for _ in range(5):
        lists = {"type": "array", "items": lists}
    return [*(nested(depth) for depth in (1, 2, 4, 6, 8)), *wide, *full, lists, {"type": "string", "maxLength": 200}]


def all_schemas() -> dict[str, list[Schema]]:
    """kind -> schemas, a hundred in all."""
    return {
        "scalars": scalars(),
        "enum and const": listed(),
        "arrays": arrays(),
        "objects": objects(),
        "combined": combined(),
        "tools": tools(),
        "deep and wide": deep_and_wide(),
    }


if __name__ == "__main__":
    print({kind: len(schemas) for kind, schemas in all_schemas().items()})
