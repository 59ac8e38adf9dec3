"""The report and its gate, on a table of benchmarks that take milliseconds."""

import json
from pathlib import Path

import evaluate
import pytest
from evaluation_page import ceiling_shares, floor_ratios, page
from figure_table import FIGURES, JOBS
from figures import At, Figure, Job, Source, exact, interval, number, relative, share_of
from hypothesis import given
from hypothesis import strategies as st

RECORDED = evaluate.HERE / "results"
# A benchmark: what `value.txt` beside it says, and half of it as control; --fail ends it badly.
SCRIPT = """
import argparse, json, pathlib
parser = argparse.ArgumentParser()
parser.add_argument("--output", type=pathlib.Path)
parser.add_argument("--fail", action="store_true")
parser.add_argument("--checkpoint")
args = parser.parse_args()
if args.fail:
    raise SystemExit("the disk is on fire")
value = float(pathlib.Path(__file__).with_name("value.txt").read_text())
rows = [{"what": "ours", "mean": {"value": value, "half_width": 0.1, "count": 9}, "share": 0.5, "cases": 100},
        {"what": "control", "mean": {"value": value / 2, "half_width": 0.1, "count": 9}, "share": 0.1, "cases": 100}]
args.output.mkdir(parents=True, exist_ok=True)
samples = [{"text": "<b>once upon</b>"}]
(args.output / "toy.json").write_text(json.dumps({"tables": {"Results": rows, "Samples": samples}}))
"""
MEANS = Source("toy", "Results", "higher", interval("mean"), "9.2")
TOY = (
    MEANS.figure("the mean", {"what": "ours"}, "mean", 1.0, 4.0, {"what": "control"}),
    MEANS.figure("nowhere", {"what": "theirs"}, "mean", 1.0),
    Figure("the share", "toy", At("Results", {"what": "ours"}, "share"), "lower", share_of("cases"), "9.2"),
    Source("other", "Results", "higher", exact, "9.2").figure("needs data", {}, "mean", 1.0),
)


@pytest.fixture
def toy(tmp_path: Path):
    script = tmp_path / "toy.py"
    script.write_text(SCRIPT)

    def measure(value: float, *arguments: str, output: str = "report", job: Job | None = None) -> int:
        (tmp_path / "value.txt").write_text(str(value))
        jobs = {"toy": job or Job(str(script), samples=("Samples",)), "other": Job(str(script), needs=("no/such",))}
        return evaluate.main([*arguments, "--output", str(tmp_path / output)], jobs, TOY)

    return measure


def lines_of(folder: Path) -> dict[str, dict]:
    content = json.loads((folder / "evaluation.json").read_text())
    return {line["figure"]: line for line in content["tables"]["Figures"]}


def test_the_report_has_value_noise_ends_and_floor(toy, tmp_path: Path) -> None:
    assert toy(2.0) == 0
    mean, nowhere, share, needs = lines_of(tmp_path / "report").values()
    assert (mean["value"], mean["noise"], mean["floor"]) == (2.0, 0.1, 1.0)
    assert (mean["ceiling"], mean["control"], mean["floor met"]) == (4.0, 1.0, "met")
    assert nowhere["floor met"] == needs["floor met"] == "not measured"
    assert share["floor met"] == "no floor" and 0.09 < share["noise"] < 0.11
    content = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    assert content["tables"]["Benchmarks"][1]["state"] == "not run: needs no/such"
    assert "| the mean | toy | 9.2 | 2 |" in (tmp_path / "report" / "evaluation.md").read_text()
    shown = (tmp_path / "report" / "evaluation.html").read_text()
    assert "&lt;b&gt;once upon&lt;/b&gt;" in shown and "<b>once" not in shown
    assert "data:image/png;base64," in shown and "http" not in shown


def test_a_missed_floor_is_said_and_is_no_failure(toy, tmp_path: Path) -> None:
    assert toy(0.5) == 0
    assert lines_of(tmp_path / "report")["the mean"]["floor met"] == "missed"


@pytest.mark.parametrize(("after", "code"), [(1.95, 0), (1.85, 1), (3.0, 0)])
def test_the_gate_fails_on_what_falls_by_more_than_its_noise(
    toy, tmp_path: Path, after: float, code: int, capsys
) -> None:
    toy(2.0, output="before")
    capsys.readouterr()
    assert toy(after, "--gate", str(tmp_path / "before" / "evaluation.json")) == code
    assert ("the mean: 2 -> 1.85" in capsys.readouterr().err) == bool(code)


def test_the_gate_may_be_the_report_that_is_replaced(toy, tmp_path: Path) -> None:
    toy(2.0)
    assert toy(1.0, "--gate", str(tmp_path / "report" / "evaluation.json")) == 1


def test_the_gate_fails_on_a_figure_that_is_no_longer_measured(toy, tmp_path: Path, capsys) -> None:
    toy(2.0, output="before")
    file = tmp_path / "before" / "evaluation.json"
    content = json.loads(file.read_text())
    content["tables"]["Figures"][1] |= {"value": 1.0, "noise": 0.0}
    file.write_text(json.dumps(content))
    assert toy(2.0, "--gate", str(file)) == 1
    assert "nowhere: was 1, is not measured" in capsys.readouterr().err


def test_benchmarks_that_were_not_asked_for_do_not_fail_the_gate(toy, tmp_path: Path) -> None:
    toy(2.0, output="before")
    assert toy(1.0, "--only", "other", "--gate", str(tmp_path / "before" / "evaluation.json")) == 0


def test_a_gate_of_another_setting_or_another_file_is_refused(toy, tmp_path: Path, capsys) -> None:
    toy(2.0, output="before")
    for gate in (tmp_path / "before" / "evaluation.json", tmp_path / "before" / "toy" / "toy.json", tmp_path / "none"):
        with pytest.raises(SystemExit) as end:
            toy(2.0, "--quick", "--gate", str(gate))
        assert end.value.code == 2
    errors = capsys.readouterr().err
    assert "gate must be of the setting 'quick', got 'full'" in errors
    assert "without figures" in errors and "gate must exist" in errors


def test_a_benchmark_that_fails_is_reported_and_fails_the_run(toy, tmp_path: Path, capsys) -> None:
    toy(2.0)  # its result must not be read again
    assert toy(2.0, job=Job(str(tmp_path / "toy.py"), full=("--fail",))) == 1
    assert "toy failed: the disk is on fire" in capsys.readouterr().err
    assert lines_of(tmp_path / "report")["the mean"]["floor met"] == "not measured"


def test_what_has_no_quick_setting_is_left_out_of_it(toy, tmp_path: Path) -> None:
    assert toy(2.0, "--quick", job=Job(str(tmp_path / "toy.py"), quick=None)) == 0
    assert lines_of(tmp_path / "report")["the mean"]["value"] == ""


def test_recorded_results_are_read_and_nothing_is_run(toy, tmp_path: Path) -> None:
    toy(2.0, output="before")
    assert toy(9.0, "--recorded", str(tmp_path / "before" / "toy")) == 0
    assert lines_of(tmp_path / "report")["the mean"]["value"] == 2.0


def test_figures_are_named_once_and_belong_to_a_job_whose_script_knows_its_arguments() -> None:
    assert len({figure.name for figure in FIGURES}) == len(FIGURES)
    assert {figure.job for figure in FIGURES} == set(JOBS)
    for job in JOBS.values():
        sources = (evaluate.HERE / job.script).read_text() + (evaluate.HERE / "measure.py").read_text()
        given = [argument for argument in (*job.full, *(job.quick or ())) if argument.startswith("--")]
        assert all(f'"{argument.replace("--no-", "--")}"' in sources for argument in given)


def test_every_figure_of_a_recorded_benchmark_is_found_where_the_table_says() -> None:
    outcomes = {name: evaluate.recorded(name, RECORDED) for name in JOBS}
    measured = [figure for figure in FIGURES if outcomes[figure.job].tables]
    titles = [*(title for outcome in outcomes.values() for title in outcome.tables)]
    lost = [
        figure.name
        for figure in measured
        if figure.at.find(outcomes[figure.job].tables) is None
        and any(title.startswith(figure.at.table) for title in titles)  # a part may have been left out
    ]
    assert lost == [] and len(measured) > 40
    lines = [evaluate.line_of(figure, outcomes[figure.job]) for figure in measured]
    assert all(line["noise"] >= 0 for line in lines if line["value"] != "")


@given(st.floats(-1e6, 1e6))
def test_numbers_are_read_from_cells_means_and_percentages(value: float) -> None:
    assert number(value) == number({"value": value, "half_width": 1.0}) == value
    assert number(f"{value}%") == pytest.approx(value / 100)


@pytest.mark.parametrize("cell", ["", "text", None, float("nan")])
def test_other_cells_are_no_numbers(cell: object) -> None:
    assert number(cell) is None


@given(st.floats(0.1, 10), st.floats(0.1, 10))
def test_plots_say_better_the_same_way_for_both_directions(value: float, floor: float) -> None:
    line = {"figure": "x", "value": value, "floor": floor, "ceiling": "", "control": ""}
    (higher,), (lower,) = (floor_ratios([{**line, "better": way}]).values() for way in ("higher", "lower"))
    assert higher * lower == pytest.approx(1) and (higher >= 1) == (value >= floor)
    ends = {**line, "better": "lower", "ceiling": value, "control": value + floor}
    assert ceiling_shares([ends])["x"] == pytest.approx(1)


def test_a_report_of_nothing_is_a_page() -> None:
    assert page([], [], ["nothing was measured"], {}, []).endswith("</html>\n")


def test_noise_of_a_share_shrinks_with_the_cases_and_is_never_nothing() -> None:
    few, many = (share_of("n")({"n": n}, 1.0) for n in (20, 2000))
    assert few > many > 0
    assert relative(0.1)({}, -5.0) == 0.5
