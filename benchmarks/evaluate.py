"""One report: run the offline evaluation, put its figures beside ceilings, controls and floors, and gate a change.

    hf-unified-diffusion eval --quick                                  # minutes
    hf-unified-diffusion eval --only generation infilling              # some benchmarks, in full
    hf-unified-diffusion eval --recorded benchmarks/results            # no run: what was measured before
    hf-unified-diffusion eval --quick --gate before/evaluation.json    # exit code 1 when a figure falls

Writes evaluation.json, evaluation.md and evaluation.html (plots and samples) to `--output`, with the result of every
benchmark in a folder of its name. A figure falls when it is worse than before by more than the wider of the two
noises: the half-width of its 95% interval, or a tolerance where it has none (benchmarks/figure_table.py). A benchmark
that fails is reported and ends in exit code 1; one whose data are not there is left out and said to be.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from evaluation_page import page
from figure_table import FIGURES, JOBS
from figures import At, Figure, Job, Tables
from measure import Row, report

ROOT, HERE = Path(__file__).parents[1], Path(__file__).parent
Table = Sequence[Mapping]


@dataclass(frozen=True)
class Outcome:
    """What became of a benchmark: its tables, or why there are none. `failed`: it was run and did not end well."""

    tables: Tables
    state: str
    seconds: float = 0.0
    failed: bool = False


def run(name: str, job: Job, quick: bool, common: Sequence[str], output: Path, root: Path = ROOT) -> Outcome:
    """Run a benchmark in a process of its own, from the root of the checkout, and read its result."""
    arguments = job.quick if quick else job.full
    if arguments is None:
        return Outcome({}, "not in the quick setting")
    missing = [need for need in job.needs if not (root / need).exists()]
    if missing:
        return Outcome({}, f"not run: needs {', '.join(missing)}")
    folder = output.resolve() / name
    command = [sys.executable, str(HERE / job.script), *arguments, *common, "--output", str(folder)]
    result, began = folder / f"{name}.json", perf_counter()
    result.unlink(missing_ok=True)
    done = subprocess.run(command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    seconds = perf_counter() - began
    if done.returncode != 0 or not result.exists():
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return Outcome({}, f"failed: {reason[:300]}", seconds, failed=True)
    return Outcome(json.loads(result.read_text())["tables"], "run", seconds)


def recorded(name: str, folder: Path) -> Outcome:
    """The result that a benchmark has left in a folder."""
    file = folder / f"{name}.json"
    if not file.exists():
        return Outcome({}, "not recorded")
    return Outcome(json.loads(file.read_text())["tables"], "recorded")


def line_of(figure: Figure, outcome: Outcome) -> Row:
    """A figure as a line of the report; its value is "" where there is none, and `floor met` says so."""
    found = figure.at.find(outcome.tables)
    described: dict[str, object] = {"figure": figure.name, "benchmark": figure.job, "line": figure.line}
    ends = {"better": figure.better, "floor": shown(figure.floor, outcome.tables)}
    ends |= {"ceiling": shown(figure.ceiling, outcome.tables), "control": shown(figure.control, outcome.tables)}
    if found is None:
        return {**described, "value": "", "noise": "", **ends, "floor met": "not measured"}
    row, value = found
    met = "no floor" if figure.floor is None else ("met" if meets(value, figure) else "missed")
    return {**described, "value": value, "noise": figure.noise(row, value), **ends, "floor met": met}


def shown(end: At | float | None, tables: Tables) -> float | str:
    """A floor, ceiling or control as a cell."""
    found = end.find(tables) if isinstance(end, At) else (None, end)
    return "" if found is None or found[1] is None else found[1]


def meets(value: float, figure: Figure) -> bool:
    """Whether a value is on the right side of its floor."""
    if figure.floor is None:
        return True
    return value >= figure.floor if figure.better == "higher" else value <= figure.floor


def falls(before: Table, after: Table) -> list[str]:
    """Sentences on the figures that are worse than before by more than their noise, or no longer measured."""
    now, sentences = {line["figure"]: line for line in after}, []
    for old in before:
        if old["value"] == "":
            continue
        new = now.get(old["figure"])
        if new is None or new["value"] == "":
            sentences.append(f"{old['figure']}: was {old['value']:.4g}, is not measured")
            continue
        loss = (old["value"] - new["value"]) * (1 if old["better"] == "higher" else -1)
        noise = max(old["noise"], new["noise"])
        if loss > noise:
            change = f"{old['value']:.4g} -> {new['value']:.4g}"
            sentences.append(f"{old['figure']}: {change}, {loss:.3g} worse with a noise of {noise:.3g}")
    return sentences


def previous(file: Path, setting: str) -> Table:
    """The figures of an earlier report; raises ValueError where it is none, or one of another setting."""
    content = json.loads(file.read_text())
    if "Figures" not in content.get("tables", {}):
        raise ValueError(f"gate must be an evaluation.json of this command, got {file.name!r} without figures")
    if content["settings"]["setting"] != setting:
        raise ValueError(f"gate must be of the setting {setting!r}, got {content['settings']['setting']!r}")
    return content["tables"]["Figures"]


def parse(arguments: Sequence[str] | None, jobs: Sequence[str]) -> argparse.Namespace:
    """The command line; `gate` becomes the figures of that report, `setting` the name of the setting."""
    parser = argparse.ArgumentParser(
        prog="hf-unified-diffusion eval", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="smaller numbers of everything: minutes, wider noise")
    parser.add_argument("--only", nargs="+", choices=jobs, default=jobs, metavar="NAME", help="benchmarks")
    parser.add_argument("--recorded", type=Path, help="a folder of results: make the report of these, run nothing")
    parser.add_argument("--gate", type=Path, help="the evaluation.json that no figure may fall behind")
    parser.add_argument("--checkpoint", type=Path, help="default: the embedded one")
    parser.add_argument("--output", type=Path, default=Path("out/evaluation"))
    args = parser.parse_args(arguments)
    for name, file in (("gate", args.gate), ("recorded", args.recorded), ("checkpoint", args.checkpoint)):
        if file is not None and not file.exists():
            parser.error(f"{name} must exist, got {str(file)!r}")
    args.setting = "recorded" if args.recorded else "quick" if args.quick else "full"
    try:
        args.gate = args.gate and previous(args.gate, args.setting)  # read now: the output may take its place
    except ValueError as error:
        parser.error(str(error))
    return args


def main(
    arguments: Sequence[str] | None = None, jobs: Mapping[str, Job] = JOBS, figures: Sequence[Figure] = FIGURES
) -> int:
    """Run, report, gate. Gives the exit code: 1 where a benchmark failed or a figure fell, else 0."""
    args = parse(arguments, list(jobs))
    common = [] if args.checkpoint is None else ["--checkpoint", str(args.checkpoint.resolve())]
    outcomes: dict[str, Outcome] = {}
    for name in args.only:
        print(f"== {name}", flush=True)
        outcomes[name] = (
            recorded(name, args.recorded) if args.recorded else run(name, jobs[name], args.quick, common, args.output)
        )
        print(f"{outcomes[name].state} ({outcomes[name].seconds:.0f} s)", flush=True)
    lines = [line_of(figure, outcomes[figure.job]) for figure in figures if figure.job in outcomes]
    fell = falls([line for line in args.gate or () if line["benchmark"] in args.only], lines)
    work = [{"benchmark": name, "state": one.state, "seconds": one.seconds} for name, one in outcomes.items()]
    count = {state: sum(line["floor met"] == state for line in lines) for state in ("met", "missed", "not measured")}
    notes = [
        f"Floors: {count['met']} met, {count['missed']} missed; {count['not measured']} figures not measured.",
        "Noise: half-width of the 95% interval, or a tolerance (benchmarks/figure_table.py).",
        *(
            ["Fell since the report it is gated by: " + ("; ".join(fell) or "nothing") + "."]
            if args.gate is not None
            else []
        ),
    ]
    settings = {"setting": args.setting, "checkpoint": "embedded" if args.checkpoint is None else args.checkpoint.name}
    report("evaluation", {"Figures": lines, "Benchmarks": work}, settings, notes, args.output)
    samples = {name: (jobs[name].samples, one.tables) for name, one in outcomes.items()}
    pictures = sorted((args.recorded or args.output).glob("**/*_shown.png"))
    (args.output / "evaluation.html").write_text(page(lines, work, notes, samples, pictures))
    failed = [name for name, one in outcomes.items() if one.failed]
    for sentence in [*(f"{name} {outcomes[name].state}" for name in failed), *fell]:
        print(sentence, file=sys.stderr)
    return 1 if failed or fell else 0


if __name__ == "__main__":
    sys.exit(main())
