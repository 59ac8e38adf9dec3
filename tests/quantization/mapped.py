"""Whether a tensor's bytes lie in a mapped file."""

from pathlib import Path

from torch import Tensor

from hf_unified_diffusion.quantization.parquet_layout import ALIGN


def lies_in_a_mapping_of(path: Path, tensor: Tensor) -> bool:
    """Whether all bytes of a tensor lie, aligned, in one mapping of the file (or of a file in the folder)."""
    start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line]
    spans = [[int(number, 16) for number in line.split()[0].split("-")] for line in lines]
    return start % ALIGN == 0 and any(low <= start and end <= high for low, high in spans)
