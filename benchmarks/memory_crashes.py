"""A memory under faults: writers killed in the middle, damaged index files, a full disk. Counts what was lost or wrong.

    python benchmarks/memory_crashes.py --rounds 30
    python benchmarks/memory_crashes.py --small_disk FOLDER   # a folder on a disk of a few MB, such as a small tmpfs

Three writers add, forget and search in one namespace and note down what was acknowledged; all are killed (SIGKILL) at a
random moment, and a fresh process compares the memory with their notes. Every embedding follows from its payload, so
that any answer can be checked by itself.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a forked process cannot use its parent's threads

import hashlib
import multiprocessing
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from measure import Row, argument_parser, report, start

from hf_unified_diffusion.memory import ArrowStorage, StorageError

WIDTH, FLAT_ROWS, NAMESPACE, ENCODER = 32, 400, "shared", "of-the-payload"
WRITERS = 3


def embedding_of(payload: str) -> np.ndarray:
    """A unit vector that follows from the payload."""
    seed = int.from_bytes(hashlib.sha256(payload.encode()).digest()[:8], "little")
    drawn = np.random.default_rng(seed).standard_normal(WIDTH)
    return (drawn / np.linalg.norm(drawn)).astype(np.float32)


def opened(folder: Path) -> ArrowStorage:
    """The memory, with lists instead of a flat index from FLAT_ROWS rows on."""
    return ArrowStorage(folder, ENCODER, flat_rows=FLAT_ROWS, timeout_s=120)


def wrong_answers(storage: ArrowStorage, payload: str) -> int:
    """How many of ten answers to a payload's own embedding are not what they claim, or 1 if it is not found first."""
    found = storage.search(NAMESPACE, embedding_of(payload), k=10)
    wrong = sum(not np.allclose(memory.embedding, embedding_of(memory.payload), atol=1e-6) for memory in found)
    return wrong + (not found or found[0].payload != payload)


def write_until_killed(folder: Path, notes: Path, seed: int) -> None:
    """Add, forget and search; before and after each, note it down."""
    chance, mine = random.Random(seed), {}
    with open(notes, "ab", buffering=0) as log:
        storage = opened(folder)
        while True:
            action = chance.random()
            if action < 0.85 or not mine:
                payload = f"<{seed:06d}-{chance.getrandbits(40):010x}>" * chance.randint(1, 30)
                (row_id,) = storage.add(NAMESPACE, [payload], embedding_of(payload)[None])
                log.write(f"added {row_id} {payload}\n".encode())
                mine[row_id] = payload
            elif action < 0.9:
                row_id = chance.choice(list(mine))
                log.write(f"forgetting {row_id} {mine[row_id]}\n".encode())
                storage.forget(NAMESPACE, [row_id])
                log.write(f"forgot {row_id} {mine.pop(row_id)}\n".encode())
            else:
                row_id = chance.choice(list(mine))
                log.write(f"wrong {wrong_answers(storage, mine[row_id])} -\n".encode())


def read_notes(folder: Path) -> dict[str, dict[str, str]]:
    """What the writers noted, by kind; a line that the kill cut off was not acknowledged."""
    notes: dict[str, dict[str, str]] = {"added": {}, "forgetting": {}, "forgot": {}, "wrong": {}}
    for file in folder.glob("*.notes"):
        for line in file.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                kind, key, payload = line.split()
                notes[kind][key] = payload
    return notes


def check(folder: Path, notes_folder: Path, chance: random.Random) -> Row:
    """Compare the memory with the notes."""
    notes = read_notes(notes_folder)
    with opened(folder) as storage:
        there = {str(memory.id): memory.payload for memory in storage.memories(NAMESPACE)}
        asked = chance.sample(sorted(there.values()), min(20, len(there)))
        wrong = sum(wrong_answers(storage, payload) for payload in asked)
        damage = len(storage.damage())
    expected = {key: payload for key, payload in notes["added"].items() if key not in notes["forgetting"]}
    files = b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())
    # a forgotten row that was written a second time would count as a leak: payloads are never repeated
    return {
        "acknowledged": len(notes["added"]),
        "lost": sum(there.get(key) != payload for key, payload in expected.items()),
        "forgotten": len(notes["forgot"]),
        "come back": sum(payload in there.values() for payload in notes["forgot"].values()),
        "bytes left": sum(payload.partition(">")[0].encode() in files for payload in notes["forgot"].values()),
        "wrong answers": wrong + sum(int(count) for count in notes["wrong"]),
        "damaged": damage,
    }


def crash_round(folder: Path, notes: Path, seed: int, seconds: tuple[float, float]) -> Row:
    """Let three writers write, kill them, check."""
    fork = multiprocessing.get_context("fork")
    writers = [
        fork.Process(target=write_until_killed, args=(folder, notes / f"{seed + i}.notes", seed + i), daemon=True)
        for i in range(WRITERS)
    ]
    chance = random.Random(seed)
    for writer in writers:
        writer.start()
    time.sleep(chance.uniform(*seconds))
    for writer in writers:
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
    for writer in writers:
        writer.join()
        if writer.exitcode != -signal.SIGKILL:
            raise RuntimeError(f"a writer must live until it is killed, got exit code {writer.exitcode}")
    return check(folder, notes, chance)


def crashes(scratch: Path, rounds: int, seconds: tuple[float, float], seed: int) -> Row:
    """All rounds on one memory; counts of rows are those of the last round, faults are summed."""
    folder, notes = scratch / "memory", scratch / "notes"
    notes.mkdir()
    with opened(folder):
        pass
    results = []
    for turn in range(rounds):
        results.append(crash_round(folder, notes, seed + WRITERS * turn, seconds))
        print(f"round {turn + 1}: {results[-1]}", file=sys.stderr)
    summed = ("lost", "come back", "bytes left", "wrong answers", "damaged")
    return {"rounds": rounds, **{k: sum(r[k] for r in results) if k in summed else v for k, v in results[-1].items()}}


def flip(file: Path, chance: random.Random) -> None:
    data = bytearray(file.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    file.write_bytes(data)


def truncate(file: Path, chance: random.Random) -> None:
    os.truncate(file, chance.randrange(file.stat().st_size))


def remove(file: Path, chance: random.Random) -> None:
    file.unlink()


def replace_by_noise(file: Path, chance: random.Random) -> None:
    file.write_bytes(chance.randbytes(file.stat().st_size))


FAULTS: dict[str, Callable[[Path, random.Random], None]] = {
    "one bit flipped": flip,
    "truncated": truncate,
    "removed": remove,
    "replaced by noise": replace_by_noise,
}


def index_faults(scratch: Path, tries: int, seed: int) -> list[Row]:
    """Damage the index file between two processes' lives: is it built anew, and are the answers those of a flat one?"""
    chance, rows = random.Random(seed), np.random.default_rng(seed).standard_normal((1000, WIDTH))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    folder = scratch / "indexed"
    with ArrowStorage(folder, ENCODER) as storage:
        storage.add(NAMESPACE, [f"row {i}" for i in range(len(rows))], rows)
        storage.search(NAMESPACE, rows[0])
    table = []
    for name, fault in FAULTS.items():
        equal = rebuilt = 0
        for _ in range(tries):
            (file,) = (folder / "index").iterdir()
            whole = file.read_bytes()
            fault(file, chance)
            with ArrowStorage(folder, ENCODER) as storage:
                query = rows[chance.randrange(len(rows))]
                found = [memory.payload for memory in storage.search(NAMESPACE, query, k=10)]
            equal += found == [f"row {i}" for i in np.argsort(-(rows @ query), kind="stable")[:10]]
            (file,) = (folder / "index").iterdir()
            rebuilt += file.read_bytes() == whole
        table.append({"index file": name, "tries": tries, "answers as flat": equal, "same file again": rebuilt})
    return table


def full_disk(disk: Path) -> Row:
    """Fill a small disk with memories, then make room: what was acknowledged must be there, before and after."""
    folder, ballast, kept = disk / "memory", disk / "ballast", []
    ballast.write_bytes(b"\0" * (1 << 20))
    storage, refused = opened(folder), None
    while refused is None:
        payload = f"{len(kept)} " + "x" * 4000
        try:
            storage.add(NAMESPACE, [payload], embedding_of(payload)[None])
            kept.append(payload)
        except StorageError as error:
            refused = error
    wrong = sum(wrong_answers(storage, payload) for payload in kept[:: max(1, len(kept) // 50)])
    storage.close()
    ballast.unlink()
    with opened(folder) as storage:
        lost = len(set(kept) - {memory.payload for memory in storage.memories(NAMESPACE)})
        (again,) = storage.add(NAMESPACE, ["room again"], embedding_of("room again")[None])
        damage = len(storage.damage())
    shutil.rmtree(folder)
    return {
        "acknowledged": len(kept),
        "error": refused.strerror,
        "wrong answers": wrong,
        "lost": lost,
        "damaged": damage,
        "writes again": again > len(kept),
    }


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--tries", type=int, default=25, help="of each damage to an index file")
    parser.add_argument("--seconds", type=float, nargs=2, default=(0.3, 2.0), help="of life, at least and at most")
    parser.add_argument("--small_disk", type=Path, help="a folder on a disk of a few MB")
    args, settings = start(parser)
    scratch = Path(tempfile.mkdtemp(prefix="memory-crashes-"))
    try:
        tables = {
            "Writers killed": [crashes(scratch, args.rounds, args.seconds, args.seed)],
            "Index files damaged": index_faults(scratch, args.tries, args.seed),
        }
        if args.small_disk is not None:
            tables["Disk full"] = [full_disk(args.small_disk)]
    finally:
        shutil.rmtree(scratch)
    notes = [f"{WRITERS} writers on one namespace; lists instead of a flat index from {FLAT_ROWS} rows on."]
    report("memory_crashes", tables, {**settings, "small_disk": args.small_disk is not None}, notes, args.output)


if __name__ == "__main__":
    main()
