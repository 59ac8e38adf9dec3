"""One user's memories never appear in another's results, and what is forgotten is nowhere: not even in the bytes."""

import random
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from hf_unified_diffusion.memory import ArrowStorage
from tests.memory.stores import found_in, texts, vectors

USERS = ("anna", "bob", "../anna")
users = st.sampled_from(USERS)
# few directions: the same embedding is often in several namespaces
directions = st.integers(0, 5)
DIRECTIONS = vectors(6, seed=3)


class Storages(RuleBasedStateMachine):
    """Two storages of one folder against dictionaries in memory; index kinds change at 12 rows."""

    @initialize()
    def open(self):
        self.folder = Path(tempfile.mkdtemp())
        self.storages = [ArrowStorage(self.folder, "random", flat_rows=12) for _ in range(2)]
        self.live = {user: {} for user in USERS}
        self.hidden = {user: {} for user in USERS}
        self.forgotten = []
        self.count = 0

    def teardown(self):
        for storage in self.storages:
            storage.close()
        shutil.rmtree(self.folder)

    @rule(who=st.integers(0, 1), user=users, direction=directions, count=st.integers(1, 9), hide=st.booleans())
    def add(self, who, user, direction, count, hide):
        secrets = [f"secret-{self.count + i:06d}-of-{user}" for i in range(count)]
        rows = DIRECTIONS[direction] + 0.1 * vectors(count, seed=self.count)
        self.count += count
        ids = self.storages[who].add(user, secrets, rows, status="quarantine" if hide else "active")
        (self.hidden if hide else self.live)[user] |= dict(zip(ids, secrets, strict=True))

    @rule(who=st.integers(0, 1), user=users, direction=directions, k=st.integers(1, 40))
    def search(self, who, user, direction, k):
        found = self.storages[who].search(user, DIRECTIONS[direction], k=k)
        assert len(found) <= k
        assert {memory.id: memory.payload for memory in found}.items() <= self.live[user].items()
        if k >= len(self.live[user]):
            assert len(found) == len(self.live[user])

    @rule(who=st.integers(0, 1), user=users, other=users, data=st.data())
    def forget_some(self, who, user, other, data):
        known = [*self.live[user], *self.hidden[user]]
        ids = data.draw(st.lists(st.sampled_from(known), unique=True)) if known else []
        foreign = list(self.live[other]) if other != user else []
        assert self.storages[who].forget(user, ids + foreign) == len(ids)  # another's ids do nothing
        for row_id in ids:
            self.forgotten.append(self.live[user].pop(row_id, None) or self.hidden[user].pop(row_id))

    @rule(who=st.integers(0, 1), user=users)
    def forget_user(self, who, user):
        mine = [*self.live[user].values(), *self.hidden[user].values()]
        assert self.storages[who].forget(user) == len(mine)
        self.forgotten += mine
        self.live[user], self.hidden[user] = {}, {}

    @rule(who=st.integers(0, 1), user=users, other=users)
    def trust(self, who, user, other):
        changed = self.storages[who].set_status(user, [*self.hidden[user], *self.hidden[other]], "active")
        assert changed == len(self.hidden[user])
        self.live[user] |= self.hidden[user]
        self.hidden[user] = {}

    @rule(who=st.integers(0, 1))
    def reopen(self, who):
        self.storages[who].close()
        self.storages[who] = ArrowStorage(self.folder, "random", flat_rows=12)

    @invariant()
    def nothing_forgotten_is_on_the_disk(self):
        for secret in self.forgotten:
            assert found_in(self.folder, secret.encode()) == []


TestStorages = Storages.TestCase
TestStorages.settings = settings(max_examples=12, stateful_step_count=15, deadline=None)


def tokens_in(folder: Path) -> set[int]:
    """Numbers of the rows of which some file still holds a part."""
    whole = b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())
    return {int(number) for number in re.findall(rb"<(\d{6})>", whole)}


def test_forgetting_leaves_no_copy_of_rows_that_moved(tmp_path):
    """Rows move between pages as others go, and leave copies there that overwriting on deletion does not reach."""
    chance, live, last = random.Random(0), set(), 0
    with ArrowStorage(tmp_path, "random") as storage:
        for _ in range(40):
            count = chance.randint(0, 120)
            numbers = range(last + 1, last + count + 1)
            payloads = [f"<{number:06d}>" * chance.randint(50, 330) for number in numbers]
            assert storage.add("anna", payloads, vectors(count, seed=last)) == list(numbers)  # ids count up
            live, last = live | set(numbers), last + count
            moved = chance.sample(sorted(live), min(len(live), 30))
            storage.set_status("anna", moved, chance.choice(["quarantine", "active"]))
            gone = chance.sample(sorted(live), int(len(live) * chance.choice([0, 0.05, 0.3, 0.7])))
            if chance.random() < 0.2:
                gone = sorted(live)[: len(live) // 2]
            storage.forget("anna", gone)
            live -= set(gone)
            assert tokens_in(tmp_path) == live


@pytest.mark.parametrize("flat_rows", [10_000, 100], ids=["flat", "lists"])
def test_forgetting_leaves_no_bytes_in_any_file(tmp_path, flat_rows):
    rng = np.random.default_rng(0)
    rows, name = vectors(600), "anna secret name"
    with ArrowStorage(tmp_path, "random", flat_rows=flat_rows) as storage, ArrowStorage(tmp_path) as other:
        ids = np.array(storage.add(name, [f"<{i:06d}>" for i in range(600)], rows))
        storage.search(name, rows[0])
        assert storage.stats(name)["index_bytes_on_disk"] > 0
        gone = rng.choice(600, 100, replace=False)
        kept = np.setdiff1d(np.arange(600), gone)
        assert storage.forget(name, ids[gone].tolist()) == 100
        assert tokens_in(tmp_path) == set(kept.tolist())
        for _ in range(2):  # before and after the index is written anew
            assert [file for row in rows[gone] for file in found_in(tmp_path, row.tobytes())] == []
            found = storage.search(name, rows[gone[0]], k=600)
            assert {memory.id for memory in found} == set(ids[kept].tolist())
        assert storage.stats(name)["index_bytes_on_disk"] > 0
        other.forget(name)
        assert found_in(tmp_path, name.encode()) == []
        assert tokens_in(tmp_path) == set()
        assert storage.search(name, rows[0]) == []
        assert not list((tmp_path / "index").iterdir())


def test_what_expired_leaves_no_bytes_after_a_purge(tmp_path):
    rows = vectors(300)
    with ArrowStorage(tmp_path, "random") as storage:
        storage.add("anna", texts(300), rows, expires_at=1.0)
        assert storage.search("anna", rows[0]) == []
        assert storage.purge() == 300
        assert found_in(tmp_path, b"memory of row") == []


def test_an_index_made_before_a_forgetting_is_not_saved_after_it(tmp_path, monkeypatch):
    """A slow process that read the rows first and writes its index last must not bring them back to the disk."""
    rows = vectors(400)
    with ArrowStorage(tmp_path, "random") as slow, ArrowStorage(tmp_path, "random") as quick:
        ids = quick.add("anna", texts(400), rows)
        build = slow._indexes._changed

        def build_slowly(*arguments):
            index = build(*arguments)
            quick.forget("anna", ids[:100])
            return index

        monkeypatch.setattr(slow._indexes, "_changed", build_slowly)
        assert slow.search("anna", rows[399], k=1)[0].id == ids[399]
        monkeypatch.undo()
        assert [name for row in rows[:100] for name in found_in(tmp_path, row.tobytes())] == []
        assert {memory.id for memory in slow.search("anna", rows[0], k=400)} == set(ids[100:])
