"""Readers that turn a package's files into prose documents, one function for each format."""

import gzip
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from html.parser import HTMLParser

from .data_code import python_documents
from .data_document import Document, batches, is_prose, paragraphs, reflow
from .data_sources import Package

Members = Iterable[tuple[str, bytes]]
HEADINGS = frozenset(("h1", "h2", "h3", "h4"))
BLOCKS = HEADINGS | {"article", "blockquote", "body", "br", "dd", "div", "dl", "dt", "li", "ol", "p", "section", "ul"}
SKIPPED = frozenset(("footer", "head", "math", "nav", "pre", "script", "style", "svg", "table"))
VERSES_PER_DOCUMENT = 40
SYNSETS_PER_DOCUMENT = 16
PARAGRAPHS_PER_DOCUMENT = 16
INSULTS = re.compile(r"\b(slurs?|offensive|obscene|vulgar|derogatory|disparaging|disparagement|anal|sexual)\b")
PART_OF_SPEECH = {"n": "noun", "v": "verb", "a": "adjective", "s": "adjective", "r": "adverb"}


class ParagraphParser(HTMLParser):
    """Collects (is_heading, text) of an HTML page's block elements, leaving out code, tables and navigation."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[tuple[bool, str]] = []
        self._pieces: list[str] = []
        self._skipping: list[str] = []
        self._heading = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in SKIPPED:
            self._skipping.append(tag)
        if tag in BLOCKS:
            self._flush()
            self._heading = tag in HEADINGS

    def handle_endtag(self, tag: str) -> None:
        if tag in self._skipping:
            # an unclosed inner element ends with the outer one
            del self._skipping[self._skipping.index(tag) :]
        if tag in BLOCKS:
            self._flush()
            self._heading = False

    def handle_data(self, data: str) -> None:
        if not self._skipping:
            self._pieces.append(data)

    def close(self) -> None:
        super().close()
        self._flush()

    def _flush(self) -> None:
        text = reflow("".join(self._pieces).replace("¶", "").replace("\u200b", ""))
        if text:
            self.blocks.append((self._heading, text))
        self._pieces = []


def html_text(page: str) -> str:
    """The prose of an HTML page: whole sentences, under the headings that have any."""
    parser = ParagraphParser()
    parser.feed(page)
    parser.close()
    kept: list[str] = []
    heading = ""
    for is_heading, text in parser.blocks:
        if is_heading:
            heading = re.sub(r"^([A-Z]?[\d.]+|Chapter \d+)[.:]?\s+", "", text)
        elif is_prose(text):
            if heading and len(heading) < 80:
                kept.append(heading)
            heading = ""
            kept.append(text)
    return "\n\n".join(kept)


def html_documents(package: Package, files: Members) -> Iterator[Document]:
    """One document a page; pages that hold less than 300 characters of prose are indexes and are left out."""
    for name, content in files:
        page = gzip.decompress(content) if name.endswith(".gz") else content
        text = html_text(page.decode("utf-8", errors="replace"))
        if len(text) >= 300:
            yield prose(package, name, text)


def plain_documents(package: Package, files: Members) -> Iterator[Document]:
    """One document a text file; paragraphs are put on one line, short ones (titles, salutations) stay."""
    for name, content in files:
        kept = paragraphs(content.decode("utf-8-sig", errors="replace"))
        if kept:
            yield prose(package, name, "\n\n".join(kept))


def play_documents(package: Package, files: Members) -> Iterator[Document]:
    """One document a scene; the lines of verse stay as they are."""
    for name, content in files:
        text = content.decode("utf-8-sig", errors="replace").replace("\r\n", "\n")
        for number, scene in enumerate(re.split(r"\n(?=\s*SCENE [IVXL]+\b)", text)):
            tidy = re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in scene.split("\n"))).strip()
            if len(tidy) >= 300:
                yield prose(package, f"{name}:{number}", tidy)


def dictd_documents(package: Package, files: Members) -> Iterator[Document]:
    """Runs of entries of a dictd dictionary, their paragraphs of prose after the word they explain."""
    for name, content in files:
        text = gzip.decompress(content).decode("utf-8", errors="replace")
        for number, group in enumerate(batches(entry_paragraphs(text), PARAGRAPHS_PER_DOCUMENT)):
            yield prose(package, f"{name}:{number}", "\n\n".join(group))


def entry_paragraphs(text: str) -> Iterator[str]:
    """The prose of a dictionary; a short line at the margin is a headword and goes before the paragraph it heads."""
    headword = ""
    for block in re.split(r"\n\s*\n", re.sub(r"[{}]", "", text)):
        paragraph = reflow(block)
        if is_prose(paragraph):
            yield f"{headword}: {paragraph}" if headword else paragraph
            headword = ""
        elif block[:1].isalnum():
            headword = block.split("\n")[0] if len(paragraph) < 80 else ""


def wordnet_documents(package: Package, files: Members) -> Iterator[Document]:
    """WordNet's definitions and examples, `word (noun): gloss.`, 16 neighbouring ones to a document."""
    for name, content in files:
        # the first lines, indented, are the licence
        lines = (line for line in content.decode("utf-8").splitlines() if line[:1] != " ")
        for number, group in enumerate(batches(lines, SYNSETS_PER_DOCUMENT)):
            yield prose(
                package, f"{name}:{number}", "\n".join(gloss(line) for line in group if not INSULTS.search(line))
            )


def gloss(line: str) -> str:
    """One line of a WordNet data file as a dictionary entry of at most three synonyms."""
    fields, _, meaning = line.partition("|")
    columns = fields.split()
    count = int(columns[3], 16)
    words = [re.sub(r"\(\w+\)$", "", word).replace("_", " ") for word in columns[4 : 4 + 2 * count : 2]]
    # the synonyms of an instance (@i) are spellings of one name, the last the fullest
    words = words[-1:] if "@i" in columns else words[:3]
    meaning = reflow(meaning)
    return f"{', '.join(words)} ({PART_OF_SPEECH[columns[2]]}): {meaning}{'' if meaning[-1] in '.!?' else '.'}"


def sword_documents(package: Package, files: Members) -> Iterator[Document]:
    """Verses or comments of a compressed SWORD module (zText, zCom), 40 to a document."""
    content = {name.rpartition("/")[2]: data for name, data in files}
    for testament in ("ot", "nt"):
        index = content[f"{testament}.bzs"]
        packed = content[f"{testament}.bzz"]
        books = [zlib.decompress(packed[o : o + n]) for o, n, _ in struct.iter_unpack("<III", index)]
        verses: list[str] = []
        last = (0, 0, 0)
        for entry in struct.iter_unpack("<IIH", content[f"{testament}.bzv"]):
            book, start, length = entry
            if entry == last or not length:
                # a comment on several verses is listed once for each of them
                continue
            last = entry
            verse = sword_text(books[book][start : start + length].decode("utf-8", errors="replace"))
            if len(verse) >= 20:
                verses.append(verse)
        for number, group in enumerate(batches(verses, VERSES_PER_DOCUMENT)):
            yield prose(package, f"{testament}:{number}", "\n".join(group))


def sword_text(markup: str) -> str:
    """A verse without its OSIS markup, titles, footnotes and references such as (Jr 49:1-6)."""
    bare = re.sub(r"(?s)<(note|title)\b[^>]*>.*?</\1>", " ", markup)
    text = re.sub(r"\((?:\d )?\w+ \d+:[\d,; :-]+\)|\bVerses? \d[\d, -]*", " ", re.sub(r"<[^>]+>", "", bare))
    return re.sub(r"\s+([,.;:!?])", r"\1", reflow(text))


def prose(package: Package, name: str, text: str) -> Document:
    """A text document of the package."""
    return Document(f"{package.name}/{name}", package.source, package.licence, "text", text)


EXTRACTORS: dict[str, Callable[[Package, Members], Iterator[Document]]] = {
    "dictd": dictd_documents,
    "html": html_documents,
    "plain": plain_documents,
    "play": play_documents,
    "python": python_documents,
    "sword": sword_documents,
    "wordnet": wordnet_documents,
}
