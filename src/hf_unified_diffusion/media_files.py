"""Pictures and sound as the bytes of a file."""

import io

import numpy as np
import soundfile
from jaxtyping import Float, UInt8
from PIL import Image


def png_bytes(picture: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """A picture as PNG.

    Usage: `Path("apple.png").write_bytes(png_bytes(engine.diffuse("a red apple", modality="image")))`
    """
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="PNG")
    return file.getvalue()


def wav_bytes(samples: Float[np.ndarray, "samples"], sampling_rate_hz: int, header: bool = True) -> bytes:
    """Mono sound in [-1, 1] as a WAV file of 16 bits; without a header as plain little-endian PCM.

    Usage: `Path("hello.wav").write_bytes(wav_bytes(result.output, result.sampling_rate_hz))`
    """
    file = io.BytesIO()
    kind = {"format": "WAV"} if header else {"format": "RAW", "endian": "LITTLE"}
    soundfile.write(file, samples, sampling_rate_hz, subtype="PCM_16", **kind)
    return file.getvalue()
