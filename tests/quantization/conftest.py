from pathlib import Path

import pytest
from torch import Tensor

from tests.quantization import small_weights


@pytest.fixture(scope="session")
def small_tensors() -> dict[str, Tensor]:
    return small_weights.small_tensors()


@pytest.fixture(scope="session")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_weights.write_small(tmp_path_factory.mktemp("weights") / "small.parquet")


@pytest.fixture(scope="session")
def parts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_weights.write_small(tmp_path_factory.mktemp("weights") / "parts.parquet", max_part_bytes=32)
