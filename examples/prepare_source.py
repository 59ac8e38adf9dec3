"""The model that training starts from, and its tokenizer cut to fewer tokens, out of the file that `make data` fetches.

python examples/prepare_source.py --model_dir runs/source --tokenizer_dir runs/edge_tokenizer --vocab_size 12288
"""

import argparse
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from hf_unified_diffusion.modeling.vocabulary import split_digits, truncate_bpe
from hf_unified_diffusion.training.data_sources import source_model_path

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model_dir", type=Path, default=Path("runs/source"))
parser.add_argument("--tokenizer_dir", type=Path, default=Path("runs/edge_tokenizer"))
parser.add_argument("--vocab_size", type=int, default=12288)
arguments = parser.parse_args()

file = source_model_path()
tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
split_digits(tokenizer)
tokenizer.save_pretrained(arguments.model_dir)
truncate_bpe(tokenizer, arguments.vocab_size)[0].save_pretrained(arguments.tokenizer_dir)
plain = GgufConfig(dequantize=True)
model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, quantization_config=plain)
model.save_pretrained(arguments.model_dir)  # last: its config.json is the record of `make checkpoint`
