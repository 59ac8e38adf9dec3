"""Questions with a reasoning section, steps and an answer: arithmetic and table look-ups, all checkable.

The response is always

    Reasoning: <what to do>
    Step 1: <one calculation or look-up>
    ...
    Answer: <a whole number>
"""

import re
from collections.abc import Callable
from random import Random

from .control_examples import ControlExample, check_split, draw_value, phrasing, random_of, split_of

STRUCTURE = re.compile(r"\s*Reasoning: [^\n]+\n(?P<steps>(?:Step \d+: [^\n]+\n)+)Answer: (?P<answer>-?\d+)\s*")
PEOPLE = "Ada Ben Cleo Dan Eva Finn Gus Hana Ivan Jan Kim Leo Mia Noah Olga Pia Ravi Sara Tom Uma Vera Will Yara Zoe"
THINGS = (
    "apples bags balls beads bells books boots bottles boxes bricks cakes candles cards chairs coins cups dolls eggs "
    "flags forks hats jars keys kites lamps lemons maps masks nuts pans pears pens plates plums ropes rings shells "
    "shirts spoons stamps stones tickets tiles toys"
)
LARGEST_TERM, LARGEST_FACTOR = 50, 9

Steps = tuple[str, list[str], int]  # what to do, the steps, the answer


def structure_of(text: str) -> int | None:
    """The answer of a text that has the structure, its steps numbered from 1; None of any other text.

    Usage: `structure_of("Reasoning: add\\nStep 1: 1 + 2 = 3\\nAnswer: 3")  # 3`
    """
    match = STRUCTURE.fullmatch(text)
    if match is None:
        return None
    numbers = [int(number) for number in re.findall(r"^Step (\d+):", match["steps"], re.MULTILINE)]
    return int(match["answer"]) if numbers == list(range(1, len(numbers) + 1)) else None


def reasoning_example(split: str, index: int, seed: int = 0) -> ControlExample:
    """Question `index` of a split ("train", "validation", "test"); the hint is the prompt.

    Raises ValueError for another split.
    Usage: `reasoning_example("train", 0).response`
    """
    check_split(split)
    random = random_of("reasoning", split, index, seed)
    question, (plan, steps, answer) = random.choice(KINDS)(split, random)
    lines = [f"Step {number}: {step}" for number, step in enumerate(steps, start=1)]
    response = "\n".join(["", f"Reasoning: {plan}", *lines, f"Answer: {answer}"])
    prompt = f"Question: {question}"
    return ControlExample(prompt, prompt, response, answer=answer)


def some(words: str, split: str, random: Random) -> str:
    """A word of the split."""
    return random.choice([word for word in words.split() if split_of(word) == split])


def terms(split: str, random: Random, most: int = LARGEST_TERM) -> tuple[int, int]:
    """Two operands, as a pair of the split."""
    return draw_value(lambda: (random.randint(2, most), random.randint(2, most)), split)


def gained(split: str, random: Random) -> tuple[str, Steps]:
    """An addition."""
    person, thing, (a, b) = some(PEOPLE, split, random), some(THINGS, split, random), terms(split, random)
    choices = (
        "{p} has {a} {t} and buys {b} more. How many {t} does {p} have?",
        "{p} finds {a} {t} and then {b} more. How many {t} are there?",
        "There are {a} {t} in a box. {p} adds {b}. How many {t} are in the box?",
        "{p} owns {a} {t} and is given {b} more. How many {t} is that?",
    )
    question = phrasing(choices, split, random).format(p=person, t=thing, a=a, b=b)
    return question, ("add the numbers", [f"{a} + {b} = {a + b}"], a + b)


def lost(split: str, random: Random) -> tuple[str, Steps]:
    """A subtraction."""
    person, thing, pair = some(PEOPLE, split, random), some(THINGS, split, random), terms(split, random)
    a, b = max(pair), min(pair)
    choices = (
        "{p} has {a} {t} and sells {b}. How many {t} are left?",
        "{p} had {a} {t} but lost {b} of them. How many {t} does {p} have now?",
        "Of {a} {t}, {p} gives {b} away. How many {t} remain?",
        "There were {a} {t}. {p} took {b}. How many {t} are still there?",
    )
    question = phrasing(choices, split, random).format(p=person, t=thing, a=a, b=b)
    return question, ("subtract the numbers", [f"{a} - {b} = {a - b}"], a - b)


def packed(split: str, random: Random) -> tuple[str, Steps]:
    """A multiplication."""
    person, thing = some(PEOPLE, split, random), some(THINGS, split, random)
    a, b = terms(split, random, LARGEST_FACTOR)
    choices = (
        "{p} has {a} boxes with {b} {t} each. How many {t} is that?",
        "{p} fills {a} bags with {b} {t} each. How many {t} does {p} need?",
        "There are {a} rows of {b} {t}. How many {t} does {p} see?",
        "{p} carries {a} baskets, and {b} {t} are in each. How many {t} are there?",
    )
    question = phrasing(choices, split, random).format(p=person, t=thing, a=a, b=b)
    return question, ("multiply the numbers", [f"{a} * {b} = {a * b}"], a * b)


def gained_and_lost(split: str, random: Random) -> tuple[str, Steps]:
    """Two steps."""
    person, thing, (a, b) = some(PEOPLE, split, random), some(THINGS, split, random), terms(split, random)
    c = draw_value(lambda: random.randint(1, a + b), split)
    choices = (
        "{p} has {a} {t}, buys {b} more and sells {c}. How many {t} does {p} have?",
        "{p} finds {a} {t} and {b} more, then loses {c}. How many {t} are left?",
        "{p} starts with {a} {t}, is given {b} and gives {c} away. How many {t} remain?",
    )
    question = phrasing(choices, split, random).format(p=person, t=thing, a=a, b=b, c=c)
    steps = [f"{a} + {b} = {a + b}", f"{a + b} - {c} = {a + b - c}"]
    return question, ("add, then subtract", steps, a + b - c)


def table_of(split: str, random: Random) -> tuple[str, dict[str, int]]:
    """A table of three or four rows, as a text, and its values."""
    names = random.sample([word for word in THINGS.split() if split_of(word) == split], random.randint(3, 4))
    values = {name: draw_value(lambda: random.randint(2, LARGEST_TERM), split) for name in names}
    return "; ".join(f"{name} {value}" for name, value in values.items()), values


def looked_up(split: str, random: Random) -> tuple[str, Steps]:
    """One cell of a table."""
    table, values = table_of(split, random)
    name = random.choice(list(values))
    choices = (
        "Stock: {table}. How many {n} are in stock?",
        "The list says: {table}. How many {n} does it say?",
        "Here is a table. {table}. What is the number of {n}?",
        "We counted. {table}. How many {n} did we count?",
    )
    question = phrasing(choices, split, random).format(table=table, n=name)
    return question, ("look it up", [f"{name} {values[name]}"], values[name])


def looked_up_and_added(split: str, random: Random) -> tuple[str, Steps]:
    """Two cells and their sum."""
    table, values = table_of(split, random)
    first, second = random.sample(list(values), 2)
    a, b = values[first], values[second]
    choices = (
        "Stock: {table}. How many {n} and {m} are there together?",
        "The list says: {table}. How many {n} and {m} is that in all?",
        "We counted. {table}. What do {n} and {m} add up to?",
    )
    question = phrasing(choices, split, random).format(table=table, n=first, m=second)
    return question, ("look up both, then add", [f"{first} {a}", f"{second} {b}", f"{a} + {b} = {a + b}"], a + b)


KINDS: tuple[Callable[[str, Random], tuple[str, Steps]], ...] = (
    gained,
    lost,
    packed,
    gained_and_lost,
    looked_up,
    looked_up_and_added,
)
