"""The exact nearest rows for half the reading: float16 finds candidates, float32 orders them, a bound proves them."""

from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

MIN_ROWS = 1 << 14  # of fewer, a float32 scan is as fast
MAX_K = 256
SPARE = 8


class HalfScan:
    """The unit vectors of a flat FAISS index once more in float16.

    Rounding to float16 moves an inner product of unit vectors by 2^-11 at most (each component relatively, and the
    products' sizes sum to 1 at most), summing in float32 by some 2^-24 a component. So where the k-th best exact score
    is above the worst candidate's rounded one by more than both, no other row can be nearer.

    Args:
        faiss: the module.
        flat: an IndexFlatIP; rows that it gains or loses must be told.
    """

    def __init__(self, faiss: Any, flat: Any):
        self._faiss, self._flat = faiss, flat
        self._half = faiss.IndexScalarQuantizer(flat.d, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        self._error = 2**-11 + flat.d * 2**-23
        self.add(self._rows())

    def add(self, vectors: Float32[np.ndarray, "count width"]) -> None:
        """Take in rows after the others."""
        self._half.add(vectors)

    def remove(self, places: Int64[np.ndarray, "count"]) -> None:
        """Take out rows by their places; those behind them move up."""
        self._half.remove_ids(places)

    def nearest(self, query: Float32[np.ndarray, "width"], k: int) -> Int64[np.ndarray, "k"] | None:
        """Places of the k nearest rows, best first; None where the bound does not prove them (many are as near)."""
        rounded, places = self._half.search(query[None], 2 * k + SPARE)
        scores = self._rows()[places[0]] @ query
        best = np.argsort(-scores, kind="stable")[:k]
        return places[0][best] if scores[best[-1]] > rounded[0, -1] + self._error else None

    def _rows(self) -> Float32[np.ndarray, "count width"]:
        """The index's own rows, not a copy: valid until it changes."""
        count = self._flat.ntotal * self._flat.d
        return self._faiss.rev_swig_ptr(self._flat.get_xb(), count).reshape(-1, self._flat.d)
