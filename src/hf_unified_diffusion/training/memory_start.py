"""Where a memory conditioner starts its training: as an attention that continues texts as the memory does."""

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from ..memory.memory_conditioner import ITEM, TEXT, source_widths, unit_rms
from ..modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from ..modeling.shared_transformer import CrossAttention

START_GATE = 0.05


def conditioner_modules(model: UnifiedDiffusionModel) -> dict[str, nn.Module]:
    """Name -> module of all that a memory conditioner trains: projections and cross-attention.

    Raises ValueError for a network without cross-attention.
    """
    layers = {
        f"shared_transformer.layers.{i}.cross_attn": layer.cross_attn
        for i, layer in enumerate(model.shared_transformer.layers)
        if layer.cross_attn is not None
    }
    if not layers:
        raise ValueError("a memory conditioner needs a network with cross-attention, got cross_attention_every 0")
    return {**{f"condition_projections.{name}": model.condition_projections[name] for name in (ITEM, TEXT)}, **layers}


@torch.no_grad()
def start_conditioner(
    model: UnifiedDiffusionModel, texts: Float[Tensor, "count features"], generator: Generator
) -> list[nn.Parameter]:
    """Give a network its memory's sources, freeze all else, and return what trains.

    Queries look along the leading directions of the token embeddings for memory tokens that were expected where the
    network now expects the same; values are those tokens, written back into the embeddings' space. From a random start
    such attention is found after thousands of steps, if at all.

    Args:
        texts: features of memory tokens (`read_texts`), for their mean.
    """
    for name, width in source_widths(model.config.hidden_size).items():
        if name not in model.condition_projections:
            model.add_condition_source(name, width)
    config = model.config
    width, half = config.hidden_size, config.condition_size // 2
    directions = leading_directions(model.token_embedding.weight, min(half, width))
    item, text = model.condition_projections[ITEM], model.condition_projections[TEXT]
    for projection, columns in ((text, slice(width, None)), (item, slice(None))):
        projection.weight.zero_()
        projection.weight[: directions.shape[1], :width] = directions.T
        projection.weight[half : half + directions.shape[1], columns] = directions.T
    text.bias.copy_(-text.weight @ texts.mean(dim=0))
    item.bias.copy_(-item.weight @ texts[:, :width].mean(dim=0))
    turn = nn.init.orthogonal_(torch.empty(config.num_key_value_heads * config.head_size, half), generator=generator)
    for layer in model.shared_transformer.layers:
        if layer.cross_attn is not None:
            start_attention(layer.cross_attn, directions, turn)
    model.requires_grad_(False)
    modules = conditioner_modules(model).values()
    return [parameter.requires_grad_(True) for module in modules for parameter in module.parameters()]


def start_attention(attention: CrossAttention, directions: Tensor, turn: Tensor) -> None:
    """Keys read the first half of a condition token, values the second, in the same turned basis."""
    keys, half = turn.shape
    repeats = attention.q_proj.out_features // keys
    attention.k_proj.weight.zero_()[:, :half] = turn
    attention.v_proj.weight.zero_()[:, half : 2 * half] = turn
    read = turn[:, : directions.shape[1]] @ directions.T
    read = read.unflatten(0, (-1, attention.head_dim)).repeat_interleave(repeats, dim=0).flatten(0, 1)
    attention.q_proj.weight.copy_(read)
    attention.o_proj.weight.copy_(read.T / repeats)
    attention.norm.weight.fill_(1.0)
    attention.gate.fill_(START_GATE)


def leading_directions(
    embeddings: Float[Tensor, "vocab width"], count: int
) -> Float[Tensor, "width count"]:
    """The orthonormal directions in which the rows of a matrix differ most."""
    rows = unit_rms(embeddings)
    rows = rows - rows.mean(dim=0)
    return torch.linalg.eigh(rows.T @ rows).eigenvectors[:, -count:].flip(1)
