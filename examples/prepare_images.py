"""Build the captioned pictures: fetch pinned packages, render, compose scenes, split by concept, write Parquet, report.

Use: python examples/prepare_images.py [--shards data/image_pictures] [--sources noto openclipart]
Packages are kept in $HF_UNIFIED_DIFFUSION_DATA (default ~/.cache/hf_unified_diffusion/data): about 80 MB are downloaded
the first time. Rendering needs `resvg-py` (the extra "images") and some minutes of one core.
"""

import argparse
import logging
from pathlib import Path

from datasets import disable_progress_bars

from hf_unified_diffusion.training.data_sources import cache_dir
from hf_unified_diffusion.training.image_corpus import build_image_corpus, write_image_report

if __name__ == "__main__":  # the renderer starts a process that imports this file
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, default=Path("data/image_pictures"), help="folder, replaced as a whole")
    parser.add_argument("--report", type=Path, default=Path("benchmarks"), help="folder of image_data_report.{json,md}")
    parser.add_argument("--sources", nargs="*", default=[], help="only these sources (default: all)")
    parser.add_argument("--share", type=float, default=1.0, help="part of the pictures to draw, chosen at random")
    arguments = parser.parse_args()

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    disable_progress_bars()
    found = build_image_corpus(arguments.shards, cache_dir(), arguments.sources, arguments.share)
    print(write_image_report(found, arguments.report).read_text())
