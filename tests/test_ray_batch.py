"""Bulk generation: every prompt exactly once, with the text of its id, whatever fails on the way."""

import os

import numpy as np
import pytest

from hf_unified_diffusion import ray_batch
from hf_unified_diffusion.ray_batch import PromptWriter, prompts_in, range_name, seed_of
from tests.tiny import save_tiny_checkpoint

OPTIONS = {"max_new_tokens": 6, "num_steps": 3}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def writer(checkpoint, tmp_path):
    writer = PromptWriter(tmp_path / "results", checkpoint, options=OPTIONS, seed=5)
    yield writer
    writer.engine.close()


def batch_of(ids, **columns):
    return {"id": np.array(ids), "prompt": np.array([f"prompt {one}" for one in ids]), **columns}


def test_a_prompt_gets_what_the_engine_gives_for_its_id(writer):
    told = writer(batch_of(range(5), modality=["text", "code"] * 2 + ["text"]))
    assert told["id"] == [0, 1, 2, 3, 4] and all(told["is_new"]) and set(told["pid"]) == {os.getpid()}
    for row in writer.results.table().to_pylist():
        alone = writer.engine.diffuse(f"prompt {row['id']}", row["modality"], seed=seed_of(5, row["id"]), **OPTIONS)
        assert row["text"] == alone and row["seed"] == seed_of(5, row["id"]) and row["error"] is None


def test_what_is_written_is_skipped_however_the_batches_are_cut(writer, checkpoint):
    writer(batch_of(range(6)))
    before = writer.results.table()
    again = PromptWriter(writer.results.folder, checkpoint, options=OPTIONS, seed=5)
    told = again(batch_of([4, 5, 6, 7]))
    assert told["is_new"] == [False, False, True, True]
    assert again(batch_of([7, 2, 0]))["is_new"] == [False] * 3
    again.engine.close()
    table = writer.results.table()
    assert table["id"].to_pylist() == list(range(8)) and table.slice(0, 6) == before
    assert sorted(writer.results.ids()) == list(range(8))


def test_a_write_that_is_cut_off_leaves_nothing_that_counts(writer, monkeypatch):
    def no_space(*args):
        raise OSError("no space left")

    with monkeypatch.context() as broken:
        broken.setattr(ray_batch.os, "replace", no_space)
        with pytest.raises(OSError, match="no space left"):
            writer(batch_of(range(3)))
    assert list(writer.results.folder.iterdir()) == []
    (writer.results.folder / f"{range_name([0, 1, 2])}.partial-1-ab").write_bytes(b"PAR1cut")  # of one that was killed
    assert all(writer(batch_of(range(3)))["is_new"]) and len(writer.results.table()) == 3


def test_a_prompt_that_breaks_a_rule_is_told_so_and_the_others_are_written(writer):
    batch = batch_of(["a", "b", "c"], options=['{"max_new_tokens": 4}', None, {"max_new_tokens": 4, "stop": None}])
    batch["prompt"][0] = ""
    writer(batch)
    bad, plain, other = writer.results.table().to_pylist()
    assert "prompt must not be empty" in bad["error"] and bad["text"] is None
    assert plain["num_tokens"] <= 6 and other["num_tokens"] <= 4 and plain["error"] is other["error"] is None


def test_an_id_that_is_there_twice_is_found(writer):
    for name in ("one", "other"):
        writer.results.write([{"id": 1, "modality": "text", "seed": 0, "text": name}, {"id": hash(name) % 99 + 2}])
    with pytest.raises(ValueError, match="each id must have one result"):
        writer.results.table()


def test_seeds_are_of_ids_and_of_the_run_alone():
    assert seed_of(0, 1) == seed_of(0, 1) != seed_of(1, 1)
    assert len({seed_of(0, number) for number in range(1000)}) == 1000


@pytest.mark.parametrize(
    ("batch", "rule"),
    [
        ({"id": [1]}, "must have the columns id and prompt, got \\['id'\\]"),
        (batch_of([1, 1]), "each id must be in a batch once"),
        (batch_of([1.5]), "id must be an integer or a string, got 1.5"),
        (batch_of([1], modality=["smell"]), "modality must be one of .* got 'smell' for id 1"),
    ],
)
def test_bad_batches(batch, rule):
    with pytest.raises(ValueError, match=rule):
        prompts_in(batch)
