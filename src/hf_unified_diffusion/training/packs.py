"""Packs: folders of limited size that hold data and code, to train where only torch and transformers are installed."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath

from .latent_data import LatentShards
from .pack_blocks import Block, latents_of, tokens_of
from .pack_files import SUFFIX, packed_arrays, sha256_of, unpacked_arrays
from .token_data import PackedTokens

MANIFEST = "pack.json"
FORMAT = 1
# pure Python that training imports and transformers does not bring; the rest of what we depend on is not imported there
CARRIED = ("jaxtyping", "wadler-lindig", "accelerate")


@dataclass(frozen=True)
class PackSource:
    """Blocks of one modality, and its share of the bytes of each pack."""

    modality: str
    blocks: Iterable[Block]
    share: int = 1


def pack_files(pack: Path) -> list[Path]:
    """The files of a pack but its manifest, in order."""
    return sorted(path for path in pack.rglob("*") if path.is_file() and path.name != MANIFEST)


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def copy_code(folder: Path, package: Path, scripts: Iterable[Path], carried: Sequence[str] = CARRIED) -> None:
    """Our Python files without the embedded checkpoint, scripts, and the pure Python they import, with licences."""
    no_weights = shutil.ignore_patterns("assets", "__pycache__", "*.pyc")
    shutil.copytree(package, folder / "code" / package.name, ignore=no_weights)
    for script in scripts:
        shutil.copy2(script, folder / "code" / script.name)
    for name in carried:
        distribution = metadata.distribution(name)
        for file in distribution.files or []:
            if is_carried(file):
                (folder / "site" / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(Path(str(distribution.locate_file(file))), folder / "site" / file)


def is_carried(file: PurePosixPath) -> bool:
    """Of an installed distribution: no scripts outside it, no compiled files, none of its tests."""
    return ".." not in file.parts and not {"__pycache__", "test_utils", "tests"} & set(file.parts)


def write_packs(
    folder: Path,
    common: Path,
    held_out: Mapping[str, Block],
    sources: Sequence[PackSource],
    limit_bytes: int,
    max_packs: int,
) -> list[Path]:
    """Fill `folder/pack-000`, `folder/pack-001`, ... until the data or `max_packs` are used up.

    Args:
        common: what every pack holds, copied (code and tokenizer).
        held_out: a block of validation data of each modality, in every pack too.
        sources: training data; each pack takes bytes of them in proportion to their shares.
        limit_bytes: that no pack exceeds.

    Raises:
        FileExistsError: there are packs already.
        ValueError: what all packs hold and one block do not fit.
    """
    if list(folder.glob("pack-*")):
        raise FileExistsError(f"packs must go where none are, got {folder}")
    waiting = {source.modality: waiting_block(iter(source.blocks)) for source in sources}
    shares = {source.modality: source.share for source in sources}
    packs: list[Path] = []
    while len(packs) < max_packs and any(content for content, _ in waiting.values()):
        partial = folder / "partial"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(common, partial)
        for modality, block in held_out.items():
            put(partial / "validation" / f"{modality}-000{SUFFIX}", packed_arrays(block))
        fill(partial, waiting, shares, limit_bytes)
        write_manifest(partial, len(packs))
        packs.append(partial.rename(folder / f"pack-{len(packs):03d}"))
    return packs


Waiting = tuple[bytes | None, Iterator[Block]]


def waiting_block(blocks: Iterator[Block]) -> Waiting:
    """The next block, compressed, None at the end; and those after it."""
    block = next(blocks, None)
    return (None if block is None else packed_arrays(block)), blocks


def fill(pack: Path, waiting: dict[str, Waiting], shares: Mapping[str, int], limit_bytes: int) -> None:
    """Add training blocks to a pack until the next one would not fit."""
    room = limit_bytes - size_of(pack) - (1 << 18)  # the manifest's
    used, numbers = dict.fromkeys(waiting, 0), dict.fromkeys(waiting, 0)
    while left := [name for name, (content, _) in waiting.items() if content is not None]:
        name = min(left, key=lambda name: used[name] / shares[name])
        content, later = waiting[name]
        assert content is not None
        if len(content) > room:
            if not sum(numbers.values()):
                raise ValueError(f"a pack of {limit_bytes} bytes must take a block of {name}, got {len(content)} bytes")
            return
        put(pack / "train" / f"{name}-{numbers[name]:03d}{SUFFIX}", content)
        room, used[name], numbers[name] = room - len(content), used[name] + len(content), numbers[name] + 1
        waiting[name] = waiting_block(later)


def put(path: Path, content: bytes) -> None:
    """Write a file and the folder it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def write_manifest(pack: Path, number: int) -> None:
    """Size and hash of every file."""
    files = {
        str(path.relative_to(pack)): {"bytes": path.stat().st_size, "sha256": sha256_of(path.read_bytes())}
        for path in pack_files(pack)
    }
    (pack / MANIFEST).write_text(json.dumps({"format": FORMAT, "number": number, "files": files}, indent=1))


def blocks_of(packs: Sequence[Path], split: str, modality: str) -> list[Block]:
    """The blocks of one modality in some packs, in order, each checked against its manifest.

    Raises:
        ValueError: no pack, another format, a file that is not the one that was written, or no block.
    """
    blocks = []
    for pack in packs:
        if not (pack / MANIFEST).exists():
            raise ValueError(f"a pack must have a {MANIFEST}, got none in {pack}")
        manifest = json.loads((pack / MANIFEST).read_text())
        if manifest.get("format") != FORMAT:
            raise ValueError(f"a pack must be of format {FORMAT}, got {manifest.get('format')!r} in {pack}")
        for file in sorted((pack / split).glob(f"{modality}-*{SUFFIX}")):
            content, name = file.read_bytes(), str(file.relative_to(pack))
            if manifest["files"].get(name, {}).get("sha256") != sha256_of(content):
                raise ValueError(f"{name} must be as it was packed, got another content in {pack}")
            blocks.append(unpacked_arrays(content))
    if not blocks:
        raise ValueError(f"packs must hold {modality!r} for {split}, got none in {list(map(str, packs))}")
    return blocks


def open_packed_tokens(packs: Sequence[Path], split: str, modality: str) -> PackedTokens:
    """Text or code of packs, in memory.

    Usage: `open_packed_tokens([Path("runs/packs/pack-000")], "train", "text")`
    Raises ValueError as `blocks_of`.
    """
    return tokens_of(blocks_of(packs, split, modality), modality)


def open_packed_latents(packs: Sequence[Path], split: str, modality: str) -> LatentShards:
    """Samples of a continuous modality of packs, in memory as they were packed.

    Usage: `open_packed_latents([Path("runs/packs/pack-000")], "train", "image")`
    Raises ValueError as `blocks_of`.
    """
    return latents_of(blocks_of(packs, split, modality), modality)
