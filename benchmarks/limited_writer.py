"""Loads a checkpoint, writes a text at each of some cache bounds, and prints the memory it took, as JSON.

python benchmarks/limited_writer.py FOLDER PROMPT_TOKENS NEW_TOKENS CACHE_BYTES [CACHE_BYTES ...]

It is run as a process of its own, under a limit of memory or without; bounds of the cache must rise.
"""

import json
import sys

from process_memory import memory

from hf_unified_diffusion.pipelines.pipeline_text import UnifiedDiffusionTextPipeline
from hf_unified_diffusion.quantization import set_dequantized_cache_bytes

folder, prompt_tokens, new_tokens, *caches = sys.argv[1], *map(int, sys.argv[2:])
taken = {"imported": memory()}
pipe = UnifiedDiffusionTextPipeline.from_pretrained(folder)
pipe.set_progress_bar_config(disable=True)
taken["loaded"] = memory()
ids = pipe.tokenizer("The history of the bicycle is the history of the road. " * prompt_tokens)["input_ids"]
prompt = pipe.tokenizer.decode(ids[:prompt_tokens])
for cache in caches:
    set_dequantized_cache_bytes(cache)
    written = pipe(prompt, max_new_tokens=new_tokens, block_length=8, num_inference_steps=new_tokens // 2, seed=0)
    taken[f"wrote, cache {cache}"] = {**memory(), "text": written.completions[0]}
print(json.dumps(taken))
