"""How a word is spoken that no lexicon has: American English letter-to-sound rules, and the sounds of endings."""

VOWELS = frozenset("AIOQWYaiuæɑɒɔəɛɜɪʊʌᵻoeɐɚ")
VOICELESS = "ptkfθ"
HISSING = "szʃʒʧʤ"
# longest first: letters -> sounds; "E" at the end of a rule stands for a silent e after a consonant
CLUSTERS = {
    "tion": "ʃən",
    "sion": "ʒən",
    "ture": "ʧəɹ",
    "ough": "O",
    "augh": "ɔ",
    "eigh": "A",
    "igh": "I",
    "tch": "ʧ",
    "dge": "ʤ",
    "sch": "sk",
    "eau": "O",
    "ous": "əs",
    "que": "k",
    "air": "ɛɹ",
    "ear": "ɪɹ",
    "eer": "ɪɹ",
    "oor": "ɔɹ",
    "our": "ɔɹ",
    "ch": "ʧ",
    "sh": "ʃ",
    "th": "θ",
    "ph": "f",
    "wh": "w",
    "gh": "ɡ",
    "ck": "k",
    "ng": "ŋ",
    "qu": "kw",
    "kn": "n",
    "wr": "ɹ",
    "rh": "ɹ",
    "ee": "i",
    "ea": "i",
    "oo": "u",
    "ou": "W",
    "ow": "O",
    "oi": "Y",
    "oy": "Y",
    "ai": "A",
    "ay": "A",
    "au": "ɔ",
    "aw": "ɔ",
    "ei": "A",
    "ey": "i",
    "ie": "i",
    "oa": "O",
    "ew": "u",
    "ue": "u",
    "ui": "u",
    "ar": "ɑɹ",
    "er": "əɹ",
    "ir": "ɜɹ",
    "or": "ɔɹ",
    "ur": "ɜɹ",
}
LETTERS = {
    **dict(zip("abcdefghijklm", ("æ", "b", "k", "d", "ɛ", "f", "ɡ", "h", "ɪ", "ʤ", "k", "l", "m"), strict=True)),
    **dict(zip("nopqrstuvwxyz", ("n", "ɑ", "p", "k", "ɹ", "s", "t", "ʌ", "v", "w", "ks", "i", "z"), strict=True)),
}
LONG = {"a": "A", "e": "i", "i": "I", "o": "O", "u": "u", "y": "I"}
INITIAL_SILENT = {"kn": "n", "gn": "n", "ps": "s", "pt": "t", "wr": "ɹ", "mn": "n", "x": "z"}
CONSONANTS = frozenset("bcdfghjklmnpqrstvwxz")


def letters_to_sounds(word: str) -> str:
    """The phonemes of a word of small letters, stressed on its first vowel.

    Usage: `letters_to_sounds("blick")  # "blˈɪk"`
    """
    word = word.replace("'", "")
    sounds, place = "", 0
    start = next((letters for letters in INITIAL_SILENT if word.startswith(letters)), None)
    if start is not None and len(word) > len(start):
        sounds, place = INITIAL_SILENT[start], len(start)
    while place < len(word):
        size, sound = next_sound(word, place)
        sounds, place = sounds + sound, place + size
    return stressed(sounds)


def next_sound(word: str, place: int) -> tuple[int, str]:
    """How many letters are read at a place of a word, and as what."""
    for size in (4, 3, 2):
        if word[place : place + size] in CLUSTERS and place + size <= len(word):
            return size, CLUSTERS[word[place : place + size]]
    letter, after = word[place], word[place + 1 : place + 2]
    if letter in CONSONANTS and letter == after:
        return 2, LETTERS[letter]
    if letter == "e" and not after and place > 1 and any(vowel in word[:place] for vowel in LONG):
        return 1, ""
    if letter in "cg" and after and after in "eiy":
        return 1, "s" if letter == "c" else "ʤ"
    if letter == "y" and place == 0:
        return 1, "j"
    is_last = place == len(word) - 1
    silent_e = word[place + 2 :] == "e" and after in CONSONANTS
    open_end = is_last and letter in "oiu"
    if letter in LONG and (silent_e or open_end):
        return 1, LONG[letter]
    if letter == "a" and is_last:
        return 1, "ə"
    return 1, LETTERS[letter]


def stressed(sounds: str) -> str:
    """Sounds with the primary stress before their first vowel that is not a schwa, else before any vowel."""
    for vowels in (VOWELS - set("əᵊᵻ"), VOWELS):
        for place, sound in enumerate(sounds):
            if sound in vowels:
                return f"{sounds[:place]}ˈ{sounds[place:]}"
    return sounds


def with_ending(stem: str, ending: str) -> str:
    """A stem's sounds with "s", "ed" or "ing", as they are said after it.

    Usage: `with_ending("wˈɔk", "ed")  # "wˈɔkt"`
    """
    if ending == "ing":
        return stem + "ɪŋ"
    if ending == "s":
        return stem + ("ᵻz" if stem[-1] in HISSING else "s" if stem[-1] in VOICELESS else "z")
    return stem + ("ᵻd" if stem[-1] in "td" else "t" if stem[-1] in VOICELESS + "sʃʧ" else "d")
