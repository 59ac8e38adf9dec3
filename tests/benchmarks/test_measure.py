"""Intervals, tables and results files."""

import json
import math
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from measure import Mean, cell, environment, held_out, interleaved_seconds, machine, markdown_table, report

numbers = st.floats(-1e3, 1e3)


@given(st.lists(numbers, min_size=2, max_size=20), numbers)
def test_shifting_values_shifts_the_mean_and_keeps_the_interval(values: list[float], shift: float) -> None:
    before, after = Mean.of(values), Mean.of([value + shift for value in values])
    assert after.value == pytest.approx(before.value + shift, abs=1e-6)
    assert after.half_width == pytest.approx(before.half_width, abs=1e-6)


def test_four_times_the_values_halve_the_interval() -> None:
    values = [0.0, 1.0] * 50
    assert Mean.of(values * 4).half_width == pytest.approx(Mean.of(values).half_width / 2, rel=0.01)


def test_too_few_values_have_no_interval() -> None:
    assert math.isinf(Mean.of([1.0]).half_width)
    assert math.isnan(Mean.of([]).value)


@given(st.text(alphabet="ab|\n", max_size=8))
def test_a_table_has_a_line_per_row_and_the_same_cells_in_each(value: str) -> None:
    lines = markdown_table([{"x": value, "y": 1.0}, {"x": "a", "y": 2}]).split("\n")
    assert len(lines) == 4
    assert {line.replace("\\|", "").count("|") for line in lines} == {3}


@given(st.floats(1e-3, 1e6))
def test_a_cell_keeps_four_digits(value: float) -> None:
    assert float(cell(value)) == pytest.approx(value, rel=1e-3)


def test_a_slower_function_takes_longer() -> None:
    taken = interleaved_seconds({"quick": lambda: None, "slow": lambda: time.sleep(0.02)}, repeats=3)
    assert taken["slow"] >= 0.02 > taken["quick"]


def test_a_report_is_written_twice_and_names_no_path(tmp_path: Path) -> None:
    rows = [{"what": "a", "mean": Mean.of([1.0, 2.0])}]
    report("example", {"Title": rows}, {"seed": 0}, ["A note."], tmp_path)
    content = json.loads((tmp_path / "example.json").read_text())
    assert content["tables"]["Title"][0]["mean"]["value"] == 1.5
    text = (tmp_path / "example.md").read_text()
    assert "| a | 1.50 ±" in text and "A note." in text
    assert str(tmp_path) not in text and str(Path.home()) not in text


def test_the_machine_is_described_without_its_name() -> None:
    described = {**machine(), **environment()}
    assert described["cores"] >= 1
    assert not any("/" in str(value) and "home" in str(value) for value in described.values())


def test_no_held_out_documents_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="test split"):
        held_out(tmp_path, "text")
