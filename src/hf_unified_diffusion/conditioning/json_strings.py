"""JSON strings as trees: of some length, with a pattern, of a known format."""

import json
import re
from collections.abc import Mapping
from typing import Any

from .expressions import Both, Chars, Choice, Expression, Literal, Repeat, Sequence
from .schema_merging import UnsatisfiableError
from .text_patterns import ANYTHING, Ranges, full_match, intersection, search_match

PLAIN: Ranges = ((0x20, 0x21), (0x23, 0x5B), (0x5D, 0x10FFFF))  # characters that a JSON string holds as they are
ESCAPES = {8: "\\b", 9: "\\t", 10: "\\n", 12: "\\f", 13: "\\r", 34: '\\"', 92: "\\\\"}

DAY = "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\\d|30)|02-(?:0[1-9]|1\\d|2[0-8]))"
TIME = "(?:[01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(?:\\.\\d{1,6})?(?:Z|[+-](?:0\\d|1[0-4]):[0-5]\\d)"
YEAR = "(?:19|20)\\d\\d"
BYTE = "(?:25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)"
FORMATS = {
    "date": f"{YEAR}-{DAY}",
    "time": TIME,
    "date-time": f"{YEAR}-{DAY}T{TIME}",
    "email": "[a-z0-9_-]+(?:\\.[a-z0-9_-]+)*@[a-z0-9]+(?:[.-][a-z0-9]+)*\\.[a-z]{2,6}",
    "ipv4": f"{BYTE}(?:\\.{BYTE}){{3}}",
    "uri": "https?://[a-z0-9]+(?:[.-][a-z0-9]+)*(?:/[A-Za-z0-9_.~-]*)*(?:\\?[A-Za-z0-9_.~=&-]*)?",
    "uuid": "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
}


def json_characters(ranges: Ranges) -> Expression:
    """One character inside a JSON string, as itself or by its short escape; other control characters are left out."""
    options: list[Expression] = [Chars(intersection(ranges, PLAIN))]
    options += [Literal(text) for point, text in ESCAPES.items() if any(low <= point <= high for low, high in ranges)]
    return Choice(tuple(options))


def quoted(text: Expression) -> Expression:
    """A JSON string."""
    return Sequence((Literal('"'), text, Literal('"')))


CHARACTER = json_characters(ANYTHING)
STRING = quoted(Repeat(CHARACTER, 0, None))


def string_expression(schema: Mapping[str, Any], path: str) -> Expression:
    """A JSON string between two lengths, in characters, that contains a pattern, or of a known format."""
    least, most = bounds(schema, "minLength", "maxLength", path)
    parts = []
    if "format" in schema:
        name = schema["format"]
        if name not in FORMATS:
            raise ValueError(f"format must be one of {sorted(FORMATS)}, got {name!r} at {path}")
        parts.append(full_match(FORMATS[name], json_characters))
    if "pattern" in schema:
        parts.append(search_match(schema["pattern"], json_characters))
    if (least, most) != (0, None) or not parts:
        parts.append(Repeat(CHARACTER, least, most))
    whole = parts[0]
    for part in parts[1:]:
        whole = Both(whole, part)
    return quoted(whole)


def bounds(schema: Mapping[str, Any], least: str, most: str, path: str) -> tuple[int, int | None]:
    """The two bounds of a count."""
    low, high = int(schema.get(least, 0)), schema.get(most)
    if high is not None and low > high:
        raise UnsatisfiableError(f"{least} must be at most {most}, got {low} and {high} at {path}")
    return low, None if high is None else int(high)


def json_text(value: Any) -> str:
    """A value as JSON, characters beyond ASCII as they are."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if re.search("[\ud800-\udfff]", text):
        raise ValueError(f"a text must be free of lone surrogates, got {value!r}")
    return text
