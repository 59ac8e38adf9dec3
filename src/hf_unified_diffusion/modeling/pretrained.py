"""What every network of the package shares with transformers: the output, the loading and the start of weights."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from ..hub import CardFacts, PushMixin
from ..quantization import bits_per_weight, num_weights
from .attention_rule import ContextCache
from .configuration_unified_diffusion import UnifiedDiffusionConfig
from .embeddings import ZeroLinear
from .parquet_weights import ParquetWeightsMixin
from .shared_transformer import CrossAttention, RMSNorm


@dataclass
class UnifiedDiffusionOutput(ModelOutput):
    """What a forward pass gives.

    Attributes:
        loss: mean nats per token, if labels were given.
        logits: float (B, n, vocab) of the last token segment, if there is one.
        predictions: one per segment: logits for tokens, the clean sample (B, n, width) for continuous modalities.
        cache: the cache, holding the context when `use_cache`.
        hidden_states: float (B, n, hidden) per segment, what the heads read.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    predictions: tuple[Tensor, ...] | None = None
    cache: ContextCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class UnifiedDiffusionPreTrainedModel(PushMixin, ParquetWeightsMixin, PreTrainedModel):
    """What transformers needs to know."""

    config_class = UnifiedDiffusionConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("text",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # else Trainer would rescale the loss
    _no_split_modules = ["TransformerLayer"]
    _supports_sdpa = True

    def card_facts(self) -> CardFacts:
        """Size and bits of the network."""
        return CardFacts(
            what=f"A {type(self).__name__} of hf_unified_diffusion.",
            usage=f"from hf_unified_diffusion import {type(self).__name__}\n\n"
            f'model = {type(self).__name__}.from_pretrained("{{repo_id}}")',
            numbers={"parameters": num_weights(self), "bits per weight": round(bits_per_weight(self), 3)},
        )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Normal weights; whatever must start at zero does."""
        if isinstance(module, ZeroLinear):
            init.zeros_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Linear | nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)
        elif isinstance(module, RMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, CrossAttention):
            init.zeros_(module.gate)
        elif isinstance(module, nn.ParameterDict):
            for vector in module.values():
                init.zeros_(vector)
