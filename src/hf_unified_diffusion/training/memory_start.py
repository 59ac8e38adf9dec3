"""Where a memory conditioner starts its training: as an attention that continues texts as the memory does."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from ..contracts import Condition, Segment
from ..memory.memory_conditioner import ITEM, TEXT, source_widths, unit_rms
from ..modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from ..modeling.shared_transformer import CrossAttention

START_GATE, START_OUTPUT = 0.5, 8.0


def last_attention(model: UnifiedDiffusionModel) -> tuple[str, CrossAttention]:
    """The cross-attention of the last layer, with its name: what trains it can be computed once for all steps.

    Raises ValueError where the last layer has none.
    """
    layers = model.shared_transformer.layers
    attention = layers[-1].cross_attn
    if attention is None:
        raise ValueError(
            f"cross_attention_every must divide the number of layers, {len(layers)}, "
            f"got {model.config.cross_attention_every}"
        )
    return f"shared_transformer.layers.{len(layers) - 1}.cross_attn", attention


def conditioner_modules(model: UnifiedDiffusionModel) -> dict[str, nn.Module]:
    """Name -> module of all that a memory conditioner trains: projections and the last cross-attention."""
    name, attention = last_attention(model)
    return {
        **{f"condition_projections.{name}": model.condition_projections[name] for name in (ITEM, TEXT)},
        name: attention,
    }


def after_last_attention(
    model: UnifiedDiffusionModel, x: Float[Tensor, "batch length width"], condition: Condition | None
) -> Float[Tensor, "batch length width"]:
    """From what the last cross-attention reads to what the heads read."""
    layer = model.shared_transformer.layers[-1]
    if condition is not None:
        x = x + layer.cross_attn(x, condition)
    return model.shared_transformer.norm(x + layer.mlp(layer.post_attention_layernorm(x)))


@torch.no_grad()
def before_last_attention(
    model: UnifiedDiffusionModel, segments: Sequence[Segment]
) -> Float[Tensor, "batch length width"]:
    """What the last cross-attention reads of segments, in their order, context first."""
    seen: list[Tensor] = []
    _, attention = last_attention(model)
    hook = attention.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    rows, width = len(segments[0].values), model.config.condition_size
    nothing = Condition(torch.zeros(rows, 1, width), torch.zeros(rows, 1, dtype=torch.bool))
    try:
        model.features(segments, nothing)
    finally:
        hook.remove()
    return seen[0]


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
    read_as = unit_rms(model.shared_transformer.norm.weight)  # what is expected is seen through the last norm
    start_attention(last_attention(model)[1], directions, turn, read_as)
    model.requires_grad_(False)
    modules = conditioner_modules(model).values()
    return [parameter.requires_grad_(True) for module in modules for parameter in module.parameters()]


def start_attention(attention: CrossAttention, directions: Tensor, turn: Tensor, read_as: Tensor) -> None:
    """Keys read the first half of a condition token, values the second, in the same turned basis."""
    keys, half = turn.shape
    repeats = attention.q_proj.out_features // keys
    attention.k_proj.weight.zero_()[:, :half] = turn
    attention.v_proj.weight.zero_()[:, half : 2 * half] = turn
    read = turn[:, : directions.shape[1]] @ directions.T
    read = read.unflatten(0, (-1, attention.head_dim)).repeat_interleave(repeats, dim=0).flatten(0, 1)
    attention.q_proj.weight.copy_(read)
    attention.o_proj.weight.copy_(START_OUTPUT / repeats * read_as[:, None] * read.T)
    attention.norm.weight.copy_(read_as)
    attention.gate.fill_(START_GATE)


def leading_directions(embeddings: Float[Tensor, "vocab width"], count: int) -> Float[Tensor, "width count"]:
    """The orthonormal directions in which the rows of a matrix differ most."""
    rows = unit_rms(embeddings)
    rows = rows - rows.mean(dim=0)
    return torch.linalg.eigh(rows.T @ rows).eigenvectors[:, -count:].flip(1)
