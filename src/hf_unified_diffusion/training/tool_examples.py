"""Requests and the one right call of a tool: names, numbers, dates and choices that the request states.

An action has slots. A tool is an action with one of its names, a name for each slot, and the slots in some order:
tools differ from example to example. Actions of `UNSEEN` are in no training example.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from ..conditioning.tool_hints import describe_tools
from .control_examples import ControlExample, check_split, draw_value, phrasing, random_of

TOOL_SPLITS = ("train", "validation", "test", "unseen")
FIRST = "Ada Ben Cleo Dan Eva Finn Gus Hana Ivan Jan Kim Leo Mia Noah Olga Pia Ravi Sara Tom Uma Vera Will Yara Zoe"
LAST = "Abel Berg Costa Diaz Eco Falk Gomez Hill Ito Jung Khan Lund Moss Novak Ortiz Park Quinn Rossi Silva Tan"
CITIES = (
    "Accra Athens Berlin Bergen Bogota Boston Cairo Cork Dakar Delhi Denver Dublin Geneva Hanoi Havana Jakarta Kyoto "
    "Lagos Lima Lisbon London Lyon Madrid Manila Milan Nairobi Naples Osaka Oslo Ottawa Paris Perth Porto Prague Quito "
    "Riga Rome Seoul Sofia Sydney Taipei Tokyo Toronto Tunis Turin Vienna Warsaw Zurich"
)
ADJECTIVES = "big blue cheap clean cold dark fresh green heavy hot light long new old plain red round small soft warm"
NOUNS = (
    "bag bike book bread cable camera chair clock coat cup desk door fish hat key lamp map paper pen phone pizza plan "
    "radio report salad shoe soup table tea ticket train"
)
DOMAINS = "acme.com arrow.org blue.net delta.io north.com paper.org river.net south.io stone.com west.org"

Draw = Callable[[Random], Any]


def word(words: str, random: Random) -> str:
    """One of the words of a string."""
    return random.choice(words.split())


KINDS: dict[str, tuple[dict[str, Any], Draw]] = {
    "person": ({"type": "string"}, lambda r: f"{word(FIRST, r)} {word(LAST, r)}"),
    "city": ({"type": "string"}, lambda r: word(CITIES, r)),
    "thing": ({"type": "string"}, lambda r: f"{word(ADJECTIVES, r)} {word(NOUNS, r)}"),
    "email": ({"type": "string"}, lambda r: f"{word(FIRST, r).lower()}{r.randint(1, 99)}@{word(DOMAINS, r)}"),
    "date": (
        {"type": "string", "pattern": "^\\d{4}-\\d{2}-\\d{2}$"},
        lambda r: f"20{r.randint(24, 35)}-{r.randint(1, 12):02d}-{r.randint(1, 28):02d}",
    ),
    "time": (
        {"type": "string", "pattern": "^\\d{2}:\\d{2}$"},
        lambda r: f"{r.randint(0, 23):02d}:{5 * r.randint(0, 11):02d}",
    ),
    "count": ({"type": "integer", "minimum": 1, "maximum": 99}, lambda r: r.randint(1, 99)),
    "amount": ({"type": "integer", "minimum": 1, "maximum": 9999}, lambda r: r.randint(100, 9999)),
}


@dataclass(frozen=True)
class Slot:
    """One argument: a kind of `KINDS`, or choices; names it may have; ways to say it, the last one for tests."""

    kind: str | tuple[str, ...]
    names: tuple[str, ...]
    phrases: tuple[str, ...]


@dataclass(frozen=True)
class Action:
    """What a tool does: names it may have, how a request begins, the last way being for tests, and its slots."""

    names: tuple[str, ...]
    openings: tuple[str, ...]
    slots: tuple[Slot, ...]


def slot(kind: str | tuple[str, ...], names: str, phrases: str) -> Slot:
    """A slot; names are separated by spaces, phrases by |."""
    return Slot(kind, tuple(names.split()), tuple(phrases.split("|")))


def action(names: str, openings: str, *slots: Slot) -> Action:
    """An action; names are separated by spaces, openings by |."""
    return Action(tuple(names.split()), tuple(openings.split("|")), slots)


ON = slot("date", "date day on_date", "on {}|for {}|dated {}")
AT = slot("time", "time at start_time", "at {}|starting at {}|when it is {}")
TO_CITY = slot("city", "city destination to_city", "to {}|towards {}|with {} as the goal")
IN_CITY = slot("city", "city location place", "in {}|for the city {}|somewhere in {}")
SEEN = (
    action(
        "book_table reserve_table",
        "Book a table|Reserve a table|Please get us a table",
        slot("count", "people guests seats", "for {} people|for {} guests|so that {} can sit"),
        ON,
        AT,
    ),
    action("get_weather weather_forecast", "What is the weather|Show the weather|Tell me the weather", IN_CITY, ON),
    action(
        "send_email write_email",
        "Send an email|Write an email|Please mail something",
        slot("email", "to address recipient", "to {}|addressed to {}|which {} receives"),
        slot("thing", "subject topic about", "about the {}|on the {}|whose subject is the {}"),
    ),
    action("set_alarm add_alarm", "Set an alarm|Add an alarm|I need an alarm", AT, ON),
    action(
        "book_flight find_flight",
        "Book a flight|Find a flight|I want to fly",
        slot("city", "origin from_city start", "from {}|leaving {}|with {} as the start"),
        TO_CITY,
        ON,
    ),
    action(
        "order_item buy_item",
        "Order something|Buy something|Please get something",
        slot("count", "quantity number amount", "{} pieces|{} of them|{} in number"),
        slot("thing", "item product article", "namely the {}|that is, the {}|it is the {}"),
    ),
    action(
        "pay_person send_money",
        "Send money|Make a payment|Please transfer money",
        slot("person", "name recipient receiver", "to {}|for {}|so that {} gets it"),
        slot("amount", "amount sum value", "of {}|worth {}|that comes to {}"),
        slot(("EUR", "USD", "JPY"), "currency unit", "in {}|as {}|paid in {}"),
    ),
    action(
        "call_person phone_person",
        "Make a call|Start a call|I want to phone",
        slot("person", "name person contact", "to {}|with {}|so that {} picks up"),
        AT,
    ),
    action(
        "add_event create_event",
        "Add an event|Create an event|Put something in the calendar",
        slot("thing", "title name event", "called {}|named {}|with the title {}"),
        ON,
        AT,
    ),
    action(
        "set_light change_light",
        "Change the light|Set the light|Please adjust the light",
        slot(("red", "green", "blue", "white"), "color colour", "to {}|so it is {}|with the color {}"),
        slot("count", "level brightness percent", "at {} percent|with brightness {}|and let it be {} bright"),
    ),
    action(
        "search_hotel find_hotel",
        "Find a hotel|Search a hotel|We look for a hotel",
        IN_CITY,
        slot("count", "nights days", "for {} nights|staying {} nights|over {} nights"),
    ),
    action(
        "create_task add_task",
        "Create a task|Add a task|There is a new task",
        slot("thing", "title task name", "called {}|named {}|with the title {}"),
        slot("person", "assignee owner person", "for {}|assigned to {}|which {} does"),
        slot(("low", "normal", "high"), "priority urgency", "with {} priority|of {} priority|its priority is {}"),
    ),
    action(
        "play_music start_music",
        "Play music|Start music|I would like music",
        slot("person", "artist singer by", "by {}|sung by {}|from the artist {}"),
        slot("count", "volume loudness", "at volume {}|with volume {}|as loud as {}"),
    ),
)
UNSEEN = (
    action(
        "rent_car hire_car",
        "Rent a car|Hire a car|We need a car",
        IN_CITY,
        slot("count", "days duration", "for {} days|over {} days|lasting {} days"),
        slot("person", "driver name", "driven by {}|with {} as driver|{} will drive"),
    ),
    action(
        "ship_parcel send_parcel",
        "Ship a parcel|Send a parcel|A parcel must go",
        TO_CITY,
        slot("person", "receiver name", "for {}|to be given to {}|which {} gets"),
        slot(("standard", "express"), "speed service", "by {} service|as {}|using the {} way"),
    ),
    action(
        "add_note save_note",
        "Add a note|Save a note|Keep a note",
        slot("thing", "text note content", "saying {}|that reads {}|with the words {}"),
        ON,
    ),
)


@dataclass(frozen=True)
class Tool:
    """A tool as an example offers it: its name, and a name for each slot, in order."""

    name: str
    slots: tuple[tuple[str, Slot], ...]

    @staticmethod
    def of(kind: Action, random: Random) -> "Tool":
        """One of the tools that an action can be."""
        slots = random.sample(kind.slots, len(kind.slots))
        return Tool(random.choice(kind.names), tuple((random.choice(slot.names), slot) for slot in slots))

    def definition(self) -> dict[str, Any]:
        """In transformers' tool format."""
        properties = {name: schema_of(slot) for name, slot in self.slots}
        parameters = {"type": "object", "properties": properties, "required": list(properties)}
        return {"type": "function", "function": {"name": self.name, "parameters": parameters}}


def schema_of(slot: Slot) -> dict[str, Any]:
    """The JSON Schema of an argument."""
    return {"type": "string", "enum": list(slot.kind)} if isinstance(slot.kind, tuple) else KINDS[slot.kind][0]


def value_of(slot: Slot, split: str, random: Random) -> Any:
    """A value of the split; choices are the schema's, in all splits."""
    if isinstance(slot.kind, tuple):
        return random.choice(slot.kind)
    draw = KINDS[slot.kind][1]
    return draw_value(lambda: draw(random), split)


def tool_example(split: str, index: int, seed: int = 0) -> ControlExample:
    """Request `index` of a split, for one of one to three tools; the hint describes the tools.

    Args:
        split: "train", "validation", "test" (phrasings and values of its own) or "unseen" (as "test", with tools whose
            actions are in no training example).

    Raises ValueError for another split.
    Usage: `tool_example("test", 0).response`
    """
    check_split(split, TOOL_SPLITS)
    random = random_of("tools", split, index, seed)
    offered = random.sample(UNSEEN if split == "unseen" else SEEN, random.randint(1, 3))
    tools, asked = [Tool.of(kind, random) for kind in offered], random.randrange(len(offered))
    tool, values_split = tools[asked], "test" if split == "unseen" else split
    arguments = {name: value_of(slot, values_split, random) for name, slot in tool.slots}
    said = [phrasing(slot.phrases, values_split, random).format(arguments[name]) for name, slot in tool.slots]
    random.shuffle(said)
    request = " ".join([phrasing(offered[asked].openings, values_split, random), *said])
    definitions = tuple(tool.definition() for tool in tools)
    response = json.dumps({"name": tool.name, "arguments": arguments})
    return ControlExample(
        describe_tools(definitions), f"User: {request}.\nCall:\n", response, tools=definitions, answer=arguments
    )
