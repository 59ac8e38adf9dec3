"""Names of pictures: one concept for every style of it, captions of it, and the split that it belongs to."""

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable

SPLITS = ("train", "validation", "test", "seen")
VALIDATION_PERMILLE, TEST_PERMILLE = 20, 33  # of the concepts; more come with them, see `split_concepts`
# A concept in more others than this ("face", "person") is never held out: too many pictures would go with it.
MAX_CONTAINING = 12
SKIN_TONE = re.compile(r"(?:-(?:medium-light|medium-dark|light|medium|dark)(?:-skin-tone)?)+$")
# Words that icon sets add for a variant of drawing, not for what is drawn.
VARIANT_WORDS = frozenset(
    {
        "alt",
        "alternate",
        "bold",
        "color",
        "duo",
        "fill",
        "filled",
        "flat",
        "icon",
        "line",
        "outline",
        "remix",
        "solid",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
    }
)


def words_of(name: str) -> list[str]:
    """Lower-case ASCII words of a name: "Père-Noël (2)" gives ["pere", "noel", "2"]."""
    plain = unicodedata.normalize("NFKD", name.replace("'", "").replace("\N{RIGHT SINGLE QUOTATION MARK}", ""))
    return re.findall(r"[a-z]+|[0-9]+", plain.encode("ascii", "ignore").decode().lower())


def without_variants(words: list[str]) -> list[str]:
    """Words of an icon's name without numbers and marks of drawing at its end."""
    end = len(words)
    while end > 1 and (words[end - 1] in VARIANT_WORDS or words[end - 1].isdigit()):
        end -= 1
    return words[:end]


def singular(word: str) -> str:
    """A rough singular, for keys only: "cherries" and "cherry" are one."""
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3:
        return word[:-1]
    return word


def plural(name: str) -> str:
    """The plural of a name's last word, by the common rules of English."""
    if name.endswith(("fish", "sheep", "deer")):
        return name
    for ending, replacement in (("mouse", "mice"), ("woman", "women"), ("man", "men"), ("leaf", "leaves")):
        if name.endswith(ending):
            return name.removesuffix(ending) + replacement
    if name.endswith(("s", "x", "ch", "sh", "z")):
        return name + "es"
    if name.endswith("y") and name[-2:-1] not in set("aeiou"):
        return name[:-1] + "ies"
    return name + "s"


def with_article(name: str) -> str:
    """The name after "a" or "an"; plural names and numbers take none."""
    last = name.split()[-1]
    if name[0].isdigit() or (singular(last) != last and not last.endswith("glasses")):
        return name
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def concept_key(name: str) -> str:
    """What two names of one concept share: their words in the singular and in order of the alphabet."""
    ignored = {"a", "an", "the", "of", "for", "with", "and"}
    return " ".join(sorted({singular(word) for word in words_of(name)} - ignored)) or name


def captions_of(name: str, kind: str, synonyms: Iterable[str] = (), tags: Iterable[str] = ()) -> list[str]:
    """Variants of a caption, each once: the name, its synonyms, the kind of picture ("icon"), its tags.

    Use: `captions_of("red apple", "emoji", tags=["fruit"])` gives "a red apple", "red apple emoji", ...
    """
    described = with_article(name)
    variants = [described, name, f"{name} {kind}", f"{with_article(kind)} of {described}"]
    variants += [with_article(synonym) for synonym in synonyms]
    listed = [tag for tag in tags if tag not in name][:4]
    if listed:
        variants += [", ".join([name, *listed[:2]]), f"{described}, {', '.join(listed[-2:])}"]
    return list(dict.fromkeys(variants))


def permille(text: str) -> int:
    """A number in [0, 1000) that the text alone decides."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 1000


def split_by_hash(key: str) -> str:
    """train, validation or test by the key alone."""
    place = permille(key)
    if place < TEST_PERMILLE:
        return "test"
    return "validation" if place < TEST_PERMILLE + VALIDATION_PERMILLE else "train"


def split_concepts(keys: Iterable[str]) -> dict[str, str]:
    """The split of every concept: no concept of train contains all the words of a held-out one.

    A held-out "apple" takes "green apple" and "apple pie" with it. Use: `split_concepts({"apple", "apple green"})`.
    """
    ordered = sorted(set(keys))
    containing = defaultdict(set)
    for key in ordered:
        for word in key.split():
            containing[word].add(key)
    splits = dict.fromkeys(ordered, "train")
    for split in ("validation", "test"):  # test last: it takes what both claim
        for key in ordered:
            if split_by_hash(key) == split:
                wider = set.intersection(*(containing[word] for word in key.split()))
                if len(wider) <= MAX_CONTAINING + 1:
                    splits.update(dict.fromkeys(wider, split))
    return splits
