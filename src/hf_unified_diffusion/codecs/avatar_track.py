"""A mouth track as a file: JSON with what is said when, or CSV for a table; either is read back as it was written."""

import csv
import io
import json
import math
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from ..contracts import TimedLabel
from ..quantization.parquet_writer import fsync_path
from .avatar_codec import COEFFICIENTS, TOKENS_PER_SECOND, resampled

FORMAT = "arkit-52"
LARGEST_FILE_BYTES = 256 << 20  # about 8 hours at 20 frames a second
DIGITS = 4  # a ten-thousandth of the way is far below what can be seen
CSV_TIME = "time_s"


@dataclass(frozen=True)
class AvatarTrack:
    """A face in time.

    Attributes:
        coefficients: in [0, 1], in the order of `COEFFICIENTS`; frame k is the face at (k + 1/2) / frame_rate_hz.
        frame_rate_hz: frames a second.
        words, phonemes, visemes: what is said when; JSON keeps them, CSV does not.

    Raises:
        ValueError: another shape, a number outside [0, 1], or a rate that is not a positive number.

    Usage: `AvatarTrack(coefficients).at(60).write("mouth.json")`
    """

    coefficients: Float32[np.ndarray, "frames 52"]
    frame_rate_hz: float = TOKENS_PER_SECOND
    words: tuple[TimedLabel, ...] = ()
    phonemes: tuple[TimedLabel, ...] = ()
    visemes: tuple[TimedLabel, ...] = ()

    def __post_init__(self) -> None:
        values = self.coefficients
        if values.ndim != 2 or values.shape[1] != len(COEFFICIENTS) or values.dtype != np.float32 or not len(values):
            raise ValueError(
                f"coefficients must be float32 (frames, {len(COEFFICIENTS)}) with frames, "
                f"got {values.dtype} {values.shape}"
            )
        if not bool(((values >= 0) & (values <= 1)).all()):  # also false for NaN
            raise ValueError(f"coefficients must be in [0, 1], got {values.min():g} to {values.max():g}")
        if not (math.isfinite(self.frame_rate_hz) and self.frame_rate_hz > 0):
            raise ValueError(f"frame_rate_hz must be a positive number, got {self.frame_rate_hz}")

    def __len__(self) -> int:
        return len(self.coefficients)

    @property
    def times_s(self) -> list[float]:
        """The middle of each frame in seconds."""
        return [round((k + 0.5) / self.frame_rate_hz, 6) for k in range(len(self))]

    def at(self, frame_rate_hz: float) -> "AvatarTrack":
        """The same at another frame rate.

        Usage: `track.at(30)`
        """
        frames = resampled(self.coefficients, self.frame_rate_hz, frame_rate_hz)
        return AvatarTrack(frames, frame_rate_hz, self.words, self.phonemes, self.visemes)

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write a `.json` or `.csv` file; it appears whole or not at all. Numbers have four digits.

        Raises:
            ValueError: for another ending.

        Usage: `AvatarTrack(coefficients).write("mouth.csv")`
        """
        path = Path(path)
        return write_whole(path, _kind_of(path)[0](self))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "AvatarTrack":
        """Read what `write` wrote.

        Raises:
            ValueError: for another ending, a file above 256 MiB, or one that is no such track.

        Usage: `AvatarTrack.read("mouth.json").coefficients`
        """
        path = Path(path)
        load = _kind_of(path)[1]
        size = path.stat().st_size
        if size > LARGEST_FILE_BYTES:
            raise ValueError(f"a mouth track must be a file of at most {LARGEST_FILE_BYTES} bytes, got {size}")
        try:
            return load(path.read_text(encoding="utf-8"))
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            raise ValueError(f"{path.name} must be a mouth track as AvatarTrack.write makes them: {error}") from error


def write_whole(path: Path, text: str) -> Path:
    """Write a text file that appears whole or not at all, and is on the disk afterwards."""
    partial = path.with_name(f"{path.name}.tmp-{secrets.token_hex(4)}")
    try:
        partial.write_text(text, encoding="utf-8")
        fsync_path(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    fsync_path(path.parent)
    return path


def _rounded(track: AvatarTrack) -> list[list[float]]:
    return [[round(value, DIGITS) for value in row] for row in track.coefficients.astype(np.float64).tolist()]


def _to_json(track: AvatarTrack) -> str:
    said = {name: [vars(label) for label in getattr(track, name)] for name in ("words", "phonemes", "visemes")}
    record = {"format": FORMAT, "frame_rate_hz": track.frame_rate_hz, "names": list(COEFFICIENTS), **said}
    record |= {"times_s": track.times_s, "coefficients": _rounded(track)}
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


def _from_json(text: str) -> AvatarTrack:
    record: dict[str, Any] = json.loads(text)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(f"format must be {FORMAT!r}")
    _check_names(record["names"])
    said = {
        name: tuple(
            TimedLabel(str(entry["label"]), float(entry["start_s"]), float(entry["end_s"])) for entry in record[name]
        )
        for name in ("words", "phonemes", "visemes")
    }
    values = np.array(record["coefficients"], dtype=np.float32)
    return AvatarTrack(values, float(record["frame_rate_hz"]), **said)


def _to_csv(track: AvatarTrack) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([CSV_TIME, *COEFFICIENTS])
    writer.writerows([time, *row] for time, row in zip(track.times_s, _rounded(track), strict=True))
    return buffer.getvalue()


def _from_csv(text: str) -> AvatarTrack:
    header, *rows = csv.reader(io.StringIO(text))
    if header[:1] != [CSV_TIME]:
        raise ValueError(f"the first column must be {CSV_TIME!r}, got {header[:1]}")
    _check_names(header[1:])
    table = np.array(rows, dtype=np.float64)
    if table.ndim != 2 or not len(table) or not (table[0, 0] > 0):
        raise ValueError(f"every row must have a time and {len(COEFFICIENTS)} numbers, the first time above 0")
    rate = round((2 * len(table) - 1) / (2 * table[-1, 0]), 3)  # the middle of the last frame is (n - 1/2) / rate
    if not np.allclose(table[:, 0], (np.arange(len(table)) + 0.5) / rate, atol=1e-3):
        raise ValueError("times must be the middles of frames of one rate")
    return AvatarTrack(table[:, 1:].astype(np.float32), rate)


def _check_names(names: object) -> None:
    if names != list(COEFFICIENTS):
        raise ValueError("names must be the 52 coefficients of ARKit in Apple's order")


_KINDS = {".json": (_to_json, _from_json), ".csv": (_to_csv, _from_csv)}


def _kind_of(path: Path) -> tuple[Any, Any]:
    if path.suffix not in _KINDS:
        raise ValueError(f"the name of a mouth track must end in one of {sorted(_KINDS)}, got {path.name!r}")
    return _KINDS[path.suffix]
