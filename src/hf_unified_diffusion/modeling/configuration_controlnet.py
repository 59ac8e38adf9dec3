"""Configuration of a ControlNet: its base, which of the base's layers it copies, and where it reads and writes."""

import hashlib
import json
from dataclasses import field

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .configuration_unified_diffusion import UnifiedDiffusionConfig

# what the shape of a base's hidden states, and their meaning, hang on
ARCHITECTURE = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "rms_norm_eps",
    "rope_theta",
    "rope_axes",
    "attention_bias",
    "use_qk_norm",
    "time_embedding_size",
    "mask_token_id",
)
HINT_SOURCES = (None, "prompt", "tools")
POSITIVE = ("num_attention_heads", "num_key_value_heads", "intermediate_size", "max_hint_tokens")


def base_architecture(config: UnifiedDiffusionConfig) -> dict:
    """The sizes of a base, as JSON holds them.

    Usage: `base_architecture(model.config)["hidden_size"]`
    """
    return json.loads(json.dumps({name: getattr(config, name) for name in ARCHITECTURE}))


def fingerprint(architecture: dict) -> str:
    """16 hexadecimal digits of SHA-256 over the sizes.

    Usage: `fingerprint(base_architecture(model.config))`
    """
    return hashlib.sha256(json.dumps(architecture, sort_keys=True).encode()).hexdigest()[:16]


@strict
class UnifiedControlNetConfig(PreTrainedConfig):
    r"""Shape of a `UnifiedControlNetModel`.

    Args:
        base: the sizes of the base, as `base_architecture` gives them; another base is refused.
        read_layer: the hidden states before this layer of the base are what the narrow blocks start from.
        copied_layers: the layers of the base that the blocks are narrow copies of, one a block.
        write_layers: where each block's residual goes: before this layer, num_hidden_layers being after the last;
            rising, above `read_layer`.
        num_attention_heads, num_key_value_heads, intermediate_size: of a narrow block, at most the base's, with as many
            heads to a key as the base has; heads have the base's size.
        hint_modality: the modality of the base that hints are of; the base itself reads them, up to `read_layer`.
        hint_width: or the width of continuous hints, which a projection of the ControlNet reads.
        hint_source: what a request that gives no hint has for one: its "prompt", its "tools" in a line each, or None.
        max_hint_tokens: longer hints are refused.
        initializer_range: of what is not copied.

    Raises ValueError for values out of range.
    Usage: `UnifiedControlNetModel.from_transformer(model, hint_modality="text").config`
    """

    model_type = "unified_controlnet"

    base: dict = field(default_factory=lambda: base_architecture(UnifiedDiffusionConfig()))
    read_layer: int = 12
    copied_layers: list[int] | tuple[int, ...] = (12, 14, 16, 18, 20, 22)
    write_layers: list[int] | tuple[int, ...] = (14, 16, 18, 20, 22, 24)
    num_attention_heads: int = 3
    num_key_value_heads: int = 1
    intermediate_size: int = 256
    hint_modality: str | None = "text"
    hint_width: int | None = None
    hint_source: str | None = None
    max_hint_tokens: int = 1024
    initializer_range: float = 0.02

    def validate_architecture(self):
        """Called on construction by `@strict`; raises ValueError."""
        if set(self.base) != set(ARCHITECTURE):
            raise ValueError(f"base must have exactly the sizes {sorted(ARCHITECTURE)}, got {sorted(self.base)}")
        for name in POSITIVE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        depth, writes = self.base["num_hidden_layers"], list(self.write_layers)
        rules = [
            (0 <= self.read_layer < depth, f"read_layer must be in [0, {depth}), got {self.read_layer}"),
            (
                len(writes) == len(self.copied_layers) > 0,
                f"there must be a write layer for each copied layer, got {writes} for {list(self.copied_layers)}",
            ),
            (
                all(0 <= layer < depth for layer in self.copied_layers),
                f"copied_layers must be in [0, {depth}), got {list(self.copied_layers)}",
            ),
            (
                writes == sorted(set(writes)) and self.read_layer < writes[0] and writes[-1] <= depth,
                f"write_layers must rise, from above read_layer={self.read_layer} to {depth} at most, got {writes}",
            ),
            (
                self.num_attention_heads * self.base["num_key_value_heads"]
                == self.num_key_value_heads * self.base["num_attention_heads"],
                f"a block must have as many heads to a key as the base, {self.base['num_attention_heads']} to "
                f"{self.base['num_key_value_heads']}, got {self.num_attention_heads} to {self.num_key_value_heads}",
            ),
            *(
                (
                    getattr(self, name) <= self.base[name],
                    f"{name} must be at most the base's, got {getattr(self, name)}",
                )
                for name in ("num_key_value_heads", "intermediate_size")
            ),
            (
                (self.hint_modality is None) != (self.hint_width is None),
                f"give either hint_modality or hint_width, got {self.hint_modality!r} and {self.hint_width!r}",
            ),
            (
                self.hint_source in HINT_SOURCES,
                f"hint_source must be one of {list(HINT_SOURCES)}, got {self.hint_source!r}",
            ),
            (self.hint_width is None or self.hint_width > 0, f"hint_width must be positive, got {self.hint_width}"),
        ]
        for holds, rule in rules:
            if not holds:
                raise ValueError(rule)

    def check_base(self, config: UnifiedDiffusionConfig) -> None:
        """Raise ValueError, naming the sizes that differ, unless a network of this configuration is the base."""
        theirs = base_architecture(config)
        if theirs != self.base:
            differing = {
                name: (self.base[name], theirs[name]) for name in ARCHITECTURE if self.base[name] != theirs[name]
            }
            raise ValueError(
                f"a ControlNet must be used with the base it was made for, {fingerprint(self.base)}, "
                f"got {fingerprint(theirs)}; these differ (its own, got): {differing}"
            )
        if self.hint_modality is not None and self.hint_modality not in config.modalities:
            raise ValueError(
                f"hints of the ControlNet are {self.hint_modality!r}, which the base must know, "
                f"got one with {sorted(config.modalities)}"
            )

    def narrow(self) -> UnifiedDiffusionConfig:
        """The configuration of the narrow blocks, as layers of a trunk."""
        changes = {
            "num_hidden_layers": len(self.copied_layers),
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "intermediate_size": self.intermediate_size,
            "cross_attention_every": 0,
        }
        return UnifiedDiffusionConfig(**{**self.base, **changes})
