"""Configuration of the score network."""

from dataclasses import field
from typing import Any

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import PreTrainedConfig

from ..hub.remote_code import REMOTE_CODE_KEYS

MODALITY_KINDS = ("token", "continuous")
DECODER_SHAPE = ("frames", "channels", "intermediate_size", "num_blocks")
MAX_DECODER = 4096  # what a file says of itself decides what is allocated
POSITIVE = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "max_position_embeddings",
    "condition_size",
    "time_embedding_size",
    "head_rank",
)


def default_modalities() -> dict[str, dict]:
    """Text and code share the vocabulary; the widths of the others are those of their codecs."""
    return {
        "text": {"kind": "token"},
        "code": {"kind": "token"},
        "image": {"kind": "continuous", "width": 128},
        "audio": {"kind": "continuous", "width": 400},
        "avatar": {"kind": "continuous", "width": 52},
    }


@strict
class UnifiedDiffusionConfig(PreTrainedConfig):
    r"""Shape of a `UnifiedDiffusionModel`.

    Args:
        vocab_size: tokens of text and code, the mask token included.
        hidden_size: width of the shared transformer.
        num_hidden_layers, num_attention_heads, num_key_value_heads, head_dim, intermediate_size: as in Llama;
            head_dim defaults to hidden_size / num_attention_heads.
        attention_bias: bias on queries, keys and values (Qwen2).
        use_qk_norm: RMSNorm on queries and keys of each head (Qwen3).
        rope_theta: base of the rotary frequencies.
        rope_axes: which axis of (seconds, y, x) each rotary frequency reads, repeated over all frequencies.
        cross_attention_every: every that many layers attend to condition tokens; 0 for none.
        condition_size: width of condition tokens.
        condition_sources: name -> width of what becomes condition tokens through a projection of the network's own.
        time_embedding_size: number of sinusoids of the time embedding, even.
        head_rank: rank of the residual adapter in a token head.
        modalities: name -> {"kind": "token"} or {"kind": "continuous", "width": int}; with "skip_axes", from 1 to
            the width, estimates are corrected along so many axes (`WienerSkip`); with "decoder",
            {"frames": int, "channels": int, "intermediate_size": int, "num_blocks": int}, by convolutions along time
            (`LocalDecoder`).
        mask_token_id: the token that stands for "hidden"; its logit is always -inf. None: no token can be masked.
        dropout: on attention output and MLP output, in training.

    Usage: `UnifiedDiffusionConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=512)`
    """

    model_type = "unified_diffusion"
    keys_to_ignore_at_inference = ["cache", "predictions", "hidden_states"]
    base_model_tp_plan = {
        f"shared_transformer.layers.*.{name}": plan
        for name, plan in {
            "self_attn.q_proj": "colwise",
            "self_attn.k_proj": "colwise",
            "self_attn.v_proj": "colwise",
            "self_attn.o_proj": "rowwise",
            "cross_attn.q_proj": "colwise",
            "cross_attn.k_proj": "colwise",
            "cross_attn.v_proj": "colwise",
            "cross_attn.o_proj": "rowwise",
            "mlp.gate_proj": "colwise",
            "mlp.up_proj": "colwise",
            "mlp.down_proj": "rowwise",
        }.items()
    }

    base_model_fsdp_plan = {
        "shared_transformer.layers.*": "free_full_weight",
        "shared_transformer.norm": "keep_full_weight",
    }

    vocab_size: int = 12288
    hidden_size: int = 576
    num_hidden_layers: int = 24
    num_attention_heads: int = 9
    num_key_value_heads: int = 3
    head_dim: int | None = None
    intermediate_size: int = 1536
    rms_norm_eps: float = 1e-5
    rope_theta: float = 100000.0
    rope_axes: list[int] | tuple[int, ...] = (0, 1, 0, 2)
    max_position_embeddings: int = 2048
    attention_bias: bool = False
    use_qk_norm: bool = False
    tie_word_embeddings: bool = True
    cross_attention_every: int = 8
    condition_size: int = 384
    condition_sources: dict[str, int] = field(default_factory=dict)
    time_embedding_size: int = 128
    head_rank: int = 64
    modalities: dict[str, dict] = field(default_factory=default_modalities)
    mask_token_id: int | None = None
    pad_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 0
    bos_token_id: int | None = 0
    initializer_range: float = 0.02
    dropout: float = 0.0

    def __post_init__(self, **kwargs):
        if self.head_dim is None:
            if self.num_attention_heads < 1 or self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    "hidden_size must be a multiple of num_attention_heads where head_dim is not given, "
                    f"got {self.hidden_size} and {self.num_attention_heads}"
                )
            self.head_dim = self.hidden_size // self.num_attention_heads
        super().__post_init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """As transformers' own, without what names remote code: a repository opts in by `push_to_hub` alone."""
        return {key: value for key, value in super().to_dict().items() if key not in REMOTE_CODE_KEYS}

    def continuous_width(self, name: str) -> int | None:
        """Numbers in a token of a continuous modality; None for tokens of text and for names it has not."""
        spec = self.modalities.get(name, {})
        return spec.get("width") if spec.get("kind") == "continuous" else None

    @property
    def head_size(self) -> int:
        """`head_dim`, which is known once the configuration is made."""
        if self.head_dim is None:
            raise ValueError("head_dim must be a number after construction, got None")
        return self.head_dim

    def validate_architecture(self):
        """Called on construction by `@strict`; raises ValueError."""
        for name in POSITIVE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        rules = [
            (
                self.cross_attention_every >= 0,
                f"cross_attention_every must be 0 (none) or more, got {self.cross_attention_every}",
            ),
            (self.rms_norm_eps > 0, f"rms_norm_eps must be positive, got {self.rms_norm_eps}"),
            (self.rope_theta > 0, f"rope_theta must be positive, got {self.rope_theta}"),
            (
                self.num_attention_heads % self.num_key_value_heads == 0,
                f"num_attention_heads must be a multiple of num_key_value_heads, "
                f"got {self.num_attention_heads} and {self.num_key_value_heads}",
            ),
            (self.head_size % 2 == 0, f"head_dim must be even for rotary positions, got {self.head_dim}"),
            (self.time_embedding_size % 2 == 0, f"time_embedding_size must be even, got {self.time_embedding_size}"),
            (
                len(self.rope_axes) > 0 and set(self.rope_axes) <= {0, 1, 2},
                f"rope_axes must name axes 0, 1 or 2, got {self.rope_axes}",
            ),
            (0 <= self.dropout < 1, f"dropout must be in [0, 1), got {self.dropout}"),
            (
                self.mask_token_id is None or 0 <= self.mask_token_id < self.vocab_size,
                f"mask_token_id must be below vocab_size={self.vocab_size}, got {self.mask_token_id}",
            ),
        ]
        for holds, rule in rules:
            if not holds:
                raise ValueError(rule)
        for name, spec in self.modalities.items():
            check_modality(name, spec)
        for name, width in self.condition_sources.items():
            check_source(name, width)


def check_modality(name: str, spec: dict) -> None:
    """Raise ValueError unless `spec` is {"kind": "token"} or {"kind": "continuous", "width": positive int}."""
    if not name.isidentifier() or hasattr(nn.ModuleDict(), name):
        raise ValueError(f"a modality's name must be an identifier and no attribute of nn.ModuleDict, got {name!r}")
    if spec.get("kind") not in MODALITY_KINDS:
        raise ValueError(f"modality {name!r} must be of a kind in {MODALITY_KINDS}, got {spec.get('kind')!r}")
    if spec["kind"] == "continuous" and not (isinstance(spec.get("width"), int) and spec["width"] > 0):
        raise ValueError(f"modality {name!r} must have a positive width, got {spec.get('width')!r}")
    if "skip_axes" in spec and not (type(spec["skip_axes"]) is int and 1 <= spec["skip_axes"] <= spec.get("width", 0)):
        raise ValueError(f"modality {name!r} must have skip_axes from 1 to its width, got {spec}")
    if "decoder" in spec:
        check_decoder(name, spec["decoder"], spec.get("width", 0))


def check_decoder(name: str, shape: dict, width: int) -> None:
    """Raise ValueError unless `shape` is that of a `LocalDecoder` of tokens of `width` numbers."""
    known = isinstance(shape, dict) and width > 0 and set(shape) == set(DECODER_SHAPE)
    if not known or any(type(number) is not int or number < 1 for number in shape.values()):
        raise ValueError(
            f"the decoder of a continuous modality has positive {DECODER_SHAPE}, got {shape!r} of {name!r}"
        )
    if width % shape["frames"] or max(shape.values()) > MAX_DECODER:
        raise ValueError(
            f"the frames of the decoder of {name!r} must divide its width {width}, and no number of its shape is above "
            f"{MAX_DECODER}, got {shape}"
        )


def check_source(name: str, width: int) -> None:
    """Raise ValueError unless a source of conditions has an identifier for a name and a positive width."""
    if not name.isidentifier() or hasattr(nn.ModuleDict(), name):
        raise ValueError(f"a source's name must be an identifier and no attribute of nn.ModuleDict, got {name!r}")
    if type(width) is not int or width < 1:
        raise ValueError(f"the source {name!r} must have a positive width, got {width!r}")
