"""What is remembered: one memory, its payload as bytes and back, and the digest that covers both."""

import hashlib
import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32

STATUSES = ("quarantine", "active", "revoked")
MAX_NAME_CHARACTERS = 256
MAX_PAYLOAD_BYTES = 1 << 28  # an hour of float32 audio at 16 kHz
MAX_METADATA_BYTES = 1 << 16
MAX_DIMENSION = 1 << 15
MAX_SAMPLE_RATE_HZ = 1 << 20
PART_LENGTHS = struct.Struct("<7Q")
Payload = str | np.ndarray


@dataclass(frozen=True)
class Memory:
    """One thing that was remembered.

    Attributes:
        id: never used again, not even after the memory is forgotten.
        modality: text, code, image or audio.
        payload: str for text and code, uint8 (H, W, 3) for images, float32 (samples,) for audio.
        embedding: the unit vector it is found by.
        encoder: the name of what made the embedding.
        source: where it came from (provenance).
        status: only what is "active" is recalled; "quarantine" waits for trust, "revoked" has lost it for good.
        created_at, expires_at: seconds since 1970; None: does not expire.
        sample_rate_hz: of audio.
        metadata: the caller's own JSON object.
        score: the inner product with the query that found it.
    """

    id: int
    modality: str
    payload: Payload
    embedding: Float32[np.ndarray, "width"] = field(repr=False)
    encoder: str
    source: str
    status: str
    created_at: float
    expires_at: float | None
    sample_rate_hz: int | None
    metadata: Mapping[str, Any]
    score: float | None = None


def pack_text(payload: Payload, sample_rate_hz: int | None) -> tuple[bytes, dict[str, Any]]:
    """A text as UTF-8."""
    if not isinstance(payload, str) or not payload:
        raise ValueError(f"text and code must be non-empty str, got {payload!r:.40}")
    try:
        return payload.encode(), {}
    except UnicodeEncodeError as error:
        raise ValueError(f"text must be valid Unicode, got {error}") from None


def pack_image(payload: Payload, sample_rate_hz: int | None) -> tuple[bytes, dict[str, Any]]:
    """An image's pixels, row by row."""
    if not isinstance(payload, np.ndarray) or payload.dtype != np.uint8 or payload.shape[2:] != (3,):
        raise ValueError(f"images must be uint8 arrays (H, W, 3), got {_described(payload)}")
    if not payload.size:
        raise ValueError(f"images must have pixels, got shape {payload.shape}")
    return payload.tobytes(), {"shape": list(payload.shape)}


def pack_audio(payload: Payload, sample_rate_hz: int | None) -> tuple[bytes, dict[str, Any]]:
    """A waveform, little-endian float32."""
    if not isinstance(payload, np.ndarray) or payload.dtype != np.float32 or payload.ndim != 1 or not payload.size:
        raise ValueError(f"audio must be a float32 array (samples,), got {_described(payload)}")
    if not np.isfinite(payload).all():
        raise ValueError("audio must be finite, got NaN or infinity")
    if type(sample_rate_hz) is not int or not 0 < sample_rate_hz <= MAX_SAMPLE_RATE_HZ:
        raise ValueError(f"sample_rate_hz of audio must be in 1..{MAX_SAMPLE_RATE_HZ}, got {sample_rate_hz!r}")
    return payload.astype("<f4").tobytes(), {"sample_rate_hz": sample_rate_hz}


def unpack_text(data: bytes, layout: Mapping[str, Any]) -> Payload:
    """The inverse of `pack_text`."""
    return data.decode()


def unpack_image(data: bytes, layout: Mapping[str, Any]) -> Payload:
    """The inverse of `pack_image`."""
    return np.frombuffer(data, np.uint8).reshape(layout["shape"])


def unpack_audio(data: bytes, layout: Mapping[str, Any]) -> Payload:
    """The inverse of `pack_audio`."""
    return np.frombuffer(data, "<f4").astype(np.float32)


PACKERS: dict[str, tuple[Callable, Callable]] = {
    "text": (pack_text, unpack_text),
    "code": (pack_text, unpack_text),
    "image": (pack_image, unpack_image),
    "audio": (pack_audio, unpack_audio),
}


def pack(modality: str, payload: Payload, sample_rate_hz: int | None = None) -> tuple[bytes, str]:
    """A payload as bytes, and the JSON that `unpack` needs.

    Raises ValueError for another modality, a payload that is not of it, or one that is too large.
    """
    check_modality(modality)
    if modality != "audio" and sample_rate_hz is not None:
        raise ValueError(f"sample_rate_hz is for audio only, got {sample_rate_hz!r} for {modality}")
    data, layout = PACKERS[modality][0](payload, sample_rate_hz)
    if len(data) > MAX_PAYLOAD_BYTES:
        raise ValueError(f"a payload must be at most {MAX_PAYLOAD_BYTES} bytes, got {len(data)}")
    return data, json.dumps(layout)


def unpack(modality: str, data: bytes, layout: str) -> tuple[Payload, int | None]:
    """The payload and its sample rate (None but for audio), from what `pack` gave.

    Raises ValueError for bytes and a layout that do not fit each other.
    """
    check_modality(modality)
    try:
        described = json_object(layout)
        return PACKERS[modality][1](data, described), described.get("sample_rate_hz")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"payload and layout must be those of {modality}, got {error}") from None


def json_object(text: str) -> dict[str, Any]:
    """JSON as it stands in a row, where most have nothing to say."""
    return {} if text == "{}" else json.loads(text)


def digest_of(
    encoder: str, modality: str, layout: str, payload: bytes, embedding: bytes, source: str, metadata: str
) -> bytes:
    """SHA-256 over what a memory is made of; first all lengths, so that no part runs into the next."""
    data = (
        encoder.encode(), modality.encode(), layout.encode(), payload, embedding, source.encode(), metadata.encode()
    )  # fmt: skip
    return hashlib.sha256(b"".join((PART_LENGTHS.pack(*map(len, data)), *data))).digest()


def captions_of(captions: Sequence[str], count: int, embeddings: object) -> list[str]:
    """Captions to embed by; raises ValueError unless there is one for each payload, all are text, and no embeddings."""
    if isinstance(captions, str) or not all(isinstance(caption, str) and caption for caption in captions):
        raise ValueError(f"captions must be a list of non-empty str, got {captions!r:.80}")
    if len(captions) != count or embeddings is not None:
        others = "" if embeddings is None else " and embeddings"
        raise ValueError(
            f"captions must be one for each of {count} payloads, without embeddings, got {len(captions)}{others}"
        )
    return list(captions)


def check_modality(modality: str) -> None:
    """Raise ValueError unless memories can be of it."""
    if modality not in PACKERS:
        raise ValueError(f"modality must be one of {sorted(PACKERS)}, got {modality!r}")


def check_name(what: str, name: str) -> None:
    """Raise ValueError unless a name is short and printable: no control, bidirectional or lone surrogate characters."""
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_CHARACTERS or not name.isprintable():
        raise ValueError(f"{what} must be 1..{MAX_NAME_CHARACTERS} printable characters, got {name!r:.80}")


def check_status(status: str) -> None:
    """Raise ValueError unless it is a trust status."""
    if status not in STATUSES:
        raise ValueError(f"status must be one of {STATUSES}, got {status!r}")


def check_time(what: str, seconds: float) -> None:
    """Raise ValueError unless it is a time in seconds since 1970."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not math.isfinite(seconds):
        raise ValueError(f"{what} must be finite seconds since 1970, got {seconds!r}")


def metadata_json(metadata: Mapping[str, Any] | None) -> str:
    """Metadata in canonical JSON.

    Raises ValueError for what is no finite JSON object, and above 64 KiB.
    """
    try:
        text = json.dumps(dict(metadata or {}), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"metadata must be a JSON object, got {error}") from None
    if len(text) > MAX_METADATA_BYTES:
        raise ValueError(f"metadata must be at most {MAX_METADATA_BYTES} bytes, got {len(text)}")
    return text


def unit_vectors(embeddings: Any) -> Float32[np.ndarray, "count width"]:
    """Embeddings as float32 of length 1, so that a long vector does not win every search.

    Raises ValueError for what is no finite, non-zero matrix.
    """
    vectors = np.asarray(embeddings, dtype=np.float64)
    if vectors.ndim != 2 or not 0 < vectors.shape[1] <= MAX_DIMENSION:
        raise ValueError(f"embeddings must be (count, width) with width in 1..{MAX_DIMENSION}, got {vectors.shape}")
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    if not np.isfinite(largest).all() or not (largest > 0).all():
        raise ValueError("embeddings must be finite and not zero, got a row that is")
    scaled = vectors / largest  # squares of very large and very small numbers leave float64
    return np.ascontiguousarray(scaled / np.linalg.norm(scaled, axis=1, keepdims=True), dtype=np.float32)


def unit_vector(embedding: Any) -> Float32[np.ndarray, "width"]:
    """One embedding as float32 of length 1.

    Raises ValueError for what is no finite, non-zero vector.
    """
    vector = np.asarray(embedding, dtype=np.float64)
    if vector.ndim != 1:
        raise ValueError(f"query must be a text or one embedding (width,), got shape {vector.shape}")
    length = math.sqrt(vector @ vector) if len(vector) <= MAX_DIMENSION else 0.0
    if not 1e-100 < length < 1e100:  # its squares may leave float64, or it is none at all
        return unit_vectors([vector])[0]
    return (vector / length).astype(np.float32)


def _described(payload: Any) -> str:
    return f"{payload.dtype} {payload.shape}" if isinstance(payload, np.ndarray) else type(payload).__name__
