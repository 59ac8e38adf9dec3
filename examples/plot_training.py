"""Plot the log of a training run.

python examples/plot_training.py runs/edge curves.png
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt

from hf_unified_diffusion.training.run_log import read_records


def curve(records: list[dict[str, float]], name: str) -> tuple[list[float], list[float]]:
    """Millions of positions, and the values of a name where it was logged."""
    found = [(record["positions"] / 1e6, record[name]) for record in records if name in record]
    return [x for x, _ in found], [y for _, y in found]


def smoothed(values: list[float], keep: float = 0.95) -> list[float]:
    """An exponential moving average without a bias at its start."""
    total, weight, result = 0.0, 0.0, []
    for value in values:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        result.append(total / weight)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="output_dir of the run")
    parser.add_argument("picture", type=Path)
    args = parser.parse_args()
    records = read_records(args.run / "log.jsonl")
    names = sorted({name for record in records for name in record})
    figure, (training, held_out) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    for name in names:
        if name.endswith(("/causal", "/hidden")):
            x, y = curve(records, name)
            training.plot(x, smoothed(y), label=name)
        elif name.endswith("/bits_per_byte"):
            held_out.plot(*curve(records, name), marker=".", label=name.removesuffix("/bits_per_byte"))
    training.set(title="training, smoothed", ylabel="nats per token")
    held_out.set(title="held out", ylabel="bits per byte")
    for panel in (training, held_out):
        panel.set_xlabel("positions processed, millions")
        panel.legend(fontsize="small")
    figure.savefig(args.picture, dpi=120)


if __name__ == "__main__":
    main()
