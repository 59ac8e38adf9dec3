"""The report of the training corpus: documents, megabytes, tokens and licences by source."""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from .data_shards import SPLITS, Amount
from .data_sources import Package

DERIVED = ("_functions", "_docs")


def write_report(
    amounts: dict[str, dict[str, Amount]], packages: Iterable[Package], folder: Path, vocab_size: int | None = None
) -> Path:
    """Write data_report.json and data_report.md into the folder; return the path of the latter.

    `vocab_size` is that of the tokenizer which counted the tokens, if one did.
    """
    chosen = [package for package in packages if package.kind == "corpus"]
    sources = {source: describe(source, splits, chosen) for source, splits in sorted(amounts.items())}
    folder.mkdir(parents=True, exist_ok=True)
    report = {"vocab_size": vocab_size, "sources": sources, "total": totals(amounts)}
    (folder / "data_report.json").write_text(json.dumps(report, indent=1) + "\n")
    path = folder / "data_report.md"
    path.write_text(markdown(sources, totals(amounts), vocab_size))
    return path


def describe(source: str, splits: dict[str, Amount], packages: list[Package]) -> dict:
    """Amounts of a source by split, with its licences and packages."""
    origin = source
    for ending in DERIVED:
        origin = origin.removesuffix(ending)
    given = [package for package in packages if package.source == origin]
    return {
        "licences": sorted({name for package in given for name in re.split(" AND | OR ", package.licence)}),
        "packages": [f"{package.registry}:{package.name}=={package.version}" for package in given],
        "splits": {split: asdict(amount) for split, amount in splits.items()},
    }


def totals(amounts: dict[str, dict[str, Amount]]) -> dict[str, dict[str, int | None]]:
    """Amounts by split over all sources; tokens are None where nobody counted them."""
    result = {}
    for split in SPLITS:
        parts = [splits[split] for splits in amounts.values() if split in splits]
        tokens = [part.tokens for part in parts if part.tokens is not None]
        result[split] = {
            "documents": sum(part.documents for part in parts),
            "bytes": sum(part.bytes for part in parts),
            "tokens": sum(tokens) if len(tokens) == len(parts) else None,
        }
    return result


def markdown(sources: dict[str, dict], total: dict[str, dict[str, int | None]], vocab_size: int | None) -> str:
    """The same as a table a person reads."""
    counted = (
        ""
        if vocab_size is None
        else f" Tokens are those of a vocabulary of {vocab_size:,}, ends of documents included."
    )
    lines = [
        "# Training corpus",
        "",
        f"Written by `make data` (`examples/prepare_data.py`). MB: 10^6 bytes of UTF-8, after deduplication.{counted}",
        "",
        "| source | licences | documents | train MB | validation MB | test MB | train tokens |",
        "|---|---|---|---|---|---|---|",
    ]
    for source, facts in sources.items():
        lines.append(row(source, ", ".join(facts["licences"]), facts["splits"]))
    lines.append(row("**all**", "", total))
    return "\n".join(lines) + "\n"


def row(name: str, licences: str, splits: dict[str, dict[str, int | None]]) -> str:
    """One line of the table."""
    documents = sum(split["documents"] or 0 for split in splits.values())
    sizes = [f"{(splits.get(split, {}).get('bytes') or 0) / 1e6:.2f}" for split in ("train", "validation", "test")]
    tokens = splits.get("train", {}).get("tokens")
    counted = "" if tokens is None else f"{tokens:,}"
    return f"| {name} | {licences} | {documents:,} | {' | '.join(sizes)} | {counted} |"
