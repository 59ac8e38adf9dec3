"""Run where the package is installed and not imported. Use: `program.py REPOSITORY`."""

import sys
import warnings

from transformers import pipeline

assert "hf_unified_diffusion" not in sys.modules
warnings.simplefilter("ignore")
write = pipeline(model=sys.argv[1], trust_remote_code=True)
assert write.task == "unified-diffusion", write.task
print(write("ab", max_new_tokens=6, num_inference_steps=3, seed=0)[0]["generated_text"].encode())
