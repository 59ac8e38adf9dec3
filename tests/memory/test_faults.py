"""Faults injected and survived: kills, damaged index files, full disks, folders that cannot be written."""

import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from hf_unified_diffusion.memory import ArrowStorage, StorageError
from tests.memory.stores import nearest, texts, vectors

CRASHES = Path(__file__).parents[2] / "benchmarks" / "memory_crashes.py"
NOBODY = 65534


def test_killed_writers_lose_nothing_and_damaged_indexes_are_built_anew(tmp_path):
    """The benchmark, shortened: five rounds of SIGKILL with three writers, and damage to index files."""
    short = ["--rounds", "5", "--tries", "4", "--seconds", "0.2", "0.6", "--output", str(tmp_path)]
    done = subprocess.run([sys.executable, CRASHES, *short], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    tables = json.loads((tmp_path / "memory_crashes.json").read_text())["tables"]
    (killed,) = tables["Writers killed"]
    assert killed["acknowledged"] > 0
    for fault in ("lost", "come back", "bytes left", "wrong answers", "damaged"):
        assert killed[fault] == 0, killed
    for row in tables["Index files damaged"]:
        assert row["answers as flat"] == row["same file again"] == row["tries"], row


def test_an_index_of_other_rows_is_brought_up_to_date(tmp_path):
    """An index file that lags behind the store, as after a restored backup, answers with the store's rows."""
    rows = vectors(900)
    with ArrowStorage(tmp_path, "random") as storage:
        storage.add("anna", texts(600), rows[:600])
        storage.search("anna", rows[0])
    with ArrowStorage(tmp_path, "random") as storage:
        assert storage.stats("anna")["index_bytes_on_disk"] > 0
        ids = storage.add("anna", texts(900)[600:], rows[600:])
        storage.set_status("anna", ids[:1], "revoked")
    kept = np.delete(np.arange(900), 600)
    with ArrowStorage(tmp_path, "random") as storage:
        found = [memory.payload for memory in storage.search("anna", rows[600], k=10)]
    assert found == [texts(900)[kept[i]] for i in nearest(rows[600], rows[kept], 10)]


def test_a_forgetting_that_was_killed_is_finished_by_the_next_process(tmp_path, monkeypatch):
    rows = vectors(20)
    storage = ArrowStorage(tmp_path, "random")
    ids = storage.add("anna", [f"secret {i} " * 100 for i in range(20)], rows)
    with monkeypatch.context() as killed:
        killed.setattr(storage._database, "scrub", lambda remove_files: None)
        storage.forget("anna", ids[3:])
    assert b"secret 7 " in (tmp_path / "memory.sqlite-wal").read_bytes()
    storage.close()
    with ArrowStorage(tmp_path, "random"):
        whole = b"".join(file.read_bytes() for file in tmp_path.iterdir() if file.is_file())
        assert b"secret 2 " in whole
        assert b"secret 7 " not in whole


def test_a_full_disk_is_told_and_nothing_is_lost(tmp_path):
    """SQLite's own limit gives the error of a full disk."""
    rows = vectors(200)
    with ArrowStorage(tmp_path, "random") as storage:
        storage._database._connection.execute("PRAGMA max_page_count=40")
        kept: list[int] = []

        def fill():
            while True:
                storage.add("anna", [f"{len(kept)} " * 2000], rows[len(kept)][None])
                kept.append(len(kept))

        with pytest.raises(StorageError, match=r"disk is full.*nothing was changed"):
            fill()
        assert 0 < len(kept) < 200
        assert storage.damage() == []
        with pytest.raises(StorageError, match="disk is full"):
            storage.add("anna", ["x" * 10_000, "y" * 400_000], rows[-2:])
        assert [memory.payload.split()[0] for memory in storage.memories("anna")] == [str(i) for i in kept]
        storage._database._connection.execute("PRAGMA max_page_count=100000")
        storage.add("anna", ["room again"], rows[-1:])
        assert storage.search("anna", rows[-1], k=1)[0].payload == "room again"


@contextmanager
def small_files(num_bytes):
    """No file may grow beyond so many bytes: writes fail as on a broken disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_writes_that_fail_are_told_and_searches_go_on(tmp_path, caplog):
    rows = vectors(400, width=64)
    with ArrowStorage(tmp_path, "random") as storage:
        storage.add("anna", texts(400), rows)
        with small_files(64_000):
            with pytest.raises(StorageError, match="disk failed"):
                storage.add("anna", ["x" * 1_000_000], rows[:1])
            with caplog.at_level(logging.WARNING):
                assert storage.search("anna", rows[5], k=1)[0].payload == texts(400)[5]
        assert "could not be saved" in caplog.text
        assert storage.stats("anna")["memories"] == 400
        assert storage.damage() == []
        assert storage.stats("anna")["index_bytes_on_disk"] == 0
        storage.add("anna", ["one more"], rows[:1])
        storage.search("anna", rows[5])
        assert storage.stats("anna")["index_bytes_on_disk"] > 0


def unlock(folder: Path) -> None:
    """Let its owner write again."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)


@pytest.fixture
def read_only_folder():
    """A folder with a memory of 300 rows; inside the context nobody may write there, not even as root."""
    base = Path(tempfile.mkdtemp())
    base.chmod(0o755)
    with ArrowStorage(base / "memory", "random") as storage:
        storage.add("anna", texts(300), vectors(300))
        storage.search("anna", vectors(1)[0])

    @contextmanager
    def locked():
        for path in (base / "memory").rglob("*"):
            path.chmod(0o555 if path.is_dir() else 0o444)
        (base / "memory").chmod(0o555)
        user = os.geteuid()
        if user == 0:
            os.seteuid(NOBODY)
        try:
            yield base / "memory"
        finally:
            os.seteuid(user)

    yield locked
    unlock(base / "memory")
    shutil.rmtree(base)


def test_a_folder_that_cannot_be_written_is_read(read_only_folder):
    rows = vectors(300)
    with read_only_folder() as folder:
        before = sorted(path.name for path in folder.rglob("*"))
        with pytest.raises(StorageError, match="read_only=True"):
            ArrowStorage(folder, "random")
        with ArrowStorage(folder, "random", read_only=True) as storage:
            found = [memory.payload for memory in storage.search("anna", rows[7], k=5)]
            assert found == [texts(300)[i] for i in nearest(rows[7], rows, 5)]
            for change in (
                lambda: storage.add("anna", ["x"], rows[:1]),
                lambda: storage.forget("anna"),
                lambda: storage.set_status("anna", [1], "revoked"),
                storage.purge,
            ):
                with pytest.raises(StorageError, match="read_only=True"):
                    change()
            assert storage.stats("anna")["memories"] == 300
        assert sorted(path.name for path in folder.rglob("*")) == before


def test_a_log_that_a_killed_writer_left_is_not_overlooked(tmp_path, read_only_folder):
    """Rows that are only in the log are acknowledged: who cannot open the log must not answer without them."""
    with read_only_folder() as folder:
        pass
    unlock(folder)
    with ArrowStorage(folder, "random") as storage:
        storage.add("anna", ["in the log"], vectors(1, seed=5))
        for name in ("memory.sqlite", "memory.sqlite-wal"):
            shutil.copy(folder / name, tmp_path / name)
    for name in ("memory.sqlite", "memory.sqlite-wal"):
        shutil.copy(tmp_path / name, folder / name)
    with read_only_folder(), pytest.raises(StorageError, match="read-only|cannot be opened"):
        ArrowStorage(folder, "random", read_only=True)
    unlock(folder)
    with ArrowStorage(folder, "random", read_only=True) as storage:
        assert storage.search("anna", vectors(1, seed=5)[0], k=1)[0].payload == "in the log"


def test_a_reader_of_a_locked_folder_notices_its_change(read_only_folder):
    """Without a log SQLite takes a file for unchangeable; a change by its owner must not give old or broken answers."""
    rows = vectors(301)
    with read_only_folder() as folder:
        storage = ArrowStorage(folder, "random", read_only=True)
        assert storage.stats("anna")["memories"] == 300
    unlock(folder)
    with ArrowStorage(folder, "random") as owner:
        owner.add("anna", ["new"], rows[300:])
    with read_only_folder():
        assert storage.search("anna", rows[300], k=1)[0].payload == "new"
        storage.close()


def test_a_fork_is_told_to_open_its_own(tmp_path, monkeypatch):
    with ArrowStorage(tmp_path, "random") as storage:
        with monkeypatch.context() as forked:
            forked.setattr(os, "getpid", lambda: -1)
            with pytest.raises(ValueError, match="process that opened it"):
                storage.stats()
        assert storage.stats()["memories"] == 0
