"""A scan of float16 gives what a scan of float32 gives, or nothing."""

import numpy as np
import pytest

from hf_unified_diffusion.memory import ArrowStorage, half_scan
from hf_unified_diffusion.memory.half_scan import HalfScan
from hf_unified_diffusion.memory.vector_index import VectorIndex, import_faiss
from tests.memory.stores import WIDTH, nearest, texts, vectors


def scan_of(rows: np.ndarray) -> HalfScan:
    faiss = import_faiss()
    flat = faiss.IndexFlatIP(rows.shape[1])
    flat.add(rows)
    return HalfScan(faiss, flat)


@pytest.mark.parametrize("width", [3, WIDTH, 384])
@pytest.mark.parametrize("k", [1, 10, 100])
def test_what_is_proved_is_exact(width, k):
    rows, proved = vectors(3000, width=width), 0
    scan = scan_of(rows)
    for query in vectors(20, seed=1, width=width):
        places = scan.nearest(query, k)
        if places is not None:
            proved += 1
            np.testing.assert_allclose(rows[places] @ query, rows[nearest(query, rows, k)] @ query, atol=1e-6)
    assert proved >= (18 if width > 3 else 0)  # on a sphere of three dimensions many rows are as near


def test_rows_that_are_as_near_are_not_proved():
    rows = vectors(1000, width=64)
    rows[100:200] = rows[100]
    scan = scan_of(rows)
    assert scan.nearest(rows[100], 10) is None
    assert scan.nearest(rows[300], 1) == [300]


def test_an_index_scans_in_half_precision_as_rows_come_and_go(monkeypatch):
    monkeypatch.setattr(half_scan, "MIN_ROWS", 500)
    rows, random = vectors(4000, width=64), np.random.default_rng(0)
    known = np.arange(1000) * 3 + 7  # ids are no places

    def read(ids):
        return ids, rows[(ids - 7) // 3]

    index = VectorIndex.build(known, read, dimension=64)
    for start in range(1000, 4000, 500):
        for query in vectors(5, seed=start, width=64):
            expected = known[nearest(query, rows[(known - 7) // 3], 10)]
            assert index.search(query, 10) == expected.tolist()
        assert index._half is not None
        gone = np.sort(random.choice(known, 300, replace=False))
        index.remove(gone)
        new = np.arange(start, start + 500) * 3 + 7
        index.add(new, read)
        known = np.union1d(np.setdiff1d(known, gone), new)


def test_a_change_by_another_storage_is_seen_by_the_next_search(tmp_path, monkeypatch):
    """The index is searched before the store is asked; where the store says otherwise, it is searched again."""
    rows = vectors(60)
    with ArrowStorage(tmp_path, "random") as storage, ArrowStorage(tmp_path, "random") as other:
        ids = storage.add("anna", texts(60)[:50], rows[:50])
        assert storage.search("anna", rows[0], k=1)[0].id == ids[0]
        (new,) = other.add("anna", texts(60)[50:51], rows[50:51])
        assert storage.search("anna", rows[50], k=1)[0].id == new
        other.set_status("anna", [new], "revoked")
        assert storage.search("anna", rows[50], k=1)[0].id != new
        other.forget("anna")
        assert storage.search("anna", rows[0]) == []
        other.add("anna", "wider", vectors(1, width=WIDTH + 1))
        with pytest.raises(ValueError, match=f"{WIDTH + 1} wide, got {WIDTH}"):
            storage.search("anna", rows[0])
        assert storage.search("anna", vectors(1, width=WIDTH + 1)[0])[0].payload == "wider"
        asked = []
        monkeypatch.setattr(storage, "_place", lambda *arguments: asked.append(arguments))
        storage.search("anna", vectors(1, width=WIDTH + 1)[0])
        assert not asked  # nothing has changed: one statement was enough
