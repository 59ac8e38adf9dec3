"""Text as it is spoken: numbers in words, words as phonemes, one token each, and what cannot be spoken."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from hf_unified_diffusion.codecs.letter_sounds import VOWELS, letters_to_sounds, with_ending
from hf_unified_diffusion.codecs.phonemes import STAND_INS, SYMBOLS, PhonemeCodec, lexicon, pronounce, sounds_of
from hf_unified_diffusion.codecs.spoken_text import PAUSES, spoken
from hf_unified_diffusion.modeling.embedded import EMBEDDED_CHECKPOINT

READINGS = {
    "Dr. Lee paid $3.50 at 9:05.": "Doctor Lee paid three dollars and fifty cents at nine oh five.",
    "It is 3:00 pm, or 15:00.": "It is three P M, or fifteen o'clock.",
    "In 1984, 2009 and 1900.": "In nineteen eighty four, two thousand nine and nineteen hundred.",
    "The 21st costs $1,200, £2 million, €1.": (
        "The twenty first costs one thousand two hundred dollars, two million pounds, one euro."
    ),
    "Half is 1/2, ½ or 0.5.": "Half is one half, one half or zero point five.",
    "-5°C at 1 km, 3%.": "minus five degrees Celsius at one kilometer, three percent.",
    "The 1990s and the 80s.": "The nineteen nineties and the eighties.",
    "Call 555-0123 for 10-12 men.": "Call five five five, zero one two three for ten to twelve men.",
    "naïve café — “no” it’s": "naive cafe — “no” it's",
    "e.g. the U.S.": "for example the U S.",
}


@pytest.mark.parametrize("text", READINGS)
def test_numbers_money_times_and_abbreviations_are_read_in_words(text):
    assert spoken(text) == READINGS[text]


@given(st.integers(0, 10**15 - 1))
@settings(max_examples=60, deadline=None, database=None)
def test_every_number_is_said_in_words_of_the_lexicon(number):
    words = spoken(f"It is {number} now").split()
    assert all(word in lexicon() for word in words if word != "It")


@given(st.text(alphabet=st.characters(max_codepoint=0x17F), max_size=40))
@settings(max_examples=150, deadline=None, database=None)
@pytest.mark.filterwarnings("ignore:left out of what is spoken")
def test_any_latin_text_is_spoken_in_known_symbols_(text):
    folded = unicodedata.normalize("NFKD", text)
    if not any(letter.isascii() and letter.isalnum() for letter in folded):
        return
    found = pronounce(text)
    assert set(found.symbols) <= set(SYMBOLS)
    assert found.words


def test_emoji_and_control_characters_are_left_out_with_a_warning():
    with pytest.warns(UserWarning, match=r"U\+0007.*U\+1F642"):
        assert spoken("Hi \U0001f642 there\x07!") == "Hi there!"


@pytest.mark.parametrize("text", ["hello 世界", "привет", "αβγ", "हिन्दी"])
def test_letters_of_other_scripts_are_refused_by_name(text):
    with pytest.raises(ValueError, match="Latin letters"):
        spoken(text)


@pytest.mark.parametrize("text", ["", "   ", "...", "?!"])
def test_text_without_a_word_is_refused(text):
    with pytest.raises(ValueError, match="something to speak"):
        spoken(text)


def test_a_pause_alone_of_emoji_is_refused():
    with pytest.warns(UserWarning, match="left out"), pytest.raises(ValueError, match="something to speak"):
        spoken("\U0001f642")


def test_words_mark_their_own_phonemes():
    found = pronounce('The apple, "a test" (no) to eat.')
    assert [word.text for word in found.words] == ["The", "apple", "a", "test", "no", "to", "eat"]
    outside = set(range(len(found.symbols)))
    for word in found.words:
        sound = "".join(found.symbols[word.start : word.end])
        assert sound
        assert not set(sound) & set(PAUSES + " ")
        outside -= set(range(word.start, word.end))
    assert {found.symbols[index] for index in outside} <= set(PAUSES + " ")


def test_articles_and_to_follow_the_next_sound():
    assert str(pronounce("the apple, the pear; to eat, to go")) == "ði ˈæpᵊl, ðə pˈɛɹ; tʊ ˈit, tə ɡˌO"


@pytest.mark.parametrize(
    ("word", "sound"),
    [
        ("blick", "blˈɪk"),
        ("frobs", "fɹˈɑbz"),
        ("HTML", "ˌAʧtˌiˌɛmˈɛl"),
        ("IBM's", "ˌIbˌiˈɛmz"),
        ("NASA", "nˈæsə"),
        ("US", "jˌuˈɛs"),
        ("us", "ˌʌs"),
        ("THE", "ði"),
    ],
)
def test_words_that_no_lexicon_has(word, sound):
    assert sounds_of(word) == sound


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=20))
@settings(max_examples=100, deadline=None, database=None)
def test_rules_read_any_letters_with_one_stress_at_most(word):
    sound = letters_to_sounds(word)
    assert set(sound) <= set(SYMBOLS)
    assert sound.count("ˈ") == (1 if set(sound) & VOWELS else 0)


def test_endings_agree_with_the_lexicon():
    for stem, ending, word in [
        ("bus", "s", "buses"),
        ("cat", "s", "cats"),
        ("need", "ed", "needed"),
        ("jump", "ing", "jumping"),
    ]:
        assert with_ending(lexicon()[stem], ending).replace("ᵻ", "ɪ") == lexicon()[word].replace("ᵻ", "ɪ")


def test_each_symbol_is_one_token_of_the_embedded_tokenizer_and_comes_back():
    codec = PhonemeCodec(AutoTokenizer.from_pretrained(EMBEDDED_CHECKPOINT))
    ids = codec.encode(SYMBOLS)
    assert len(set(ids)) == len(SYMBOLS) == len(STAND_INS)
    assert codec.decode(ids) == list(SYMBOLS)
    with pytest.raises(ValueError, match="phonemes must be among"):
        codec.encode(["a", "世"])
    with pytest.raises(ValueError, match="ids must be of phonemes"):
        codec.decode([0])


def test_the_lexicon_uses_known_symbols_only():
    assert all(sound and set(sound) <= set(SYMBOLS) for sound in lexicon().values())
