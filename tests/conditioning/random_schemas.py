"""Random schemas within what is supported, and random texts of an automaton."""

import json

import numpy as np
from hypothesis import strategies as st

NAMES = st.sampled_from(["a", "b", "größe", 'quo"ted', "long name", "d"])
SMALL = st.integers(0, 3)


@st.composite
def bounded(draw, kind, least, most):
    """A type with two bounds of a count."""
    low, extra = draw(SMALL), draw(SMALL)
    chosen = {least: low, most: low + extra}
    return {"type": kind, **{word: chosen[word] for word in draw(st.sets(st.sampled_from([least, most])))}}


@st.composite
def numbers(draw):
    """Numbers and integers with bounds that leave room."""
    low = draw(st.one_of(st.integers(-120, 120), st.decimals(-9, 9, places=2).map(float)))
    words = draw(
        st.sampled_from([(), ("minimum",), ("exclusiveMinimum",), ("minimum", "maximum"), ("exclusiveMaximum",)])
    )
    values = {
        "minimum": low,
        "exclusiveMinimum": low,
        "maximum": low + draw(st.integers(1, 90)),
        "exclusiveMaximum": low,
    }
    return {"type": draw(st.sampled_from(["integer", "number"])), **{word: values[word] for word in words}}


SCALARS = st.one_of(
    st.sampled_from(
        [{"type": "boolean"}, {"type": "null"}, {"type": ["integer", "null"]}, {"format": "date"}, {"const": 0}]
    ),
    bounded("string", "minLength", "maxLength"),
    st.sampled_from(["^[a-c]+$", "x\\d", "^é{1,2}", "[^a]$"]).map(
        lambda p: {"type": "string", "pattern": p, "maxLength": 8}
    ),
    numbers(),
    st.lists(st.one_of(st.text(max_size=4), st.integers(), st.none()), min_size=1, max_size=4).map(
        lambda v: {"enum": v}
    ),
)


def arrays(items):
    """Arrays of bounds and prefixes."""
    prefixed = st.builds(
        lambda prefix, rest: {"type": "array", "prefixItems": prefix, "items": rest, "maxItems": 3},
        st.lists(items, min_size=1, max_size=2),
        items,
    )
    return st.one_of(
        st.builds(lambda shape, item: {**shape, "items": item}, bounded("array", "minItems", "maxItems"), items),
        prefixed,
    )


@st.composite
def objects(draw, values):
    """Objects, some of their properties required."""
    properties = draw(st.dictionaries(NAMES, values, min_size=1, max_size=4))
    required = draw(st.lists(st.sampled_from(sorted(properties)), unique=True))
    return {"type": "object", "properties": properties, "required": required}


SCHEMAS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        arrays(inner), objects(inner), st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options})
    ),
    max_leaves=6,
)


def random_text(automaton, seed, soft_limit=60):
    """A text that a byte automaton accepts: bytes at random, then the shortest way out."""
    table, accepting = automaton.table, automaton.accepting
    distance = np.where(accepting, 0, 10**6)
    while True:
        there = np.where(table >= 0, distance[table], 10**6).min(axis=1) + 1
        if (there >= distance).all():
            break
        distance = np.minimum(distance, there)
    generator, state, data = np.random.default_rng(seed), 0, []
    while not (accepting[state] and (len(data) >= soft_limit or generator.random() < 0.3)):
        choices = np.flatnonzero(table[state] >= 0)
        if not len(choices):
            break
        if len(data) >= soft_limit:
            choices = choices[distance[table[state, choices]] == distance[table[state, choices]].min()]
        data.append(int(generator.choice(choices)))
        state = table[state, data[-1]]
    return bytes(data).decode()


def shown(schema):
    """For messages of failed tests."""
    return json.dumps(schema, ensure_ascii=False)
