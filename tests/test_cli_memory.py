"""The memory on the command line."""

import io
import json

import pytest
from PIL import Image

from hf_unified_diffusion.cli import main
from tests.tiny import save_tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(save_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint")))


@pytest.fixture
def run(checkpoint, tmp_path, capsys, monkeypatch):
    def command(action, *arguments, stdin=""):
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        by_checkpoint = ["--checkpoint", checkpoint] if action in ("add", "search") else []
        main(["memory", action, str(tmp_path / "memory"), *arguments, *by_checkpoint])
        return capsys.readouterr().out.splitlines()

    return command


def test_what_was_added_is_found_listed_exported_and_forgotten(run, tmp_path):
    assert run("add", "green tea", "blue sky") == ["1", "2"]
    assert [json.loads(line)["id"] for line in run("add", "--json", stdin="a third\n\na fourth\n")] == [3, 4]
    assert run("search", "blue sky", "-k", "1") == ["2\t1.000\tblue sky"]
    assert json.loads(run("search", "--json", "-k", "1", stdin="green tea\n")[0])["text"] == "green tea"
    assert run("forget", "2", "3") == ["forgotten  2"]
    assert [line.split("\t") for line in run("list")] == [["1", "active", "green tea"], ["4", "active", "a fourth"]]
    assert run("export", str(tmp_path / "out.parquet")) == ["exported  2"]
    assert (tmp_path / "out.parquet").read_bytes()[:4] == b"PAR1"
    assert json.loads(run("stats", "--json")[0])["active"] == 2
    assert run("forget", "--all", "--json") == ['{"forgotten": 2}']


def test_namespaces_and_quarantine(run):
    run("add", "secret", "--namespace", "anna", "--quarantine")
    assert run("search", "secret", "--namespace", "anna") == []
    assert run("list", "--namespace", "anna") == ["1\tquarantine\tsecret"]
    assert run("list") == []


def test_pictures_are_remembered_by_their_captions(run, tmp_path, capsys):
    for name in ("rex", "car"):
        Image.new("RGB", (40, 30), "red" if name == "car" else "brown").save(tmp_path / f"{name}.png")
    images = ["--image", str(tmp_path / "rex.png"), "--image", str(tmp_path / "car.png")]
    assert run("add", "my dog Rex", "the red car", *images) == ["1", "2"]
    assert run("search", "the red car", "-k", "1") == ["2\t1.000\t(image) the red car"]
    with pytest.raises(SystemExit) as end:
        run("add", "my dog Rex", *images)
    assert end.value.code == 2
    assert "image must be given once for each text (1), got 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["memory"], 2),
        (["memory", "add", "new"], 2),
        (["memory", "search", "/nowhere/at/all", "tea"], 2),
        (["memory", "forget", "{folder}"], 2),
        (["memory", "forget", "{folder}", "1", "--all"], 2),
        (["memory", "stats", "{folder}"], 1),
    ],
)
def test_errors_end_with_a_message_and_a_code(arguments, code, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main([argument.format(folder=tmp_path) for argument in arguments])
    assert end.value.code == code
    assert "hf-unified-diffusion" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
