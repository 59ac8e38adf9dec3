"""The nearest vectors by inner product: FAISS under `datasets`' own index class, flat for few rows, IVF-SQ8 for many.

Derived from the store: it can be thrown away at any time.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from datasets.search import FaissIndex
from jaxtyping import Float32, Int64

from . import half_scan
from .half_scan import HalfScan

FLAT_ROWS = 100_000  # more rows than these are searched by IVF-SQ8
ROWS_PER_CHUNK = 8192
TRAINING_ROWS_PER_LIST = 64
CANDIDATES = 2
CALIBRATION_QUERIES, CALIBRATION_NEIGHBOURS, CALIBRATION_RECALL = 128, 10, 0.985
Vectors = Float32[np.ndarray, "count width"]
Ids = Int64[np.ndarray, "count"]
ReadVectors = Callable[[Ids], tuple[Ids, Vectors]]


def import_faiss() -> Any:
    """The faiss module.

    Raises ImportError that names the extra where it is absent.
    """
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            'a memory needs FAISS: install the extra "memory" (pip install "hf_unified_diffusion[memory]")'
        ) from error
    return faiss


def chunks(ids: Ids) -> Iterator[Ids]:
    """Runs of ids that fit in memory with their vectors."""
    for start in range(0, len(ids), ROWS_PER_CHUNK):
        yield ids[start : start + ROWS_PER_CHUNK]


def evenly(ids: Ids, count: int) -> Ids:
    """At most `count` of the ids, at even distances."""
    return ids[np.linspace(0, len(ids) - 1, min(count, len(ids))).round().astype(np.int64)]


def lists_for(num_rows: int) -> int:
    """How many lists an IVF index of so many rows has: a power of two near the square root."""
    return 1 << max(2, round(math.log2(math.sqrt(num_rows))))


class VectorIndex:
    """A set of ids with their vectors, searched by inner product.

    Usage: `index = VectorIndex.build(ids, read_vectors, dimension=384); ids = index.search(query, k=10)`
    """

    def __init__(self, faiss_index: Any, ids: Ids):
        self.ids = ids  # ascending
        self.dimension: int = faiss_index.d
        self.num_lists: int = faiss_index.nlist if isinstance(faiss_index, import_faiss().IndexIVF) else 0
        self._faiss = FaissIndex(custom_index=faiss_index)
        self._half: HalfScan | None = None

    @staticmethod
    def build(ids: Ids, read_vectors: ReadVectors, dimension: int, flat_rows: int = FLAT_ROWS) -> "VectorIndex":
        """An index of the rows `ids`, whose vectors are read in runs; IVF-SQ8 where there are more than `flat_rows`.

        Args:
            ids: ascending.
            read_vectors: ids -> those of them that are still there, and their vectors.
        """
        if len(ids) > flat_rows:
            return _build_lists(ids, read_vectors, dimension)
        faiss = import_faiss()
        index = VectorIndex(faiss.IndexIDMap2(faiss.IndexFlatIP(dimension)), ids[:0])
        index.add(ids, read_vectors)
        return index

    @property
    def kind(self) -> str:
        """`flat` or `ivf_sq8`."""
        return "ivf_sq8" if self.num_lists else "flat"

    @property
    def num_bytes(self) -> int:
        """About what it holds in memory."""
        return len(self.ids) * (16 + self.dimension * (1 if self.num_lists else 6))

    def fits(self, num_rows: int, flat_rows: int) -> bool:
        """Whether so many rows are well served by this kind of index; it bends before it is built anew."""
        if not self.num_lists:
            return num_rows <= flat_rows
        return num_rows > flat_rows // 2 and 0.5 <= lists_for(num_rows) / self.num_lists <= 2

    def add(self, ids: Ids, read_vectors: ReadVectors) -> None:
        """Take in rows; those ids must not be there yet."""
        for part in chunks(ids):
            found, vectors = read_vectors(part)
            self._faiss.faiss_index.add_with_ids(vectors, found)
            if self._half is not None:
                self._half.add(vectors)
            self.ids = np.union1d(self.ids, found)

    def remove(self, ids: Ids) -> None:
        """Take out rows."""
        if len(ids):
            if self._half is not None:
                self._half.remove(np.flatnonzero(np.isin(self._ids_by_place(), ids)))
            self._faiss.faiss_index.remove_ids(ids)
            self.ids = np.setdiff1d(self.ids, ids, assume_unique=True)

    def search(self, query: Float32[np.ndarray, "width"], k: int) -> list[int]:
        """Ids of the k nearest rows, best first; fewer where there are fewer.

        Lists give CANDIDATES times as many: their scores are rounded, and exact ones will put them in order.
        """
        if not self.num_lists and len(self.ids) >= half_scan.MIN_ROWS and k <= half_scan.MAX_K:
            self._half = self._half or HalfScan(import_faiss(), self._flat())
            places = self._half.nearest(query, k)
            if places is not None:
                return self._ids_by_place()[places].tolist()
        wanted = CANDIDATES * k if self.num_lists else k
        _, ids = self._faiss.search(query, max(1, min(wanted, len(self.ids))), **self._probes(k))
        return [row_id for row_id in ids.tolist() if row_id >= 0]

    def _flat(self) -> Any:
        return import_faiss().downcast_index(self._faiss.faiss_index.index)

    def _ids_by_place(self) -> Ids:
        """The ids in the order of a flat index's rows, not a copy: valid until it changes."""
        id_map = self._faiss.faiss_index.id_map
        return import_faiss().rev_swig_ptr(id_map.data(), id_map.size())

    def _probes(self, k: int) -> dict[str, Any]:
        """More lists than usual for a k that the usual number would hardly fill."""
        enough = math.ceil(2 * CANDIDATES * k * self.num_lists / max(1, len(self.ids)))
        if not self.num_lists or enough <= self._faiss.faiss_index.nprobe:
            return {}
        return {"params": import_faiss().SearchParametersIVF(nprobe=min(enough, self.num_lists))}

    def to_bytes(self) -> memoryview:
        """The index as FAISS writes it to a file."""
        return memoryview(import_faiss().serialize_index(self._faiss.faiss_index))

    @staticmethod
    def from_bytes(data: bytes) -> "VectorIndex":
        """The inverse of `to_bytes`; for bytes that were checked: FAISS trusts what it reads."""
        faiss = import_faiss()
        faiss_index = faiss.deserialize_index(np.frombuffer(data, np.uint8))
        if not isinstance(faiss_index, faiss.IndexIVF):
            return VectorIndex(faiss_index, np.sort(faiss.vector_to_array(faiss_index.id_map)))
        lists = faiss_index.invlists
        sizes = [lists.list_size(i) for i in range(faiss_index.nlist)]
        parts = [faiss.rev_swig_ptr(lists.get_ids(i), size) for i, size in enumerate(sizes) if size]
        return VectorIndex(faiss_index, np.sort(np.concatenate([np.empty(0, np.int64), *parts])))


def _build_lists(ids: Ids, read_vectors: ReadVectors, dimension: int) -> VectorIndex:
    """IVF-SQ8, trained on a sample, probing as many lists as the rows' own neighbours need."""
    lists = lists_for(len(ids))
    faiss_index = import_faiss().index_factory(dimension, f"IVF{lists},SQ8", import_faiss().METRIC_INNER_PRODUCT)
    faiss_index.cp.niter = 8
    faiss_index.cp.min_points_per_centroid = 1
    sample = [read_vectors(part)[1] for part in chunks(evenly(ids, TRAINING_ROWS_PER_LIST * lists))]
    faiss_index.train(np.concatenate(sample))
    queries = read_vectors(evenly(ids, CALIBRATION_QUERIES))[1]
    nearest = _Nearest(queries, CALIBRATION_NEIGHBOURS)
    kept = []
    for part in chunks(ids):
        found, vectors = read_vectors(part)
        faiss_index.add_with_ids(vectors, found)
        nearest.see(found, vectors)
        kept.append(found)
    _calibrate(faiss_index, queries, nearest.ids)
    return VectorIndex(faiss_index, np.concatenate(kept))


def _calibrate(faiss_index: Any, queries: Vectors, true_ids: Int64[np.ndarray, "queries k"]) -> None:
    """Probe twice the lists among whose candidates are CALIBRATION_RECALL of the true neighbours.

    The queries are rows of the index; what users ask lies further from the rows.
    """
    faiss_index.nprobe = 1
    while faiss_index.nprobe < faiss_index.nlist:
        _, found = faiss_index.search(queries, CANDIDATES * true_ids.shape[1])
        recall = np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, true_ids, strict=True)])
        if recall >= CALIBRATION_RECALL:
            break
        faiss_index.nprobe = math.ceil(1.5 * faiss_index.nprobe)
    faiss_index.nprobe = min(2 * faiss_index.nprobe, faiss_index.nlist)


class _Nearest:
    """The true k nearest of every query among all rows seen."""

    def __init__(self, queries: Vectors, k: int):
        self.queries = queries
        self.scores = np.full((len(queries), k), -np.inf, np.float32)
        self.ids = np.full((len(queries), k), -1, np.int64)

    def see(self, ids: Ids, vectors: Vectors) -> None:
        """Let rows compete with those seen before."""
        k = self.ids.shape[1]
        scores = np.concatenate([self.scores, self.queries @ vectors.T], axis=1)
        all_ids = np.concatenate([self.ids, np.broadcast_to(ids, (len(self.queries), len(ids)))], axis=1)
        best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        self.scores = np.take_along_axis(scores, best, axis=1)
        self.ids = np.take_along_axis(all_ids, best, axis=1)
