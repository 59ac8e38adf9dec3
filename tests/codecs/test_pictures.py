"""Pictures of every kind become the same pixels; what is none is refused with the rule and the value."""

import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hf_unified_diffusion.codecs.pictures import read_masks, read_pictures

BYTES = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
PICTURE = Image.fromarray(BYTES)


def test_all_kinds_of_one_picture_are_the_same_pixels(tmp_path):
    PICTURE.save(tmp_path / "picture.png")
    tensor = torch.from_numpy(BYTES).permute(2, 0, 1)
    kinds = [PICTURE, tmp_path / "picture.png", str(tmp_path / "picture.png"), BYTES, BYTES / 255, tensor, tensor / 255]
    expected = tensor / 127.5 - 1
    for kind in kinds:
        (pixels,) = read_pictures("image", kind)
        assert pixels.dtype == torch.float32
        torch.testing.assert_close(pixels, expected)
    for batch in (kinds, np.stack([BYTES, BYTES]), torch.stack([tensor, tensor])):
        pictures = read_pictures("image", batch)
        assert len(pictures) == len(batch)
        torch.testing.assert_close(pictures[-1], expected)


def test_all_kinds_of_one_mask_are_the_same(tmp_path):
    mask = BYTES[..., 0] >= 128
    grey = Image.fromarray(BYTES[..., 0])
    grey.save(tmp_path / "mask.png")
    kinds = [mask, mask[..., None], torch.from_numpy(mask), torch.from_numpy(mask)[None], grey, tmp_path / "mask.png"]
    kinds += [BYTES[..., 0], mask.astype(np.float64)]
    for kind in kinds:
        (found,) = read_masks("mask_image", kind)
        assert found.shape == (1, 4, 6) and torch.equal(found[0], torch.from_numpy(mask))


def test_transparent_is_white_and_exif_turns():
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert read_pictures("image", clear)[0].min() == 1
    turned = Image.new("RGB", (2, 4))
    exif = turned.getexif()
    exif[0x0112] = 6  # a quarter turn
    file = io.BytesIO()
    turned.save(file, "JPEG", exif=exif)
    assert read_pictures("image", Image.open(file))[0].shape == (3, 2, 4)


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 60_000])  # beyond where Pillow warns, and where it refuses
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs_are_refused_before_decoding(tmp_path, side):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_claiming(side, side))
    with pytest.raises(ValueError, match="bomb.png.*(at most|exceeds limit of) "):
        read_pictures("image", path)


def test_a_picture_of_pillow_beyond_the_limit_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 23)
    with pytest.raises(ValueError, match="image must have at most 23 pixels, got 6 x 4"):
        read_pictures("image", PICTURE)
    with pytest.raises(ValueError, match="mask_image must have at most 23 pixels, got 6 x 4"):
        read_masks("mask_image", PICTURE)


def test_broken_files_are_refused_or_read(tmp_path):
    draw = random.Random(0)
    big = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    refused = 0
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        file = io.BytesIO()
        big.save(file, kind)
        path = tmp_path / "broken"
        for turn in range(20):
            content = bytearray(file.getvalue())
            content = content[: draw.randrange(1, len(content))] if turn % 2 else content
            for _ in range(10):
                content[draw.randrange(len(content))] = draw.randrange(256)
            path.write_bytes(content)
            try:
                (pixels,) = read_pictures("image", path)
                assert pixels.shape[0] == 3
            except ValueError:  # and nothing else
                refused += 1
    assert refused > 40


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "program.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    for name, message in (
        ("text.png", "image must be a picture that can be read, got 'text.png'"),
        ("program.eps", "image must be a picture that can be read, got 'program.eps'"),
        ("missing.png", "image must be a picture file, got .*missing.png', which is none"),
        (".", "image must be a picture file, got .*, which is none"),
    ):
        with pytest.raises(ValueError, match=message):
            read_pictures("image", Path(tmp_path / name))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "image must hold at least one picture, got none"),
        (3, "image must be a picture of Pillow, .* got int"),
        (BYTES.astype(np.int64), "got dtype int64"),
        (BYTES.astype(np.uint16), "got dtype uint16"),
        (BYTES.astype(object), "got dtype object"),
        (torch.zeros(3, 4, 6, dtype=torch.int32), "got dtype torch.int32"),
        (torch.zeros(3, 4, 6, dtype=torch.complex64), "got dtype torch.complex64"),
        (BYTES[..., :2], r"image must be an array \(height, width, 3\) .* got \(4, 6, 2\)"),
        (BYTES[..., 0], r"got \(4, 6\)"),
        (torch.zeros(4, 6, 3), r"got \(4, 6, 3\)"),
        (np.zeros((0, 6, 3)), r"got \(0, 6, 3\)"),
        (BYTES / 128, r"floats of image must be in \[0, 1\], got values from 0.0078125 to 1.9375"),
        (torch.full((3, 4, 6), -0.5), r"floats of image must be in \[0, 1\], got values from -0.5 to -0.5"),
        (np.full((4, 6, 3), np.nan), "floats of image must be in .* got values from nan to nan"),
    ],
)
def test_other_values_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        read_pictures("image", given)
