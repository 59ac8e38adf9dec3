"""Drafts checked by the network's own causal path: what comes out is distributed as if written token by token.

Two rules, both exact. A block drafted in one pass has independent tokens of known probabilities: speculative sampling
(arXiv:2211.17192, algorithm 1). A block drafted in several passes has no left-to-right probabilities; each of its
tokens is kept if it is the one that the causal path draws there itself.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..processes.categorical import draw_tokens, shape_logits
from ..processes.randomness import Generators, ragged_uniform


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn from logits: temperature (0 takes the likeliest), top_k (0 for all), top_p in (0, 1]."""

    temperature: float
    top_k: int
    top_p: float


@dataclass(frozen=True)
class Verdict:
    """What a check says.

    Attributes:
        accepted: int64 (B,), how many of a row's first tokens stay.
        next_token: int64 (B,), the causal path's own token after them.
    """

    accepted: Int[Tensor, "batch"]
    next_token: Int[Tensor, "batch"]


def check_draft(
    draft: Int[Tensor, "batch length"],
    real: Bool[Tensor, "batch length"],
    target_logits: Float[Tensor, "batch length+1 vocab"],
    draft_logits: Float[Tensor, "batch length vocab"] | None,
    sampling: Sampling,
    generators: Generators,
) -> Verdict:
    """Accept each row's longest prefix that the causal path agrees with, and draw the token after it.

    Args:
        draft: the drafted tokens.
        real: False where a row's draft is padding; padding follows the real tokens.
        target_logits: causal logits; entry i predicts draft token i, the last one the token after the draft.
        draft_logits: the shaped logits each token was drawn from, all in one pass; None for a draft of several passes.
        sampling: applied to the target; the draft's logits have it already.
        generators: one per row.

    Usage: `verdict = check_draft(draft, real, target, None, Sampling(0.0, 0, 1.0), spawn_generators(0, len(draft)))`
    """
    if sampling.temperature > 0 and draft_logits is not None:
        return by_ratio(draft, real, target_logits, draft_logits, sampling, generators)
    batch, length = draft.shape
    asked = torch.cat([torch.ones_like(real[:, :1]), real], dim=1)  # a row of k tokens needs k + 1 answers
    choice = torch.zeros(batch, length + 1, dtype=torch.int64, device=draft.device)
    if sampling.temperature == 0:
        choice = target_logits.argmax(dim=-1)
    else:
        shaped = shape_logits(target_logits[asked], sampling.temperature, sampling.top_k, sampling.top_p)
        choice[asked] = draw_tokens(shaped.softmax(dim=-1), asked.sum(dim=1).tolist(), generators)
    accepted = leading((draft == choice[:, :-1]) & real)
    return Verdict(accepted, choice.gather(1, accepted[:, None])[:, 0])


def by_ratio(
    draft: Int[Tensor, "batch length"],
    real: Bool[Tensor, "batch length"],
    target_logits: Float[Tensor, "batch length+1 vocab"],
    draft_logits: Float[Tensor, "batch length vocab"],
    sampling: Sampling,
    generators: Generators,
) -> Verdict:
    """Speculative sampling: keep x with probability min(1, p(x) / q(x)), else draw from (p - q)+ and stop."""
    batch, length = draft.shape
    rows = torch.arange(batch, device=draft.device)
    shaped = shape_logits(target_logits.flatten(0, 1), sampling.temperature, sampling.top_k, sampling.top_p)
    p = shaped.double().softmax(dim=-1).unflatten(0, (batch, length + 1))
    q = draft_logits.double().softmax(dim=-1)
    p_x, q_x = (probs[:, :length].gather(-1, draft[..., None])[..., 0] for probs in (p, q))
    coins = torch.ones_like(p_x)
    coins[real] = ragged_uniform(real.sum(dim=1).tolist(), generators, draft.device)
    accepted = leading((coins * q_x < p_x) & real)
    p_next, q_next = p[rows, accepted], q[rows, accepted.clamp_max(length - 1)]
    residual = (p_next - q_next).clamp_min(0)
    whole = (accepted == real.sum(dim=1)) | (residual.sum(dim=-1) == 0)  # nothing was rejected: p itself
    weights = torch.where(whole[:, None], p_next, residual)
    probs = (weights / weights.sum(dim=-1, keepdim=True)).float()
    return Verdict(accepted, draw_tokens(probs, [1] * batch, generators))


def leading(holds: Bool[Tensor, "batch length"]) -> Int[Tensor, "batch"]:
    """How many of a row's first entries are True."""
    return holds.long().cumprod(dim=1).sum(dim=1)
