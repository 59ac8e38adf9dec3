"""Axes and variances of a skip (`WienerSkip`): what a trained network leaves over of tokens that it nearly sees."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from ..modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from .flow_evaluation import estimated
from .latent_data import LatentBatch
from .speech_data import SpeechBatch

FITTED_AT = 0.1  # the time at which a network without a skip shows its floor: noise of a hundredth of the data


@torch.no_grad()
def fitted_skip(
    model: UnifiedDiffusionModel,
    batches: Sequence[LatentBatch | SpeechBatch],
    num_axes: int,
    face: bool = False,
    seed: int = 0,
) -> tuple[Float[Tensor, "width axes"], Float[Tensor, "axes"]]:
    """The first principal axes of the batches' clean tokens, and the mean square along each of what is left over.

    Args:
        model: without a skip of the batches' modality.
        batches: of training data, all of one modality.
        face: of speech, fit the skip of the modality avatar.

    Raises:
        ValueError: no batches, the model has such a skip, or more axes than tokens have numbers.

    Usage: `model.add_skip("audio", *fitted_skip(model, batches, num_axes=256))`
    """
    if not batches:
        raise ValueError("a skip needs at least one batch to be fitted to, got none")
    modality, generator = "avatar" if face else batches[0].modality, Generator().manual_seed(seed)
    if modality in model.skips:
        raise ValueError(f"a skip is fitted to a network without one, got a skip of {modality!r}")
    tokens, left_over = [], []
    for batch in batches:
        x_0, clean = estimated(model, batch, FITTED_AT, generator, face)
        tokens.append(x_0)
        left_over.append(x_0 - clean)
    if not 1 <= num_axes <= tokens[0].shape[1]:
        raise ValueError(f"num_axes must be from 1 to {tokens[0].shape[1]}, got {num_axes}")
    flat = torch.cat(tokens).double()
    axes = torch.linalg.eigh(flat.T @ flat).eigenvectors.flip(1)[:, :num_axes].float()
    return axes, (torch.cat(left_over) @ axes).square().mean(dim=0)
