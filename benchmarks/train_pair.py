"""Train the controlled pair of requirement 1.5 from scratch: a diffusion model and its autoregressive twins.

    python benchmarks/train_pair.py --output_dir runs/pair --positions 6400000 --max_train_tokens 75000

Same code, shape, tokenizer, data, order of data, optimizer and at most the same number of positions processed (the
measure of compute). The twin is tuned: each of the grid is trained, and validation picks the best. On repeated data a
twin may be better off with fewer epochs, so the grid holds shorter runs too. The diffusion model spends part of its
positions on the causal path first (blocks grown from one token, arXiv:2512.06776), out of the same budget.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from transformers import AutoTokenizer

from hf_unified_diffusion.modeling.vocabulary import split_digits, truncate_bpe
from hf_unified_diffusion.training.data_sources import source_model_path

CONFIG = {
    "hidden_size": 192,
    "num_hidden_layers": 6,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "intermediate_size": 512,
    "rope_theta": 10000.0,
    "max_position_embeddings": 1024,
    "modalities": {"text": {"kind": "token"}, "code": {"kind": "token"}},
    "cross_attention_every": 0,
}
# dropout, weight decay, share of the positions: more of one regularizer, or an earlier stop
TWIN_GRID = [(0.1, 0.1, 0.25), (0.1, 0.1, 0.5), (0.3, 0.1, 0.5), (0.3, 0.5, 0.5), (0.3, 0.1, 1.0)]
LENGTH = 256
SCRIPT = Path(__file__).parents[1] / "examples" / "train_unified.py"


def small_tokenizer(folder: Path, vocab_size: int) -> Path:
    """The source model's BPE, cut to its first merges."""
    if not (folder / "tokenizer.json").exists():
        file = source_model_path()
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        split_digits(tokenizer)
        truncate_bpe(tokenizer, vocab_size)[0].save_pretrained(folder)
    return folder


def train(folder: Path, arguments: list[str]) -> Path:
    """Run the training script, or keep what an earlier call finished; returns the model's folder."""
    if not (folder / "finished").exists():
        subprocess.run([sys.executable, str(SCRIPT), "--output_dir", str(folder), *arguments], check=True)
        (folder / "finished").touch()
    return folder / "model"


def validation_nats(folder: Path) -> float:
    """Mean of text and code causal nats per token at the last evaluation."""
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    last = [record for record in records if "text/causal/nats_per_token" in record][-1]
    return (last["text/causal/nats_per_token"] + last["code/causal/nats_per_token"]) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/pair"))
    parser.add_argument("--vocab_size", type=int, default=4096)
    parser.add_argument("--shards", default="data/shards")
    parser.add_argument("--positions", type=int, default=6_400_000, help="positions each model may process")
    parser.add_argument("--max_train_tokens", type=int, default=75_000, help="of each modality")
    parser.add_argument("--rows", type=int, default=4, help="of a step")
    parser.add_argument("--num_twins", type=int, default=len(TWIN_GRID), help="the first of the grid")
    parser.add_argument("--causal_share", type=float, default=0.25, help="of the diffusion model's positions, first")
    parser.add_argument("--block_lengths", type=int, nargs="+", default=[4, 8, 16, 256])
    parser.add_argument("--dropout", type=float, default=0.1, help="of the diffusion model, in both stages")
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    args = parser.parse_args()
    tokenizer = small_tokenizer(args.output_dir / "tokenizer", args.vocab_size)
    common = ["--tokenizer", str(tokenizer), "--shards", args.shards, "--max_train_tokens", str(args.max_train_tokens)]
    common += ["--train_batch_size", str(args.rows), "--sequence_length", str(LENGTH), "--warmup_steps", "30"]
    common += [
        "--learning_rate",
        str(args.learning_rate),
        "--ema_decay",
        "0.99",
        "--evaluation_rows",
        "32",
        "--evaluation_steps",
        "250",
    ]

    causal_steps = int(args.causal_share * args.positions / (args.rows * LENGTH))
    shape = ["--config", json.dumps(CONFIG)]
    options = ["--canvas", "false", *shape, "--max_train_steps", str(causal_steps), "--dropout", str(args.dropout)]
    start = train(args.output_dir / "diffusion-causal", [*common, *options])
    canvas_steps = int((1 - args.causal_share) * args.positions / (3 * args.rows * LENGTH))
    options = ["--initial_model", str(start), "--infill_rate", "0", "--max_train_steps", str(canvas_steps)]
    options += ["--dropout", str(args.dropout), "--block_lengths", *map(str, args.block_lengths)]
    train(args.output_dir / "diffusion", [*common, *options])

    twins = {}
    for dropout, weight_decay, share in TWIN_GRID[: args.num_twins]:
        folder = args.output_dir / f"twin-dropout{dropout}-decay{weight_decay}-share{share}"
        steps = int(share * args.positions / (args.rows * LENGTH))
        options = ["--canvas", "false", "--dropout", str(dropout), "--weight_decay", str(weight_decay)]
        train(folder, [*common, *options, *shape, "--max_train_steps", str(steps)])
        twins[folder.name] = validation_nats(folder)
    best = min(twins, key=twins.__getitem__)
    summary = {"twins": twins, "best_twin": best, **vars(args), "output_dir": str(args.output_dir), "config": CONFIG}
    (args.output_dir / "pair.json").write_text(json.dumps(summary, indent=1))
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
