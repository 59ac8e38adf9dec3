"""JSON Schema as a tree of the JSON texts that it allows, written as `json.dumps` writes them."""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from .expressions import EMPTY, Choice, Expression, Listing, Literal, Repeat, Sequence
from .json_numbers import INTEGER, NUMBER, number_between
from .json_strings import STRING, bounds, json_text, string_expression
from .schema_merging import ANNOTATIONS, UnsatisfiableError, check_disjoint, merged

COMMA = ", "
FREE_DEPTH = 2  # how deep a value nests that the schema says nothing of
TYPES = ("string", "integer", "number", "boolean", "null", "array", "object")
KEYWORDS = {
    "string": ("minLength", "maxLength", "pattern", "format"),
    "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "object": ("properties", "required", "additionalProperties", "minProperties", "maxProperties"),
}
COMMON = ("type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref", "$defs", "definitions")
SUPPORTED = {*COMMON, *ANNOTATIONS, *(keyword for keywords in KEYWORDS.values() for keyword in keywords)}


def schema_expression(schema: Mapping[str, Any] | bool, max_depth: int, max_recursion: int) -> Expression:
    """The tree of the texts that a schema allows; see `SchemaConstraint.from_json_schema` for what it may say.

    Raises:
        ValueError: for a malformed, unsupported or unsatisfiable schema.

    Usage: `schema_expression({"type": "integer"}, max_depth=16, max_recursion=2)`
    """
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"a schema must follow JSON Schema 2020-12, got: {error.message}") from error
    return SchemaCompiler(schema, max_depth, max_recursion).value(schema, "#", 0, ())


class SchemaCompiler:
    """Walks a schema; `UnsatisfiableError` where no value is left, which an option or an optional part may survive."""

    def __init__(self, root: Mapping[str, Any] | bool, max_depth: int, max_recursion: int):
        self.root, self.max_depth, self.max_recursion = root, max_depth, max_recursion
        self.validator = Draft202012Validator(root)

    def value(self, schema: Any, path: str, depth: int, within: tuple[str, ...]) -> Expression:
        """Any value of a schema; `within` names the references that it is inside of."""
        if schema is False:
            raise UnsatisfiableError(f"a schema must allow at least one value, got false at {path}")
        if schema is True:
            schema = {}
        if depth > self.max_depth:
            raise ValueError(f"a schema must nest at most {self.max_depth} objects and arrays, got more at {path}")
        for keyword in schema:
            if keyword not in SUPPORTED:
                raise ValueError(f"a schema must use supported keywords only, got {keyword!r} at {path}")
        schema = {keyword: value for keyword, value in schema.items() if keyword not in ANNOTATIONS}
        if "$ref" in schema:
            schema, within = self._resolved(schema, path, within)
            return self.value(schema, path, depth, within)
        if "allOf" in schema:
            rest = {keyword: value for keyword, value in schema.items() if keyword != "allOf"}
            for part in schema["allOf"]:
                part, within = self._resolved(part, path, within)
                rest = merged(rest, part, path)
            return self.value(rest, path, depth, within)
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                return self._options(schema, keyword, path, depth, within)
        if "enum" in schema or "const" in schema:
            return self._listed(schema, path)
        return self._typed(schema, path, depth, within)

    def _resolved(self, schema: Any, path: str, within: tuple[str, ...]) -> tuple[Any, tuple[str, ...]]:
        """A schema without a reference at its top, and the references it is now inside of."""
        while isinstance(schema, Mapping) and "$ref" in schema:
            name = schema["$ref"]
            if within.count(name) > self.max_recursion:
                raise UnsatisfiableError(
                    f"a schema must end its recursion within {self.max_recursion} levels, got {name!r} at {path}"
                )
            within = (*within, name)
            rest = {keyword: value for keyword, value in schema.items() if keyword != "$ref"}
            schema = merged(self._lookup(name, path), rest, path)
        return schema, within

    def _lookup(self, name: str, path: str) -> Any:
        found: Any = self.root
        try:
            if not name.startswith("#"):
                raise KeyError(name)
            for part in name[1:].split("/")[1:]:
                part = part.replace("~1", "/").replace("~0", "~")
                found = found[int(part)] if isinstance(found, list) else found[part]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(f"$ref must point into the schema itself, got {name!r} at {path}") from error
        return found

    def _options(self, schema: dict, keyword: str, path: str, depth: int, within: tuple[str, ...]) -> Expression:
        """The options that have a value; the others are as if they were not there."""
        rest = {name: value for name, value in schema.items() if name != keyword}
        branches, options, refused = [], [], None
        for number, branch in enumerate(schema[keyword]):
            try:
                branch, inside = self._resolved(branch, path, within)
                branches.append(branch)
                options.append(self.value(merged(rest, branch, path), f"{path}/{keyword}/{number}", depth, inside))
            except UnsatisfiableError as error:
                refused = refused or error
        if keyword == "oneOf":
            check_disjoint([self._resolved(branch, path, ())[0] for branch in branches], path)
        if not options:
            raise refused or UnsatisfiableError(f"{keyword} must have at least one option, got none at {path}")
        return Choice(tuple(options))

    def _listed(self, schema: dict, path: str) -> Expression:
        """Given values, those that the rest of the schema allows."""
        values = schema.get("enum", [schema.get("const")])
        allowed = [value for value in values if self.validator.evolve(schema=schema).is_valid(value)]
        if not allowed:
            raise UnsatisfiableError(f"enum and const must agree with the rest of the schema, got {values} at {path}")
        return Choice(tuple(Literal(json_text(value)) for value in allowed))

    def _typed(self, schema: dict, path: str, depth: int, within: tuple[str, ...]) -> Expression:
        if not schema.keys() - {"$defs", "definitions"}:
            return free_value(FREE_DEPTH)
        types = schema.get("type", [kind for kind in TYPES if any(word in schema for word in KEYWORDS.get(kind, ()))])
        types = [types] if isinstance(types, str) else types
        options, refused = [], None
        for kind in types:
            try:
                options.append(self._of_type(kind, schema, path, depth, within))
            except UnsatisfiableError as error:
                refused = refused or error
        if not options:
            raise refused or UnsatisfiableError(f"type must name at least one type, got none at {path}")
        return Choice(tuple(options))

    def _of_type(self, kind: str, schema: dict, path: str, depth: int, within: tuple[str, ...]) -> Expression:
        match kind:
            case "null":
                return Literal("null")
            case "boolean":
                return Choice((Literal("true"), Literal("false")))
            case "string":
                return string_expression(schema, path)
            case "array":
                return self._array(schema, path, depth + 1, within)
            case "object":
                return self._object(schema, path, depth + 1, within)
        return number_expression(schema, path, whole=kind == "integer")

    def _array(self, schema: dict, path: str, depth: int, within: tuple[str, ...]) -> Expression:
        least, most = bounds(schema, "minItems", "maxItems", path)
        prefix = [
            self.value(part, f"{path}/prefixItems/{number}", depth, within)
            for number, part in enumerate(schema.get("prefixItems", [])[:most])
        ]
        try:
            item = (
                None if most == len(prefix) else self.value(schema.get("items", True), f"{path}/items", depth, within)
            )
        except UnsatisfiableError:
            if least > len(prefix):
                raise
            item = None
        return Sequence((Literal("["), array_items(prefix, item, least, most), Literal("]")))

    def _object(self, schema: dict, path: str, depth: int, within: tuple[str, ...]) -> Expression:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        others = schema.get("additionalProperties", True)
        names = [*properties, *(name for name in required if name not in properties)]
        check_count(schema, len(required), len(names), path)
        if not names:
            return self._map(others, schema.get("minProperties", 0), path, depth, within)
        items = []
        for name in names:
            try:
                value = self.value(properties.get(name, others), f"{path}/properties/{name}", depth, within)
            except UnsatisfiableError:
                if name in required:
                    raise
                continue
            items.append((Sequence((Literal(f"{json_text(name)}: "), value)), name in required))
        return Sequence((Literal("{"), Listing(tuple(items), COMMA), Literal("}")))

    def _map(self, values: Any, least: int, path: str, depth: int, within: tuple[str, ...]) -> Expression:
        """Any keys, and values of one schema."""
        try:
            value = self.value(values, f"{path}/additionalProperties", depth, within)
        except UnsatisfiableError:
            if least:
                raise
            return Literal("{}")
        entry = Sequence((STRING, Literal(": "), value))
        return Sequence((Literal("{"), Listing(((entry, least > 0),), COMMA, last_repeats=True), Literal("}")))


def array_items(prefix: list[Expression], item: Expression | None, least: int, most: int | None) -> Expression:
    """What stands between brackets: items with schemas of their own, then any number of `item`, as far as allowed."""
    if item is not None and not prefix and most is None and least <= 1:
        return Listing(((item, least == 1),), COMMA, last_repeats=True)
    if item is None:
        rest: Expression = EMPTY
    else:
        prefix = prefix or [item]
        room = None if most is None else most - len(prefix)
        rest = Repeat(Sequence((Literal(COMMA), item)), max(least - len(prefix), 0), room)
    for number, part in reversed(list(enumerate(prefix))):
        rest = Sequence((Literal(COMMA if number else ""), part, rest))
        if number >= least:
            rest = Repeat(rest, 0, 1)
    return rest


def free_value(depth: int) -> Expression:
    """Any JSON value that nests at most `depth` arrays and objects."""
    scalars = (STRING, NUMBER, Literal("true"), Literal("false"), Literal("null"))
    if depth == 0:
        return Choice(scalars)
    value = free_value(depth - 1)
    items = Sequence((Literal("["), array_items([], value, 0, None), Literal("]")))
    entry = Sequence((STRING, Literal(": "), value))
    entries = Sequence((Literal("{"), Listing(((entry, False),), COMMA, last_repeats=True), Literal("}")))
    return Choice((*scalars, items, entries))


def number_expression(schema: Mapping[str, Any], path: str, whole: bool) -> Expression:
    """A number between bounds."""
    low = strictest(schema, "minimum", "exclusiveMinimum", max)
    high = strictest(schema, "maximum", "exclusiveMaximum", min)
    if low is None and high is None:
        return INTEGER if whole else NUMBER
    low_value, low_excluded = (None, False) if low is None else low
    high_value, high_excluded = (None, False) if high is None else high
    numbers = number_between(low_value, high_value, low_excluded, high_excluded, whole)
    if numbers is None:
        raise UnsatisfiableError(f"minimum and maximum must leave a number between them, got {dict(schema)} at {path}")
    return numbers


def strictest(schema: Mapping[str, Any], inclusive: str, exclusive: str, choose: Any) -> tuple[Fraction, bool] | None:
    """The bound that counts, of two that may be given, and whether it is itself excluded."""
    given = [(Fraction(str(schema[word])), word == exclusive) for word in (inclusive, exclusive) if word in schema]
    if not given:
        return None
    value = choose(bound for bound, _ in given)
    return value, any(excluded for bound, excluded in given if bound == value)


def check_count(schema: Mapping[str, Any], required: int, possible: int, path: str) -> None:
    """Counting properties is not supported beyond what the other keywords promise anyway."""
    low, high = bounds(schema, "minProperties", "maxProperties", path)
    if high is not None and required > high:
        raise UnsatisfiableError(f"maxProperties must be at least the required ones, got {high} at {path}")
    if possible == 0:
        if low > 1 or high is not None:
            raise ValueError(f"minProperties above 1 and maxProperties must have properties named, got none at {path}")
    elif low > required or (high is not None and high < possible):
        word = "minProperties" if low > required else "maxProperties"
        raise ValueError(f"{word} must say no more than properties and required do, got {schema[word]} at {path}")
