"""A namespace as a Parquet file and back."""

import numpy as np
import pytest
from datasets import Dataset

from hf_unified_diffusion.memory import ArrowStorage, Memory, StorageError
from tests.memory.stores import WIDTH, found_in, nearest, texts, vectors


@pytest.fixture
def full(tmp_path):
    """A memory of every kind of thing."""
    rows = vectors(6)
    with ArrowStorage(tmp_path / "full", "random") as storage:
        storage.add("anna", ["tea", "naïve 🦀"], rows[:2], source="chat", metadata=[{"page": 1}, {}])
        storage.add("anna", "def f(): pass\n", rows[2:3], modality="code", expires_at=5e9)
        storage.add("anna", np.arange(12, dtype=np.uint8).reshape(2, 2, 3), rows[3:4], modality="image")
        storage.add("anna", np.arange(5, dtype=np.float32), rows[4:5], modality="audio", sample_rate_hz=8000)
        storage.add("anna", "doubtful", rows[5:6], status="quarantine")
        storage.add("anna", "gone", rows[5:6], expires_at=1.0)
        storage.add("bob", "secret of bob", rows[:1])
        yield storage


def facts(memory: Memory) -> dict:
    """What a memory says, without its id."""
    payload = memory.payload.tolist() if isinstance(memory.payload, np.ndarray) else memory.payload
    return {**vars(memory), "id": None, "payload": payload, "embedding": memory.embedding.tolist()}


def test_what_is_exported_comes_back(full, tmp_path):
    assert full.export("anna", tmp_path / "anna.parquet") == 6
    with ArrowStorage(tmp_path / "other", "random") as other:
        assert other.import_("carl", tmp_path / "anna.parquet", trusted=True) == 6
        assert [facts(memory) for memory in other.memories("carl")] == [facts(m) for m in full.memories("anna")]
        before = other.stats("carl")
        other.import_("carl", tmp_path / "anna.parquet", trusted=True)
        assert other.stats("carl") == before
        other.export("carl", tmp_path / "carl.parquet")
    assert found_in(tmp_path, b"secret of bob") == ["memory.sqlite-wal"]
    assert sorted(path.suffix for path in tmp_path.iterdir()) == ["", "", ".parquet", ".parquet"]


def test_what_is_imported_waits_for_trust(full, tmp_path):
    full.export("anna", tmp_path / "anna.parquet")
    with ArrowStorage(tmp_path / "other", "random") as other:
        other.import_("carl", tmp_path / "anna.parquet")
        assert other.search("carl", vectors(1)[0]) == []
        assert other.stats("carl")["quarantine"] == 6


def test_other_tools_read_the_file(full, tmp_path):
    full.export("anna", tmp_path / "anna.parquet")
    table = Dataset.from_parquet(str(tmp_path / "anna.parquet"), cache_dir=str(tmp_path / "cache"))
    assert table["text"][:3] == ["tea", "naïve 🦀", "def f(): pass\n"]
    assert len(table["embedding"][0]) == WIDTH
    assert table["source"][0] == "chat"


def entry(**changes) -> dict:
    """A row of an export."""
    values = {
        "modality": "text", "text": "tea", "data": None, "layout": "{}", "embedding": vectors(1)[0].tolist(),
        "encoder": "random", "source": "chat", "metadata": "{}", "status": "active", "created_at": 1.0,
        "expires_at": None,
    }  # fmt: skip
    return {**values, **changes}


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"encoder": "another"}, "encoder 'random', got 'another'"),
        ({"embedding": [0.0] * WIDTH}, "not zero"),
        ({"embedding": [3.0] * WIDTH}, "length 1"),
        ({"embedding": [float("nan")] * WIDTH}, "finite"),
        ({"embedding": [1.0]}, "16 wide"),
        ({"embedding": None}, "embeddings must be"),
        ({"status": "trusted"}, "status"),
        ({"modality": "smell"}, "modality"),
        ({"text": None}, "non-empty"),
        ({"modality": "image", "data": b"123456", "layout": '{"shape": [2, 2, 3]}'}, "those of image"),
        ({"modality": "image", "data": b"123456", "layout": "[" * 10_000}, "those of image"),
        ({"modality": "audio", "data": b"12345678", "layout": "{}"}, "sample_rate_hz"),
        ({"source": "a\x1b[2J"}, "source"),
        ({"metadata": "[1]"}, "metadata"),
        ({"metadata": "{"}, "metadata"),
        ({"expires_at": float("inf")}, "expires_at"),
        ({"created_at": None}, "created_at"),
    ],
)
def test_a_bad_row_is_refused_and_nothing_is_taken_in(tmp_path, changes, rule):
    file = tmp_path / "bad.parquet"
    Dataset.from_list([entry(), entry(**changes)]).to_parquet(file)
    with ArrowStorage(tmp_path / "memory", "random") as storage:
        with pytest.raises(ValueError, match=rule):
            storage.import_("anna", file, trusted=True)
        assert storage.stats()["memories"] == 0


def test_other_files_are_refused(tmp_path):
    Dataset.from_list([{"text": "tea"}]).to_parquet(tmp_path / "columns.parquet")
    (tmp_path / "noise.parquet").write_bytes(b"PAR1 and then noise PAR1")
    (tmp_path / "empty.parquet").write_bytes(b"")
    with ArrowStorage(tmp_path / "memory", "random") as storage:
        for name in ("columns", "noise", "empty", "absent"):
            with pytest.raises(ValueError, match=r"columns|Parquet"):
                storage.import_("anna", tmp_path / f"{name}.parquet")
        assert storage.stats()["memories"] == 0


def test_an_export_appears_whole_or_not_at_all(full, tmp_path):
    (tmp_path / "anna.parquet").write_text("older")
    full._database._connection.execute("UPDATE memories SET payload = x'00' WHERE id = 4")
    with pytest.raises(StorageError, match="digest"):
        full.export("anna", tmp_path / "anna.parquet")
    assert (tmp_path / "anna.parquet").read_text() == "older"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["anna.parquet"]


def test_a_namespace_as_a_dataset_with_its_index(tmp_path):
    rows = vectors(30)
    with ArrowStorage(tmp_path, "random") as storage:
        storage.add("anna", texts(30), rows)
        storage.add("anna", ["doubtful"], rows[:1], status="quarantine")
        table = storage.dataset("anna")
        assert len(storage.dataset("nobody")) == 0
    scores, examples = table.get_nearest_examples("embedding", rows[3], k=4)
    assert examples["text"] == [texts(30)[i] for i in nearest(rows[3], rows, 4)]
    np.testing.assert_allclose(scores, np.sort(rows @ rows[3])[::-1][:4], atol=1e-6)
