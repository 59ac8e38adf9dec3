"""`transformers.pipeline("unified-diffusion")`, over the diffusers pipelines."""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from torch import Generator
from transformers import Pipeline

from ..hub import CardFacts, PushMixin
from .checkpoints import (
    has_image_parts,
    has_speech_parts,
    load_image_parts,
    load_speech_parts,
    save_image_parts,
    save_picture_memory,
    save_speech_parts,
    scheduler_from,
)
from .pipeline_code import UnifiedDiffusionCodePipeline
from .pipeline_image import UnifiedDiffusionImagePipeline
from .pipeline_speech import UnifiedDiffusionSpeechPipeline
from .pipeline_text import UnifiedDiffusionTextPipeline
from .text_inputs import as_texts, check_choice, check_positive, row_generators

Maker: TypeAlias = UnifiedDiffusionTextPipeline | UnifiedDiffusionImagePipeline | UnifiedDiffusionSpeechPipeline
WRITERS = {"text": UnifiedDiffusionTextPipeline, "code": UnifiedDiffusionCodePipeline}
# modality -> the pipeline's argument for how many to make from each prompt, and what the answer is called
ANSWERS = {
    "text": ("num_return_sequences", "generated_text"),
    "code": ("num_return_sequences", "generated_text"),
    "image": ("num_images_per_prompt", "generated_image"),
    "audio": ("num_audios_per_prompt", "audio"),  # with "sampling_rate", as transformers' text-to-audio has it
}
PER_PROMPT = ("suffix", "negative_prompt", "image", "mask_image", "reference_audio", "reference_text")


class UnifiedDiffusionTaskPipeline(PushMixin, Pipeline):
    """The task "unified-diffusion": strings in, dictionaries with `generated_text`, `generated_image` or `audio` out.

    Usage:
        import hf_unified_diffusion
        from transformers import pipeline
        write = pipeline("unified-diffusion")
        write("def fibonacci(n):", modality="code", seed=0)[0]["generated_text"]
        write("a red apple", modality="image", seed=0)[0]["generated_image"]  # with a checkpoint that draws
        write("Hello there.", modality="audio", seed=0)[0]["audio"]  # with one that speaks
    """

    _load_tokenizer = True
    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_video_processor = False
    _pipeline_calls_generate = False

    def __init__(self, model, tokenizer, **kwargs: Any):
        super().__init__(model=model, tokenizer=tokenizer, **kwargs)
        self.scheduler = scheduler_from(model.config._name_or_path, model)
        self._writers: dict[str, Maker] = {}

    def __call__(
        self, inputs: str | Sequence[str], batch_size: int | None = None, **kwargs: Any
    ) -> list[dict[str, Any]]:
        """Write, draw or speak from one prompt or several.

        Args:
            inputs: a prompt or a list of prompts.
            batch_size: prompts denoised together, all by default; the results do not depend on it.
            kwargs: `modality` ("text", "code", "image" or "audio"), and whatever that pipeline takes
                (`num_inference_steps`, `suffix`, `height`, `reference_audio`, `seed`, ...).

        Returns:
            one `{"generated_text": ...}` per prompt and returned sequence: prompt, what was written, suffix; or one
            `{"generated_image": ...}` per prompt and picture, or `{"audio": ..., "sampling_rate": ...}` per prompt and
            sound, in the pipeline's `output_type`.

        Raises:
            ValueError: for an argument that breaks a rule.

        Usage: `write(["Once", "Twice"], max_new_tokens=32, seed=0)`
        """
        prompts = as_texts("inputs", inputs)
        return super().__call__(
            {"prompts": prompts, "rows_at_once": self._batch_size if batch_size is None else batch_size}, **kwargs
        )

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        """Everything is for the forward part; the pipelines check it."""
        if "modality" in kwargs:
            check_choice("modality", kwargs["modality"], tuple(ANSWERS))
        return {}, kwargs, {}

    def preprocess(self, inputs: dict[str, Any], **parameters: Any) -> dict[str, Any]:
        """The pipelines tokenize."""
        return inputs

    def _forward(
        self,
        inputs: dict[str, Any],
        modality: str = "text",
        seed: int | None = None,
        generator: Generator | list[Generator] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Make batch after batch, each row with its own generator."""
        prompts = inputs["prompts"]
        size = len(prompts) if inputs["rows_at_once"] is None else inputs["rows_at_once"]
        check_positive("batch_size", size)
        how_many, answer = ANSWERS[modality]
        repeats = options.pop(how_many, 1)
        check_positive(how_many, repeats)
        rows = len(prompts) * repeats
        generators = row_generators(seed, generator, rows, self.model.device)
        made: list[Any] = []
        for first in range(0, len(prompts), size):
            part = slice(first, first + size)
            rows = slice(first * repeats, (first + size) * repeats)
            each = {name: rows_of(options[name], len(prompts), part) for name in PER_PROMPT if name in options}
            output = self.writer(modality)(
                prompts[part], generator=generators[rows], **{how_many: repeats, **options, **each}
            )
            made += made_of(output, answer)
        return {"made": made}

    def postprocess(self, outputs: dict[str, Any], **parameters: Any) -> list[dict[str, Any]]:
        """One dictionary per text, picture or sound, in the form of transformers' own tasks."""
        return outputs["made"]

    def writer(self, modality: str) -> Maker:
        """The diffusers pipeline of a modality, over this pipeline's model and tokenizer.

        Raises:
            ValueError: for pictures where the model came from no folder with an autoencoder.
        """
        if modality not in self._writers:
            if modality == "image":
                scheduler, vae = load_image_parts(self.model.config._name_or_path)
                vae.to(self.model.device)
                writer: Maker = UnifiedDiffusionImagePipeline(self.model, scheduler, self.tokenizer, vae)
            elif modality == "audio":
                scheduler, vocoder = load_speech_parts(self.model.config._name_or_path)
                vocoder = None if vocoder is None else vocoder.to(self.model.device)
                writer = UnifiedDiffusionSpeechPipeline(self.model, scheduler, self.tokenizer, vocoder)
            else:
                writer = WRITERS[modality](self.model, self.scheduler, self.tokenizer)
            writer.set_progress_bar_config(disable=True)
            self._writers[modality] = writer
        return self._writers[modality]

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save model, tokenizer and scheduler settings into one folder, which `pipeline(..., model=folder)` loads."""
        super().save_pretrained(save_directory, **kwargs)
        self.scheduler.save_pretrained(save_directory)
        if has_image_parts(self.model.config._name_or_path):
            drawer = self.writer("image")
            save_image_parts(save_directory, drawer.scheduler, drawer.vae)
            save_picture_memory(save_directory, drawer.picture_memory)
        if has_speech_parts(self.model.config._name_or_path):
            speaker = self.writer("audio")
            save_speech_parts(save_directory, speaker.scheduler, speaker.vocoder)

    def card_facts(self) -> CardFacts:
        """Of the model, and how `pipeline` loads it."""
        usage = (
            "import hf_unified_diffusion\nfrom transformers import pipeline\n\n"
            'write = pipeline("unified-diffusion", model="{repo_id}")'
        )
        return replace(self.model.card_facts(), usage=usage)


def made_of(output: Any, answer: str) -> list[dict[str, Any]]:
    """A dictionary for each text, picture or sound of a pipeline's output."""
    if answer == "audio":
        return [{answer: sound, "sampling_rate": output.sampling_rate_hz} for sound in output.audios]
    return [{answer: one} for one in (output.images if answer == "generated_image" else output.texts)]


def rows_of(value: object, count: int, part: slice) -> object:
    """A part of an argument that has one entry per prompt; other values serve every part."""
    return value[part] if isinstance(value, list | tuple) and len(value) == count else value
