"""What all pipelines share: they load from the folder of one model too, and stop after a step when told to."""

from pathlib import Path
from typing import Any, ClassVar

from diffusers import DiffusionPipeline

from .checkpoints import EMBEDDED_CHECKPOINT, hub_options, is_model_checkpoint


class CheckpointPipeline(DiffusionPipeline):
    """A pipeline whose parts also lie in the folder of a model.

    Attributes:
        modality: under which name the checkpoint's metadata has settings of its own.
        defaults: settings where neither the call nor that metadata says otherwise.

    Usage: `class MyPipeline(CheckpointPipeline): ...`, with `parts_of`
    """

    modality: ClassVar[str]
    defaults: ClassVar[dict[str, Any]] = {}
    _interrupt = False

    @classmethod
    def parts_of(cls, folder: str | Path, **kwargs: Any) -> dict[str, Any]:
        """The arguments of the pipeline from the folder or repository of one model."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path | None = None, **kwargs: Any):
        """Load a pipeline folder as diffusers does, a folder of one model, or without a path the embedded checkpoint.

        The folder of a model has an autoencoder in `vae` and a vocoder in `vocoder` and, where their settings are its
        own, the schedulers in `image_scheduler` and `speech_scheduler`. Without a vocoder sound comes from Griffin-Lim.

        Args:
            pretrained_model_name_or_path: a folder or a name on the Hub.
            kwargs: as for `DiffusionPipeline.from_pretrained`; for a single model: `dtype`, `quantization_config`,
                `revision`, `token`, `cache_dir`, `force_download`, `local_files_only`.

        Raises:
            ValueError: a folder of a model without `vae`, for a pipeline of pictures.

        Usage: `UnifiedDiffusionTextPipeline.from_pretrained()`
        """
        path = EMBEDDED_CHECKPOINT if pretrained_model_name_or_path is None else pretrained_model_name_or_path
        if is_model_checkpoint(path, **hub_options(kwargs)):
            return cls(**cls.parts_of(path, **kwargs))
        return super().from_pretrained(path, **kwargs)

    def _chosen(self, name: str, value: Any = None) -> Any:
        """A setting: what the call says, else the checkpoint's metadata, else the pipeline."""
        if value is not None:
            return value
        return {**self.defaults, **self.transformer.checkpoint_facts.get(self.modality, {})}[name]

    @property
    def interrupt(self) -> bool:
        """Set `pipe._interrupt = True` from a callback to stop after the current step, with what is made so far."""
        return self._interrupt
