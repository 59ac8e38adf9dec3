"""Drawings to pixels, in a process of its own: an SVG that hangs or eats memory costs that one picture."""

import io
import select
import struct
import subprocess
import sys
from pathlib import Path
from typing import IO

from PIL import Image, ImageOps

from .image_extract import Drawing

WORKER = Path(__file__).with_name("svg_worker.py")
REQUEST, ANSWER = struct.Struct("<III"), struct.Struct("<?I")  # as in the worker
MAX_SECONDS = 5.0
MAX_BYTES = 1 << 30
MAX_SIDE = 1024  # pixels of a raster file
START_SECONDS = 60.0


class RenderError(ValueError):
    """A drawing could not be drawn within the bounds."""


class SvgRenderer:
    """Renders SVG with resvg, each picture within seconds and bytes. Use: `with SvgRenderer() as renderer: ...`."""

    def __init__(self, max_seconds: float = MAX_SECONDS, max_bytes: int = MAX_BYTES):
        self.max_seconds, self.max_bytes = max_seconds, max_bytes
        self._start()

    def _start(self) -> None:
        command = [sys.executable, str(WORKER), str(self.max_bytes)]
        quiet = subprocess.DEVNULL  # a picture that needs too much memory ends the worker with a message
        self._worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=quiet, bufsize=0)
        self._is_new = True

    def __enter__(self) -> "SvgRenderer":
        return self

    def __exit__(self, *error) -> None:
        self._worker.kill()
        with self._worker:  # closes its pipes, waits for it
            pass

    def render(self, svg: bytes, aspect: float, side: int) -> Image.Image:
        """RGBA picture whose longer side is `side` pixels. Raises RenderError for a broken, slow or huge SVG."""
        answer = self._ask(svg, *((side, 0) if aspect >= 1 else (0, side)))
        if answer is None:
            self.__exit__()
            self._start()
            raise RenderError(f"an SVG must be drawn within {self.max_seconds} s and {self.max_bytes} bytes")
        is_drawn, content = answer
        if not is_drawn:
            raise RenderError(f"an SVG must be one that resvg draws, got: {content[:200]!r}")
        return open_raster(content)

    def _ask(self, svg: bytes, width: int, height: int) -> tuple[bool, bytes] | None:
        """The worker's answer, None when it took too long or died."""
        requests, answers = self._worker.stdin, self._worker.stdout
        assert requests is not None and answers is not None  # both are pipes
        # a new process first imports resvg: that is not the picture's time
        seconds = self.max_seconds + (START_SECONDS if self._is_new else 0)
        self._is_new = False
        try:
            rest = memoryview(REQUEST.pack(len(svg), width, height) + svg)
            while rest:  # a pipe takes part of what it is given
                rest = rest[requests.write(rest) :]
        except BrokenPipeError:
            return None
        if not select.select([answers], [], [], seconds)[0]:
            return None
        header = read_exactly(answers, ANSWER.size)
        if header is None:
            return None
        is_drawn, length = ANSWER.unpack(header)
        content = read_exactly(answers, length)
        return None if content is None else (is_drawn, content)


def read_exactly(stream: IO[bytes], length: int) -> bytes | None:
    """So many bytes, None when the stream ends before."""
    parts = []
    while length > 0 and (part := stream.read(length)):
        parts.append(part)
        length -= len(part)
    return None if length else b"".join(parts)


def open_raster(content: bytes) -> Image.Image:
    """RGBA picture of a raster file. Raises RenderError when it is broken or larger than `MAX_SIDE`."""
    try:
        picture = Image.open(io.BytesIO(content))
        if max(picture.size) > MAX_SIDE:
            raise RenderError(f"sides of a picture must be at most {MAX_SIDE}, got {picture.size}")
        return picture.convert("RGBA")
    except OSError as error:
        raise RenderError(f"a picture must be readable: {error}") from None


def sprite(drawing: Drawing, side: int, renderer: SvgRenderer) -> Image.Image:
    """The drawing on nothing: RGBA, cropped to what is visible, longer side `side` or a little
    less.

    Raises RenderError, also for a drawing of which next to nothing is visible.
    """
    is_svg, content = drawing.is_svg, drawing.content
    picture = renderer.render(content, drawing.aspect, side) if is_svg else open_raster(content)
    box = picture.getchannel("A").point(lambda alpha: 255 * (alpha > 8)).getbbox()
    if box is None or (box[2] - box[0]) * (box[3] - box[1]) < 0.02 * side * side:
        raise RenderError(f"a drawing must show something, got {box} of {picture.size}")
    picture = picture.crop(box)
    if 0.85 * side <= max(picture.size) <= side:
        return picture
    return ImageOps.contain(picture, (side, side), Image.Resampling.LANCZOS)


def png_bytes(picture: Image.Image) -> bytes:
    """The picture as a PNG file."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()
