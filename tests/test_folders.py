"""A folder that is replaced as a whole, or not at all."""

import pytest

from hf_unified_diffusion.folders import replacing


def write_half_of(folder):
    with replacing(folder) as partial:
        partial.mkdir()
        (partial / "half").write_text("half")
        raise OSError("disk full")


@pytest.mark.parametrize("is_there", [True, False])
def test_the_successor_takes_the_whole_place(tmp_path, is_there):
    folder = tmp_path / "folder"
    if is_there:
        folder.mkdir()
        (folder / "old").write_text("old")
    with replacing(folder) as partial:
        partial.mkdir()
        (partial / "new").write_text("new")
        assert folder.exists() == is_there
    assert [path.name for path in folder.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_run_that_fails_leaves_the_old_folder_and_the_next_one_starts_afresh(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "old").write_text("old")
    with pytest.raises(OSError, match="disk full"):
        write_half_of(folder)
    assert [path.name for path in folder.iterdir()] == ["old"]
    with replacing(folder) as partial:
        assert not partial.exists()
        partial.mkdir()
    assert not list(folder.iterdir())
