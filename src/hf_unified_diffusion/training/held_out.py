"""What a run is watched by: likelihood of held-out tokens, and error of held-out latents."""

from collections.abc import Mapping, Sequence

from jaxtyping import Int
from torch import Tensor

from ..modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from .flow_evaluation import flow_errors
from .latent_data import LatentBatch
from .layouts import TokenBatch
from .likelihood import held_out_likelihood
from .speech_data import SpeechBatch

HeldOut = Mapping[str, Sequence[TokenBatch | LatentBatch | SpeechBatch]]  # batches by modality


def held_out_figures(
    model: UnifiedDiffusionModel, held_out: HeldOut, sizes: Int[Tensor, "vocab"], block_lengths: Sequence[int]
) -> dict[str, float]:
    """Nats per token and bits per byte, causal and by block length, of tokens; `flow_errors` of latents.

    Usage: `held_out_figures(model, {"text": batches}, bytes_per_token(tokenizer), [4, 16])`
    """
    values: dict[str, float] = {}
    for modality, batches in held_out.items():
        latents = [batch for batch in batches if isinstance(batch, LatentBatch | SpeechBatch)]
        tokens = [batch for batch in batches if isinstance(batch, TokenBatch)]
        if latents:
            values |= {f"{modality}/held_out/{name}": error for name, error in flow_errors(model, latents).items()}
        if tokens:
            values |= token_figures(model, modality, tokens, sizes, block_lengths)
    return {name: round(value, 4) for name, value in values.items()}


def token_figures(
    model: UnifiedDiffusionModel,
    modality: str,
    batches: Sequence[TokenBatch],
    sizes: Tensor,
    block_lengths: Sequence[int],
) -> dict[str, float]:
    """Likelihood of one modality, in every way of reading."""
    values = {}
    for block_length in [None, *block_lengths]:
        found = held_out_likelihood(model, batches, sizes, block_length, draws=1, seed=1)
        name = f"{modality}/{'causal' if block_length is None else f'block{block_length}'}"
        values[f"{name}/nats_per_token"] = found.nats_per_token
        values[f"{name}/bits_per_byte"] = found.bits_per_byte
    return values
