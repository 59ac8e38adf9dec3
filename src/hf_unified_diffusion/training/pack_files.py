"""One file of a pack: arrays as safetensors within xz, which need nothing but the standard library and safetensors."""

import hashlib
import lzma
from collections.abc import Mapping, Sequence

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

SUFFIX = ".safetensors.xz"
MAX_EXPANSION = 64  # bytes that a byte may become, beyond SLACK_BYTES: no file decides how much memory it takes
SLACK_BYTES = 1 << 24


def packed_arrays(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The arrays as the content of a pack file.

    Usage: `file.write_bytes(packed_arrays({"tokens": tokens}))`
    """
    return lzma.compress(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}), preset=6)


def unpacked_arrays(content: bytes) -> dict[str, np.ndarray]:
    """The arrays of a pack file.

    Raises:
        ValueError: no xz stream of safetensors, or one that grows beyond `MAX_EXPANSION`.

    Usage: `unpacked_arrays(file.read_bytes())["tokens"]`
    """
    limit = SLACK_BYTES + MAX_EXPANSION * len(content)
    try:
        reader = lzma.LZMADecompressor(format=lzma.FORMAT_XZ)
        plain = reader.decompress(content, max_length=limit)
        if not reader.eof:
            raise ValueError(f"a pack file must be one whole xz stream of at most {limit} bytes, got more or a part")
        return load(plain)
    except (lzma.LZMAError, SafetensorError) as error:
        raise ValueError(f"a pack file must be safetensors in xz, got {len(content)} bytes: {error}") from error


def sha256_of(content: bytes) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(content).hexdigest()


def strings_to_arrays(name: str, lists: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    """Lists of strings as three arrays: UTF-8 bytes, bytes of each string, strings of each list."""
    encoded = [text.encode() for texts in lists for text in texts]
    return {
        f"{name}_utf8": np.frombuffer(b"".join(encoded), dtype=np.uint8),
        f"{name}_bytes": np.array([len(text) for text in encoded], dtype=np.uint32),
        f"{name}_count": np.array([len(texts) for texts in lists], dtype=np.uint32),
    }


def strings_of_arrays(name: str, arrays: Mapping[str, np.ndarray]) -> list[list[str]]:
    """What `strings_to_arrays` wrote."""
    text = arrays[f"{name}_utf8"].tobytes()
    ends = np.cumsum(arrays[f"{name}_bytes"], dtype=np.int64).tolist()
    strings = [text[start:end].decode() for start, end in zip([0, *ends], ends, strict=False)]
    stops = np.cumsum(arrays[f"{name}_count"], dtype=np.int64).tolist()
    return [strings[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]
