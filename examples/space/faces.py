"""A drawn face that moves in step with its sound, as HTML that needs no script of the page."""

import base64
import io
import wave

import numpy as np
from PIL import Image

from hf_unified_diffusion.codecs.avatar_view import draw_face

COLUMNS, SIZE = 16, 200
# while the sound plays, the frame of its time is shown: one of a sheet of all
FOLLOW = """const face = this.previousElementSibling, sound = this;
(function show() {{
  const k = Math.min({last}, Math.floor(sound.currentTime * {rate}));
  face.style.backgroundPosition = `-${{(k % {columns}) * {size}}}px -${{Math.floor(k / {columns}) * {size}}}px`;
  if (!sound.paused) requestAnimationFrame(show);
}})()"""


def speaking_face(coefficients: np.ndarray, waveform: np.ndarray, sampling_rate_hz: int, faces_per_s: int) -> str:
    """HTML of a sound with a face above it.

    Args:
        coefficients: float (faces, 52) in [0, 1].
        waveform: float (samples,) in [-1, 1].
    """
    follow = FOLLOW.format(last=len(coefficients) - 1, rate=faces_per_s, columns=COLUMNS, size=SIZE)
    style = f"width:{SIZE}px;height:{SIZE}px;border-radius:16px;background-image:url({sheet(coefficients)})"
    sound = f'<audio controls src="{as_wav(waveform, sampling_rate_hz)}" onplay="{follow}"></audio>'
    return f'<div class="speaking"><div class="face" role="img" aria-label="a face" style="{style}"></div>{sound}</div>'


def sheet(coefficients: np.ndarray) -> str:
    """All faces in rows of a picture, as a data URI."""
    rows = -(-len(coefficients) // COLUMNS)
    picture = Image.new("RGB", (SIZE * min(COLUMNS, len(coefficients)), SIZE * rows))
    for number, values in enumerate(coefficients.astype(np.float32)):
        picture.paste(draw_face(values, SIZE), (number % COLUMNS * SIZE, number // COLUMNS * SIZE))
    file = io.BytesIO()
    picture.quantize(48, dither=Image.Dither.NONE).save(file, "PNG")
    return as_uri("image/png", file.getvalue())


def as_wav(waveform: np.ndarray, sampling_rate_hz: int) -> str:
    """Sound of 16 bits, as a data URI."""
    file = io.BytesIO()
    with wave.open(file, "wb") as written:
        written.setnchannels(1)
        written.setsampwidth(2)
        written.setframerate(sampling_rate_hz)
        written.writeframes((np.clip(waveform, -1, 1) * 32767).round().astype("<i2").tobytes())
    return as_uri("audio/wav", file.getvalue())


def as_uri(kind: str, data: bytes) -> str:
    """Bytes as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
