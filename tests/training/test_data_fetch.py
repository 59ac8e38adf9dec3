"""Laws of fetching: only the pinned file is accepted, and every archive kind gives its wanted members."""

import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from hf_unified_diffusion.training.data_fetch import FetchError, client_command, fetch, members, run_client, wanted
from hf_unified_diffusion.training.data_sources import Package

PACKAGE = Package("pypi", "box", "1", "box-1.whl", "0" * 64, "MIT", "python_packages", extract="python")
FILES = {"box/a.py": b"a = 1\n", "box/b.txt": b"b\n", "box/deep/c.py": b"c = 3\n"}


def write_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)


def write_tar(path):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in FILES.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_deb(path):
    root = path.parent / "root"
    for name, content in {**FILES, "DEBIAN/control": None}.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(
            content or b"Package: box\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: box\n"
        )
    subprocess.run(["dpkg-deb", "--build", str(root), str(path)], check=True, capture_output=True)


has_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")


@pytest.mark.parametrize(
    ("name", "write"),
    [("box.whl", write_zip), ("box.tgz", write_tar), pytest.param("box.deb", write_deb, marks=has_dpkg)],
)
def test_members_are_the_wanted_files_of_any_archive(tmp_path, name, write):
    path = tmp_path / name
    write(path)
    assert dict(members(replace(PACKAGE, file=name), path)) == FILES
    chosen = replace(PACKAGE, file=name, include=("*.py",), exclude=("*/deep/*",))
    assert dict(members(chosen, path)) == {"box/a.py": FILES["box/a.py"]}


def test_exclusion_wins_over_inclusion():
    assert wanted(replace(PACKAGE, include=("*.py",)), "box/a.py")
    assert not wanted(replace(PACKAGE, include=("*.py",), exclude=("box/*",)), "box/a.py")
    assert not wanted(replace(PACKAGE, include=("*.txt",)), "box/a.py")


def test_a_cached_file_with_the_pinned_hash_is_used_as_it_is(tmp_path):
    path = tmp_path / "pypi" / PACKAGE.file
    path.parent.mkdir()
    path.write_bytes(b"content")
    package = replace(PACKAGE, sha256=hashlib.sha256(b"content").hexdigest())
    assert fetch(package, tmp_path) == path


def test_another_file_under_the_name_is_refused_by_name(tmp_path):
    path = tmp_path / "pypi" / PACKAGE.file
    path.parent.mkdir()
    path.write_bytes(b"other content")
    with pytest.raises(FetchError, match=r"'box' 1: sha256 must be 0{64}, got "):
        fetch(PACKAGE, tmp_path)


def test_a_missing_client_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FetchError, match=r"'box' 1: fetching it needs 'npm'"):
        fetch(replace(PACKAGE, registry="npm", file="box.tgz"), tmp_path)


def test_a_failing_client_is_reported_and_leaves_nothing_behind(tmp_path, monkeypatch):
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'no such package' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(FetchError, match=r"(?s)'box' 1 could not be fetched.*no such package"):
        fetch(replace(PACKAGE, registry="npm", file="box.tgz"), tmp_path / "cache")
    assert list((tmp_path / "cache" / "npm").iterdir()) == []


@pytest.mark.parametrize(
    ("registry", "file"), [("pypi", "box.whl"), ("pypi", "box.tar.gz"), ("npm", "b.tgz"), ("debian", "b.deb")]
)
def test_clients_are_told_the_pinned_version(registry, file):
    command = client_command(replace(PACKAGE, registry=registry, file=file, version="1.2.3"))
    assert command[-1].startswith("box")
    assert command[-1].endswith("1.2.3")


def test_constraints_on_what_is_installed_do_not_bind_what_is_read(tmp_path, monkeypatch):
    constraints, folder = tmp_path / "constraints.txt", tmp_path / "empty"
    constraints.write_text("box<1\n")
    folder.mkdir()
    monkeypatch.setenv("PIP_CONSTRAINT", str(constraints))
    script = "import os, pathlib; pathlib.Path('seen').write_text(os.environ['PIP_CONSTRAINT'])"
    seen = Path(run_client([sys.executable, "-c", script], folder, "box").read_text())
    assert seen != constraints and seen.read_text() == ""
