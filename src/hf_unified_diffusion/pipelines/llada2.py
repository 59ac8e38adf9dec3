"""LLaDA2's interface in both directions: our network in diffusers' `LLaDA2Pipeline`, such networks under our scheduler.

A network of the LLaDA2 family is called as (input_ids, attention_mask, position_ids), reads the whole text in both
directions, knows no time, and gives logits whose position i predicts token i (arXiv:2502.09992).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.modeling_outputs import MaskedLMOutput

from ..contracts import Condition, Denoiser, Segment
from ..modeling.modeling_unified_diffusion import UnifiedDiffusionModel


class LLaDA2Network(nn.Module):
    """A `UnifiedDiffusionModel` as diffusers' `LLaDA2Pipeline` calls its model.

    The last `block_length` tokens are the canvas, at the time that its share of masks says, and all before is clean
    context. Nothing is cached between calls, since this interface has no cache.

    Args:
        model: with a mask token.
        block_length: that of the pipeline's call.
        modality: of the tokens.

    Raises ValueError for a model without a mask token, another modality, or a block of no tokens.

    Usage:
        pipe = LLaDA2Pipeline(LLaDA2Network(model, block_length=8), BlockRefinementScheduler(), tokenizer)
        pipe("The capital of France", gen_length=32, block_length=8, use_chat_template=False).texts[0]
    """

    def __init__(self, model: UnifiedDiffusionModel, block_length: int, modality: str = "text"):
        super().__init__()
        if block_length < 1:
            raise ValueError(f"block_length must be at least 1, got {block_length}")
        if model.config.mask_token_id is None or modality not in model.config.modalities:
            raise ValueError(
                f"the model must have a mask token and the modality {modality!r}, got the mask token "
                f"{model.config.mask_token_id} and {sorted(model.config.modalities)}"
            )
        self.model, self.block_length, self.modality = model, block_length, modality

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return self.model.dtype

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Int[Tensor, "batch length"],
        position_ids: Int[Tensor, "batch length"],
    ) -> MaskedLMOutput:
        """Logits float (B, block_length, vocab) of the last tokens; `LLaDA2Pipeline` reads no others."""
        split = input_ids.shape[1] - self.block_length
        real, places = attention_mask.bool(), position_ids.float()
        block, present = input_ids[:, split:], real[:, split:]
        masked = (block == self.model.config.mask_token_id) & present
        time = masked.sum(dim=1) / present.sum(dim=1).clamp_min(1)
        canvas = Segment(self.modality, block, time=time, positions=places[:, split:], mask=present)
        context = Segment(self.modality, input_ids[:, :split], positions=places[:, :split], mask=real[:, :split])
        segments = [context, canvas] if split > 0 else [canvas]
        return MaskedLMOutput(logits=self.model(segments=segments).predictions[-1])


def llada2_denoiser(network: nn.Module, prompt_ids: Int[Tensor, "batch prompt"]) -> Denoiser:
    """A network of the LLaDA2 family behind a prompt as a denoiser, for `diffuse` with our scheduler.

    Every pass reads prompt and canvas; the time and a condition are ignored, as such a network knows neither.

    Usage:
        denoiser = llada2_denoiser(network, tokenizer(prompt, return_tensors="pt").input_ids)
        step = lambda clean, t, x_t: scheduler.step(clean, t, x_t).prev_sample
        ids = diffuse(denoiser, step, torch.full((1, 32), mask_token_id), scheduler.timesteps)
    """

    def denoise(
        x_t: Int[Tensor, "batch length"], t: Tensor, condition: Condition | None = None
    ) -> Float[Tensor, "batch length vocab"]:
        ids = torch.cat([prompt_ids, x_t], dim=1)
        places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        output = network(ids, attention_mask=torch.ones_like(ids), position_ids=places)
        return output.logits[:, prompt_ids.shape[1] :]

    return denoise
