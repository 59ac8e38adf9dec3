"""Captioned pictures -> shards of latents, as `latent_data` reads them: several views of each, encoded once."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset, Features, List, Value, load_dataset
from jaxtyping import Float
from torch import Tensor, nn

from ..codecs.image_codec import ImageCodec
from ..quantization.parquet_writer import fsync_path
from .image_views import pixels_of

SMALLEST_CROP = 0.85  # of the side: captions that count and place things stay true
KEPT = ("captions", "concept", "source", "licence")
FEATURES = Features(
    {
        "latents": List(Value("float16")),
        "rows": Value("int32"),
        "columns": Value("int32"),
        "captions": List(Value("string")),
    }
    | {name: Value("string") for name in ("concept", "source", "licence")}
)
CODEC_FILE = "codec.json"
PROBES_AT_ONCE = 256
LARGEST_PROBE_ERROR = 1e-3  # mean square of tokens of unit variance; rounding them to float16 is as much


def weights_digest(module: nn.Module) -> str:
    """SHA-256 over the names and values of a module's tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + b"\0")
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


class PatchEncoder:
    """`ImageCodec.encode` as one product, for an encoder that takes each square by itself and (nearly) linearly.

    Ours is such an encoder (decision 0009), and 30 to 50 times as fast by its matrix. Of any other the codec's own
    encoder is used.

    Attributes:
        matrix, offset: float32 (pixels of a square, width) and (width,); None where the encoder is not linear.

    Usage: `tokens = PatchEncoder(codec).encode(pixels)`
    """

    def __init__(self, codec: ImageCodec):
        self.codec, self.grid = codec, codec.grid
        self.matrix: Tensor | None
        self.matrix, self.offset = self.probed()
        if not self.agrees():
            self.matrix = None

    @torch.inference_mode()
    def probed(self) -> tuple[Float[Tensor, "pixels width"], Float[Tensor, "width"]]:
        """What the encoder does to grey, and to each pixel beside it."""
        side = self.codec.downsampling
        offset = self.codec.encode(torch.zeros(1, 3, side, side))[0, 0]
        one_each = torch.eye(3 * side * side).view(-1, 3, side, side) / 2
        tokens = torch.cat([self.codec.encode(pixels)[:, 0] for pixels in one_each.split(PROBES_AT_ONCE)])
        return 2 * (tokens - offset), offset

    @torch.inference_mode()
    def agrees(self) -> bool:
        """Whether smooth and noisy pictures get the codec's own tokens."""
        generator, side = torch.Generator().manual_seed(0), 4 * self.codec.downsampling
        smooth = F.interpolate(torch.rand(1, 3, 4, 4, generator=generator), size=(side, side), mode="bicubic")
        pixels = torch.cat([smooth, torch.rand(1, 3, side, side, generator=generator)]).clamp(0, 1) * 2 - 1
        return bool((self.encode(pixels) - self.codec.encode(pixels)).square().mean() < LARGEST_PROBE_ERROR)

    def encode(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch tokens width"]:
        """As `ImageCodec.encode`."""
        if self.matrix is None:
            return self.codec.encode(pixels)
        self.grid(*pixels.shape[2:])
        side = self.codec.downsampling
        return F.unfold(pixels, side, stride=side).transpose(1, 2) @ self.matrix + self.offset


def claim_folder(folder: Path, codec: ImageCodec) -> None:
    """Note in a folder whose latents it holds: the encoder's digest; a better decoder of the same encoder is welcome.

    Raises ValueError where latents of another encoder lie there.
    """
    encoder = weights_digest(codec.vae.encoder)
    path = folder / CODEC_FILE
    if path.exists() and (found := json.loads(path.read_text())["encoder_sha256"]) != encoder:
        raise ValueError(f"a folder holds latents of one encoder, got {found[:12]} there, now {encoder[:12]}")
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"encoder_sha256": encoder, "width": codec.width, "downsampling": codec.downsampling}
    path.write_text(json.dumps(facts, indent=1) + "\n")


def view_of(png: bytes, size: int, view: int, random: np.random.Generator) -> torch.Tensor:
    """View 0 is the whole picture, others are squares of at least `SMALLEST_CROP` of its side; never mirrored."""
    if view == 0:
        return pixels_of(png, size)
    pixels = pixels_of(png)
    height, width = pixels.shape[1:]
    side = round(min(height, width) * random.uniform(SMALLEST_CROP, 1.0))
    top, left = (int(random.integers(0, extent - side + 1)) for extent in (height, width))
    crop = pixels[None, :, top : top + side, left : left + side]
    mode = {"mode": "area"} if size < side else {"mode": "bicubic", "align_corners": False}
    return nn.functional.interpolate(crop, size=(size, size), **mode)[0].clamp(-1, 1)


def encode_shard(
    codec: ImageCodec | PatchEncoder,
    source: Path,
    target: Path,
    size: int,
    view: int,
    batch_size: int = 16,
    most: int | None = None,
    advance: Callable[[int], object] = lambda count: None,
) -> int:
    """Write a shard of latents from a shard of pictures, whole or not at all; returns the number of samples.

    Args:
        source: Parquet with the columns `png`, `captions`, `concept`, `source`, `licence`.
        size: pixels a side of what is encoded, a multiple of the codec's downsampling.
        view: 0 for whole pictures; each other number draws crops of its own, the same every time.
        most: pictures to take at most.
        advance: told the number of pictures after each batch.

    Raises ValueError for a size that does not divide.

    Usage: `encode_shard(codec, Path("pictures/train/a.parquet"), Path("latents/train/a-128-0.parquet"), 128, 0)`
    """
    rows, columns = codec.grid(size, size)
    random = np.random.default_rng([size, view, *source.stem.encode()])
    pictures = load_dataset("parquet", data_files=str(source), split="train", streaming=True, columns=["png", *KEPT])
    taken = pictures if most is None else pictures.take(most)

    def samples() -> Iterator[dict]:
        for batch in taken.iter(batch_size):
            pixels = torch.stack([view_of(png, size, view, random) for png in batch["png"]])
            with torch.inference_mode():
                latents = codec.encode(pixels).flatten(1).half().cpu().numpy()
            for i, values in enumerate(latents):
                kept = {name: batch[name][i] for name in KEPT}
                yield {"latents": values, "rows": rows, "columns": columns, **kept}
            advance(len(latents))

    table = Dataset.from_list(list(samples()), features=FEATURES)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    table.to_parquet(str(partial))
    fsync_path(partial)
    partial.rename(target)
    fsync_path(target.parent)
    return len(table)
