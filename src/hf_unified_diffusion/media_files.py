"""Pictures and sound as the bytes of a file."""

import io
import wave

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image


def png_bytes(picture: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """A picture as PNG.

    Usage: `Path("apple.png").write_bytes(png_bytes(engine.diffuse("a red apple", modality="image")))`
    """
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="PNG")
    return file.getvalue()


def pcm_bytes(samples: Float[np.ndarray, "samples"]) -> bytes:
    """Sound in [-1, 1], clipped to it, as 16-bit little-endian PCM without a header."""
    return (np.clip(samples, -1, 1) * 32767).round().astype("<i2").tobytes()


def wav_bytes(samples: Float[np.ndarray, "samples"], sampling_rate_hz: int) -> bytes:
    """Mono sound in [-1, 1] as a WAV file of 16 bits.

    Usage: `Path("hello.wav").write_bytes(wav_bytes(result.output, result.sampling_rate_hz))`
    """
    file = io.BytesIO()
    with wave.open(file, "wb") as written:
        written.setnchannels(1)
        written.setsampwidth(2)
        written.setframerate(sampling_rate_hz)
        written.writeframes(pcm_bytes(samples))
    return file.getvalue()
