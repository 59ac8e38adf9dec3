"""Speaks or draws with the parts in a folder at each of some cache bounds, and prints the memory it took, as JSON.

python benchmarks/limited_maker.py FOLDER audio|image STEPS CACHE_BYTES [CACHE_BYTES ...]

It is run as a process of its own, under a limit of memory or without; bounds of the cache must rise. Whether the
network has learned to speak or draw is not asked: memory does not depend on it.
"""

import json
import sys

from process_memory import memory

from hf_unified_diffusion.pipelines.pipeline_image import UnifiedDiffusionImagePipeline
from hf_unified_diffusion.pipelines.pipeline_speech import UnifiedDiffusionSpeechPipeline
from hf_unified_diffusion.quantization import set_dequantized_cache_bytes

TEXT = "The morning train was late again, so we walked along the river."
CAPTION, PIXELS = "a red apple on a wooden table", 256
PIPELINES = {"audio": UnifiedDiffusionSpeechPipeline, "image": UnifiedDiffusionImagePipeline}


def speak(steps: int) -> str:
    """Say the text; what came out."""
    output = pipe(TEXT, num_inference_steps=steps, seed=0)
    return f"{output.audios[0].shape[-1] / output.sampling_rate_hz:.1f} s of sound"


def draw(steps: int) -> str:
    """Draw the caption; what came out."""
    picture = pipe(CAPTION, height=PIXELS, width=PIXELS, num_inference_steps=steps, seed=0).images[0]
    return f"{picture.width} x {picture.height} pixels"


MAKERS = {"audio": speak, "image": draw}
folder, modality, steps, *caches = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
taken = {"imported": memory()}
pipe = PIPELINES[modality].from_pretrained(folder)
pipe.set_progress_bar_config(disable=True)
taken["loaded"] = memory()
for cache in caches:
    set_dequantized_cache_bytes(cache)
    made = MAKERS[modality](steps)
    taken[f"made, cache {cache}"] = {**memory(), "made": made}
print(json.dumps(taken))
