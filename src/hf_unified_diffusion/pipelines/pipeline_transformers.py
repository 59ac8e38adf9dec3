"""`transformers.pipeline("unified-diffusion")`, over the diffusers pipelines."""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Generator
from transformers import Pipeline

from ..hub import CardFacts, PushMixin
from .checkpoints import has_image_parts, load_image_parts, save_image_parts, scheduler_from
from .pipeline_code import UnifiedDiffusionCodePipeline
from .pipeline_image import UnifiedDiffusionImagePipeline
from .pipeline_text import UnifiedDiffusionTextPipeline
from .text_inputs import as_texts, check_choice, check_positive, row_generators

WRITERS = {"text": UnifiedDiffusionTextPipeline, "code": UnifiedDiffusionCodePipeline}
# modality -> the pipeline's argument for how many to make from each prompt, and what the answer is called
ANSWERS = {
    "text": ("num_return_sequences", "generated_text"),
    "code": ("num_return_sequences", "generated_text"),
    "image": ("num_images_per_prompt", "generated_image"),
}
PER_PROMPT = ("suffix", "negative_prompt", "image", "mask_image")


class UnifiedDiffusionTaskPipeline(PushMixin, Pipeline):
    """The task "unified-diffusion": strings in, `{"generated_text": ...}` or `{"generated_image": ...}` out.

    Usage:
        import hf_unified_diffusion
        from transformers import pipeline
        write = pipeline("unified-diffusion")
        write("def fibonacci(n):", modality="code", seed=0)[0]["generated_text"]
        write("a red apple", modality="image", seed=0)[0]["generated_image"]  # with a checkpoint that draws
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
        self._writers: dict[str, UnifiedDiffusionTextPipeline | UnifiedDiffusionImagePipeline] = {}

    def __call__(
        self, inputs: str | Sequence[str], batch_size: int | None = None, **kwargs: Any
    ) -> list[dict[str, Any]]:
        """Write or draw from one prompt or several.

        Args:
            inputs: a prompt or a list of prompts.
            batch_size: prompts denoised together, all by default; the results do not depend on it.
            kwargs: `modality` ("text", "code" or "image"), and whatever that pipeline takes (`num_inference_steps`,
                `suffix`, `height`, `seed`, ...).

        Returns:
            one `{"generated_text": ...}` per prompt and returned sequence: prompt, what was written, suffix; or one
            `{"generated_image": ...}` per prompt and picture, in the pipeline's `output_type`.

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
            made += list(output.images if modality == "image" else output.texts)
        return {"made": made, "answer": answer}

    def postprocess(self, outputs: dict[str, Any], **parameters: Any) -> list[dict[str, Any]]:
        """One dictionary per text or picture, in the form of transformers' text generation."""
        return [{outputs["answer"]: one} for one in outputs["made"]]

    def writer(self, modality: str) -> UnifiedDiffusionTextPipeline | UnifiedDiffusionImagePipeline:
        """The diffusers pipeline of a modality, over this pipeline's model and tokenizer.

        Raises:
            ValueError: for pictures where the model came from no folder with an autoencoder.
        """
        if modality not in self._writers:
            if modality == "image":
                scheduler, vae = load_image_parts(self.model.config._name_or_path)
                vae.to(self.model.device)
                writer = UnifiedDiffusionImagePipeline(self.model, scheduler, self.tokenizer, vae)
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

    def card_facts(self) -> CardFacts:
        """Of the model, and how `pipeline` loads it."""
        usage = (
            "import hf_unified_diffusion\nfrom transformers import pipeline\n\n"
            'write = pipeline("unified-diffusion", model="{repo_id}")'
        )
        return replace(self.model.card_facts(), usage=usage)


def rows_of(value: object, count: int, part: slice) -> object:
    """A part of an argument that has one entry per prompt; other values serve every part."""
    return value[part] if isinstance(value, list | tuple) and len(value) == count else value
