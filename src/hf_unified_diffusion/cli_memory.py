"""`hf-unified-diffusion memory`: add, search, list, forget, export and stats on the command line."""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .codecs.pictures import from_file
from .conditioning.score_network_encoder import ScoreNetworkEncoder
from .engine import opened
from .modeling.embedded import EMBEDDED_CHECKPOINT

if TYPE_CHECKING:
    from .memory import Memory


def add_memory(commands: Any) -> None:
    """The arguments of `memory` and its actions."""
    subparser = commands.add_parser("memory", help=memory.__doc__, description=memory.__doc__)
    actions = subparser.add_subparsers(required=True, metavar="action")
    for action in ACTIONS:
        parser = actions.add_parser(action.__name__.rstrip("_"), help=action.__doc__, description=action.__doc__)
        parser.add_argument("folder", type=Path, help="of the memory")
        parser.add_argument("--namespace", default="default", help="whose memory (default: %(default)s)")
        parser.add_argument("--json", action="store_true", help="print JSON, one object a line")
        parser.set_defaults(command=memory, action=action)
        if action in (add, search):
            parser.add_argument("texts", nargs="*", help="default: the lines of standard input")
            parser.add_argument("--checkpoint", default=str(EMBEDDED_CHECKPOINT), help="whose embeddings")
        if action is add:
            parser.add_argument("--source", default="command line", help="where they come from")
            parser.add_argument(
                "--image", type=Path, action="append", help="a picture that a text is the caption of; one for each text"
            )
            parser.add_argument("--quarantine", action="store_true", help="not to be recalled before they are trusted")
        if action is search:
            parser.add_argument("-k", type=int, default=5, help="how many (default: %(default)s)")
        if action is forget:
            parser.add_argument("ids", nargs="*", type=int)
            parser.add_argument("--all", action="store_true", help="the whole namespace")
        if action is export:
            parser.add_argument("file", type=Path, help="a Parquet file to write")


def memory(chosen: argparse.Namespace) -> None:
    """Remember, find and forget texts and pictures in a folder."""
    chosen.action(chosen)


def add(chosen: argparse.Namespace) -> None:
    """Remember texts, or pictures by their captions; prints their ids."""
    texts = texts_of(chosen)
    told: dict[str, Any] = {"source": chosen.source, "status": "quarantine" if chosen.quarantine else "active"}
    payloads: list[Any] = texts
    if chosen.image is not None:
        if len(chosen.image) != len(texts):
            raise ValueError(f"image must be given once for each text ({len(texts)}), got {len(chosen.image)}")
        payloads = [from_file("image", path, channels=3) for path in chosen.image]
        told |= {"captions": texts, "modality": "image"}
    with opened(chosen.folder, ScoreNetworkEncoder.from_pretrained(chosen.checkpoint)) as storage:
        for row_id, text in zip(storage.add(chosen.namespace, payloads, **told), texts, strict=True):
            show(chosen, {"id": row_id, "text": text}, str(row_id))


def search(chosen: argparse.Namespace) -> None:
    """Print the memories nearest to each text: id, score and text."""
    texts = texts_of(chosen)
    with opened(
        existing(chosen.folder), ScoreNetworkEncoder.from_pretrained(chosen.checkpoint), read_only=True
    ) as storage:
        for text in texts:
            show_memories(chosen, storage.search(chosen.namespace, text, chosen.k))


def list_(chosen: argparse.Namespace) -> None:
    """Print all memories: id, status and text."""
    with opened(existing(chosen.folder), read_only=True) as storage:
        show_memories(chosen, storage.memories(chosen.namespace))


def forget(chosen: argparse.Namespace) -> None:
    """Really remove memories by id, or all of a namespace."""
    if bool(chosen.ids) == chosen.all:
        raise ValueError(f"forget needs ids or --all, got {chosen.ids or 'neither'}{' and --all' * chosen.all}")
    with opened(existing(chosen.folder)) as storage:
        count = storage.forget(chosen.namespace, None if chosen.all else chosen.ids)
    show(chosen, {"forgotten": count}, f"forgotten  {count}")


def export(chosen: argparse.Namespace) -> None:
    """Write a namespace to a Parquet file."""
    with opened(existing(chosen.folder), read_only=True) as storage:
        count = storage.export(chosen.namespace, chosen.file)
    show(chosen, {"exported": count}, f"exported  {count}")


def stats(chosen: argparse.Namespace) -> None:
    """Print counts of a namespace."""
    with opened(existing(chosen.folder), read_only=True) as storage:
        counts = storage.stats(chosen.namespace)
    show(chosen, counts, "\n".join(f"{name:<20} {value}" for name, value in counts.items()))


ACTIONS = (add, search, list_, forget, export, stats)


def texts_of(chosen: argparse.Namespace) -> list[str]:
    """The texts on the command line, or the lines of standard input that are not empty."""
    texts = chosen.texts or [line for line in sys.stdin.read().splitlines() if line.strip()]
    if not texts:
        raise ValueError("texts must be given as arguments or on standard input, got none")
    return texts


def existing(folder: Path) -> Path:
    """The folder, if there is one; raises ValueError where there is none."""
    if not folder.is_dir():
        raise ValueError(f"folder must hold a memory, got {str(folder)!r}")
    return folder


def show_memories(chosen: argparse.Namespace, memories: Iterable["Memory"]) -> None:
    """Print memories; of pictures and sounds, that they are, and their captions."""
    for one in memories:
        caption = one.metadata.get("caption", "")
        text = one.payload if isinstance(one.payload, str) else f"({one.modality}) {caption}".rstrip()
        rank = one.status if one.score is None else f"{one.score:.3f}"
        facts = {"id": one.id, "text": text, "status": one.status, "score": one.score, "source": one.source}
        show(chosen, {**facts, "metadata": dict(one.metadata)}, f"{one.id}\t{rank}\t{text}")


def show(chosen: argparse.Namespace, facts: dict[str, Any], line: str) -> None:
    """Print one result, as JSON where that was asked for."""
    print(json.dumps(facts, ensure_ascii=False) if chosen.json else line)
