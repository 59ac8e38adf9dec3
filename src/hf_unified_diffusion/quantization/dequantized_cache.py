"""Lazy dequantization: dense weights of the layers touched so far, bounded in bytes, shared by all models."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

DEFAULT_BYTES = 1 << 30  # 500M weights in bfloat16
# a layer that a few whole rounds through the others did not touch belongs to a model that is at rest
_STALE_ROUNDS = 4


@dataclass(frozen=True)
class DequantizedCacheInfo:
    """What the cache has done since the process started, and what it holds; see `dequantized_cache_info`.

    Attributes:
        dequantizations: how often a layer's whole matrix was dequantized.
        hits: how often it was found in the cache instead.
        layers: matrices held now.
        used_bytes, limit_bytes: of these, and the bound.
    """

    dequantizations: int
    hits: int
    layers: int
    used_bytes: int
    limit_bytes: int


class Sized(Protocol):
    """A dense weight in some layout."""

    @property
    def nbytes(self) -> int:
        """What it takes of the bound."""
        ...


Dense = TypeVar("Dense", bound=Sized)


@dataclass
class _Entry:
    dense: Any
    stamp: tuple[Any, ...]
    sources: tuple[Tensor, ...]  # kept alive, so that no other tensor can take the addresses in the stamp
    last_lookup: int


class DequantizedCache:
    """Thread-safe map from a layer to its dense weight.

    Nothing in use is evicted: layers are visited in rounds, where least-recently-used eviction would drop each one
    just before its turn. What does not fit is dequantized at each use.
    """

    def __init__(self, limit_bytes: int):
        self._entries: WeakKeyDictionary[nn.Module, _Entry] = WeakKeyDictionary()
        self._lock = threading.Lock()
        self._lookups = self._dequantizations = 0
        self.limit_bytes = limit_bytes

    def get(self, owner: nn.Module, sources: tuple[Tensor, ...], form: Any, make: Callable[[], Dense]) -> Dense:
        """The dense weight of `owner`, from the cache unless a source was written to, replaced or moved.

        `form` tells the layouts of one weight apart; only the last one asked for is kept.
        """
        stamp = (form, *(_stamp(source) for source in sources))
        with self._lock:
            self._lookups += 1
            entry = self._entries.get(owner)
            if entry is not None and entry.stamp == stamp:
                entry.last_lookup = self._lookups
                return entry.dense
        # a normal tensor even under inference_mode: training may use it later
        with torch.inference_mode(False), torch.no_grad():
            dense = make()
            sources = tuple(source.detach() for source in sources)
        with self._lock:
            self._dequantizations += 1
            self._entries.pop(owner, None)
            idle = self._idle_beyond(dense.nbytes)
            for other in idle or ():
                del self._entries[other]
            if idle is not None:
                self._entries[owner] = _Entry(dense, stamp, sources, self._lookups)
        return dense

    def info(self) -> DequantizedCacheInfo:
        """Counts and sizes at one moment."""
        with self._lock:
            made, layers = self._dequantizations, len(self._entries)
            return DequantizedCacheInfo(made, self._lookups - made, layers, self.used_bytes(), self.limit_bytes)

    def keeps(self, owner: nn.Module, nbytes: int) -> bool:
        """Whether a dense weight of that size would stay: a layout that is costly to make pays off only then."""
        with self._lock:
            entry = self._entries.get(owner)
            given_back = 0 if entry is None else entry.dense.nbytes
            return nbytes <= given_back or self._idle_beyond(nbytes - given_back) is not None

    def used_bytes(self) -> int:
        """Bytes of dense weights held now."""
        return sum(entry.dense.nbytes for entry in list(self._entries.values()))

    def resize(self, limit_bytes: int) -> int:
        """Set the bound, dropping the longest unused layers beyond it; returns the previous bound."""
        with self._lock:
            previous, self.limit_bytes = self.limit_bytes, limit_bytes
            for owner, _ in self._oldest_first():
                if self.used_bytes() <= limit_bytes:
                    break
                del self._entries[owner]
        return previous

    def _oldest_first(self) -> list[tuple[nn.Module, _Entry]]:
        return sorted(self._entries.items(), key=lambda item: item[1].last_lookup)

    def _idle_beyond(self, nbytes: int) -> list[nn.Module] | None:
        """The layers to drop so that `nbytes` more fit; None if those at rest do not free enough."""
        free, idle = self.limit_bytes - self.used_bytes(), []
        stale_before = self._lookups - _STALE_ROUNDS * len(self._entries)
        for owner, entry in self._oldest_first() if nbytes > free else ():
            if nbytes <= free or entry.last_lookup >= stale_before:
                break
            free += entry.dense.nbytes
            idle.append(owner)
        return idle if nbytes <= free else None


def _stamp(tensor: Tensor) -> tuple[int, int, torch.device]:
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version, tensor.device


CACHE = DequantizedCache(DEFAULT_BYTES)


def set_dequantized_cache_bytes(limit_bytes: int) -> int:
    """Bound the dense weights that quantized layers keep (1 GiB at first); 0 dequantizes at each use.

    Returns the previous bound. Usage: `set_dequantized_cache_bytes(2 << 30)`
    """
    if limit_bytes < 0:
        raise ValueError(f"limit_bytes must be at least 0, got {limit_bytes}")
    return CACHE.resize(limit_bytes)


def dequantized_cache_info() -> DequantizedCacheInfo:
    """How many layers were dequantized so far, and what the cache of their dense weights holds.

    Embeddings count where they serve as unembedding; looking up tokens dequantizes their rows alone.
    Usage: `print(dequantized_cache_info().dequantizations)`
    """
    return CACHE.info()
