"""Laws of the quantized layers and of the cache behind them."""

import copy
import gc
import pickle
import threading
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_unified_diffusion.quantization import (
    QuantizedEmbedding,
    QuantizedLinear,
    bits_per_weight,
    dequantize,
    num_weights,
    set_dequantized_cache_bytes,
)
from hf_unified_diffusion.quantization.dequantized_cache import CACHE
from hf_unified_diffusion.quantization.modules import can_quantize, dequantize_layer, quantize_layer

LAYER_BYTES = 64 * 64 * 4


def linear(bits: int = 4, seed: int = 0, bias: bool = True) -> QuantizedLinear:
    torch.manual_seed(seed)
    return quantize_layer(nn.Linear(64, 64, bias=bias), bits, 64, torch.float32)


def plain(layer: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
    return dequantize(layer.weight, layer.weight_scale, layer.bits, dtype)


@pytest.fixture(autouse=True)
def empty_cache() -> Iterator[None]:
    previous = set_dequantized_cache_bytes(0)
    set_dequantized_cache_bytes(1 << 24)
    yield
    set_dequantized_cache_bytes(previous)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_linear_layer_multiplies_by_its_dense_matrix(bits: int, dtype: torch.dtype) -> None:
    layer = linear(bits).to(dtype)
    x = torch.randn(3, 5, 64, dtype=dtype, requires_grad=True)
    y = layer(x)
    assert torch.equal(y, F.linear(x, plain(layer, dtype), layer.bias))
    y.sum().backward()
    assert torch.allclose(x.grad, plain(layer, dtype).sum(0).expand_as(x), atol=1e-2)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_an_embedding_reads_rows_of_the_matrix_that_unembeds(bits: int) -> None:
    layer = quantize_layer(nn.Embedding(50, 64, padding_idx=0), bits, 64, torch.float32)
    ids = torch.randint(0, 50, (4, 7))
    assert torch.equal(layer(ids), plain(layer)[ids])
    assert layer(ids[:, :0]).shape == (4, 0, 64)
    hidden = torch.randn(4, 7, 64)
    assert torch.equal(layer.unembed(hidden), hidden @ layer.dequantized(torch.float32).T)
    assert layer.to(torch.bfloat16)(ids).dtype == torch.bfloat16


def test_under_autocast_the_matrix_comes_in_its_dtype() -> None:
    layer = linear()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(torch.randn(2, 64))
    assert y.dtype == torch.bfloat16
    assert CACHE.used_bytes() == LAYER_BYTES // 2


def test_casting_a_model_back_and_forth_keeps_codes_and_scales() -> None:
    layer = linear()
    packed, scale = layer.weight.clone(), layer.weight_scale.clone()
    for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.float32):
        layer.to(dtype)
        assert layer.compute_dtype == layer.bias.dtype == dtype
    assert torch.equal(layer.weight, packed)
    assert torch.equal(layer.weight_scale, scale)


def test_state_dicts_restore_a_layer() -> None:
    source, target = linear(seed=0), linear(seed=1)
    x = torch.randn(2, 64)
    assert not torch.equal(source(x), target(x))
    target.load_state_dict(source.state_dict())
    assert torch.equal(source(x), target(x))


class Marked(nn.Linear):
    """A subclass that a model tells apart by isinstance; its constructor is its own."""

    def __init__(self, width: int, mark: str):
        super().__init__(width, width)
        self.mark = mark


class Loud(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_quantized_twins_stay_instances_of_their_class() -> None:
    layer = quantize_layer(Marked(64, "first"), 4, 64, torch.float32)
    x = torch.randn(2, 64)
    copies = [layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    for twin in copies:
        assert isinstance(twin, Marked)
        assert isinstance(twin, QuantizedLinear)
        assert twin.mark == "first"
        assert torch.equal(twin(x), layer(x))
    dense = dequantize_layer(layer)
    assert type(dense) is Marked
    assert dense.mark == "first"
    assert torch.equal(dense(x), layer(x))
    assert dense.weight.requires_grad


def test_only_layers_with_the_plain_forward_pass_are_quantized() -> None:
    assert can_quantize(nn.Linear(4, 4))
    assert can_quantize(Marked(4, ""))
    assert not can_quantize(Loud(4, 4))
    assert not can_quantize(nn.Embedding(4, 4, max_norm=1.0))
    assert not can_quantize(nn.Conv1d(4, 4, 1))
    assert not can_quantize(linear())


def test_bits_are_counted_over_all_weights_shared_ones_once() -> None:
    embedding = quantize_layer(nn.Embedding(128, 64), 8, 64, torch.float32)
    model = nn.Sequential(embedding, linear(4, bias=False), nn.LayerNorm(64), embedding)
    bits = 128 * 64 * 8 + 128 * 16 + 64 * 64 * 4 + 64 * 16 + 2 * 64 * 32
    weights = 128 * 64 + 64 * 64 + 2 * 64
    assert num_weights(model) == weights
    assert bits_per_weight(model) == bits / weights


def test_only_touched_layers_are_dequantized_and_only_once() -> None:
    layers = [linear(seed=i) for i in range(4)]
    x = torch.randn(2, 64)
    assert CACHE.used_bytes() == 0
    layers[2](x)
    assert CACHE.used_bytes() == LAYER_BYTES
    held = layers[2].dequantized(torch.float32)
    assert layers[2].dequantized(torch.float32) is held
    assert CACHE.used_bytes() == LAYER_BYTES


@pytest.mark.parametrize("layers_that_fit", [0, 1, 3, 100])
def test_the_bound_holds_and_changes_no_result(layers_that_fit: int) -> None:
    layers = [linear(seed=i) for i in range(6)]
    set_dequantized_cache_bytes(layers_that_fit * LAYER_BYTES)
    x = torch.randn(2, 64)
    for _ in range(3):
        for layer in layers:
            assert torch.equal(layer(x), F.linear(x, plain(layer), layer.bias))
            assert CACHE.used_bytes() <= layers_that_fit * LAYER_BYTES
    assert CACHE.used_bytes() == min(layers_that_fit, 6) * LAYER_BYTES


@pytest.mark.parametrize("activation_bits", [8, 16])
@pytest.mark.parametrize("layers_that_fit", [0, 1, 3, 100])
def test_the_bound_holds_for_every_layout(layers_that_fit: int, activation_bits: int) -> None:
    layers = [linear(seed=i).to(torch.bfloat16).requires_grad_(False) for i in range(6)]
    for layer in layers:
        layer.activation_bits = activation_bits
    limit = layers_that_fit * LAYER_BYTES // 2
    set_dequantized_cache_bytes(limit)
    x = torch.randn(2, 64).bfloat16()
    for _ in range(3):
        for layer in layers:
            wanted = F.linear(x.double(), plain(layer).double(), layer.bias.double())
            assert (layer(x).double() - wanted).norm() < 0.02 * wanted.norm()
            assert CACHE.used_bytes() <= limit


def test_rounds_larger_than_the_bound_still_find_what_fits() -> None:
    layers = [linear(seed=i) for i in range(6)]
    set_dequantized_cache_bytes(3 * LAYER_BYTES)
    rounds = [[layer.dequantized(torch.float32).data_ptr() for layer in layers[:3]] for _ in range(2) for _ in layers]
    assert all(addresses == rounds[0] for addresses in rounds)


def test_a_model_at_rest_gives_way_to_one_at_work() -> None:
    old, new = linear(seed=0), linear(seed=1)
    set_dequantized_cache_bytes(LAYER_BYTES)
    x = torch.randn(2, 64)
    old(x)
    for _ in range(20):
        new(x)
    assert new.dequantized(torch.float32) is new.dequantized(torch.float32)


def test_dead_layers_leave_the_cache() -> None:
    layer = linear()
    layer(torch.randn(2, 64))
    assert CACHE.used_bytes() == LAYER_BYTES
    del layer
    gc.collect()
    assert CACHE.used_bytes() == 0


def test_changed_weights_are_seen() -> None:
    layer, other = linear(seed=0), linear(seed=1)
    x = torch.randn(2, 64)
    first = layer(x)
    layer.weight_scale.mul_(2)
    assert torch.allclose(layer(x) - layer.bias, 2 * (first - layer.bias), atol=1e-5)
    layer.weight.data = other.weight.data.clone()
    assert torch.equal(layer(x), F.linear(x, plain(layer), layer.bias))
    layer.merge(torch.ones(64, 1), torch.ones(1, 64))
    assert torch.allclose(layer(x), F.linear(x, plain(layer) + 1, layer.bias), atol=1e-2)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_what_was_merged_is_there_however_the_layer_is_used(bits: int) -> None:
    layer = quantize_layer(nn.Embedding(50, 64), bits, 64, torch.float32)
    before, ids, hidden = plain(layer), torch.randint(0, 50, (4, 7)), torch.randn(3, 64)
    outer, inner = torch.randn(50, 3), torch.randn(3, 64)
    layer.merge(outer[:, :2], inner[:2])
    layer.merge(outer[:, 2:], inner[2:])
    dense = layer.dequantized()
    assert layer.merged_rank == 3
    assert (dense - before - outer @ inner).norm() < 0.02 * (outer @ inner).norm()
    assert torch.allclose(layer(ids), dense[ids], atol=1e-6)
    assert torch.equal(layer.unembed(hidden), hidden @ dense.T)
    assert torch.equal(dequantize_layer(layer).weight, dense)
    copied, pickled = copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))
    assert torch.equal(copied.dequantized(), dense) and torch.equal(pickled.dequantized(), dense)
    narrow = copied.to(torch.bfloat16)
    assert narrow.merged_in_scale.dtype == torch.bfloat16 and narrow.weight.dtype == torch.uint8
    assert torch.equal(narrow.dequantized(), dense.bfloat16())  # rounded once
    layer.unmerge(1)
    assert (layer.dequantized() - before - outer[:, :2] @ inner[:2]).norm() < 0.02 * (outer @ inner).norm()
    layer.unmerge(2)
    assert torch.equal(layer.dequantized(), before)


def test_what_inference_mode_dequantized_serves_training() -> None:
    layer = linear()
    x = torch.randn(2, 64, requires_grad=True)
    with torch.inference_mode():
        layer(x.detach())
    layer(x).sum().backward()
    assert torch.allclose(x.grad, plain(layer).sum(0).expand_as(x), atol=1e-5)


def test_threads_share_the_cache() -> None:
    layers = [linear(seed=i) for i in range(4)]
    set_dequantized_cache_bytes(2 * LAYER_BYTES)
    x = torch.randn(2, 64)
    wanted = [F.linear(x, plain(layer), layer.bias) for layer in layers]
    wrong: list[int] = []

    def work(seed: int) -> None:
        for step in range(100):
            index = (step * 7 + seed) % 4
            if step % 25 == 0:
                set_dequantized_cache_bytes((1 + step // 25) * LAYER_BYTES)
            if not torch.equal(layers[index](x), wanted[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_negative_bounds_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 0"):
        set_dequantized_cache_bytes(-1)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_layers_are_traced_whole(bits: int) -> None:
    model = nn.Sequential(quantize_layer(nn.Embedding(50, 64), 8, 64, torch.float32), linear(bits))
    ids = torch.randint(0, 50, (2, 5))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(ids), model(ids))
    assert isinstance(model[0], QuantizedEmbedding)
