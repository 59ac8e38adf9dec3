"""Fit the postfilter of a checkpoint's vocoder: it gives log-mels that the network made the modulations of speech.

    OMP_NUM_THREADS=1 python examples/fit_postfilter.py --checkpoint CHECKPOINT --output_dir runs/postfilter

The checkpoint speaks sentences of the training split in their own voices, for `--speaking_minutes`; what it says is
kept in `OUTPUT_DIR/spoken`, and a second run adds to it. `OUTPUT_DIR/vocoder` is its vocoder with the gains that
follow; nothing else of it changes.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import HfArgumentParser

from hf_unified_diffusion import UnifiedDiffusionSpeechPipeline, UnifiedVocoderModel
from hf_unified_diffusion.codecs.mel import unstacked
from hf_unified_diffusion.folders import replacing
from hf_unified_diffusion.modeling.parquet_weights import PARQUET_NAME
from hf_unified_diffusion.quantization import read_parquet_weights
from hf_unified_diffusion.training.modulation_fitting import fitted_gains
from hf_unified_diffusion.training.speech_data import SpeechShards, open_speech, places_by_voice

REFERENCE_TOKENS = (60, 160)  # 3 to 8 s; voices that never speak so long are left to chance


@dataclass
class Arguments:
    """Command line; names as in the scripts of diffusers."""

    checkpoint: str
    output_dir: str
    train_data_dir: str = "data/speech/train"
    cache_dir: str = "runs/speech_cache"
    speaking_minutes: float = 15.0
    frames: int = 32  # of a piece, 0.4 s
    exponent: float = 0.6
    seed: int = 0

    def __post_init__(self):
        if self.speaking_minutes < 0:
            raise ValueError(f"speaking_minutes must be 0 or more, got {self.speaking_minutes}")


def speak(args: Arguments, shards: SpeechShards, folder: Path) -> None:
    """Let the checkpoint say sentences of the shards, each in the voice that said it, and keep the tokens."""
    pipe = UnifiedDiffusionSpeechPipeline.from_pretrained(args.checkpoint)
    pipe.set_progress_bar_config(disable=True)
    shortest, longest = REFERENCE_TOKENS
    of_voice = {
        voice: [place for place in places if shortest <= shards.lengths[place] <= longest]
        for voice, places in places_by_voice(shards).items()
    }
    said = len(list(folder.glob("*.npy")))
    rng = np.random.default_rng([args.seed, said])
    until = time.monotonic() + 60 * args.speaking_minutes
    with tqdm(desc="speaking", unit="sentence") as bar:
        while time.monotonic() < until:
            place = int(rng.integers(len(shards)))
            references = [other for other in of_voice[shards.voices[place]] if other != place]
            given: dict[str, Any] = {}
            if references:
                other = int(rng.choice(references))
                given = {"reference_audio": shards.waveform(other), "reference_text": shards.table[other]["text"]}
            seed = int(rng.integers(2**31))
            tokens = pipe(shards.table[place]["text"], **given, seed=seed, output_type="latent").audios[0]
            np.save(folder / f"{said:06d}.npy", tokens.half().numpy())
            said += 1
            bar.update()


def main(argv: Sequence[str] | None = None) -> UnifiedVocoderModel:
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses(args=argv)
    out, folder = Path(args.output_dir), Path(args.checkpoint) / "vocoder"
    spoken = out / "spoken"
    spoken.mkdir(parents=True, exist_ok=True)
    shards = open_speech(sorted(Path(args.train_data_dir).glob("*.parquet")), Path(args.cache_dir))
    if args.speaking_minutes:
        speak(args, shards, spoken)
    made = [torch.from_numpy(np.load(path)).float() for path in sorted(spoken.glob("*.npy"))]
    sounds = [[unstacked(tokens[None])[0] for tokens in side] for side in (made, map(shards.sound, range(len(shards))))]
    vocoder = UnifiedVocoderModel.from_pretrained(folder)
    vocoder.set_postfilter(fitted_gains(*sounds, size=args.frames, exponent=args.exponent))
    parquet = folder / PARQUET_NAME
    training = dict(read_parquet_weights(parquet).metadata.get("training", {})) if parquet.exists() else {}
    training["postfilter"] = {"made": len(made), "speech": len(shards), "exponent": args.exponent}
    with replacing(out / "vocoder") as partial:
        vocoder.save_pretrained(partial, metadata={"training": training, "license": "apache-2.0"})
    return vocoder


if __name__ == "__main__":
    main()
