"""Weights that accelerate keeps elsewhere, where they are read outside of their own layer's forward pass."""

from contextlib import AbstractContextManager, nullcontext

from accelerate.utils import align_module_device
from torch import nn


def present(layer: nn.Module) -> AbstractContextManager[None]:
    """The layer's own weights are there for a while, if accelerate offloaded them; else nothing happens.

    accelerate brings weights to the device when a layer's `forward` is called, and takes them away after it.

    Usage: `with present(embedding): logits = embedding.unembed(hidden)`
    """
    return align_module_device(layer) if "_hf_hook" in vars(layer) else nullcontext()
