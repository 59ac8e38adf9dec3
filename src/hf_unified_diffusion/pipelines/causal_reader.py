"""What the causal path finds likely behind some tokens, which it reads once for all that may follow."""

from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from ..modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from .context_denoiser import ContextDenoiser


class CausalReader:
    """The causal path behind some tokens, which it reads once for all that may follow them.

    Usage: `CausalReader(model, "text", prompt_ids).nats((17, 4))`
    """

    def __init__(self, model: UnifiedDiffusionModel, modality: str, read: Sequence[int]):
        self._kind = model, modality, model.config.mask_token_id
        self._read = list(read)

    @cached_property
    def _behind(self) -> ContextDenoiser:
        behind = ContextDenoiser(*self._kind)
        if self._read:
            behind.read(torch.tensor([self._read], device=behind.model.device))
        return behind

    def nats(self, ids: Sequence[int]) -> Float[Tensor, "tokens"]:
        """Negative log-likelihood of each token, without the first one where nothing was read: nothing predicts it."""
        first = self._behind.next_logits
        if len(ids) < (2 if first is None else 1):
            return torch.zeros(0)
        continued = ContextDenoiser(*self._kind)
        continued.cache = self._behind.cache.copy()
        tokens = torch.tensor([list(ids)], device=continued.model.device)
        logits = continued.read(tokens)[:, :-1]
        if first is None:
            tokens = tokens[:, 1:]
        else:
            logits = torch.cat([first[:, None], logits], dim=1)
        return torch.nn.functional.cross_entropy(logits[0].float(), tokens[0], reduction="none")
