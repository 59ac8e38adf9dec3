"""Makes transformers know the networks and their quantization; all that training from a pack needs of registration."""

from functools import cache

from transformers import AutoConfig, AutoModel

from . import quantization
from .modeling.configuration_controlnet import UnifiedControlNetConfig
from .modeling.configuration_unified_diffusion import UnifiedDiffusionConfig
from .modeling.controlnet import UnifiedControlNetModel
from .modeling.modeling_unified_diffusion import UnifiedDiffusionModel


@cache
def register_networks() -> None:
    """`AutoConfig`, `AutoModel` and "arrowquant", once a process.

    Usage: `register_networks(); AutoModel.from_pretrained(folder)`
    """
    AutoConfig.register(UnifiedDiffusionConfig.model_type, UnifiedDiffusionConfig)
    AutoModel.register(UnifiedDiffusionConfig, UnifiedDiffusionModel)
    AutoConfig.register(UnifiedControlNetConfig.model_type, UnifiedControlNetConfig)
    AutoModel.register(UnifiedControlNetConfig, UnifiedControlNetModel)
    quantization.register()
