"""What `make demo` drew and said, as pictures for the README: the contact sheet, and waveform, mel and heard words.

hf-unified-diffusion demo && python benchmarks/show_demo.py out/demo docs/demo
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import soundfile
import torch
from PIL import Image
from speech_evaluators import SpeechRecognizer

from hf_unified_diffusion.cli_demo_media import CLONED, HELLO, TOGETHER
from hf_unified_diffusion.codecs.mel import HOP, log_mel

SHEET_PIXELS, COLOURS = 512, 128
SOUNDS = {"hello.wav": HELLO, "cloned.wav": CLONED, "together.wav": TOGETHER}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("demo", type=Path, help="what the demo wrote")
parser.add_argument("output", type=Path, help="a folder")
args = parser.parse_args()
args.output.mkdir(parents=True, exist_ok=True)
for name in ("pictures.png", "recoloured.png"):
    with Image.open(args.demo / name) as sheet:
        small = sheet.convert("RGB").resize((SHEET_PIXELS, SHEET_PIXELS * sheet.height // sheet.width))
    small.quantize(COLOURS).save(args.output / name, optimize=True)

recognize = SpeechRecognizer()
figure, axes = plt.subplots(2, len(SOUNDS), figsize=(12, 4), layout="constrained")
for (name, said), (above, below) in zip(SOUNDS.items(), axes.T, strict=True):
    samples, rate_hz = soundfile.read(args.demo / name, dtype="float32")
    heard = recognize(torch.from_numpy(samples)).strip()
    print(f"{name}: said {said!r}, heard {heard!r}")
    seconds = torch.arange(len(samples)) / rate_hz
    above.plot(seconds, samples, linewidth=0.4)
    above.set(title=f"{name}\nsaid: {said}\nheard: {heard}", xlim=(0, seconds[-1]), ylim=(-1, 1))
    above.title.set_fontsize(7)
    mels = log_mel(torch.from_numpy(samples)[None])[0]
    below.imshow(mels, origin="lower", aspect="auto", extent=(0, mels.shape[1] * HOP / rate_hz, 0, mels.shape[0]))
    below.set(xlabel="seconds", ylabel="mel band")
figure.savefig(args.output / "speech.png", dpi=80)
