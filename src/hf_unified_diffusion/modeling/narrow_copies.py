"""Narrow copies of trunk layers: some of the heads, and the strongest neurons of the MLP."""

import torch
from torch import Tensor, nn

from ..quantization import QuantizedWeight
from .shared_transformer import RMSNorm, SharedTransformer, TransformerLayer


def dense(layer: nn.Module) -> Tensor:
    """The matrix of a linear layer, float32; of a quantized one what its codes stand for."""
    weight = layer.dequantized(torch.float32) if isinstance(layer, QuantizedWeight) else layer.weight
    return weight.detach().float()


@torch.no_grad()
def copy_narrow(trunk: SharedTransformer, controlnet: nn.Module) -> None:
    """Fill the blocks of a `UnifiedControlNetModel` with parts of the layers it names, its norms with those above."""
    config = controlnet.config
    for block, norm, source, layer in zip(
        controlnet.blocks, controlnet.norms, config.copied_layers, config.write_layers, strict=True
    ):
        copy_layer(trunk.layers[source], block)
        following = trunk.layers[layer].input_layernorm if layer < len(trunk.layers) else trunk.norm
        norm.weight.copy_(following.weight)


def copy_layer(wide: TransformerLayer, narrow: TransformerLayer) -> None:
    """The first heads with the keys they read, and the neurons whose weights have the largest product of norms."""
    theirs, ours = wide.self_attn, narrow.self_attn
    rows, keys = ours.q_proj.out_features, ours.k_proj.out_features  # the heads of a key stand together
    ours.q_proj.weight.copy_(dense(theirs.q_proj)[:rows])
    ours.k_proj.weight.copy_(dense(theirs.k_proj)[:keys])
    ours.v_proj.weight.copy_(dense(theirs.v_proj)[:keys])
    ours.o_proj.weight.copy_(dense(theirs.o_proj)[:, :rows])
    if ours.q_proj.bias is not None:
        for name, chosen in (("q_proj", rows), ("k_proj", keys), ("v_proj", keys)):
            getattr(ours, name).bias.copy_(getattr(theirs, name).bias[:chosen])
    gate, up, down = (dense(getattr(wide.mlp, name)) for name in ("gate_proj", "up_proj", "down_proj"))
    strength = gate.norm(dim=1) * up.norm(dim=1) * down.norm(dim=0)
    neurons = strength.topk(narrow.mlp.gate_proj.out_features).indices
    narrow.mlp.gate_proj.weight.copy_(gate[neurons])
    narrow.mlp.up_proj.weight.copy_(up[neurons])
    narrow.mlp.down_proj.weight.copy_(down[:, neurons])
    for mine, other in norm_pairs(narrow, wide):
        mine.weight.copy_(other.weight)


def norm_pairs(narrow: TransformerLayer, wide: TransformerLayer) -> list[tuple[RMSNorm, RMSNorm]]:
    """The norms of two layers, one beside the other."""
    pairs = [
        (narrow.input_layernorm, wide.input_layernorm),
        (narrow.post_attention_layernorm, wide.post_attention_layernorm),
        (narrow.self_attn.q_norm, wide.self_attn.q_norm),
        (narrow.self_attn.k_norm, wide.self_attn.k_norm),
    ]
    return [pair for pair in pairs if isinstance(pair[0], RMSNorm)]
