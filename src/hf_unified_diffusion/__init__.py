"""One diffusion transformer for text, code, images and audio, as a transformers and diffusers extension.

Importing the package registers it with both. Public names are loaded when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .registration import register

if TYPE_CHECKING:
    from .contracts import Condition as Condition
    from .contracts import Encoder as Encoder
    from .contracts import Result as Result
    from .contracts import Segment as Segment
    from .memory import ArrowStorage as ArrowStorage
    from .modeling.attention_rule import ContextCache as ContextCache
    from .modeling.configuration_unified_diffusion import UnifiedDiffusionConfig as UnifiedDiffusionConfig
    from .modeling.modeling_unified_diffusion import UnifiedDiffusionModel as UnifiedDiffusionModel
    from .modeling.pretrained import UnifiedDiffusionOutput as UnifiedDiffusionOutput
    from .pipelines.pipeline_code import UnifiedDiffusionCodePipeline as UnifiedDiffusionCodePipeline
    from .pipelines.pipeline_text import UnifiedDiffusionTextPipeline as UnifiedDiffusionTextPipeline
    from .pipelines.pipeline_transformers import UnifiedDiffusionTaskPipeline as UnifiedDiffusionTaskPipeline
    from .processes import NoiseScheduler as NoiseScheduler
    from .quantization import ArrowQuantConfig as ArrowQuantConfig
    from .quantization import FormatError as FormatError
    from .quantization import read_parquet_weights as read_parquet_weights
    from .quantization import write_parquet_weights as write_parquet_weights
    from .schedulers import MaskedDiffusionScheduler as MaskedDiffusionScheduler

__version__ = "0.1.0"

_MODULES = {
    "ArrowQuantConfig": "quantization",
    "ArrowStorage": "memory",
    "Condition": "contracts",
    "ContextCache": "modeling.attention_rule",
    "Encoder": "contracts",
    "FormatError": "quantization",
    "MaskedDiffusionScheduler": "schedulers",
    "NoiseScheduler": "processes",
    "Result": "contracts",
    "Segment": "contracts",
    "UnifiedDiffusionCodePipeline": "pipelines.pipeline_code",
    "UnifiedDiffusionConfig": "modeling.configuration_unified_diffusion",
    "UnifiedDiffusionModel": "modeling.modeling_unified_diffusion",
    "UnifiedDiffusionOutput": "modeling.pretrained",
    "UnifiedDiffusionTaskPipeline": "pipelines.pipeline_transformers",
    "UnifiedDiffusionTextPipeline": "pipelines.pipeline_text",
    "read_parquet_weights": "quantization",
    "write_parquet_weights": "quantization",
}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]


register()
