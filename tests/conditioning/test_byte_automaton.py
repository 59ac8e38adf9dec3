"""The automata accept what Python's re matches, and are built within their bounds."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_unified_diffusion.conditioning.byte_automaton import byte_automaton
from hf_unified_diffusion.conditioning.expressions import LARGEST_CHARACTER, Both, Chars, Listing, Literal
from hf_unified_diffusion.conditioning.text_patterns import full_match, search_match

PATTERNS = [
    "a*b|c",
    "(ab){2,3}",
    "[^a]+",
    "a.b",
    "\\d{2}-\\w+",
    "[a-c\\s]*",
    "é|日本|🙂",
    "(?:a|b)*a(?:a|b){2}",
    "a?b+?c*",
    "^ab$",
    "[^\\W_]",
    "\\S\\D",
    "(a|)b",
    "x{0}",
    "\\.\\*",
    "[à-ÿ]{2}",
]
AUTOMATA = {pattern: byte_automaton(full_match(pattern), 500) for pattern in PATTERNS}
texts = st.one_of(st.text("abcxé日本🙂 -_1.*", max_size=7), st.text(max_size=4))


@settings(deadline=None)
@given(st.sampled_from(PATTERNS), st.data())
def test_accepts_what_re_matches(pattern, data):
    text = data.draw(st.one_of(texts, st.from_regex(pattern, fullmatch=True)))
    flags = re.ASCII if text.isascii() else 0  # beyond ASCII what is a letter is left open
    if flags or not re.search(r"\\[wdsWDS]", pattern):
        assert AUTOMATA[pattern].accepts(text) == bool(re.fullmatch(pattern, text, flags))


@pytest.mark.parametrize("pattern", ["a", "^a", "a$", "^a$", "^a|b$", "^$"])
@given(text=st.text("abc\n", max_size=4))
@settings(deadline=None)
def test_search_accepts_texts_with_a_match(pattern, text):
    automaton = byte_automaton(search_match(pattern, Chars), 500)
    assert automaton.accepts(text) == bool(re.search(pattern.replace("$", r"\Z"), text))


@given(st.text(max_size=8), st.binary(max_size=6))
def test_characters_are_utf8(text, data):
    automaton = byte_automaton(full_match("[^x]*"), 100)
    assert automaton.accepts(text) == ("x" not in text)
    state = 0
    for byte in data:
        state = automaton.table[state, byte] if state >= 0 else -1
    try:
        is_text = "x" not in data.decode()
    except UnicodeDecodeError:
        is_text = False
    assert (state >= 0 and bool(automaton.accepting[state])) == is_text


def test_every_character_is_a_character():
    automaton = byte_automaton(Chars(((0, LARGEST_CHARACTER),)), 100)
    for point in (0, 0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFF, 0x10000, LARGEST_CHARACTER):
        assert automaton.accepts(chr(point))


@given(st.text("abc", max_size=6))
@settings(deadline=None)
def test_both_is_both(text):
    pair = ("(a|b)*c?", "a[abc]*")
    automaton = byte_automaton(Both(*map(full_match, pair)), 100)
    assert automaton.accepts(text) == all(re.fullmatch(pattern, text) for pattern in pair)


@given(st.lists(st.sampled_from("abcd"), max_size=6))
@settings(deadline=None)
def test_a_listing_keeps_order_and_required_items(letters):
    items = tuple((Literal(letter), letter == "b") for letter in "abc")
    automaton = byte_automaton(Listing(items, ", ", last_repeats=True), 100)
    assert automaton.accepts(", ".join(letters)) == bool(re.fullmatch("a?bc*", "".join(letters)))


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(a|b)*a(a|b){18}", "at most 2000 states, got more"),
        ("(.{1,1000}){1,1000}", "at most 2000 states, got an expression of"),
        ("((a{1,12}){1,12}){1,12}", "built within"),
    ],
)
def test_explosions_are_refused(pattern, message):
    with pytest.raises(ValueError, match=message):
        byte_automaton(full_match(pattern), 2000)


@pytest.mark.parametrize("pattern", ["(?=a)b", "(?!a)b", "(?<=a)b", "(a)\\1", "a\\bb", "(^a)b", "(?i:a)"])
def test_what_no_automaton_is_built_for_is_refused(pattern):
    with pytest.raises(ValueError, match="a pattern must be free of lookaround, references and inner anchors"):
        full_match(pattern)


@pytest.mark.parametrize("pattern", ["(", "[z-a]", "a{2,1}", "(?i)a"])
def test_malformed_patterns(pattern):
    with pytest.raises(ValueError, match="a pattern must"):
        full_match(pattern)


def test_nothing_accepted():
    with pytest.raises(ValueError, match="must accept at least one text"):
        byte_automaton(Both(Literal("a"), Literal("b")), 10)
