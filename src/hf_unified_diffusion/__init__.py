"""One diffusion transformer for text, code, images and audio, as a transformers and diffusers extension.

Importing the package registers it with both. Public names are loaded when they are first used.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from .registration_networks import register_networks

if TYPE_CHECKING:
    from .codecs.audio_codec import AudioCodec as AudioCodec
    from .codecs.avatar_track import AvatarTrack as AvatarTrack
    from .codecs.sounds import read_sound as read_sound
    from .conditioning.composition import composed as composed
    from .conditioning.control import controlled as controlled
    from .conditioning.energies_continuous import KeepPixels as KeepPixels
    from .conditioning.energies_continuous import Loudness as Loudness
    from .conditioning.energies_continuous import Palette as Palette
    from .conditioning.energies_text import CausalLikelihood as CausalLikelihood
    from .conditioning.energies_text import ForbiddenWords as ForbiddenWords
    from .conditioning.energies_text import FromContext as FromContext
    from .conditioning.energies_text import Length as Length
    from .conditioning.energies_text import RequiredWords as RequiredWords
    from .conditioning.energy import with_energies as with_energies
    from .conditioning.picture_memory import PictureMemory as PictureMemory
    from .conditioning.schema_constraint import SchemaConstraint as SchemaConstraint
    from .contracts import Condition as Condition
    from .contracts import Encoder as Encoder
    from .contracts import Result as Result
    from .contracts import Segment as Segment
    from .conversion.convert import convert_checkpoint as convert_checkpoint
    from .conversion.graph_export import export_graph as export_graph
    from .conversion.graph_runner import graph_pipeline as graph_pipeline
    from .engine import ArrowEngine as ArrowEngine
    from .memory import ArrowStorage as ArrowStorage
    from .modeling.attention_rule import ContextCache as ContextCache
    from .modeling.configuration_controlnet import UnifiedControlNetConfig as UnifiedControlNetConfig
    from .modeling.configuration_unified_diffusion import UnifiedDiffusionConfig as UnifiedDiffusionConfig
    from .modeling.configuration_vocoder import UnifiedVocoderConfig as UnifiedVocoderConfig
    from .modeling.control_pass import Control as Control
    from .modeling.controlnet import UnifiedControlNetModel as UnifiedControlNetModel
    from .modeling.diffusers_weights import load_diffusers_model as load_diffusers_model
    from .modeling.diffusers_weights import save_diffusers_model as save_diffusers_model
    from .modeling.memory_plan import plan_memory as plan_memory
    from .modeling.modeling_unified_diffusion import UnifiedDiffusionModel as UnifiedDiffusionModel
    from .modeling.pretrained import UnifiedDiffusionOutput as UnifiedDiffusionOutput
    from .modeling.tiers import tier as tier
    from .modeling.vocoder import UnifiedVocoderModel as UnifiedVocoderModel
    from .pipelines.pipeline_code import UnifiedDiffusionCodePipeline as UnifiedDiffusionCodePipeline
    from .pipelines.pipeline_image import UnifiedDiffusionImagePipeline as UnifiedDiffusionImagePipeline
    from .pipelines.pipeline_joint import UnifiedDiffusionJointPipeline as UnifiedDiffusionJointPipeline
    from .pipelines.pipeline_speech import UnifiedDiffusionSpeechPipeline as UnifiedDiffusionSpeechPipeline
    from .pipelines.pipeline_text import UnifiedDiffusionTextPipeline as UnifiedDiffusionTextPipeline
    from .pipelines.pipeline_transformers import UnifiedDiffusionTaskPipeline as UnifiedDiffusionTaskPipeline
    from .processes import NoiseScheduler as NoiseScheduler
    from .quantization import ArrowQuantConfig as ArrowQuantConfig
    from .quantization import FormatError as FormatError
    from .quantization import read_parquet_weights as read_parquet_weights
    from .quantization import write_parquet_weights as write_parquet_weights
    from .request_queue import QueueFullError as QueueFullError
    from .request_queue import RequestTimeoutError as RequestTimeoutError
    from .schedulers import MaskedDiffusionScheduler as MaskedDiffusionScheduler

__version__ = "0.1.0"

_MODULES = {
    "ArrowEngine": "engine",
    "ArrowQuantConfig": "quantization",
    "ArrowStorage": "memory",
    "AudioCodec": "codecs.audio_codec",
    "AvatarTrack": "codecs.avatar_track",
    "CausalLikelihood": "conditioning.energies_text",
    "Condition": "contracts",
    "Control": "modeling.control_pass",
    "ContextCache": "modeling.attention_rule",
    "Encoder": "contracts",
    "ForbiddenWords": "conditioning.energies_text",
    "FromContext": "conditioning.energies_text",
    "FormatError": "quantization",
    "KeepPixels": "conditioning.energies_continuous",
    "Length": "conditioning.energies_text",
    "Loudness": "conditioning.energies_continuous",
    "MaskedDiffusionScheduler": "schedulers",
    "NoiseScheduler": "processes",
    "Palette": "conditioning.energies_continuous",
    "PictureMemory": "conditioning.picture_memory",
    "QueueFullError": "request_queue",
    "RequestTimeoutError": "request_queue",
    "RequiredWords": "conditioning.energies_text",
    "Result": "contracts",
    "SchemaConstraint": "conditioning.schema_constraint",
    "Segment": "contracts",
    "UnifiedControlNetConfig": "modeling.configuration_controlnet",
    "UnifiedControlNetModel": "modeling.controlnet",
    "UnifiedDiffusionCodePipeline": "pipelines.pipeline_code",
    "UnifiedDiffusionConfig": "modeling.configuration_unified_diffusion",
    "UnifiedDiffusionImagePipeline": "pipelines.pipeline_image",
    "UnifiedDiffusionJointPipeline": "pipelines.pipeline_joint",
    "UnifiedDiffusionModel": "modeling.modeling_unified_diffusion",
    "UnifiedDiffusionOutput": "modeling.pretrained",
    "UnifiedDiffusionSpeechPipeline": "pipelines.pipeline_speech",
    "UnifiedDiffusionTaskPipeline": "pipelines.pipeline_transformers",
    "UnifiedDiffusionTextPipeline": "pipelines.pipeline_text",
    "UnifiedVocoderConfig": "modeling.configuration_vocoder",
    "UnifiedVocoderModel": "modeling.vocoder",
    "composed": "conditioning.composition",
    "controlled": "conditioning.control",
    "convert_checkpoint": "conversion.convert",
    "export_graph": "conversion.graph_export",
    "graph_pipeline": "conversion.graph_runner",
    "load_diffusers_model": "modeling.diffusers_weights",
    "plan_memory": "modeling.memory_plan",
    "read_parquet_weights": "quantization",
    "read_sound": "codecs.sounds",
    "save_diffusers_model": "modeling.diffusers_weights",
    "tier": "modeling.tiers",
    "with_energies": "conditioning.energy",
    "write_parquet_weights": "quantization",
}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]


register_networks()
if (
    find_spec("diffusers") is not None
):  # a machine that only trains from a pack has none, and registers the networks alone
    from .registration import register

    register()
