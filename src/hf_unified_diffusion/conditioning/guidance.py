"""Classifier-free guidance: from two denoisers to one."""

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from ..contracts import Condition, Denoiser
from .energy import check_scale


def guided(denoiser: Denoiser, null_denoiser: Denoiser, scale: float, eta: float = 1.0) -> Denoiser:
    """Push the estimate away from the null's: null + scale (clean - null) (arXiv:2207.12598).

    For tokens the estimate is logits, and this is p^scale q^(1 - scale), normalized (arXiv:2412.10193, eq. 8). A
    token that the denoiser rules out stays ruled out.

    Args:
        denoiser: sees the condition.
        null_denoiser: sees nothing, or what to avoid (a negative prompt).
        scale: 1 is the denoiser itself, 0 the null, above 1 exaggerates.
        eta: see `turned`; for continuous data.

    Raises:
        ValueError: for a scale that is negative, infinite or NaN, or an eta outside [0, 1].

    Usage: `denoiser = guided(model, null_model, scale=2.0)`
    """
    check_scale("guidance_scale", scale)
    check_eta(eta)
    if scale == 1:
        return denoiser

    def denoise(
        x_t: Shaped[Tensor, "batch *shape"], t: Float[Tensor, "batch"], condition: Condition | None = None
    ) -> Float[Tensor, "batch *out"]:
        clean, null = denoiser(x_t, t, condition).float(), null_denoiser(x_t, t, None).float()
        return turned(clean, pushed_away(clean, null, scale), eta)

    return denoise


def pushed_away(
    clean: Float[Tensor, "batch *out"], null: Float[Tensor, "batch *out"], scale: float
) -> Float[Tensor, "batch *out"]:
    """null + scale (clean - null), for a caller that has both estimates; see `guided`."""
    mixed = null + scale * (clean - null)
    return torch.where(clean.isneginf(), clean, mixed)  # -inf - -inf would be NaN


def check_eta(eta: object) -> None:
    """Raise ValueError unless this is a share in [0, 1]."""
    if not (isinstance(eta, int | float) and not isinstance(eta, bool) and 0 <= eta <= 1):  # also false for NaN
        raise ValueError(f"guidance_eta must be a number in [0, 1], got {eta!r}")


def turned(
    clean: Float[Tensor, "batch length width"], pushed: Float[Tensor, "batch length width"], eta: float
) -> Float[Tensor, "batch length width"]:
    """What guidance made of an estimate, less what only makes it stronger (arXiv:2410.02416, eq. 5).

    Of `pushed - clean` the part along `clean`, token by token, is kept by so much: at 0 guidance turns each token and
    does not stretch it, at 1 it is as it was.
    """
    if eta == 1:
        return pushed
    moved, size = pushed - clean, clean.square().sum(dim=-1, keepdim=True)
    along = (moved * clean).sum(dim=-1, keepdim=True) / size.clamp(min=torch.finfo(size.dtype).tiny) * clean
    return pushed - (1 - eta) * along


def guided_by_parts(
    denoiser: Denoiser,
    part_denoiser: Denoiser,
    null_denoiser: Denoiser,
    part_scale: float,
    rest_scale: float,
    eta: float = 1.0,
) -> Denoiser:
    """Two conditions with a scale each: null + a (part - null) + b (both - part) (arXiv:2211.09800, eq. 3).

    For continuous data. Only what the scales leave in is asked for: one denoiser where both are 1, two where they are
    equal, where `part_scale` is 1, or where `rest_scale` is 0.

    Args:
        denoiser: sees both conditions.
        part_denoiser: sees one of them, such as the text without the voice.
        null_denoiser: sees neither.
        part_scale: a, of the one that `part_denoiser` sees.
        rest_scale: b, of the other.
        eta: see `turned`.

    Raises:
        ValueError: for a scale that is negative, infinite or NaN, or an eta outside [0, 1].

    Usage: `denoiser = guided_by_parts(cloned, spoken, null, part_scale=2.0, rest_scale=1.5)`
    """
    for scale in (part_scale, rest_scale):
        check_scale("guidance_scale", scale)
    if part_scale == rest_scale:
        return guided(denoiser, null_denoiser, rest_scale, eta)
    if part_scale == 1:
        return guided(denoiser, part_denoiser, rest_scale, eta)
    if rest_scale == 0:
        return guided(part_denoiser, null_denoiser, part_scale, eta)
    check_eta(eta)

    def denoise(
        x_t: Shaped[Tensor, "batch *shape"], t: Float[Tensor, "batch"], condition: Condition | None = None
    ) -> Float[Tensor, "batch *out"]:
        clean, part = denoiser(x_t, t, condition).float(), part_denoiser(x_t, t, condition).float()
        null = null_denoiser(x_t, t, None).float()
        return turned(clean, null + part_scale * (part - null) + rest_scale * (clean - part), eta)

    return denoise


def check_interval(interval: object) -> None:
    """Raise ValueError unless these are two noise levels with 0 <= low <= high <= 1."""
    pair = tuple(interval) if isinstance(interval, list | tuple) else ()
    numbers = [value for value in pair if isinstance(value, int | float) and not isinstance(value, bool)]
    if not (len(pair) == len(numbers) == 2 and 0 <= numbers[0] <= numbers[1] <= 1):  # also false for NaN
        raise ValueError(f"guidance_interval must be two numbers with 0 <= low <= high <= 1, got {interval!r}")


def guided_within(interval: tuple[float, float], guided_denoiser: Denoiser, denoiser: Denoiser) -> Denoiser:
    """Guidance where the noise is between two levels, the denoiser alone elsewhere (arXiv:2404.07724).

    A step outside takes one pass, for the null is not asked.

    Args:
        interval: times of the flow in [0, 1], both ends in it.
        guided_denoiser: of `guided` or `guided_by_parts`; asked at one time for all rows.

    Usage: `denoiser = guided_within((0.6, 1.0), guided(model, null_model, 3.0), model)`
    """
    low, high = interval
    if (low, high) == (0, 1):
        return guided_denoiser

    def denoise(
        x_t: Shaped[Tensor, "batch *shape"], t: Float[Tensor, "batch"], condition: Condition | None = None
    ) -> Float[Tensor, "batch *out"]:
        within = low <= float(t.min()) and float(t.max()) <= high
        return guided_denoiser(x_t, t, condition) if within else denoiser(x_t, t, condition)

    return denoise


def without_tokens(denoiser: Denoiser, token_ids: list[int]) -> Denoiser:
    """The same denoiser of tokens, never predicting the given ones.

    Usage: `denoiser = without_tokens(model, [tokenizer.eos_token_id])`
    """
    if not token_ids:
        return denoiser

    def denoise(x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Float[Tensor, "batch length vocab"]:
        logits = denoiser(x_t, t, condition)
        hidden = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
        hidden[token_ids] = True
        return logits.masked_fill(hidden, -torch.inf)

    return denoise


def beginning_with(denoiser: Denoiser, allowed: Bool[Tensor, "batch vocab"]) -> Denoiser:
    """The same denoiser of tokens, the first token of each row's canvas being one of those allowed.

    Usage: `denoiser = beginning_with(model, codec.starting_with("\\n")[None])`
    """

    def denoise(x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Float[Tensor, "batch length vocab"]:
        logits = denoiser(x_t, t, condition)
        first = logits[:, :1].masked_fill(~allowed[:, None], -torch.inf)
        return torch.cat([first, logits[:, 1:]], dim=1)

    return denoise


def keeping(
    denoiser: Denoiser, x_0: Float[Tensor, "batch length width"], known: Bool[Tensor, "batch length"]
) -> Denoiser:
    """The same denoiser, sure of the tokens that are known: each step then leads them along the line to their x_0.

    Usage: `denoiser = keeping(guided(model, null_model, 3.0), x_0, known)  # inpainting`
    """

    def denoise(
        x_t: Float[Tensor, "batch length width"], t: Float[Tensor, "batch"], condition: Condition | None = None
    ) -> Float[Tensor, "batch length width"]:
        clean = denoiser(x_t, t, condition).to(x_0.dtype)
        return torch.where(known[..., None], x_0, clean)

    return denoise
