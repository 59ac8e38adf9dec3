"""Pictures become shards of latents that training reads: what a view is, once and whole, one encoder a folder."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, List, Value
from diffusers import AutoencoderDC
from PIL import Image

import examples.encode_images as encode_images
from hf_unified_diffusion import save_diffusers_model
from hf_unified_diffusion.codecs.image_codec import ImageCodec
from hf_unified_diffusion.modeling.diffusers_weights import load_diffusers_model
from hf_unified_diffusion.modeling.embedded import EMBEDDED_CHECKPOINT
from hf_unified_diffusion.training.image_views import pixels_of
from hf_unified_diffusion.training.latent_data import open_latents
from hf_unified_diffusion.training.latent_encoding import PatchEncoder, claim_folder, encode_shard, view_of
from tests.codecs.vaes import tiny_dc

PICTURES = 5
FEATURES = Features(
    {"png": Value("binary"), "captions": List(Value("string"))}
    | {name: Value("string") for name in ("concept", "source", "licence", "attributes")}
)


def png(seed: int) -> bytes:
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(blocks.repeat(16, 0).repeat(16, 1)).save(file, "PNG")
    return file.getvalue()


def write_pictures(path: Path) -> None:
    path.parent.mkdir(parents=True)
    facts = {"source": "made here", "licence": "CC0-1.0", "attributes": None}
    rows = [
        {"png": png(i), "captions": [f"picture {i}", "blocks"], "concept": "blocks"} | facts for i in range(PICTURES)
    ]
    Dataset.from_list(rows, features=FEATURES).to_parquet(str(path))


@pytest.fixture(scope="module")
def codec() -> ImageCodec:
    return ImageCodec(tiny_dc())


@torch.no_grad()
def test_whole_views_are_the_codecs_latents_in_order_with_their_captions(tmp_path, codec):
    write_pictures(tmp_path / "train" / "a.parquet")
    told = []
    target = tmp_path / "latents" / "a-32-0.parquet"
    count = encode_shard(codec, tmp_path / "train" / "a.parquet", target, 32, 0, batch_size=2, advance=told.append)
    assert count == sum(told) == PICTURES
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    shards = open_latents([target], "image", tmp_path / "cache")
    values, captions = shards.values((1, 1), np.arange(PICTURES))
    expected = codec.encode(torch.stack([pixels_of(png(i), 32) for i in range(PICTURES)]))
    torch.testing.assert_close(values, expected, atol=2e-3, rtol=2e-3)
    assert captions[3] == ["picture 3", "blocks"]
    assert shards.table.table[0]["licence"] == "CC0-1.0"


@torch.no_grad()
def test_a_linear_encoder_is_one_product_and_any_other_is_itself(codec):
    pixels = torch.stack([pixels_of(png(i)) for i in range(2)])
    ours = ImageCodec(load_diffusers_model(AutoencoderDC, EMBEDDED_CHECKPOINT / "vae"))
    linear, other = PatchEncoder(ours), PatchEncoder(codec)
    assert linear.matrix is not None
    torch.testing.assert_close(linear.encode(pixels), ours.encode(pixels), atol=0.05, rtol=0.05)
    assert other.matrix is None
    assert torch.equal(other.encode(pixels), codec.encode(pixels))
    with pytest.raises(ValueError, match="multiple of 32"):
        linear.encode(pixels[..., :40])


def test_other_views_are_crops_that_the_seed_decides():
    whole = view_of(png(0), 32, 0, np.random.default_rng(0))
    first, again, other = (view_of(png(0), 32, 1, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    for view in (first, other):
        assert view.shape == whole.shape
        assert view.abs().max() <= 1
        # a crop of at least 0.85 of the side shows the same blocks, not a mirrored picture
        assert (view - whole).abs().mean() < (view - whole.flip(2)).abs().mean()


def test_the_script_goes_on_where_it_was_and_refuses_another_encoder(tmp_path):
    for split in ("train", "validation"):
        write_pictures(tmp_path / "pictures" / split / "a.parquet")
    save_diffusers_model(tiny_dc(), tmp_path / "vae")
    arguments = f"--vae {tmp_path}/vae --pictures {tmp_path}/pictures --output_dir {tmp_path}/latents --sizes 32 64"
    assert encode_images.main(arguments.split()) == 2 * (2 + 1) * PICTURES  # two views of what is trained on
    files = {path: path.read_bytes() for path in (tmp_path / "latents").glob("*/*.parquet")}
    assert len(files) == 6
    lost = tmp_path / "latents" / "train" / "a-64-1.parquet"
    lost.unlink()
    assert encode_images.main(arguments.split()) == PICTURES
    assert lost.read_bytes() == files[lost]
    with torch.no_grad():
        changed = tiny_dc()
        next(changed.encoder.parameters()).add_(1.0)
    with pytest.raises(ValueError, match="latents of one encoder"):
        claim_folder(tmp_path / "latents", ImageCodec(changed))
    shutil.rmtree(tmp_path / "pictures" / "train")
    with pytest.raises(ValueError, match="must hold Parquet files of pictures"):
        encode_images.main(arguments.split())
