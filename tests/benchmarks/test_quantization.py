"""The timed Python loop does the work that it is compared with."""

import quantization as benchmark
import torch

from hf_unified_diffusion.quantization import dequantize, quantize


def test_the_python_loop_finds_scales_as_good_as_ours() -> None:
    weight = torch.randn(4, 128, generator=torch.Generator().manual_seed(0))
    found = benchmark.python_loop(weight.flatten().tolist(), 64)
    assert all(-8 <= code <= 7 for codes, _ in found for code in codes)
    looped = torch.tensor([[code * scale for code in codes] for codes, scale in found]).view_as(weight)
    loop_error = (looped - weight).square().sum()
    our_error = (dequantize(*quantize(weight, 4, 64), 4) - weight).square().sum()
    assert our_error * 0.98 <= loop_error <= our_error * 1.05


def test_errors_become_one_row_a_layer(tmp_path) -> None:
    errors = {"8": {"a": 0.01, "b": 0.02}, "4": {"a": 0.1, "b": 0.2}}
    assert benchmark.error_rows(errors) == [{"layer": "a", "8": 0.01, "4": 0.1}, {"layer": "b", "8": 0.02, "4": 0.2}]
    benchmark.plot_errors(errors, tmp_path / "pictures" / "layers.png")
    assert (tmp_path / "pictures" / "layers.png").stat().st_size > 1000
