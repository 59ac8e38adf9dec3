"""Queries of a memory of 100,000 and of 1,000,000: milliseconds beside raw FAISS, numpy and plain Python, and recall.

    python benchmarks/memory.py

Vectors are drawn around 500 directions with as much noise as signal, queries likewise, none of them stored; a control
without any directions shows what lists cannot do. Times of queries are medians of functions that take turns, on one
thread, by the wall's clock or (for a busy machine) by the processor's.
"""

import operator
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import numpy as np
from measure import CLOCKS, Row, argument_parser, interleaved_seconds, report, start

from hf_unified_diffusion.memory import ArrowStorage
from hf_unified_diffusion.memory.half_scan import SPARE
from hf_unified_diffusion.memory.vector_index import VectorIndex, import_faiss

WIDTH, DIRECTIONS, CHUNK, K, QUERIES = 384, 500, 10_000, 10, 200
CASES = ("flat", "many", "control")
NAMESPACE, ENCODER = "anna", "benchmark"


class Vectors:
    """Unit vectors by position, the same each time; `noise` is infinite where there are no directions."""

    def __init__(self, noise: float, seed: int):
        self.noise, self.seed = noise, seed
        self.directions = np.random.default_rng(seed).standard_normal((DIRECTIONS, WIDTH), dtype=np.float32)

    def chunk(self, number: int, size: int = CHUNK) -> np.ndarray:
        rng = np.random.default_rng((self.seed, number))
        drawn = rng.standard_normal((size, WIDTH), dtype=np.float32)
        if np.isfinite(self.noise):
            drawn = self.directions[rng.integers(0, DIRECTIONS, size)] + self.noise * drawn
        return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)

    def queries(self) -> np.ndarray:
        return self.chunk(1 << 30, QUERIES)


class TrueNeighbours:
    """The K nearest of every query among all rows seen, by exact inner products."""

    def __init__(self, queries: np.ndarray):
        self.queries, self.scores = queries, np.full((len(queries), K), -np.inf, np.float32)
        self.rows = np.full((len(queries), K), -1)

    def see(self, first: int, vectors: np.ndarray) -> None:
        scores = np.concatenate([self.scores, self.queries @ vectors.T], axis=1)
        rows = np.concatenate([self.rows, np.tile(first + np.arange(len(vectors)), (len(self.queries), 1))], axis=1)
        best = np.argpartition(-scores, K, axis=1)[:, :K]
        self.scores, self.rows = np.take_along_axis(scores, best, axis=1), np.take_along_axis(rows, best, axis=1)

    def recall(self, found: list[set[int]]) -> float:
        return float(np.mean([len(found[i] & set(self.rows[i].tolist())) / K for i in range(len(found))]))


def filled(storage: ArrowStorage, drawn: Vectors, num_rows: int, truth: TrueNeighbours) -> float:
    """Add rows by the ten thousand; gives the seconds that adding took."""
    seconds = 0.0
    for number in range(num_rows // CHUNK):
        vectors = drawn.chunk(number)
        truth.see(number * CHUNK, vectors)
        texts = [f"{number * CHUNK + i} {'a fact of a hundred and some letters ' * 4}" for i in range(CHUNK)]
        before = time.perf_counter()
        storage.add(NAMESPACE, texts, vectors)
        seconds += time.perf_counter() - before
    return seconds


def in_turn(queries: np.ndarray, search: Callable[[np.ndarray], object], first: int = 0) -> Callable[[], object]:
    """A function that searches for the next query each time, from the one numbered `first` on."""
    turns = count(first)
    return lambda: search(queries[next(turns) % len(queries)])


def plain_python(rows: list[list[float]]) -> Callable[[np.ndarray], list[int]]:
    """The search as plain Python has it: a sum of products for every row, and a sort."""

    def search(query: np.ndarray) -> list[int]:
        wanted = query.tolist()
        scores = [sum(map(operator.mul, row, wanted)) for row in rows]
        return sorted(range(len(rows)), key=scores.__getitem__, reverse=True)[:K]

    return search


def with_numpy(rows: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The search as numpy has it."""

    def search(query: np.ndarray) -> np.ndarray:
        scores = rows @ query
        best = np.argpartition(-scores, K)[:K]
        return best[np.argsort(-scores[best])]

    return search


def held_index(storage: ArrowStorage) -> VectorIndex:
    """The index that the storage searches; raw FAISS below is this very one."""
    (held,) = storage._indexes._held.values()
    assert held.index is not None
    return held.index


def measured(folder: Path, drawn: Vectors, num_rows: int, repeats: int, clock: str, exact: bool) -> tuple[Row, Row]:
    """One memory: times of a query by several means, and what else a memory does."""
    storage, queries = ArrowStorage(folder, ENCODER), drawn.queries()
    truth = TrueNeighbours(queries)
    adding = filled(storage, drawn, num_rows, truth)
    building = seconds_of(lambda: storage.search(NAMESPACE, queries[0]))
    index = held_index(storage)
    raw = index._faiss.faiss_index
    place = storage._place(NAMESPACE, WIDTH)
    found = [{int(memory.payload.split()[0]) for memory in storage.search(NAMESPACE, q, K)} for q in queries]
    ways = {
        "storage": in_turn(queries, lambda q: storage.search(NAMESPACE, q, K)),
        "ids": in_turn(queries, lambda q: storage._indexes.nearest(place, q, K), QUERIES // 4),
        "raw": in_turn(queries, lambda q: raw.search(q[None], K), QUERIES // 2),
    }
    if index._half is not None:
        half = index._half._half
        ways["half"] = in_turn(queries, lambda q: half.search(q[None], 2 * K + SPARE), QUERIES // 3)
    if exact:
        rows = np.concatenate([drawn.chunk(number) for number in range(num_rows // CHUNK)])
        ways["numpy"] = in_turn(queries, with_numpy(rows))
    ms = {name: 1e3 * seconds for name, seconds in interleaved_seconds(ways, repeats, clock).items()}
    if exact:
        ms["python"] = 1e3 * interleaved_seconds({"": in_turn(queries, plain_python(rows.tolist()))}, 2, clock)[""]
    latency = {
        "memories": num_rows,
        "index": index.kind,
        "lists probed": f"{raw.nprobe} of {raw.nlist}" if index.num_lists else "",
        "recall at 10": truth.recall(found),
        "search (ms)": ms["storage"],
        "raw FAISS (ms)": ms["raw"],
        "raw FAISS, float16 (ms)": ms.get("half", ""),
        "ids alone (ms)": ms["ids"],
        "search / raw FAISS": ms["storage"] / ms["raw"],
        "ids alone / raw FAISS": ms["ids"] / ms["raw"],
        "numpy (ms)": ms.get("numpy", ""),
        "plain Python (ms)": ms.get("python", ""),
        "plain Python / search": ms["python"] / ms["storage"] if exact else "",
    }
    one_row = in_turn(queries, lambda q: storage.add(NAMESPACE, [f"one more {time.perf_counter_ns()}"], q[None]))
    adding_one = interleaved_seconds({"": one_row}, 20)[""]
    storage.close()
    storage = ArrowStorage(folder, ENCODER)
    loading = seconds_of(lambda: storage.search(NAMESPACE, queries[0]))
    forgetting = seconds_of(lambda: storage.forget(NAMESPACE, [1]))
    storage.close()
    other = {
        "memories": num_rows,
        "added a second": num_rows / adding,
        "adding one (ms)": 1e3 * adding_one,
        "first search, index built (s)": building,
        "first search, index from its file (s)": loading,
        "forgetting one (s)": forgetting,
        "bytes a memory, store": sum(f.stat().st_size for f in folder.glob("memory.sqlite*")) / num_rows,
        "bytes a memory, index": len(index.to_bytes()) / num_rows,
    }
    return latency, other


def seconds_of(function: Callable[[], object]) -> float:
    """Seconds of one call."""
    before = time.perf_counter()
    function()
    return time.perf_counter() - before


def folders() -> Iterator[Path]:
    """Empty folders, each removed before the next."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix="memory-benchmark-"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--flat_rows", type=int, default=100_000)
    parser.add_argument("--many_rows", type=int, default=1_000_000)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--name", default="memory", help="of the results")
    parser.add_argument("--noise", type=float, default=0.9, help="of a vector, against a direction of length 1")
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    args, settings = start(parser)
    import_faiss().omp_set_num_threads(1)
    cases = {
        "flat": ("directions", args.noise, args.flat_rows),
        "many": ("directions", args.noise, args.many_rows),
        "control": ("none (control)", np.inf, args.many_rows // 5),
    }
    notes = [
        f"{WIDTH} wide float32, k = {K}, {QUERIES} queries that are not stored; recall against exact search. Search "
        "gives whole memories, read from the store, in exact order, each checked against its digest; raw FAISS gives "
        "ids, of the same index (for flat: its exact scan of float32 rows, where search scans them in float16 first). "
        f"Times of queries by the {args.clock} clock, of other work by the wall clock.",
    ]
    latencies, others = [], []
    for (structure, noise, num_rows), folder in zip((cases[name] for name in args.cases), folders(), strict=False):
        exact = num_rows == args.flat_rows
        latency, other = measured(folder, Vectors(noise, args.seed), num_rows, args.repeats, args.clock, exact)
        latencies.append({"structure": structure, **latency})
        others.append({"structure": structure, **other})
        report(args.name, {"Queries": latencies, "Other work": others}, settings, notes, args.output)


if __name__ == "__main__":
    main()
