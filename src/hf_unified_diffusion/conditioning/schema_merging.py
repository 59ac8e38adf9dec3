"""Schemas that hold at once as one schema, and schemas that exclude each other."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

ANNOTATIONS = (
    "$schema", "$id", "$comment", "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly",
)  # fmt: skip
TIGHTEST = {
    "minimum": max,
    "exclusiveMinimum": max,
    "minLength": max,
    "minItems": max,
    "minProperties": max,
    "maximum": min,
    "exclusiveMaximum": min,
    "maxLength": min,
    "maxItems": min,
    "maxProperties": min,
}


class UnsatisfiableError(ValueError):
    """A schema that no value satisfies; an option of several, or an optional part, may be one."""


def merged(a: Any, b: Any, path: str) -> Any:
    """One schema that says what both say.

    Raises:
        UnsatisfiableError: where they contradict each other.
        ValueError: where one schema cannot say both, naming the keyword.

    Usage: `merged({"type": "integer"}, {"minimum": 1}, "#")`
    """
    if a is False or b is False:
        return False
    if not isinstance(a, Mapping) or not isinstance(b, Mapping):
        return b if a is True else a
    closed = [s.get("additionalProperties", True) is not True for s in (a, b)]
    names = [set(s.get("properties", {})) for s in (a, b)]
    if (closed[0] and names[1] - names[0]) or (closed[1] and names[0] - names[1]):
        raise ValueError(f"additionalProperties must be left out of schemas that are joined, got it at {path}")
    whole = dict(a)
    for keyword, value in b.items():
        whole[keyword] = _joined(keyword, whole[keyword], value, path) if keyword in whole else value
    return whole


def _joined(keyword: str, a: Any, b: Any, path: str) -> Any:
    if a == b or keyword in ANNOTATIONS:
        return b
    if keyword in TIGHTEST:
        return TIGHTEST[keyword](a, b)
    if keyword == "required":
        return [*a, *(name for name in b if name not in a)]
    if keyword == "properties":
        return {
            name: merged(a.get(name, True), b.get(name, True), path) for name in (*a, *(n for n in b if n not in a))
        }
    if keyword == "items":
        return merged(a, b, path)
    if keyword == "type":
        both = [kind for kind in _types(a) if kind in _types(b)]
        if not both:
            raise UnsatisfiableError(f"type must be the same in schemas that are joined, got {a!r} and {b!r} at {path}")
        return both
    if keyword == "enum":
        return [value for value in a if value in b]
    raise ValueError(f"{keyword} must be given once in schemas that are joined, got it twice at {path}")


def check_disjoint(branches: Sequence[Any], path: str) -> None:
    """Raise ValueError unless no value fits two branches of a oneOf, as far as their own keywords show."""
    for a, b in combinations(branches, 2):
        if not _disjoint(a, b):
            raise ValueError(
                f"oneOf must have options that differ in type, in const or enum, or in those of a required property "
                f"(else use anyOf), got two that do not at {path}"
            )


def _disjoint(a: Any, b: Any) -> bool:
    if not isinstance(a, Mapping) or not isinstance(b, Mapping):
        return a is False or b is False
    if "type" in a and "type" in b and not set(_types(a["type"])) & set(_types(b["type"])):
        return True
    listed = [s.get("enum", [s["const"]] if "const" in s else None) for s in (a, b)]
    if None not in listed:
        return not any(value == other for value in listed[0] for other in listed[1])
    shared = set(a.get("required", [])) & set(b.get("required", []))
    return _types(a.get("type")) == _types(b.get("type")) == ["object"] and any(
        _disjoint(a.get("properties", {}).get(name, True), b.get("properties", {}).get(name, True)) for name in shared
    )


def _types(kinds: Any) -> list[str]:
    """The types that a keyword names; every integer is a number."""
    kinds = [kinds] if isinstance(kinds, str) else list(kinds or ())
    return [*kinds, "integer"] if "number" in kinds and "integer" not in kinds else kinds
