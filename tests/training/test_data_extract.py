"""Laws of the prose readers, on tiny real files of each format."""

import gzip
import struct
import zlib

import pytest

from hf_unified_diffusion.training.data_document import batches, is_prose
from hf_unified_diffusion.training.data_extract import EXTRACTORS, gloss, html_text, sword_text
from hf_unified_diffusion.training.data_sources import Package, load_packages

SENTENCE = "The quick brown fox jumps over the lazy dog, and then it runs home to tell its four children about it."


def package(extract: str) -> Package:
    return Package("debian", "fox", "1", "fox.deb", "0" * 64, "MIT", "prose_fox", extract=extract)


def read(extract: str, files: dict[str, bytes]) -> list[str]:
    return [document.text for document in EXTRACTORS[extract](package(extract), files.items())]


@pytest.mark.parametrize(
    "fragment",
    [SENTENCE[:60], "x" * 100 + ".", SENTENCE[:-1], "1 2 3 4 5 6 7 8 9 " * 9 + ".", SENTENCE.replace("e", "é")],
)
def test_fragments_and_tables_are_not_prose(fragment):
    assert is_prose(SENTENCE)
    assert not is_prose(fragment) or fragment == "x" * 100 + "."


def test_html_keeps_sentences_under_their_headings_and_nothing_else():
    page = f"""<html><head><title>No</title></head><body><nav><p>{SENTENCE} Navigation.</p></nav>
    <h1>1.2. Foxes<a href="#x">¶</a></h1><p>{SENTENCE.replace("fox", "<b>fox</b>")}</p>
    <h2>Empty</h2><pre>{SENTENCE} Code.</pre><p>Short.</p><script>"{SENTENCE} Script."</script>
    <h2>More &amp; more</h2><ul><li>{SENTENCE} Listed.<li><p>{SENTENCE} Unclosed.</p></ul></body></html>"""
    assert html_text(page) == "\n\n".join(
        ["Foxes", SENTENCE, "More & more", f"{SENTENCE} Listed.", f"{SENTENCE} Unclosed."]
    )


def test_html_compressed_or_not_reads_the_same_and_index_pages_are_left_out():
    page = ("<p>" + SENTENCE * 4 + "</p>").encode()
    plain = read("html", {"a.html": page})
    assert len(plain) == 1
    assert read("html", {"a.html.gz": gzip.compress(page), "index.html": b"<p>See A.</p>"}) == plain


def test_plain_text_is_reflowed_into_paragraphs():
    assert read("plain", {"a.txt": b"\xef\xbb\xbfOne\nline\r\n\r\n\r\nTwo  lines\n"}) == ["One line\n\nTwo lines"]


def test_plays_are_cut_before_each_scene_and_lose_no_line():
    scenes = [
        f"SCENE {number}. A wood.\n" + "".join(f"A line {i} of {number}.\n" for i in range(40))
        for number in ("I", "II")
    ]
    documents = read("play", {"a.txt": "\n".join(scenes).encode()})
    assert [document.splitlines() for document in documents] == [scene.splitlines() for scene in scenes]


def test_dictionary_paragraphs_follow_their_headword():
    text = f"fox\n /foks/, n.\n\n    {SENTENCE} See {{dog}}.\n\n    {SENTENCE} Again.\n\n     /\\_/\\\n    ( o.o )\n"
    (document,) = read("dictd", {"a.dict.dz": gzip.compress(text.encode())})
    assert document == f"fox: {SENTENCE} See dog.\n\n{SENTENCE} Again."


def test_wordnet_entries_name_word_class_and_meaning():
    verb = '00001740 29 v 02 breathe 0 take_a_breath 0 001 * 00005041 v 0000 01 + 02 00 | draw air in; "she breathes"  '
    assert gloss(verb) == 'breathe, take a breath (verb): draw air in; "she breathes".'
    name = "00001740 18 n 02 Poe 0 Edgar_Allan_Poe 0 001 @i 00005041 n 0000 | United States writer (1809-1849)  "
    assert gloss(name) == "Edgar Allan Poe (noun): United States writer (1809-1849)."
    licence = "  1 This software and database is being provided to you | the LICENSEE\n"
    rude = verb.replace("draw air in", "an offensive word")
    assert read("wordnet", {"data.verb": (licence + verb + "\n" + rude + "\n").encode()}) == [gloss(verb)]


def sword_module(verses: list[bytes]) -> dict[str, bytes]:
    """The three files of one testament of one book, as the SWORD library lays them out."""
    book = b"".join(verses)
    packed = zlib.compress(book)
    starts = [sum(map(len, verses[:i])) for i in range(len(verses))]
    entries = [(0, start, len(verse)) for start, verse in zip(starts, verses, strict=True)]
    # a comment on two verses is listed twice
    index = b"".join(struct.pack("<IIH", *entry) for entry in [*entries, entries[-1]])
    return {"bzs": struct.pack("<III", 0, len(packed), len(book)), "bzv": index, "bzz": packed}


def test_sword_modules_give_each_verse_once_without_markup():
    verses = [f'<w lemma="x">{SENTENCE}</w><note>A foot note.</note> Verse {i}.'.encode() for i in "ab"]
    files = {f"m/{t}.{ending}": data for t in ("ot", "nt") for ending, data in sword_module(verses).items()}
    assert read("sword", files) == [f"{SENTENCE} Verse a.\n{SENTENCE} Verse b."] * 2
    assert sword_text("As it is written (Jr 49:1-6) , so it was.") == "As it is written, so it was."


def test_every_pinned_package_has_a_reader():
    assert {package.extract for package in load_packages() if package.kind == "corpus"} <= set(EXTRACTORS)


def test_batches_cut_without_loss():
    assert list(batches(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
