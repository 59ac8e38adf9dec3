"""Fetch pinned packages with the registries' own clients, check their hashes, read their members."""

import fnmatch
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from .data_sources import Package

# One fixed target, so that every machine gets the very file whose hash is pinned. The code inside is only read.
PIP_TARGET = (
    "--only-binary=:all:", "--implementation=cp", "--python-version=3.11", "--abi=cp311", "--abi=abi3", "--abi=none",
    "--platform=manylinux2014_x86_64", "--platform=manylinux_2_17_x86_64", "--platform=manylinux_2_28_x86_64",
)  # fmt: skip
PIP = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check")


class FetchError(RuntimeError):
    """A pinned package could not be had, or is not the file that was pinned."""


def client_command(package: Package) -> list[str]:
    """The command that puts the package's pinned file into the current folder."""
    mark = {"pypi": "==", "npm": "@", "debian": "="}[package.registry]
    return registry_command(package.registry, f"{package.name}{mark}{package.version}", package.file.endswith(".whl"))


def registry_command(registry: str, name: str, is_wheel: bool = True) -> list[str]:
    """The registry's own client, downloading one package (its newest version if the name says none)."""
    if registry == "npm":
        return ["npm", "pack", "--loglevel=error", name]
    if registry == "debian":
        return ["apt-get", "download", "-qq", name]
    return [*PIP, *(PIP_TARGET if is_wheel else ("--no-binary=:all:",)), name]


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fetch(package: Package, cache: Path) -> Path:
    """Return the package's file in the cache, downloading it once. Use: `archive = fetch(package, cache_dir())`.

    Raises FetchError, naming the package, when its client is missing or fails, or when the hash differs.
    """
    path = cache / package.registry / package.file
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            label = f"{package.registry} package {package.name!r} {package.version}"
            run_client(client_command(package), Path(folder), label).rename(path)
    found = sha256_of(path)
    if found != package.sha256:
        raise FetchError(
            f"{package.registry} package {package.name!r} {package.version}: sha256 must be {package.sha256}, "
            f"got {found} for {path}; delete that file to fetch it again"
        )
    return path


def run_client(command: list[str], folder: Path, label: str) -> Path:
    """Run a registry's client in an empty folder and return the one file it left there.

    Raises FetchError that begins with `label` when the client is not installed, fails, or leaves no or several files.
    """
    if shutil.which(command[0]) is None:
        raise FetchError(f"{label}: fetching it needs {command[0]!r}, which is not installed")
    # What is fetched is read, never installed: constraints on what this machine installs do not bind it.
    environment = {**os.environ, "PIP_CONSTRAINT": os.devnull}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    files = list(folder.iterdir())
    if result.returncode != 0 or len(files) != 1:
        raise FetchError(
            f"{label} could not be fetched by {Path(command[0]).name!r} (run 'apt-get update' for a Debian package; "
            f"a version no longer served is pinned anew by examples/pin_package.py; --sources builds without it):\n"
            f"{result.stderr.strip()[-2000:]}"
        )
    return files[0]


def wanted(package: Package, name: str) -> bool:
    """Whether a member's path matches an include pattern (none: all) and no exclude pattern."""
    included = not package.include or any(fnmatch.fnmatchcase(name, pattern) for pattern in package.include)
    return included and not any(fnmatch.fnmatchcase(name, pattern) for pattern in package.exclude)


def members(package: Package, archive: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (path, content) of the archive's wanted files: wheel, sdist, npm tarball or Debian package."""
    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as zipped:
            for name in sorted(zipped.namelist()):
                if not name.endswith("/") and wanted(package, name):
                    yield name, zipped.read(name)
        return
    with open_tar(archive) as tar:
        for member in tar:
            name = member.name.removeprefix("./")
            stream = tar.extractfile(member) if member.isfile() and wanted(package, name) else None
            if stream is not None:
                yield name, stream.read()


def open_tar(archive: Path) -> tarfile.TarFile:
    """A tarball, or the tar inside a Debian package; nothing is written to disk."""
    if archive.suffix == ".deb":
        # dpkg-deb knows every compression that a .deb may use
        unpacked = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(archive)], capture_output=True, check=True)
        return tarfile.open(fileobj=io.BytesIO(unpacked.stdout))
    return tarfile.open(archive)
