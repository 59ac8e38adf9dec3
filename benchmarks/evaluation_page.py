"""The report as one HTML file: the table, two plots, samples and pictures, nothing loaded from elsewhere."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import matplotlib

matplotlib.use("agg")
from figures import Tables
from matplotlib import pyplot as plt
from measure import Row, cell

STYLE = (
    "body{font:15px/1.4 sans-serif;max-width:75em;margin:2em auto;padding:0 1em}table{border-collapse:collapse}"
    "td,th{border:1px solid #ccc;padding:.2em .5em;text-align:left;vertical-align:top}"
    "pre{margin:0;white-space:pre-wrap}.missed{background:#fbd5d0}.met{background:#d6f0d8}img{max-width:100%}"
)


def page(
    lines: Sequence[Row],
    work: Sequence[Row],
    notes: Sequence[str],
    samples: Mapping[str, tuple[Sequence[str], Tables]],
    pictures: Sequence[Path],
) -> str:
    """The whole page. `samples`: benchmark -> (beginnings of the titles to show, its tables)."""
    parts = ["<h1>Evaluation</h1>", *(f"<p>{escape(note)}</p>" for note in notes)]
    parts += ["<h2>Figures against their floors</h2>", drawn(floor_ratios(lines), "times better than the floor", 1.0)]
    parts += ["<h2>From the control to the ceiling</h2>", drawn(ceiling_shares(lines), "0: control, 1: ceiling", 1.0)]
    parts += ["<h2>Figures</h2>", table(lines), "<h2>Benchmarks</h2>", table(work)]
    for name, (titles, tables) in samples.items():
        for title, rows in tables.items():
            if title.startswith(tuple(titles)):
                parts += [f"<h2>{escape(name)}: {escape(title)}</h2>", table(rows)]
    parts += [f"<h2>{escape(file.stem)}</h2>{embedded(file.read_bytes())}" for file in pictures]
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Evaluation</title><style>{STYLE}</style>'
    return head + "\n".join(part for part in parts if part) + "</html>\n"


def table(rows: Sequence[Row]) -> str:
    """Rows as an HTML table; a line whose floor is met or missed is coloured."""
    if not rows:
        return ""
    columns = list(rows[0])
    body = "".join(
        f'<tr class="{escape(str(row.get("floor met", "")))}">'
        + "".join(f"<td><pre>{escape(shown(row[name]))}</pre></td>" for name in columns)
        + "</tr>"
        for row in rows
    )
    return f"<table><tr>{''.join(f'<th>{escape(name)}</th>' for name in columns)}</tr>{body}</table>"


def shown(value: object) -> str:
    """A cell: numbers as in Markdown, texts with their line breaks."""
    return value if isinstance(value, str) else cell(value)


def floor_ratios(lines: Sequence[Row]) -> dict[str, float]:
    """How many times better than its floor a figure is, where both are positive."""
    ratios = {}
    for line in lines:
        value, floor = line["value"], line["floor"]
        if isinstance(value, float) and isinstance(floor, float) and value > 0 and floor > 0:
            ratios[str(line["figure"])] = value / floor if line["better"] == "higher" else floor / value
    return ratios


def ceiling_shares(lines: Sequence[Row]) -> dict[str, float]:
    """Where a figure stands between its control (0) and its ceiling (1)."""
    shares = {}
    for line in lines:
        value, ceiling, control = line["value"], line["ceiling"], line["control"]
        if (
            isinstance(value, float)
            and isinstance(ceiling, float)
            and isinstance(control, float)
            and ceiling != control
        ):
            shares[str(line["figure"])] = (value - control) / (ceiling - control)
    return shares


def drawn(values: Mapping[str, float], label: str, mark: float) -> str:
    """Horizontal bars with a line at `mark`, as an embedded picture; nothing for no values."""
    if not values:
        return ""
    figure, panel = plt.subplots(figsize=(11, 0.8 + 0.28 * len(values)), layout="constrained")
    names = list(values)[::-1]
    panel.barh(
        names, [values[name] for name in names], color=["#4a7" if values[name] >= mark else "#c65" for name in names]
    )
    if max(values.values()) > 20 * mark:
        panel.set_xscale("log")
    panel.axvline(mark, color="black", linewidth=1)
    panel.set_xlabel(label)
    panel.tick_params(labelsize=8)
    with io.BytesIO() as stream:
        figure.savefig(stream, dpi=100)
        plt.close(figure)
        return embedded(stream.getvalue())


def embedded(png: bytes) -> str:
    """A PNG inside the page."""
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
