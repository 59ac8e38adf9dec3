"""Linear and embedding layers that keep packed integer weights and dequantize them when they are touched.

What adapters added to a matrix stands beside its codes as two thin INT8 matrices: rounding the sum anew would lose it
(docs/decisions/0021-merged-adapters-stay-beside-the-codes.md).
"""

from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from .cpu_matmul import BFloat16Matrix, Int8Matrix, has_bf16_products, multiplies_in_int8
from .dequantized_cache import CACHE
from .integer import SCALE_DTYPE, Codes, dequantize, quantize

Layer = TypeVar("Layer", bound=nn.Module)
_TWINS: dict[type[nn.Module], type["QuantizedWeight"]] = {}
_FACTORS = ("merged_in", "merged_in_scale", "merged_out", "merged_out_scale")
_SCALES = ("weight_scale", "merged_in_scale", "merged_out_scale")


class QuantizedWeight(nn.Module):
    """A layer whose matrix is `weight` (uint8, packed) and `weight_scale` (bfloat16, a buffer); see `integer`.

    The scale is a buffer so that the model's dtype stays that of its dense parameters, and keeps its dtype in
    `.to(dtype)`, so that saving restores it bit for bit. `compute_dtype` follows `.to(dtype)` instead.

    Merged adapters are buffers too: `merged_out`^T `merged_in`, each of INT8 codes (rank x rows, rank x columns) and a
    scale a row, is added to the matrix; None where nothing was merged.
    """

    weight: Tensor
    weight_scale: Tensor
    merged_in: Tensor | None
    merged_in_scale: Tensor | None
    merged_out: Tensor | None
    merged_out_scale: Tensor | None
    bits: int
    group_size: int
    compute_dtype: torch.dtype
    original_class: type[nn.Module]
    activation_bits: int = 16

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(rows, columns) of the dense matrix."""
        raise NotImplementedError

    @property
    def is_packed(self) -> bool:
        """False only while a checkpoint is quantized as it loads."""
        return self.weight.dtype == torch.uint8

    def dequantized(self, dtype: torch.dtype | None = None) -> Float[Tensor, "rows columns"]:
        """The dense matrix in `dtype` (default: the compute dtype), from the byte-bounded cache; do not write to it.

        Usage: `logits = torch.nn.functional.linear(hidden, embedding.dequantized(hidden.dtype))`
        """
        wanted = self.compute_dtype if dtype is None else dtype
        if torch.compiler.is_compiling():
            return self._restored(wanted)
        return CACHE.get(self, self.stored_tensors(), wanted, lambda: self._restored(wanted))

    def stored_tensors(self) -> tuple[Tensor, ...]:
        """Codes and scales that stand for the matrix, those of what was merged last."""
        factors = () if self.merged_in is None else tuple(getattr(self, name) for name in _FACTORS)
        return self.weight, self.weight_scale, *factors

    def merged_factors(self) -> tuple[Float[Tensor, "rank rows"], Float[Tensor, "rank columns"]]:
        """What was merged, float32: the matrix has the product of the first, transposed, and the second added."""
        inner, inner_scale, outer, outer_scale = self.stored_tensors()[2:]
        return dequantize(outer, outer_scale, 8), dequantize(inner, inner_scale, 8)

    @property
    def merged_rank(self) -> int:
        """The rank of all that was merged into the matrix; 0 for nothing."""
        return 0 if self.merged_in is None else len(self.merged_in)

    @torch.no_grad()
    def merge(self, outer: Float[Tensor, "rows rank"], inner: Float[Tensor, "rank columns"]) -> None:
        """Add a product of low rank to the matrix, rounded to INT8 component by component; the codes stay as they are.

        Costs 8 rank (rows + columns) / (rows columns) bits per weight.
        Raises ValueError for what is not finite.
        Usage: `layer.merge(lora_B.weight * scaling, lora_A.weight)`
        """
        parts = *quantize(inner, 8), *quantize(outer.T.contiguous(), 8)
        for name, part in zip(_FACTORS, parts, strict=True):
            before = getattr(self, name)
            setattr(self, name, part if before is None else torch.cat([before, part]))

    def unmerge(self, rank: int) -> None:
        """Forget the last `rank` components that were merged: the matrix is as before, bit for bit."""
        left = self.merged_rank - rank
        for name in _FACTORS:
            setattr(self, name, getattr(self, name)[:left].clone() if left else None)

    def _restored(self, dtype: torch.dtype, rows: Any = slice(None)) -> Float[Tensor, "rows columns"]:
        """The dense matrix, or some of its rows, rounded once to `dtype`."""
        packed, scale = self.weight.detach()[rows], self.weight_scale[rows]
        if self.merged_in is None:
            return dequantize(packed, scale, self.bits, dtype)
        outer, inner = self.merged_factors()
        return dequantize(packed, scale, self.bits).addmm_(outer[:, rows].T, inner).to(dtype)

    def multiply(self, x: Float[Tensor, "*shape in"], bias: Tensor | None = None) -> Float[Tensor, "*shape out"]:
        """`F.linear` with the dense matrix; on a CPU by oneDNN where no gradient is wanted and its layout is kept."""
        kind = x.device.type
        # under autocast the matrix is wanted in its dtype, else F.linear would cast it at each call
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        wants_gradient = torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad))
        if kind == "cpu" and not (wants_gradient or torch.compiler.is_compiling() or x.numel() == 0):
            matrix = self._laid_out(dtype)
            if matrix is not None:
                return matrix(x.to(dtype), None if bias is None else bias.to(dtype))
        return F.linear(x, self.dequantized(dtype), bias)

    def _laid_out(self, dtype: torch.dtype) -> Int8Matrix | BFloat16Matrix | None:
        """The matrix in oneDNN's order, None where this CPU gains nothing by it or the cache has no room for it."""
        packed, scale, bits = self.weight, self.weight_scale, self.bits
        count, plain = self.matrix_shape[0] * self.matrix_shape[1], self.merged_in is None
        # one scale a row is too coarse for what adapters add
        if self.activation_bits == 8 and plain and multiplies_in_int8(dtype) and CACHE.keeps(self, count):
            return CACHE.get(self, (packed, scale), "int8", lambda: Int8Matrix.of(packed.detach(), scale, bits))
        if dtype != torch.bfloat16 or not has_bf16_products() or not CACHE.keeps(self, 2 * count):
            return None
        return CACHE.get(self, self.stored_tensors(), "bf16", lambda: BFloat16Matrix.of(self._restored(dtype)))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        scales = {name: scale for name in _SCALES if (scale := getattr(self, name)) is not None}
        super()._apply(fn, recurse)
        for name, scale in scales.items():
            if getattr(self, name).dtype != scale.dtype:
                setattr(self, name, scale.to(getattr(self, name).device))
        self.compute_dtype = fn(torch.empty(0, dtype=self.compute_dtype, device="cpu")).dtype
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # pickle cannot find classes that quantized_class makes by name
        return _empty, (self.original_class,), self.__dict__

    def _quantized_repr(self) -> str:
        group = f", group_size={self.group_size}" if self.bits != 8 else ""
        return f"bits={self.bits}{group}"


class QuantizedLinear(QuantizedWeight, nn.Linear):
    """`nn.Linear` over packed weights; made by `quantize_layer`."""

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    def forward(self, x: Float[Tensor, "*shape in"]) -> Float[Tensor, "*shape out"]:
        return self.multiply(x, self.bias)

    def extra_repr(self) -> str:
        return f"{nn.Linear.extra_repr(self)}, {self._quantized_repr()}"


class QuantizedEmbedding(QuantizedWeight, nn.Embedding):
    """`nn.Embedding` over packed weights, dequantizing the rows it is asked for; made by `quantize_layer`."""

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return self.num_embeddings, self.embedding_dim

    def forward(self, ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape width"]:
        flat = ids.reshape(-1)
        if flat.numel() == 0:
            return self.weight_scale.new_empty((*ids.shape, self.embedding_dim), dtype=self.compute_dtype)
        return self._restored(self.compute_dtype, flat).view(*ids.shape, self.embedding_dim)

    def unembed(self, hidden: Float[Tensor, "*shape width"]) -> Float[Tensor, "*shape rows"]:
        """Inner products with every row: the unembedding that shares this tensor."""
        return self.multiply(hidden)

    def extra_repr(self) -> str:
        return f"{nn.Embedding.extra_repr(self)}, {self._quantized_repr()}"


def can_quantize(module: nn.Module) -> bool:
    """Whether a layer is a linear or an embedding with the plain forward pass of torch."""
    if isinstance(module, QuantizedWeight):
        return False
    if isinstance(module, nn.Embedding):
        return type(module).forward is nn.Embedding.forward and module.max_norm is None
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward


def quantized_class(original: type[nn.Module]) -> type[QuantizedWeight]:
    """The quantized twin of a layer class; it is a subclass of it, so that isinstance checks in models still hold."""
    if original not in _TWINS:
        base = QuantizedEmbedding if issubclass(original, nn.Embedding) else QuantizedLinear
        _TWINS[original] = type(f"Quantized{original.__name__}", (base, original), {"original_class": original})
    return _TWINS[original]


def _empty(original: type[nn.Module]) -> QuantizedWeight:
    return _blank(quantized_class(original))


def _blank(cls: type[Layer]) -> Layer:
    # the constructors of subclasses are unknown; the attributes are copied from the twin
    return object.__new__(cls)


def _twin(module: nn.Module, cls: type[Layer]) -> Layer:
    twin = _blank(cls)
    twin.__dict__.update(module.__dict__)
    twin._parameters, twin._buffers = dict(module._parameters), dict(module._buffers)
    return twin


def quantize_layer(
    module: nn.Linear | nn.Embedding,
    bits: int,
    group_size: int,
    compute_dtype: torch.dtype,
    pack: bool = True,
    codes: Codes | None = None,
) -> QuantizedWeight:
    """The quantized twin of a layer (bits 2, 4 or 8), sharing its bias; `codes` stand for its matrix, if given.

    `pack=False` leaves the dense matrix in place and only makes room for the scales: transformers packs it on load.
    Raises ValueError for codes of another shape.
    Usage: `quantized = quantize_layer(nn.Linear(64, 64), bits=4, group_size=64, compute_dtype=torch.float32)`
    """
    layer = _twin(module, quantized_class(type(module)))
    layer.bits, layer.group_size, layer.compute_dtype = bits, group_size, compute_dtype
    for name in _FACTORS:
        layer.register_buffer(name, None)
    rows, columns = layer.matrix_shape
    groups = 1 if bits == 8 else columns // group_size
    if codes is not None:
        packed, scale = codes
        if packed.shape != (rows, columns * bits // 8) or scale.shape != (rows, groups):
            found = f"{tuple(packed.shape)} and {tuple(scale.shape)}"
            raise ValueError(f"codes must be those of {rows} x {columns} weights at {bits} bits, got shapes {found}")
        layer.register_buffer("weight_scale", scale)
    elif module.weight.is_meta:
        layer.register_buffer("weight_scale", torch.empty(rows, groups, dtype=SCALE_DTYPE, device="meta"))
        packed = torch.empty(rows, columns * bits // 8, dtype=torch.uint8, device="meta")
    else:
        packed, scale = quantize(module.weight.detach(), bits, group_size)
        layer.register_buffer("weight_scale", scale)
    if pack:
        layer.weight = nn.Parameter(packed, requires_grad=False)
    return layer


def dequantize_layer(layer: QuantizedWeight, dtype: torch.dtype | None = None) -> nn.Module:
    """The dense layer of the original class, with parameters of its own in `dtype` (default: the compute dtype)."""
    dense = _twin(layer, layer.original_class)
    for name in ("bits", "group_size", "compute_dtype", "activation_bits"):
        dense.__dict__.pop(name, None)
    for name in ("weight_scale", *_FACTORS):
        del dense._buffers[name]
    dense.weight = nn.Parameter(layer._restored(layer.compute_dtype if dtype is None else dtype))
    return dense


def make_room(layer: QuantizedWeight, rank: int) -> None:
    """Buffers on the meta device for what was merged into a layer that is about to be loaded."""
    rows, columns = layer.matrix_shape
    for name, width in {"merged_in": columns, "merged_out": rows}.items():
        setattr(layer, name, torch.empty(rank, width, dtype=torch.uint8, device="meta"))
        setattr(layer, f"{name}_scale", torch.empty(rank, 1, dtype=SCALE_DTYPE, device="meta"))


def merged_ranks(model: nn.Module) -> dict[str, int]:
    """The rank of what was merged into each quantized layer, by module name; layers without are left out."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, QuantizedWeight)}
    return {name: layer.merged_rank for name, layer in layers.items() if layer.merged_rank}


def num_weights(model: nn.Module) -> int:
    """Weights as the dense model counts them: packed ones by the shape of their matrix, shared ones once."""
    return sum(count for count, _ in _weights_and_bytes(model).values())


def bits_per_weight(model: nn.Module) -> float:
    """Effective bits per weight: all bits stored, scales and dense layers included, over all weights.

    Usage: `print(f"{bits_per_weight(model):.2f} bits per weight")`
    """
    return 8 * stored_bytes(model) / num_weights(model)


def stored_bytes(model: nn.Module) -> int:
    """Bytes of all weights as they are stored, scales included, shared ones once."""
    return sum(nbytes for _, nbytes in _weights_and_bytes(model).values())


def _weights_and_bytes(model: nn.Module) -> dict[int, tuple[int, int]]:
    stored = {id(parameter): (parameter.numel(), parameter.nbytes) for parameter in model.parameters()}
    for module in model.modules():
        if isinstance(module, QuantizedWeight) and module.is_packed:
            rows, columns = module.matrix_shape
            stored[id(module.weight)] = (rows * columns, sum(tensor.nbytes for tensor in module.stored_tensors()))
        elif isinstance(module, nn.Linear) and not module.weight.is_floating_point():
            # packed by another library (bitsandbytes): whatever it saves besides the bias stands for the matrix
            saved = [tensor for name, tensor in module.state_dict().items() if name != "bias"]
            count = module.out_features * module.in_features
            stored[id(module.weight)] = (count, sum(tensor.nbytes for tensor in saved))
    return stored
