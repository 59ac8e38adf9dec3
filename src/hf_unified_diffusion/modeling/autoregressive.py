"""Starting from an autoregressive checkpoint: Llama, Qwen2 and Qwen3 weights become the shared transformer.

Clean context is causal here, so on the causal path the network *is* the source model: same logits, to rounding.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from .configuration_unified_diffusion import UnifiedDiffusionConfig

SOURCE_TYPES = ("llama", "qwen2", "qwen3")
LAYER_WEIGHTS = (
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
    *(f"self_attn.{name}_proj.weight" for name in "qkvo"),
    *(f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
)
OPTIONAL_LAYER_WEIGHTS = (
    *(f"self_attn.{name}_proj.bias" for name in "qkv"),
    "self_attn.q_norm.weight",
    "self_attn.k_norm.weight",
)


def config_from_autoregressive(source: PreTrainedConfig, num_hidden_layers: int, **changes) -> UnifiedDiffusionConfig:
    """The configuration whose causal path computes what `source` computes; ValueError where that cannot be."""
    if source.model_type not in SOURCE_TYPES:
        raise ValueError(f"the source model must be one of {SOURCE_TYPES}, got {source.model_type!r}")
    rope = source.rope_parameters or {}
    rules = [
        (rope.get("rope_type", "default") == "default", f"rope_type must be 'default', got {rope.get('rope_type')!r}"),
        (source.hidden_act == "silu", f"hidden_act must be 'silu', got {source.hidden_act!r}"),
        (not getattr(source, "mlp_bias", False), "mlp_bias must be False, got True"),
        (not getattr(source, "use_sliding_window", False), "use_sliding_window must be False, got True"),
        (
            source.model_type == "qwen2" or not getattr(source, "attention_bias", False),
            "attention_bias must be False (the output projection has none here), got True",
        ),
    ]
    for holds, rule in rules:
        if not holds:
            raise ValueError(f"cannot start from this {source.model_type}: {rule}")
    values = {
        "hidden_size": source.hidden_size,
        "num_hidden_layers": num_hidden_layers,
        "num_attention_heads": source.num_attention_heads,
        "num_key_value_heads": source.num_key_value_heads,
        "head_dim": getattr(source, "head_dim", None) or source.hidden_size // source.num_attention_heads,
        "intermediate_size": source.intermediate_size,
        "rms_norm_eps": source.rms_norm_eps,
        "rope_theta": float(rope.get("rope_theta", 10000.0)),
        "max_position_embeddings": source.max_position_embeddings,
        "attention_bias": source.model_type == "qwen2",
        "use_qk_norm": source.model_type == "qwen3",
        "tie_word_embeddings": bool(source.tie_word_embeddings),
    }
    return UnifiedDiffusionConfig(**{**values, **changes})


def evenly_kept_layers(available: int, wanted: int) -> list[int]:
    """`wanted` of `available` layers, first and last among them, the dropped ones spread over the later middle."""
    if not 1 <= wanted <= available:
        raise ValueError(f"num_hidden_layers must be between 1 and the source's {available}, got {wanted}")
    dropped = {
        round(available - 2 - i * (available - 3) / max(1, available - wanted)) for i in range(available - wanted)
    }
    kept = [i for i in range(available) if i not in dropped]
    return kept[: wanted - 1] + kept[-1:] if len(kept) > wanted else kept


def check_layers(layers: Sequence[int], available: int) -> list[int]:
    """Increasing, distinct indices of the source's layers."""
    layers = list(layers)
    if not layers or layers != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= available:
        raise ValueError(f"layers must be increasing indices below {available}, got {layers}")
    return layers


def check_kept_ids(kept_ids: Tensor, available: int) -> None:
    """Ids of the source's vocabulary, or -1 for a new token; the last one becomes the mask token."""
    if kept_ids.ndim != 1 or not len(kept_ids) or kept_ids.dtype != torch.int64:
        raise ValueError(f"kept_ids must be int64 (vocab,), got {kept_ids.dtype} {tuple(kept_ids.shape)}")
    if int(kept_ids.min()) < -1 or int(kept_ids.max()) >= available:
        raise ValueError(
            f"kept_ids must be int64 in [-1, {available - 1}], got {int(kept_ids.min())} to {int(kept_ids.max())}"
        )


def map_weights(source: PreTrainedModel, layers: Sequence[int], kept_ids: Tensor) -> Mapping[str, Tensor]:
    """Source weights under the score network's names.

    Args:
        layers: indices of the source's layers, in order.
        kept_ids: int64 (vocab,), the source's id of each token, -1 for new ones, which start at the mean embedding.
    """
    state = source.state_dict()
    mapped = {"shared_transformer.norm.weight": state["model.norm.weight"]}
    for new, old in enumerate(layers):
        for name in LAYER_WEIGHTS + OPTIONAL_LAYER_WEIGHTS:
            key = f"model.layers.{old}.{name}"
            if key in state or name in LAYER_WEIGHTS:
                mapped[f"shared_transformer.layers.{new}.{name}"] = state[key]
    tables = {"token_embedding.weight": state["model.embed_tokens.weight"]}
    if not source.config.tie_word_embeddings:
        tables["unembedding.weight"] = state["lm_head.weight"]
    for name, table in tables.items():
        rows = table[kept_ids.clamp_min(0)].clone()
        rows[kept_ids < 0] = table.float().mean(dim=0).to(table.dtype)
        mapped[name] = rows
    return mapped


def load_mapped(model: PreTrainedModel, mapped: Mapping[str, Tensor]) -> None:
    """Put the mapped weights in; what the source does not have (times, modalities, cross-attention) keeps its start."""
    missing, unexpected = model.load_state_dict(mapped, strict=False)
    if unexpected:
        raise ValueError(f"the source has weights with no place in the score network: {sorted(unexpected)}")
    trunk = [k for k in missing if ".cross_attn." not in k and k.startswith("shared_transformer.")]
    if trunk:
        raise ValueError(f"the source lacks weights of the trunk: {sorted(trunk)}")


def whole_vocabulary(size: int) -> Tensor:
    """kept_ids of a vocabulary that stays whole and gains a mask token at its end."""
    return torch.cat([torch.arange(size), torch.tensor([-1])])
