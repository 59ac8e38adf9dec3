"""Text as it is read aloud: numbers, money, times and abbreviations in words, and what cannot be spoken."""

import re
import unicodedata
import warnings
from collections.abc import Callable
from functools import cache

LARGEST_NUMBER = 10**15  # from here on digit by digit
CURRENCIES = {  # symbol -> one and many, of the unit and of its hundredth
    "$": ("dollar", "dollars", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
    "€": ("euro", "euros", "cent", "cents"),
}
ABBREVIATIONS = {
    "Mr.": "Mister",
    "Mrs.": "Missus",
    "Ms.": "Miz",
    "Dr.": "Doctor",
    "Prof.": "Professor",
    "Sr.": "Senior",
    "Jr.": "Junior",
    "St.": "Saint",
    "Gen.": "General",
    "Capt.": "Captain",
    "Lt.": "Lieutenant",
    "Col.": "Colonel",
    "Sgt.": "Sergeant",
    "Rev.": "Reverend",
    "No.": "number",
    "vs.": "versus",
    "etc.": "et cetera",
    "e.g.": "for example",
    "i.e.": "that is",
    "approx.": "approximately",
    "dept.": "department",
    "est.": "established",
    "Inc.": "Incorporated",
    "Ltd.": "Limited",
    "Co.": "Company",
    "Jan.": "January",
    "Feb.": "February",
    "Aug.": "August",
    "Sept.": "September",
    "Oct.": "October",
    "Nov.": "November",
    "Dec.": "December",
}
UNITS = {  # after a number: one and many
    "km/h": ("kilometer per hour", "kilometers per hour"),
    "mph": ("mile per hour", "miles per hour"),
    "km": ("kilometer", "kilometers"),
    "cm": ("centimeter", "centimeters"),
    "mm": ("millimeter", "millimeters"),
    "kg": ("kilogram", "kilograms"),
    "mg": ("milligram", "milligrams"),
    "ml": ("milliliter", "milliliters"),
    "ms": ("millisecond", "milliseconds"),
    "kHz": ("kilohertz", "kilohertz"),
    "MHz": ("megahertz", "megahertz"),
    "GHz": ("gigahertz", "gigahertz"),
    "Hz": ("hertz", "hertz"),
    "kB": ("kilobyte", "kilobytes"),
    "MB": ("megabyte", "megabytes"),
    "GB": ("gigabyte", "gigabytes"),
    "TB": ("terabyte", "terabytes"),
    "°C": ("degree Celsius", "degrees Celsius"),
    "°F": ("degree Fahrenheit", "degrees Fahrenheit"),
    "°": ("degree", "degrees"),
    "%": ("percent", "percent"),
    "m": ("meter", "meters"),
    "g": ("gram", "grams"),
}
SIGNS = {"&": " and ", "+": " plus ", "@": " at ", "=": " equals ", "%": " percent ", "°": " degrees ", "#": " number "}
# typographic variants -> what is left of them; letters that Unicode does not take apart -> how they are written plainly
VARIANTS = str.maketrans(
    dict.fromkeys("’‘`´ʼ", "'")
    | dict.fromkeys("–‒―", "—")
    | dict.fromkeys("«»„‹›", '"')
    | dict.fromkeys("[{<", "(")
    | dict.fromkeys("]}>", ")")
    | dict.fromkeys("µμ", "micro ")
    | {"\u00ad": "", "ŉ": "'n", "ß": "ss", "æ": "ae", "Æ": "Ae", "œ": "oe", "Œ": "Oe", "þ": "th", "Þ": "Th"}
    | dict(zip("øØłŁđĐðÐıħĦŧŦĸ", "oOlLdDdDihHtTk", strict=True))
    | {"ŋ": "ng", "Ŋ": "Ng"}
)
PAUSES = ';:,.!?—…"()“”'
SPEAKABLE = re.compile(r"[A-Za-z' \-" + re.escape(PAUSES) + "]")
NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"

RULES: list[tuple[re.Pattern, Callable[[re.Match], str]]] = []


def rule(pattern: str) -> Callable:
    """Let a function say how what a pattern finds is read; the rules act in their order in this file."""

    def add(read: Callable[[re.Match], str]) -> Callable[[re.Match], str]:
        RULES.append((re.compile(pattern), read))
        return read

    return add


def spoken(text: str) -> str:
    """A text in the letters, apostrophes and punctuation in which it is read aloud, American English.

    Accents are taken off Latin letters. Emoji, control characters and signs without a reading are left out with a
    warning, since nobody reads them.

    Raises:
        ValueError: letters of another script than Latin, which would be words left out; or nothing to speak.

    Usage: `spoken("Dr. Lee paid $3.50 at 9:05.")  # "Doctor Lee paid three dollars and fifty cents at nine oh five."`
    """
    found = folded(text)
    for pattern, read in RULES:
        found = pattern.sub(read, found)
    for sign, word in SIGNS.items():
        found = found.replace(sign, word)
    found = re.sub(r"[/\\_*~|^]", " ", found)
    found = re.sub(r"(?<=\w)-(?=\w)", " ", found)  # twenty-one
    found = re.sub(r"\s*-+\s+|\s-+", " — ", found)
    unspeakable = sorted({letter for letter in found if not SPEAKABLE.match(letter)})
    if unspeakable:
        warnings.warn(f"left out of what is spoken: {[f'U+{ord(letter):04X}' for letter in unspeakable]}", stacklevel=2)
        found = "".join(letter if SPEAKABLE.match(letter) else " " for letter in found)
    found = re.sub(r"\s+", " ", re.sub(r"\s+(?=[;:,.!?…)])", "", found)).strip()
    if not re.search("[A-Za-z]", found):
        raise ValueError(f"text must hold something to speak, got {text[:40]!r}")
    return found


def folded(text: str) -> str:
    """Compatible forms, without accents; ValueError for letters of another script."""
    text = re.sub(r"\s", " ", unicodedata.normalize("NFC", text).translate(VARIANTS))
    kept = []
    for letter in text:
        parts = letter if letter in CURRENCIES or letter == "…" else unicodedata.normalize("NFKD", letter)
        parts = "".join(part for part in parts if not unicodedata.category(part).startswith("M"))
        if any(part.isalpha() and not part.isascii() for part in parts):
            name = unicodedata.name(letter, "a letter without a name")
            raise ValueError(f"text to speak must be in Latin letters, got {letter!r} ({name})")
        kept.append(parts)
    return "".join(kept).replace("⁄", "/")  # 1⁄2, from a fraction in one character


@cache
def speller():
    """inflect's engine."""
    from inflect import engine  # takes a moment, and only who speaks needs it

    return engine()


def in_words(number: int) -> str:
    """An integer in words: "minus twelve"."""
    if abs(number) >= LARGEST_NUMBER:
        return digits(str(number))
    return ("minus " if number < 0 else "") + speller().number_to_words(abs(number), andword="").replace(",", "")


def digits(text: str) -> str:
    """Digit by digit: "oh" is left to years and times."""
    return " ".join(in_words(int(digit)) for digit in text if digit.isdigit())


def amount(text: str) -> str:
    """A number as it is written, with thousands' commas and a decimal point, in words."""
    whole, point, rest = text.replace(",", "").partition(".")
    if len(whole) > 1 and whole[0] == "0":
        return digits(whole)
    return in_words(int(whole)) + (f" point {digits(rest)}" if point else "")


def ordinal(number: int) -> str:
    """ "twenty first"; beyond what has words the number and nothing more."""
    return speller().number_to_words(speller().ordinal(number), andword="").replace(",", "")


def year(number: int) -> str:
    """As a year is read: nineteen eighty four, two thousand nine, twenty twelve."""
    high, low = divmod(number, 100)
    if high % 10 == 0 and low < 10:
        return in_words(number)
    if low == 0:
        return f"{in_words(high)} hundred"
    return f"{in_words(high)} {'oh ' if low < 10 else ''}{in_words(low)}"


@rule(r"(?:https?://)?(?:www\.)?([A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.(?:com|org|net|edu|gov|io|ai|dev))\b")
def _address(found: re.Match) -> str:
    return found[1].replace(".", " dot ")


@rule(r"(?<![\w.])(?:" + "|".join(re.escape(short) for short in ABBREVIATIONS) + r")(?=\s|,|$)")
def _abbreviation(found: re.Match) -> str:
    ends = found[0] in ("etc.", "Inc.", "Ltd.", "Co.", "Jr.", "Sr.") and not found.string[found.end() :].strip()
    return ABBREVIATIONS[found[0]] + ("." if ends else "")


@rule(r"(?<![\d:])([01]?\d|2[0-3]):([0-5]\d)(?::([0-5]\d))?\s*([AaPp])?(?:\.?\s?[Mm]\b\.?)?(?![\d:])")
def _time(found: re.Match) -> str:
    hour, minute, second, half = found.groups()
    words = [in_words(int(hour))]
    if minute == "00":
        words += [] if half or second else ["o'clock"]
    else:
        words += [*(["oh"] if minute[0] == "0" else []), in_words(int(minute))]
    words += [] if second is None else ["and", in_words(int(second)), "second" if int(second) == 1 else "seconds"]
    return " ".join([*words, *([] if half is None else [half.upper(), "M"])])


@rule(r"([$£€])\s?(" + NUMBER + r")(?:\s(thousand|million|billion|trillion)\b)?")
def _money(found: re.Match) -> str:
    one, many, cent, cents = CURRENCIES[found[1]]
    if found[3] is not None:
        return f"{amount(found[2])} {found[3]} {many}"
    whole, _, rest = found[2].replace(",", "").partition(".")
    if len(rest) not in (0, 2):
        return f"{amount(found[2])} {many}"
    parts = [(int(whole), one, many), (int(rest or 0), cent, cents)]
    said = [f"{in_words(count)} {single if count == 1 else plural}" for count, single, plural in parts if count]
    return " and ".join(said) or f"zero {many}"


@rule(r"\b(\d{1,3}(?:,\d{3})*|\d{1,9})(?:st|nd|rd|th)\b")
def _ordinal(found: re.Match) -> str:
    return ordinal(int(found[1].replace(",", "")))


@rule(r"\b(1[1-9]\d|20[0-9])0s\b|(?<!\w)'?([1-9])0s\b")
def _decade(found: re.Match) -> str:
    tens = (found[1] or found[2])[-1]
    plural = {"0": "hundreds", "1": "tens"}.get(tens) or in_words(int(tens) * 10)[:-1] + "ies"
    if found[1] is None:
        return plural
    century = found[1][:-1]
    return f"{in_words(int(century))} {plural}" if found[1] != "200" else "two thousands"


@rule(r"(?<![\w.,-])(1[1-9]\d\d|20\d\d)(?![\w%°]|,\d|\.\d| ?(?:" + "|".join(map(re.escape, UNITS)) + r")\b)")
def _year(found: re.Match) -> str:
    return year(int(found[1]))


@rule(r"(?<![\w.])(\d)/(\d)(?![\w/])")
def _fraction(found: re.Match) -> str:
    above, below = int(found[1]), int(found[2])
    if below < 2:
        return f"{in_words(above)} over {in_words(below)}"
    part = {2: "half", 4: "quarter"}.get(below) or ordinal(below)
    return f"{in_words(above)} {part if above == 1 else 'halves' if below == 2 else part + 's'}"


@rule(r"(?<![\w-])(?:\d{3}-)?\d{3}-\d{4}(?![\w-])")
def _telephone(found: re.Match) -> str:
    return ", ".join(digits(part) for part in found[0].split("-"))


@rule(r"(?<=\d)\s?[-—]\s?(?=\d)")
def _range(found: re.Match) -> str:
    return " to "


@rule(r"(?<![\w.])(-?)(" + NUMBER + r")\s?(" + "|".join(map(re.escape, UNITS)) + r")(?![\w])")
def _measured(found: re.Match) -> str:
    minus = "minus " if found[1] else ""
    return f"{minus}{amount(found[2])} {UNITS[found[3]][found[2] != '1']}"


@rule(r"(?:(?<=\s)|(?<=^))-(?=\d)")
def _minus(found: re.Match) -> str:
    return "minus "


@rule(r"(?<=[A-Za-z])(?=\d)|(?<=\d)(?=[A-Za-z])")
def _letters_and_digits(found: re.Match) -> str:
    return " "


@rule(r"\d+(?:\.\d+){2,}")
def _version(found: re.Match) -> str:
    return " point ".join(amount(part) for part in found[0].split("."))


@rule(NUMBER)
def _number(found: re.Match) -> str:
    return amount(found[0])


@rule(r"\b(?:[A-Za-z]\.){2,}")
def _initials(found: re.Match) -> str:
    ends = not found.string[found.end() :].strip()
    return " ".join(found[0].replace(".", "").upper()) + ("." if ends else "")
