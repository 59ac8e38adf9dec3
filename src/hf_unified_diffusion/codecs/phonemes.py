"""Text to phonemes, one token of the tokenizer each, by the Apache-licensed lexicon of misaki; American English."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from transformers import PreTrainedTokenizerFast

from .letter_sounds import VOWELS, letters_to_sounds, with_ending
from .spoken_text import PAUSES, spoken

# symbol -> the character whose token stands for it; the symbols are those that Kokoro speaks of English
STAND_INS = (
    {symbol: symbol for symbol in " ;:,.!?AIOQWYabdefhijklmnopstuvwxz"}
    | {"ˈ": "'", "ˌ": "%", "ː": "=", "ᵊ": "^", "ᵻ": "+", "ʔ": "/", "—": "-", "…": "~", '"': '"', "“": "<", "”": ">"}
    | {"ɡ": "g", "ɹ": "r", "ŋ": "N", "ð": "D", "θ": "0", "ʃ": "S", "ʒ": "Z", "ʧ": "X", "ʤ": "J", "ɾ": "4", "T": "T"}
    | {"ɪ": "1", "ɛ": "E", "æ": "{", "ɑ": "2", "ɒ": "7", "ɔ": "8", "ə": "@", "ɚ": "5", "ɐ": "6", "ɜ": "3", "ʊ": "U"}
    | {"ʌ": "V", "(": "(", ")": ")"}
)
SYMBOLS = tuple(STAND_INS)
SYMBOL_OF = {stand_in: symbol for symbol, stand_in in STAND_INS.items()}
STRESSES = "ˈˌ"
SILENT = frozenset(PAUSES + " ")
LONGEST_ACRONYM = 5  # capital letters that are spelled; longer ones are read as words
SPELLED = frozenset(["AI", "IT", "US"])  # in spite of what the lexicon has for them
WEAK = {"a": "ɐ", "an": "ɐn", "the": "ðə", "to": "tə"}
BEFORE_VOWELS = {"the": "ði", "to": "tʊ"}
PIECES = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)*'?|'[A-Za-z]+|[" + re.escape(PAUSES) + "]")


@dataclass(frozen=True)
class Word:
    """One spoken word: its text, and from which symbol to before which it goes."""

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Pronunciation:
    """How a text is spoken.

    Attributes:
        symbols: phonemes, stresses before the vowel or syllable, punctuation, and a space between words.
        words: in order; punctuation and spaces belong to none.
    """

    symbols: tuple[str, ...]
    words: tuple[Word, ...]

    def __str__(self) -> str:
        return "".join(self.symbols)

    def part(self, start: int, end: int) -> "Pronunciation":
        """What is said from one symbol to before another, without spaces around it; no word may be cut.

        Usage: `spoken.part(0, spoken.words[2].end)`
        """
        while start < end and self.symbols[start] == " ":
            start += 1
        while start < end and self.symbols[end - 1] == " ":
            end -= 1
        words = [w for w in self.words if start <= w.start and w.end <= end]
        return Pronunciation(
            self.symbols[start:end], tuple(Word(w.text, w.start - start, w.end - start) for w in words)
        )


def pronounce(text: str) -> Pronunciation:
    """The phonemes of a text.

    A word is looked up in the lexicon; then as one with an ending ("-s", "-ed", "-ing"); short words of capitals are
    spelled; what is left is read by letter-to-sound rules.

    Raises:
        ValueError: for a text that cannot be spoken, see `spoken_text.spoken`.

    Usage: `str(pronounce("Hello, world!"))  # "həlˈO, wˈɜɹld!"`
    """
    pieces = PIECES.findall(spoken(text))
    sounds = [None if piece in PAUSES else sounds_of(piece) for piece in pieces]
    symbols: list[str] = []
    words = []
    for index, (piece, sound) in enumerate(zip(pieces, sounds, strict=True)):
        if sound is None:
            opens = piece in "(“" or (piece == '"' and pieces[:index].count('"') % 2 == 0)
            symbols += [" ", piece] if (opens or piece == "—") and symbols and symbols[-1] != " " else [piece]
            continue
        following = next((s for s in sounds[index + 1 : index + 2] if s), None)
        if piece.lower() in WEAK and piece != "A":
            sound = weak_form(piece.lower(), following)
        glued = symbols and (symbols[-1] in "(“" or (symbols[-1] == '"' and pieces[:index].count('"') % 2))
        symbols += [" "] if symbols and not glued else []
        words.append(Word(piece, len(symbols), len(symbols) + len(sound)))
        symbols += sound
    return Pronunciation(tuple(symbols), tuple(words))


def weak_form(word: str, following: str | None) -> str:
    """An article or "to" before a word; its full form before a pause."""
    if following is None:
        return sounds_of(word)
    begins_with_vowel = following.lstrip(STRESSES)[0] in VOWELS
    return BEFORE_VOWELS.get(word, WEAK[word]) if begins_with_vowel else WEAK[word]


@cache
def checked_words() -> dict[str, str]:
    """Word -> phonemes, entries that people checked; of words with several readings the first."""
    return read_lexicon("us_gold.json")


@cache
def lexicon() -> dict[str, str]:
    """Word -> phonemes, the checked words and others."""
    return read_lexicon("us_silver.json") | checked_words()


def read_lexicon(name: str) -> dict[str, str]:
    """A file of misaki's."""
    entries = json.loads((files("misaki.data") / name).read_text(encoding="utf-8"))
    return {word: sound["DEFAULT"] if isinstance(sound, dict) else sound for word, sound in entries.items()}


@cache
def sounds_of(word: str) -> str:
    """The phonemes of one word of letters and apostrophes.

    Usage: `sounds_of("walking")  # "wˈɔkɪŋ"`
    """
    letters = word.removesuffix("'s")
    is_word = letters.lower() in checked_words() or letters in checked_words()
    if (
        len(letters) == 1
        or letters in SPELLED
        or (letters.isupper() and len(letters) <= LONGEST_ACRONYM and not is_word)
    ):
        return spelled(letters) if letters == word else with_ending(spelled(letters), "s")
    known = looked_up(word, lexicon())
    if known is not None:
        return known
    word = word.lower().replace("'", "")
    if word.endswith("s") and not word.endswith("ss") and len(word) > 3:
        return with_ending(letters_to_sounds(word[:-1]), "s")
    return letters_to_sounds(word)


def looked_up(word: str, known: dict[str, str]) -> str | None:
    """The phonemes of a word in the lexicon, or of one whose stem is; None where neither is."""
    for form in (word, word.lower(), word.capitalize()):
        if form in known:
            return known[form]
    for ending, stems in endings(word.lower().rstrip("'")):
        for stem in stems:
            if stem in known:
                return with_ending(known[stem], ending)
    return None


def endings(word: str) -> list[tuple[str, list[str]]]:
    """Ways to see a word as a stem with an ending: the ending, and what the stem may be."""
    found = []
    if word.endswith("'s"):
        found.append(("s", [word[:-2], word[:-2].capitalize()]))
    elif word.endswith("s") and not word.endswith("ss") and len(word) > 3:
        found.append(("s", [word[:-1], word[:-2] if word.endswith("es") else ""]))
        found += [("s", [word[:-3] + "y"])] if word.endswith("ies") else []
    elif word.endswith("ed") and len(word) > 4:
        found.append(("ed", [word[:-2], word[:-1], word[:-3] if word[-3] == word[-4] else ""]))
    elif word.endswith("ing") and len(word) > 5:
        found.append(("ing", [word[:-3], word[:-3] + "e", word[:-4] if word[-4] == word[-5] else ""]))
    return found


def spelled(word: str) -> str:
    """Letter by letter, the last one stressed."""
    letters = [lexicon()[letter] for letter in word.upper() if letter.isalpha()]
    return "".join(letter.replace("ˈ", "ˌ") for letter in letters[:-1]) + letters[-1]


class PhonemeCodec:
    """Phonemes to token ids and back, over a tokenizer that has a token for every printable ASCII character.

    The tokens are those of ordinary characters: no embedding is added. That a context is phonemes is said by the sound
    after it.

    Raises:
        ValueError: for a tokenizer without such tokens.

    Usage:
        codec = PhonemeCodec(tokenizer)
        codec.encode(pronounce("Hello").symbols)
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        encoded = tokenizer(list(STAND_INS.values()), add_special_tokens=False)["input_ids"]
        longer = [symbol for symbol, ids in zip(SYMBOLS, encoded, strict=True) if len(ids) != 1]
        if longer:
            raise ValueError(f"the tokenizer must have one token for each phoneme, got several for {longer}")
        self.ids = {symbol: ids[0] for symbol, ids in zip(SYMBOLS, encoded, strict=True)}

    def encode(self, symbols: Sequence[str]) -> list[int]:
        """Token ids of symbols, one each.

        Raises:
            ValueError: for a symbol that is none of `SYMBOLS`.
        """
        unknown = sorted(set(symbols) - set(self.ids))
        if unknown:
            raise ValueError(f"phonemes must be among {''.join(SYMBOLS)!r}, got {unknown}")
        return [self.ids[symbol] for symbol in symbols]

    def decode(self, ids: Sequence[int]) -> list[str]:
        """The symbols of token ids; ValueError for a token that stands for none."""
        symbols = {index: symbol for symbol, index in self.ids.items()}
        unknown = sorted(set(ids) - set(symbols))
        if unknown:
            raise ValueError(f"ids must be of phonemes, got {unknown}")
        return [symbols[index] for index in ids]
