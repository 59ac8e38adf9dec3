"""Held-out perplexity: the embedded checkpoint beside its source model, or the controlled pair of requirement 1.5.

    python benchmarks/perplexity.py                     # the embedded checkpoint
    python benchmarks/perplexity.py --pair runs/pair    # what train_pair.py made

Diffusion figures are upper bounds (NELBO) unless marked exact: the likelihood of the sampler that draws one token of a
block at a time, at the leftmost hidden place or at a random one (the sampler that the NELBO bounds). Each has its 95%
interval over sequences. Tokens are those of the test split, which no training and no tuning has seen. Between models of
different vocabularies only bits per byte compare.
"""

import argparse
import json
from pathlib import Path

import torch
from measure import Mean, argument_parser, report, start
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_unified_diffusion import UnifiedDiffusionModel
from hf_unified_diffusion.modeling.autoregressive import whole_vocabulary
from hf_unified_diffusion.modeling.embedded import EMBEDDED_CHECKPOINT
from hf_unified_diffusion.modeling.vocabulary import split_digits
from hf_unified_diffusion.training.data_sources import source_model_path
from hf_unified_diffusion.training.likelihood import held_out_likelihood
from hf_unified_diffusion.training.token_data import bytes_per_token, pack_shards, starts_for

LENGTH = 256
BLOCKS = (4, 8, 16, LENGTH)
ROWS_AT_ONCE = 8


def path_name(block_length: int | None, order: str | None) -> str:
    """How the model is read, in words."""
    if block_length is None:
        return "causal, exact"
    blocks = "full sequence" if block_length >= LENGTH else f"blocks of {block_length}"
    return f"{blocks}, bound" if order is None else f"{blocks}, exact, unmasked {order.replace('_', ' ')}"


def figures(name: str, model: UnifiedDiffusionModel, tokenizer, args: argparse.Namespace, blocks: tuple) -> list[dict]:
    """One row per modality and way of reading the model; short blocks also by their exact likelihood."""
    ways: list[tuple[int | None, str | None]] = [(block_length, None) for block_length in blocks]
    short = [block for block in blocks if block is not None]
    ways += [(block, "random") for block in short if block <= args.longest_random]
    ways += [(block, "left_to_right") for block in short if block <= args.longest_exact]
    sizes, rows = bytes_per_token(tokenizer), []
    for modality in ("text", "code"):
        packed = pack_shards((args.shards / "test").glob("*.parquet"), tokenizer, modality, args.cache)
        count = min(args.rows, (len(packed) - LENGTH) // LENGTH) // ROWS_AT_ONCE
        batches = [packed.rows(starts_for(packed, LENGTH, ROWS_AT_ONCE, i, seed=0), LENGTH) for i in range(count)]
        for block_length, order in tqdm(ways, desc=f"{name}, {modality}"):
            found = held_out_likelihood(model, batches, sizes, block_length, draws=args.draws, order=order)
            rows.append(
                {
                    "model": name,
                    "data": modality,
                    "read as": path_name(block_length, order),
                    "nats per token": Mean(found.nats_per_token, found.confidence, count * ROWS_AT_ONCE),
                    "perplexity": found.perplexity,
                    "bits per byte": found.bits_per_byte,
                }
            )
    return rows


def source_figures(args: argparse.Namespace) -> list[dict]:
    """The source model on the same text, in its own tokens."""
    file = source_model_path()
    source = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    split_digits(tokenizer)
    model = UnifiedDiffusionModel.from_source(source, whole_vocabulary(source.config.vocab_size)).eval()
    return figures("SmolLM2-135M-Instruct, the source", model, tokenizer, args, (None,))


def report_embedded(args: argparse.Namespace, shown: dict) -> None:
    """The checkpoint and its source."""
    folder = EMBEDDED_CHECKPOINT if args.checkpoint is None else args.checkpoint
    model, tokenizer = UnifiedDiffusionModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    rows = figures("checkpoint", model, tokenizer, args, (None, *BLOCKS))
    if not args.no_source:
        rows += source_figures(args)
    report("perplexity", {"Held-out likelihood": rows}, shown, [], args.output)


def report_pair(args: argparse.Namespace, shown: dict) -> None:
    """The tuned twin, the diffusion model, and the ratio of their perplexities."""
    pair = json.loads((args.pair / "pair.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(args.pair / "diffusion" / "model")
    names = {"autoregressive twin": pair["best_twin"], "diffusion": "diffusion"}
    models = {
        name: UnifiedDiffusionModel.from_pretrained(args.pair / at / "model").eval() for name, at in names.items()
    }
    rows = figures("autoregressive twin", models["autoregressive twin"], tokenizer, args, (None,))
    twin = {row["data"]: row["perplexity"] for row in rows}
    rows += figures("diffusion", models["diffusion"], tokenizer, args, (None, *BLOCKS))
    rows = [{**row, "ratio to the twin": row["perplexity"] / twin[row["data"]]} for row in rows]
    training = [
        {"run": name, **json.loads((args.pair / name / "state" / "progress.json").read_text())}
        for name in (*pair["twins"], "diffusion-causal", "diffusion")
    ]
    parameters = sum(p.numel() for p in models["diffusion"].parameters())
    tokens = pair["max_train_tokens"]
    notes = [
        f"{parameters / 1e6:.2f}M parameters each; {tokens} training tokens of each modality; positions are compute. "
        "The two stages of the diffusion model together process as many as the twin. Twins by validation nats: "
        + ", ".join(f"{name} {nats:.3f}" for name, nats in pair["twins"].items())
    ]
    report("perplexity_pair", {"Held-out likelihood": rows, "Training": training}, shown, notes, args.output)


if __name__ == "__main__":
    parser = argument_parser(__doc__)
    parser.add_argument("--pair", type=Path, help="a folder of train_pair.py")
    parser.add_argument("--shards", type=Path, default=Path("data/shards"))
    parser.add_argument("--cache", type=Path, default=Path("runs/tokens"))
    parser.add_argument("--rows", type=int, default=32, help="test sequences of 256 tokens, of each modality")
    parser.add_argument("--draws", type=int, default=4, help="masks drawn for each sequence")
    parser.add_argument("--longest_exact", type=int, default=16, help="block; a canvas pass for each of its tokens")
    parser.add_argument("--longest_random", type=int, default=4, help="block; 2^n - 1 canvas passes")
    parser.add_argument("--no_source", action="store_true", help="leave the source model out")
    arguments, settings = start(parser)
    (report_embedded if arguments.pair is None else report_pair)(arguments, settings)
