"""Drawing a token for every mask of a canvas."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..processes.categorical import draw_tokens, shape_logits
from ..processes.randomness import Generators
from .commit import position_scores


@dataclass(frozen=True)
class Draw:
    """What was drawn at the masked positions of a canvas, one entry per mask in row-major order.

    Attributes:
        tokens: the drawn ids.
        confidence: their probabilities under the model's own distribution.
        entropy: of that distribution, in nats.
        scores: higher is committed earlier.
        logits: of the distribution drawn from; the mask token's are -inf.
    """

    tokens: Int[Tensor, "count"]
    confidence: Float[Tensor, "count"]
    entropy: Float[Tensor, "count"]
    scores: Float[Tensor, "count"]
    logits: Float[Tensor, "count vocab"]


def draw_masks(
    model_output: Float[Tensor, "batch length vocab"],
    masked: Bool[Tensor, "batch length"],
    mask_token_id: int,
    ordering: str,
    settings: tuple[float, int, float],
    generator: Generators | None,
    proposal: Int[Tensor, "batch length"] | None = None,
) -> Draw:
    """Draw a token for each mask; ordering and confidence look at the model's distribution before it is shaped.

    Args:
        settings: temperature, top_k, top_p.
        proposal: tokens to take instead of drawing them.

    Raises:
        ValueError: if a mask has NaN or inf among its logits, or none that is finite.
    """
    logits = model_output[masked].float()
    logits[:, mask_token_id] = -torch.inf
    log_probs = logits.log_softmax(-1)
    probs = log_probs.exp()
    entropy = -log_probs.clamp_min_(-1e4).mul_(probs).sum(-1)  # clamped: 0 * -inf is NaN
    if not entropy.isfinite().all():
        raise ValueError("model_output must have a finite logit and neither NaN nor inf at every mask, got one without")
    per_row = masked.sum(1).tolist()
    temperature, top_k, top_p = settings
    if proposal is not None:
        tokens = proposal[masked].long()
    elif temperature == 0:
        tokens = logits.argmax(-1)
    elif settings == (1.0, 0, 1.0):
        tokens = draw_tokens(probs, per_row, generator)
    else:
        logits = shape_logits(logits, temperature, top_k, top_p)
        tokens = draw_tokens(logits.softmax(-1), per_row, generator)
    confidence = probs.gather(-1, tokens[:, None])[:, 0]
    scores = position_scores(ordering, confidence, entropy, probs, per_row, generator)
    return Draw(tokens, confidence, entropy, scores, logits)
