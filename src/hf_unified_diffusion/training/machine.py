"""What this machine is good at, measured: the dtype to train in and the rate to compare with."""

import time

import torch

PRECISIONS = ("auto", "bf16", "no")


def fast_dtype() -> torch.dtype:
    """bfloat16 where matrix units take it (CUDA, AMX, AVX-512 BF16), else float32: emulated bf16 is 10 times slower."""
    if torch.cuda.is_available():
        return torch.bfloat16
    has_units = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if has_units else torch.float32


def check_precision(mixed_precision: str) -> None:
    """Raise ValueError for another name than those of `PRECISIONS`."""
    if mixed_precision not in PRECISIONS:
        raise ValueError(f"mixed_precision must be one of {PRECISIONS}, got {mixed_precision!r}")


def precision_of(mixed_precision: str) -> torch.dtype:
    """The dtype that a training script computes in: "auto" is `fast_dtype`, "bf16" and "no" (float32) as in accelerate.

    Raises ValueError for another name.
    Usage: `precision_of("auto")`
    """
    check_precision(mixed_precision)
    return {"auto": fast_dtype(), "bf16": torch.bfloat16, "no": torch.float32}[mixed_precision]


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int = 1536, repeats: int = 8) -> float:
    """Operations a second of a (size, size) matrix product, the roof over any training step.

    Usage: `matmul_rate(torch.device("cpu"), torch.float32) / 1e12` gives TFLOP/s.
    """
    generator = torch.Generator(device).manual_seed(0)  # its own: measuring must not change what a run draws
    a, b = (torch.randn(size, size, device=device, dtype=dtype, generator=generator) for _ in range(2))
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        product = a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
        del product
    return 2 * size**3 / best
