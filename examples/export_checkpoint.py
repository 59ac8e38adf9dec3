"""Quantize a trained folder to 4 bits and lay it out as a checkpoint; by default the one inside the package.

python examples/export_checkpoint.py runs/edge/model
python examples/export_checkpoint.py runs/edge/model --calibration_rows 48     # rounded to fit training rows
python examples/export_checkpoint.py runs/edge/model --calibration_rows 48 --packs runs/packs/pack-000   # and pictures
python examples/export_checkpoint.py runs/edge/model --output_dir my-checkpoint --bits 8
python examples/export_checkpoint.py runs/edge/model --quantization_scales FOLDER     # of a stage that had the same
"""

import argparse
import json
from pathlib import Path

from transformers import AutoTokenizer

from hf_unified_diffusion import ArrowQuantConfig, UnifiedDiffusionModel
from hf_unified_diffusion.contracts import TOKEN_MODALITIES
from hf_unified_diffusion.conversion.export import export_checkpoint
from hf_unified_diffusion.modeling.embedded import EMBEDDED_CHECKPOINT
from hf_unified_diffusion.quantization import bits_per_weight, num_weights
from hf_unified_diffusion.training.calibration_rows import calibration_batches
from hf_unified_diffusion.training.latent_data import CaptionedLatents
from hf_unified_diffusion.training.mixture import MicroBatches
from hf_unified_diffusion.training.pack_speech import open_packed_speech
from hf_unified_diffusion.training.packs import open_packed_latents, open_packed_tokens
from hf_unified_diffusion.training.quantization_aware import scales_of
from hf_unified_diffusion.training.speech_data import SpokenRows
from hf_unified_diffusion.training.token_data import pack_shards

CALIBRATION_TOKENS = 1024  # of a micro-batch of pictures or speech
INT8_MODULES = ["embeddings", "heads", "projections", "time_embedding"]

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", type=Path, help="a folder written by train_unified.py")
parser.add_argument("--output_dir", type=Path, default=EMBEDDED_CHECKPOINT)
parser.add_argument("--bits", type=int, default=4)
parser.add_argument("--group_size", type=int, default=96)
parser.add_argument("--int8_modules", nargs="*", default=INT8_MODULES, help="kept at 8 bits")
parser.add_argument("--quantization_scales", type=Path, help="a rounded checkpoint, whose scales are kept")
parser.add_argument("--modalities", nargs="+", default=["text", "code"], help="what it was trained for")
parser.add_argument("--calibration_rows", type=int, default=0, help="training rows that the rounding is fitted to")
parser.add_argument("--calibration_modalities", nargs="*", default=[], help="those by default")
parser.add_argument("--shards", type=Path, default=Path("data/shards"), help="their source, as `make data` writes it")
parser.add_argument("--cache", type=Path, default=Path("runs/tokens"), help="of tokenized shards")
parser.add_argument("--packs", type=Path, nargs="*", default=[], help="the source instead, of all their modalities")
parser.add_argument("--earlier_stages", type=Path, nargs="*", default=[], help="output_dirs of the stages before")
parser.add_argument("--sources", nargs="*", default=[], help="of the corpus, that it was trained on; all by default")
arguments = parser.parse_args()
if arguments.quantization_scales and arguments.calibration_rows:
    parser.error("calibration searches scales of its own: give --quantization_scales or --calibration_rows")

quantization = ArrowQuantConfig(
    arguments.bits, arguments.group_size, int8_modules=arguments.int8_modules, modules_to_not_convert=[]
)
stages = [*arguments.earlier_stages, arguments.model.parent]
training = {stage.name: json.loads((stage / "state" / "progress.json").read_text()) for stage in stages}
calibration = []
if arguments.calibration_rows:
    tokenizer, files = AutoTokenizer.from_pretrained(arguments.model), sorted(arguments.shards.glob("train/*.parquet"))
    wanted = arguments.calibration_modalities or arguments.modalities
    tokens = [modality for modality in wanted if modality in TOKEN_MODALITIES]
    others: list[MicroBatches] = []
    if arguments.packs:
        data = {modality: open_packed_tokens(arguments.packs, "train", modality) for modality in tokens}
        if "image" in wanted:
            pictures = open_packed_latents(arguments.packs, "train", "image")
            others.append(CaptionedLatents(pictures, tokenizer, CALIBRATION_TOKENS))
        if "audio" in wanted:
            speech, faces = open_packed_speech(arguments.packs, "train"), "avatar" in wanted
            others.append(SpokenRows(speech, tokenizer, CALIBRATION_TOKENS, faces=faces))
    else:
        data = {modality: pack_shards(files, tokenizer, modality, arguments.cache) for modality in tokens}
    calibration = calibration_batches(data, arguments.calibration_rows, tokenizer.mask_token_id, others=others)
scales = arguments.quantization_scales and scales_of(
    UnifiedDiffusionModel.from_pretrained(arguments.quantization_scales)
)
model = export_checkpoint(
    arguments.model,
    arguments.output_dir,
    quantization,
    arguments.modalities,
    calibration,
    scales,
    license="apache-2.0",
    base_model="HuggingFaceTB/SmolLM2-135M-Instruct",
    training=training,
    training_sources=arguments.sources,
    calibration_rows=arguments.calibration_rows,
)
size = sum(file.stat().st_size for file in arguments.output_dir.iterdir())
print(f"{num_weights(model) / 1e6:.1f}M parameters, {bits_per_weight(model):.2f} bits per weight, {size / 1e6:.1f} MB")
print(f"trunk {model.trunk_share():.1%} of the parameters")
