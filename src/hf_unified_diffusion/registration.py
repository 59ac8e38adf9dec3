"""Makes transformers and diffusers know this package: Auto classes, the pipeline task, loadable components."""

from functools import cache

import diffusers
from diffusers.pipelines import pipeline_loading_utils
from transformers import AutoConfig, AutoModel
from transformers.pipelines import PIPELINE_REGISTRY

from . import quantization
from .modeling.configuration_controlnet import UnifiedControlNetConfig
from .modeling.configuration_unified_diffusion import UnifiedDiffusionConfig
from .modeling.configuration_vocoder import UnifiedVocoderConfig
from .modeling.controlnet import UnifiedControlNetModel
from .modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from .modeling.vocoder import UnifiedVocoderModel
from .pipelines.checkpoints import EMBEDDED_CHECKPOINT
from .pipelines.pipeline_code import UnifiedDiffusionCodePipeline
from .pipelines.pipeline_image import UnifiedDiffusionImagePipeline
from .pipelines.pipeline_text import UnifiedDiffusionTextPipeline
from .pipelines.pipeline_transformers import UnifiedDiffusionTaskPipeline
from .schedulers import MaskedDiffusionScheduler

TASK = "unified-diffusion"
COMPONENTS = (UnifiedDiffusionModel, UnifiedControlNetModel, UnifiedVocoderModel, MaskedDiffusionScheduler)
PIPELINES = (UnifiedDiffusionTextPipeline, UnifiedDiffusionCodePipeline, UnifiedDiffusionImagePipeline)


@cache
def register() -> None:
    """Register everything, once a process; importing the package calls it.

    Usage: `import hf_unified_diffusion; transformers.pipeline("unified-diffusion")`
    """
    register_with_transformers()
    register_with_diffusers()
    quantization.register()


def register_with_transformers() -> None:
    """`AutoConfig`, `AutoModel` and `pipeline("unified-diffusion")`, whose default is the embedded checkpoint."""
    AutoConfig.register(UnifiedDiffusionConfig.model_type, UnifiedDiffusionConfig)
    AutoModel.register(UnifiedDiffusionConfig, UnifiedDiffusionModel)
    AutoConfig.register(UnifiedControlNetConfig.model_type, UnifiedControlNetConfig)
    AutoModel.register(UnifiedControlNetConfig, UnifiedControlNetModel)
    AutoConfig.register(UnifiedVocoderConfig.model_type, UnifiedVocoderConfig)
    AutoModel.register(UnifiedVocoderConfig, UnifiedVocoderModel)
    PIPELINE_REGISTRY.register_pipeline(
        TASK,
        pipeline_class=UnifiedDiffusionTaskPipeline,
        pt_model=AutoModel,
        default={"model": (str(EMBEDDED_CHECKPOINT), None)},
        type="multimodal",
    )
    # With it, save_pretrained would copy our source into the checkpoint, which then needs trust_remote_code.
    del UnifiedDiffusionTaskPipeline._registered_impl


def register_with_diffusers() -> None:
    """`DiffusionPipeline.from_pretrained` finds components by package name, pipelines as attributes of diffusers."""
    loadable = {component.__name__: ["save_pretrained", "from_pretrained"] for component in COMPONENTS}
    pipeline_loading_utils.LOADABLE_CLASSES[__package__] = loadable
    pipeline_loading_utils.ALL_IMPORTABLE_CLASSES.update(loadable)
    for pipeline in PIPELINES:
        setattr(diffusers, pipeline.__name__, pipeline)
