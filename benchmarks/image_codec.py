"""What the image codec loses: held-out pictures encoded and decoded, at several sizes, and what that costs.

    python benchmarks/image_codec.py --num 64 --split validation

The stored pictures are 256 pixels a side: at 512 they are enlarged, and have less detail than real ones of that size.
The control has as many numbers as the latents: a smaller picture, enlarged. Seams are the codec's errors that change
across the border of two tokens, over those elsewhere: 1 without seams.
"""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from evaluators import EfficientNetFeatures, features_of
from image_metrics import ssim
from jaxtyping import Float
from latency import peak_bytes
from measure import Mean, Row, argument_parser, interleaved_seconds, report, start
from pictures import Picture, choose, coarse
from PIL import Image
from torch import Tensor

from hf_unified_diffusion.codecs.image_codec import ImageCodec
from hf_unified_diffusion.pipelines.checkpoints import EMBEDDED_CHECKPOINT, load_image_parts
from hf_unified_diffusion.training.codec_objective import psnr_db

SHOWN = 8


def tensor_of(images: Sequence[Image.Image]) -> Float[Tensor, "pictures 3 height width"]:
    """Pixels in [-1, 1]."""
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1 for image in images])


def image_of(pixels: Float[Tensor, "3 height width"]) -> Image.Image:
    """Bytes, as a picture is saved."""
    return Image.fromarray(((pixels + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())


def seams(
    wanted: Float[Tensor, "pictures 3 height width"], found: Float[Tensor, "pictures 3 height width"], period: int
) -> list[float]:
    """How much the error changes from pixel to pixel across token borders, over the same elsewhere; of each picture."""
    ratios = []
    for error in found - wanted:
        across, within = [], []
        for jumps in (error.diff(dim=1).abs().mean((0, 2)), error.diff(dim=2).abs().mean((0, 1))):
            at_border = torch.arange(1, len(jumps) + 1) % period == 0
            across.append(jumps[at_border])
            within.append(jumps[~at_border])
        ratios.append((torch.cat(across).mean() / torch.cat(within).mean()).item())
    return ratios


@torch.inference_mode()
def rebuilt(codec: ImageCodec, images: Sequence[Image.Image]) -> list[Image.Image]:
    """Each picture, encoded and decoded."""
    width, height = images[0].size
    pixels = [codec.decode(codec.encode(tensor_of([image])), height, width)[0] for image in images]
    return [image_of(each.clamp(-1, 1)) for each in pixels]


def rows_of(
    codec: ImageCodec, pictures: Sequence[Picture], network: EfficientNetFeatures
) -> tuple[list[Row], Image.Image]:
    """The codec and its control at one size, and a sheet: originals, reconstructions, the control."""
    size = pictures[0].image.width
    cells = round(size / codec.downsampling * (codec.width / 3) ** 0.5)
    originals = [picture.image for picture in pictures]
    ways = {"codec": rebuilt(codec, originals)}
    ways["control: smaller picture"] = [picture.image for picture in coarse(pictures, cells)]
    wanted, seen = tensor_of(originals), features_of(network, originals, batch_size=8)
    rows = []
    for name, images in ways.items():
        found = tensor_of(images)
        near = 1 - torch.cosine_similarity(features_of(network, images, batch_size=8), seen)
        pooled = -10 * ((found - wanted).square().mean() / 4).log10()
        rows.append(
            {
                "pixels": size,
                "pictures": name,
                "PSNR dB": Mean.of(psnr_db(found, wanted).tolist()),
                "PSNR dB of the mean error": pooled.item(),
                "SSIM": Mean.of(ssim(found, wanted).tolist()),
                "feature distance": Mean.of(near.tolist()),
                "seams": Mean.of(seams(wanted, found, codec.downsampling)),
            }
        )
    sheet = Image.new("RGB", (size * SHOWN, size * (1 + len(ways))))
    for line, images in enumerate((originals, *ways.values())):
        for column, image in enumerate(images[:SHOWN]):
            sheet.paste(image, (column * size, line * size))
    return rows, sheet


@torch.inference_mode()
def cost(codec: ImageCodec, size: int, repeats: int) -> Row:
    """Seconds of one picture, and the most memory that the process had by then."""
    pixels = torch.zeros(1, 3, size, size)
    tokens = codec.encode(pixels)
    functions = {"encode": lambda: codec.encode(pixels), "decode": lambda: codec.decode(tokens, size, size)}
    taken = interleaved_seconds(functions, repeats, clock="cpu")
    peak = peak_bytes() / 10**6
    return {"pixels": size, "encode CPU s": taken["encode"], "decode CPU s": taken["decode"], "process' peak MB": peak}


def main() -> None:
    parser = argument_parser(__doc__)
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    parser.add_argument("--pictures", type=Path, default=Path("data/image_pictures"), help="folders of rendered ones")
    parser.add_argument("--split", default="test", help="validation, to choose by; test, to report")
    parser.add_argument("--num", type=int, default=96, help="pictures")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--repeats", type=int, default=3)
    args, settings = start(parser)
    settings = {name: value for name, value in settings.items() if name != "pictures"}
    _, vae = load_image_parts(EMBEDDED_CHECKPOINT if args.checkpoint is None else args.checkpoint, torch.float32)
    codec = ImageCodec(vae)
    costs = [cost(codec, size, args.repeats) for size in args.sizes]
    network, rows = EfficientNetFeatures(), []
    args.output.mkdir(parents=True, exist_ok=True)
    for size in args.sizes:
        pictures = choose(args.pictures / args.split, args.num, size, random.Random(args.seed), lambda row: True)
        found, sheet = rows_of(codec, pictures, network)
        rows += found
        print(found[0], flush=True)
        if size == 256:
            sheet.save(args.output / "image_codec.png", optimize=True)
    weights = sum(parameter.numel() for parameter in vae.parameters())
    notes = [
        f"{weights / 1e6:.1f}M parameters, {codec.width} numbers for {codec.downsampling}^2 pixels. "
        "image_codec.png: originals, reconstructions and the control at 256 pixels."
    ]
    report("image_codec", {"Reconstruction": rows, "Cost of a picture": costs}, settings, notes, args.output)


if __name__ == "__main__":
    main()
