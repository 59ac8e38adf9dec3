"""The log of a run: one JSON record a line, each step once."""

import json
from collections.abc import Mapping
from pathlib import Path


def append_record(path: Path, record: Mapping[str, float]) -> None:
    """Write one more line."""
    with path.open("a") as log:
        log.write(json.dumps(record) + "\n")


def read_records(path: Path) -> list[dict[str, float]]:
    """All records, oldest first; a last line that a crash cut off is left out.

    Usage: `[record["text/loss"] for record in read_records(Path("runs/edge/log.jsonl")) if "text/loss" in record]`
    """
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def forget_after(path: Path, step: int) -> None:
    """Drop the records of steps later than `step`, which a resumed run takes again."""
    if not path.exists():
        return
    kept = [record for record in read_records(path) if record["step"] <= step]
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(record) + "\n" for record in kept))
    partial.replace(path)
