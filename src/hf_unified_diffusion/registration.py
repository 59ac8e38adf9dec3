"""Makes transformers and diffusers know this package: Auto classes, the pipeline task, loadable components."""

from functools import cache

import diffusers
from diffusers.pipelines import pipeline_loading_utils
from transformers import AutoModel
from transformers.pipelines import PIPELINE_REGISTRY

from .modeling.controlnet import UnifiedControlNetModel
from .modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from .pipelines.checkpoints import EMBEDDED_CHECKPOINT
from .pipelines.pipeline_code import UnifiedDiffusionCodePipeline
from .pipelines.pipeline_image import UnifiedDiffusionImagePipeline
from .pipelines.pipeline_joint import UnifiedDiffusionJointPipeline
from .pipelines.pipeline_speech import UnifiedDiffusionSpeechPipeline
from .pipelines.pipeline_text import UnifiedDiffusionTextPipeline
from .pipelines.pipeline_transformers import UnifiedDiffusionTaskPipeline
from .registration_networks import register_networks
from .schedulers import MaskedDiffusionScheduler

TASK = "unified-diffusion"
COMPONENTS = (UnifiedDiffusionModel, UnifiedControlNetModel, MaskedDiffusionScheduler)
PIPELINES = (
    UnifiedDiffusionTextPipeline,
    UnifiedDiffusionCodePipeline,
    UnifiedDiffusionImagePipeline,
    UnifiedDiffusionJointPipeline,
    UnifiedDiffusionSpeechPipeline,
)


@cache
def register() -> None:
    """Register everything, once a process; importing the package calls it.

    Usage: `import hf_unified_diffusion; transformers.pipeline("unified-diffusion")`
    """
    register_with_transformers()
    register_with_diffusers()


def register_with_transformers() -> None:
    """`AutoConfig`, `AutoModel` and `pipeline("unified-diffusion")`, whose default is the embedded checkpoint."""
    register_networks()
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
