"""Token ids of many texts: every stretch between spaces goes through the fast tokenizer once."""

import json
import re
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise

from tokenizers import Tokenizer

# No word of GPT-2's pattern goes on from such a character to white space, and what it does on one side of this place
# does not depend on the other. ASCII only: which other characters are spaces is a matter of Unicode's version.
CUT = re.compile(r"(?<=[!-~])(?=[ \t\r\n])")
MAX_STRETCHES, MAX_CHARACTERS = 1 << 18, 64  # to remember, and of each
# What a call for each stretch costs is shared by this many that are joined by a special token, which stands for a
# character that texts do not have.
JOINED, SEPARATOR = 512, "\0"
TEXTS_AT_ONCE = 1000


class BulkTokenizer:
    """The same ids as the tokenizer's own, for one thread that reads much.

    Args:
        backend: takes special tokens for text (`token_data.plain_text_tokenizer`). One that may join what a space
            separates gets whole texts.

    Usage: `BulkTokenizer(plain_text_tokenizer(tokenizer)).encode(["def f(x):", "a <mask>"])`
    """

    def __init__(self, backend: Tokenizer):
        self._backend = backend
        described = json.loads(backend.to_str())
        self._joining: Tokenizer | None = None  # where texts are cut
        if cuts_at_spaces(described) and backend.encode_special_tokens:
            self._joining = Tokenizer.from_str(json.dumps(described | {"added_tokens": []}))
            self._joining.add_special_tokens([SEPARATOR])
        self._known: dict[str, tuple[int, ...]] = {}  # tuples of numbers are none of the garbage collector's work

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, no special token among them."""
        if self._joining is None:
            return self._encode(texts)
        stretches = [CUT.split(text) for text in texts]
        if len(self._known) > MAX_STRETCHES:
            self._known.clear()
        known = self._known
        new = list(set(chain.from_iterable(stretches)).difference(known))
        known.update(zip(new, self._encode_stretches(self._joining, new), strict=True))
        found = [list(chain.from_iterable(map(known.__getitem__, each))) for each in stretches]
        for stretch in new:
            if len(stretch) > MAX_CHARACTERS:
                del known[stretch]
        return found

    def encode_each(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """The same, text by text, however many there are."""
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            yield from self.encode(texts[start : start + TEXTS_AT_ONCE])

    def _encode_stretches(self, joining: Tokenizer, stretches: list[str]) -> list[tuple[int, ...]]:
        groups = [stretches[start : start + JOINED] for start in range(0, len(stretches), JOINED)]
        separator = joining.token_to_id(SEPARATOR)
        joined = joining.encode_batch_fast([SEPARATOR.join(each) for each in groups], add_special_tokens=False)
        found: list[tuple[int, ...]] = []
        for group, encoding in zip(groups, joined, strict=True):
            ids = encoding.ids
            ends = [place for place, token in enumerate(ids) if token == separator]
            if len(ends) == len(group) - 1:
                found += [tuple(ids[end + 1 : next_end]) for end, next_end in pairwise([-1, *ends, len(ids)])]
            else:  # a stretch has the separator's character itself
                found += map(tuple, self._encode(group))
        return found

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]


def cuts_at_spaces(described: dict) -> bool:
    """Whether a tokenizer (as its JSON) splits words as GPT-2's does, and does nothing else to a text before."""
    before = described["pre_tokenizer"] or {"type": "none"}
    parts = before["pretokenizers"] if before["type"] == "Sequence" else [before]
    digits = all(part["type"] == "Digits" for part in parts[:-1])
    by_words = parts[-1]["type"] == "ByteLevel" and parts[-1]["use_regex"] and not parts[-1]["add_prefix_space"]
    only_special = all(token["special"] for token in described["added_tokens"])
    as_it_is = all(described[name] is None for name in ("normalizer", "padding", "truncation"))
    return as_it_is and digits and by_words and only_special
