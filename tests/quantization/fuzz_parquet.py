"""Mutated weight files against the reader: tensors or FormatError, nothing else; `make fuzz` runs 200,000 of them.

    python -m tests.quantization.fuzz_parquet --mutations 200000 --processes 2

Each worker is a process with a bound on its memory. A worker that dies, hangs or meets another exception ends the run
with an error and leaves the file it was reading, whose path it prints.
"""

import argparse
import random
import resource
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

from hf_unified_diffusion.quantization import FormatError, read_parquet_weights
from tests.quantization import hostile_weights as hostile
from tests.quantization import thrift_editor as thrift
from tests.quantization.small_weights import same, small_tensors, write_small

HEADROOM_BYTES = 256 << 20  # address space beyond what the interpreter and its libraries have taken
GROWTH_KB = 64 << 10  # resident memory that reading tiny files may add
SECONDS_EACH = 20
Random = random.Random


def mutated(data: bytes, generator: Random, start: int) -> bytes:
    """A few bytes from `start` on changed, removed or put in."""
    out = bytearray(data)
    for _ in range(generator.choice([1, 1, 1, 2, 4, 16])):
        low = generator.choice([0, start, start])
        position = min(generator.randrange(low, len(data)), len(out) - 1)
        kind = generator.randrange(5)
        if kind == 0:
            out[position] = generator.randrange(256)
        elif kind == 1:
            out[position] ^= 1 << generator.randrange(8)
        elif kind == 2:
            out[position] = generator.choice([0, 0x7F, 0x80, 0xFF])
        elif kind == 3:
            del out[position : position + generator.randrange(1, 9)]
        else:
            out[position:position] = generator.randbytes(generator.randrange(1, 9))
    return bytes(out)


def mutated_text(text: bytes, generator: Random) -> bytes:
    """Characters of JSON changed to others that JSON uses."""
    out = bytearray(text)
    for _ in range(generator.choice([1, 1, 2, 3, 6])):
        out[generator.randrange(len(out))] = generator.choice(b'{}[],:"0123456789-e.truefalsn \\')
    return bytes(out)


def file_bytes(data: bytes, generator: Random) -> bytes:
    return mutated(data, generator, start=len(hostile.split(data)[0]))


def signed_manifest(data: bytes, generator: Random) -> bytes:
    return hostile.with_manifest(data, mutated_text(hostile.manifest_text(data), generator))


def sealed_manifest(data: bytes, generator: Random) -> bytes:
    """Checksum and seal match wherever the entries still allow one."""
    forged = signed_manifest(data, generator)
    try:
        return hostile.sealed(forged)
    except (ValueError, TypeError, KeyError, AttributeError):
        return forged


def sealed_footer(data: bytes, generator: Random) -> bytes:
    """The thrift structs of the footer changed, the keys and the seal right."""

    def edit(footer: bytes) -> bytes:
        keys = footer.index(hostile.MANIFEST_KEY) - 8
        return mutated(footer[:keys], generator, start=0) + footer[keys:]

    return hostile.with_footer_bytes(data, edit)


def sealed_columns(data: bytes, generator: Random) -> bytes:
    """Page headers and columns changed in place, the seal right."""
    out = bytearray(data)
    start, nbytes = generator.choice(chunks(data))
    for _ in range(generator.choice([1, 1, 2, 4])):
        out[start + generator.randrange(min(nbytes, 60))] = generator.randrange(256)
    return hostile.sealed(bytes(out))


@cache
def chunks(data: bytes) -> list[tuple[int, int]]:
    """(first byte, number of bytes) of every column chunk."""
    rows = thrift.decode(hostile.split(data)[1])[0][4][1][1]
    columns = [chunk[3][1] for row in rows for chunk in row[1][1][1]]
    return [(column[9][1], column[7][1]) for column in columns]


# mutation, level, whether whatever is read must be what was written
CAMPAIGN: list[tuple[Callable[[bytes, Random], bytes], str, bool]] = [
    (file_bytes, "header", False),  # a changed value is not looked at
    (file_bytes, "touch", True),
    (file_bytes, "full", True),
    (signed_manifest, "touch", True),
    (sealed_manifest, "touch", False),  # a forger may rename stored bytes; full compares names with columns
    (sealed_manifest, "full", True),
    (sealed_footer, "full", True),
    (sealed_columns, "touch", True),
    (sealed_columns, "full", True),
]


def index_file(folder: Path, text: bytes, generator: Random) -> Path:
    """The index beside its files, mutated."""
    path = folder / "mutated.index.json"
    path.write_bytes(mutated_text(text, generator) if generator.random() < 0.7 else mutated(text, generator, start=0))
    return path


def worker(folder: Path, mutations: int, seed: int) -> Counter[str]:
    """Read that many mutations; the outcomes by kind. Raises whatever is neither tensors nor a FormatError."""
    files = [write_small(folder / "small.parquet"), write_small(folder / "parts.parquet", max_part_bytes=32)]
    originals = [file.read_bytes() for file in files]
    index = write_small(folder / "shards.parquet", max_shard_bytes=64).read_bytes()
    written, path, outcomes = small_tensors(), folder / "mutated.parquet", Counter[str]()
    limit_memory()
    start_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(mutations):
        generator = Random(f"{seed}-{number}")
        mutate, verify, exact = CAMPAIGN[number % len(CAMPAIGN)]
        if generator.random() < 0.05:
            name, verify, exact, target = "index", "touch", False, index_file(folder, index, generator)
        else:
            name, target = f"{mutate.__name__}, {verify}", path
            path.write_bytes(mutate(generator.choice(originals), generator))
        signal.alarm(SECONDS_EACH)
        try:
            read = dict(read_parquet_weights(target, verify))
        except FormatError:
            outcomes[f"{name}: refused"] += 1
        except FileNotFoundError:
            if name != "index":
                raise
            outcomes["index: names a file that is not there"] += 1
        else:
            outcomes[f"{name}: read"] += 1
            # one edit a forger is free to make: metadata, which is in no column
            if exact and not same(read, written):
                raise AssertionError(f"mutation {seed}-{number} ({name}) reads as other tensors than were written")
        signal.alarm(0)
    grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start_kb
    if grown_kb > GROWTH_KB:
        raise AssertionError(f"reading must add at most {GROWTH_KB} KB of memory, got {grown_kb}")
    return outcomes


def limit_memory() -> None:
    """Bound the address space a little above what is used."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    bound = pages * resource.getpagesize() + HEADROOM_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mutations", type=int, default=200_000)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # given to workers
    args = parser.parse_args()
    if args.folder is not None:
        for outcome, count in sorted(worker(args.folder, args.mutations, args.seed).items()):
            print(f"{count:8} {outcome}")
        return
    root = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    running = []
    for number in range(args.processes):
        folder = root / str(number)
        folder.mkdir()
        share = args.mutations // args.processes + (number < args.mutations % args.processes)
        options = ["--mutations", str(share), "--seed", str(args.seed + number), "--folder", str(folder)]
        running.append(subprocess.Popen([sys.executable, "-m", "tests.quantization.fuzz_parquet", *options]))
    codes = [process.wait() for process in running]
    if any(codes):
        sys.exit(f"workers ended with {codes}; the files they were reading are below {root}")
    for file in sorted(root.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    root.rmdir()
    print(f"{args.mutations} mutations: tensors or FormatError, nothing else")


if __name__ == "__main__":
    main()
