"""Laws of broken off conversions: finished layers are kept, the end is as if nothing had happened, one at a time."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from signal import SIGKILL

import pytest

from hf_unified_diffusion import UnifiedDiffusionModel
from hf_unified_diffusion.conversion.convert import convert_checkpoint, fingerprint
from hf_unified_diffusion.conversion.sources import open_source
from hf_unified_diffusion.conversion.work_folder import WorkFolder, work_folder
from hf_unified_diffusion.quantization import read_parquet_weights
from tests.tiny import save_tiny_checkpoint

PARQUET = "model.arrowquant.parquet"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("source") / "dense")


@pytest.fixture(scope="module")
def unbroken(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("unbroken") / "out"
    report = convert_checkpoint(source, out, bits=4, group_size=8)
    assert report.layers_resumed == 0
    return contents(out)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def broken_off(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch, after: int = 5) -> Path:
    """The work folder of a conversion whose disk is full after so many layers."""
    put = WorkFolder.put

    def full_disk(self: WorkFolder, index: int, *given: object) -> None:
        if index == after:
            raise OSError("no space left on device")
        put(self, index, *given)

    monkeypatch.setattr(WorkFolder, "put", full_disk)
    with pytest.raises(OSError, match="no space"):
        convert_checkpoint(source, out, bits=4, group_size=8)
    monkeypatch.undo()
    return out.with_name(f"{out.name}.partial")


def test_a_killed_conversion_goes_on_where_it_stopped(
    source: Path, unbroken: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = Path(__file__).with_name("killed_conversions.py")
    ran = subprocess.run([sys.executable, program, source, tmp_path], capture_output=True, text=True, check=True)
    deaths = dict(line.split() for line in ran.stdout.splitlines())
    rounded: list[int] = []
    put = WorkFolder.put
    monkeypatch.setattr(
        WorkFolder, "put", lambda self, index, *given: (rounded.append(index), put(self, index, *given))
    )
    num_layers = None
    for name, finished in {"inside_the_result": None, "between_layers": 5, "inside_a_layer": 4}.items():
        assert deaths[name] == str(SIGKILL.value)
        assert not (tmp_path / name).exists()
        rounded.clear()
        report = convert_checkpoint(source, tmp_path / name, bits=4, group_size=8)
        num_layers = num_layers or len(report.errors)
        assert report.layers_resumed == (num_layers if finished is None else finished)
        assert rounded == list(range(report.layers_resumed, num_layers))
        assert contents(tmp_path / name) == unbroken
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(deaths)


def test_a_failure_keeps_what_is_finished_and_no_more(
    source: Path, unbroken: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = broken_off(source, tmp_path / "out", monkeypatch)
    assert not (tmp_path / "out").exists() and not (partial / "result").exists()
    report = convert_checkpoint(source, tmp_path / "out", bits=4, group_size=8)
    assert report.layers_resumed == 5
    assert contents(tmp_path / "out") == unbroken
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_damaged_or_misplaced_layer_is_rounded_again(
    source: Path, unbroken: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = broken_off(source, tmp_path / "out", monkeypatch, after=12)
    layers = {read_parquet_weights(file).metadata["name"]: file for file in (partial / "layers").iterdir()}
    damaged = bytearray(layers["token_embedding"].read_bytes())
    damaged[len(damaged) // 2] ^= 1
    layers["token_embedding"].write_bytes(damaged)
    layers["heads.text.down"].write_bytes(layers["heads.code.down"].read_bytes())  # of the same shape
    convert_checkpoint(source, tmp_path / "out", bits=4, group_size=8)
    assert contents(tmp_path / "out") == unbroken


@pytest.mark.parametrize("changed", ["bits", "source"])
def test_layers_of_another_job_are_thrown_away(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    broken_off(source, tmp_path / "out", monkeypatch)
    bits = 4
    if changed == "bits":
        bits = 8
    else:
        source = save_tiny_checkpoint(tmp_path / "another")
    report = convert_checkpoint(source, tmp_path / "out", bits=bits, group_size=8)
    assert report.layers_resumed == 0


def test_a_source_that_is_written_to_is_another_one(tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "source")
    before = fingerprint(open_source(folder))
    assert fingerprint(open_source(folder)) == before
    UnifiedDiffusionModel.from_pretrained(folder).save_pretrained(folder)
    assert fingerprint(open_source(folder)) != before


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Path]:
    with work_folder(tmp_path / "out", {}) as work:
        (work.layers / "000000.parquet").write_bytes(b"somebody's")
        yield tmp_path / "out"
        assert (work.layers / "000000.parquet").read_bytes() == b"somebody's"


def test_two_conversions_do_not_write_one_folder(source: Path, held: Path) -> None:
    with pytest.raises(ValueError, match="one conversion at a time"):
        convert_checkpoint(source, held, bits=4, group_size=8)
