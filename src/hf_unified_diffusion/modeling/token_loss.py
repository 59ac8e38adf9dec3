"""The loss that a forward pass with `labels` returns."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

IGNORED_LABEL = -100


def token_loss(
    logits: Float[Tensor, "batch length vocab"],
    labels: Int[Tensor, "batch length"],
    timestep: Float[Tensor, "batch"] | None,
    loss_weight: Tensor | None,
    attention_mask: Tensor | None,
) -> Float[Tensor, ""]:
    """Next-token cross-entropy for context; the NELBO in nats per token for a canvas (arXiv:2406.07524, eq. 10)."""
    if attention_mask is not None:
        labels = labels.masked_fill(~attention_mask.bool(), IGNORED_LABEL)
    if timestep is None:
        if attention_mask is not None:  # the last padding token before a text does not predict its first one
            labels = torch.cat(
                [labels[:, :1], labels[:, 1:].masked_fill(~attention_mask[:, :-1].bool(), IGNORED_LABEL)], 1
            )
        return F.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED_LABEL
        )
    nats = F.cross_entropy(logits.transpose(1, 2).float(), labels, ignore_index=IGNORED_LABEL, reduction="none")
    weight = 1 / timestep if loss_weight is None else loss_weight
    weight = weight if weight.ndim == 2 else weight[:, None]
    weight = weight.expand(labels.shape).masked_fill(
        labels == IGNORED_LABEL, 0.0
    )  # 1 / t is infinite where all is seen
    num_tokens = labels.numel() if attention_mask is None else attention_mask.sum()
    return (nats * weight).sum() / num_tokens
