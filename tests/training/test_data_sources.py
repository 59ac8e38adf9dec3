"""Laws of the pinned packages: well-formed, permissive, and refused when they are not."""

import json
from dataclasses import replace

import pytest

from hf_unified_diffusion.training.data_corpus import select
from hf_unified_diffusion.training.data_sources import Package, cache_dir, load_packages, source_model_path

PACKAGE = Package("pypi", "box", "1", "box-1.whl", "0" * 64, "MIT", "python_packages", extract="python")


def test_every_pinned_package_is_permissive_and_listed_once():
    packages = load_packages()
    assert [package.name for package in packages if not package.is_permissive] == []
    assert len({package.sha256 for package in packages}) == len(packages)
    assert sum(package.kind == "model" for package in packages) == 1


@pytest.mark.parametrize(
    ("licence", "permissive"),
    [
        ("MIT", True),
        ("GPL-3.0-only", False),
        ("", False),
        ("MIT AND GPL-2.0-only", False),
        ("MIT OR GPL-2.0-only", True),
        ("Apache-2.0 AND MIT", True),
        ("GPL-2.0-only OR MIT AND CC-BY-SA-4.0", False),
    ],
)
def test_a_licence_is_permissive_if_one_alternative_is_in_all_parts(licence, permissive):
    assert replace(PACKAGE, licence=licence).is_permissive == permissive


def test_packages_under_other_licences_are_refused_by_name():
    with pytest.raises(ValueError, match=r"permissive or public domain.*box \(GPL-3.0-only\)"):
        select([PACKAGE, replace(PACKAGE, licence="GPL-3.0-only")])


def test_sources_select_their_packages_and_unknown_ones_are_refused():
    other = replace(PACKAGE, name="lid", source="docs_lid")
    model = replace(PACKAGE, name="network", kind="model", source="source_model")
    assert select([PACKAGE, other, model]) == [PACKAGE, other]
    assert select([PACKAGE, other, model], ["docs_lid"]) == [other]
    with pytest.raises(ValueError, match=r"sources must be among .*docs_nothing"):
        select([PACKAGE], ["docs_nothing"])


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [("registry", "hub", "registry of box"), ("kind", "toy", "kind of box"), ("sha256", "A" * 64, "64 lower-case")],
)
def test_malformed_pins_are_refused(field, value, rule):
    with pytest.raises(ValueError, match=rule):
        replace(PACKAGE, **{field: value})


def test_a_package_listed_twice_is_refused(tmp_path):
    row = {
        "registry": "pypi",
        "name": "a",
        "version": "1",
        "file": "a",
        "sha256": "0" * 64,
        "licence": "MIT",
        "source": "b",
    }
    path = tmp_path / "sources.json"
    path.write_text(json.dumps({"packages": [row, row]}))
    with pytest.raises(ValueError, match="listed once"):
        load_packages(path)


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_UNIFIED_DIFFUSION_DATA", str(tmp_path))
    assert cache_dir() == tmp_path
    assert source_model_path().is_relative_to(tmp_path)
