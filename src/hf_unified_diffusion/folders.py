"""Folders that appear whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A place beside a folder to write its successor; it takes the folder's place at the end.

    What a run that failed left there is removed first; a run that fails leaves the old folder whole.

    Usage: `with replacing(Path("checkpoint")) as partial: model.save_pretrained(partial)`
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    yield partial
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
