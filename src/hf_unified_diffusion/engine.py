"""ArrowEngine: one door to the diffusion pipelines and to an autoregressive model. It routes, and computes nothing."""

import secrets
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.models.autoencoders.vae import AutoencoderMixin
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging

from .conditioning.picture_memory import PictureMemory
from .conditioning.score_network_encoder import ScoreNetworkEncoder, encoder_name
from .contracts import Result
from .evolution.adapter_router import Encode
from .evolution.adapter_set import AdapterSet
from .evolution.step_watch import StepWatch
from .modeling.adapter_folders import SIDES
from .modeling.checkpoint_metadata import limits_of
from .modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from .pipelines.autoregressive_writer import AutoregressiveWriter
from .pipelines.checkpoints import (
    EMBEDDED_CHECKPOINT,
    has_image_parts,
    load_image_parts,
    load_parts,
    load_picture_memory,
    load_speech_parts,
)
from .pipelines.energy_writing import by_context
from .pipelines.joint_inputs import asked_modalities
from .pipelines.named_controlnets import NamedControlNets
from .pipelines.pipeline_code import UnifiedDiffusionCodePipeline
from .pipelines.pipeline_image import UnifiedDiffusionImagePipeline
from .pipelines.pipeline_joint import UnifiedDiffusionJointPipeline
from .pipelines.pipeline_speech import UnifiedDiffusionSpeechPipeline
from .pipelines.pipeline_text import UnifiedDiffusionTextPipeline
from .pipelines.text_inputs import LARGEST_SEED, as_texts, check_choice, check_positive
from .request_options import check_left_out, handed_out, made_together, steps_for, told_together
from .request_queue import Request, RequestQueue, Step, waited_for
from .schedulers.flow_matching import picture_scheduler
from .schedulers.flow_matching import speech_scheduler as flow_scheduler_of_speech
from .schedulers.scheduling_masked_diffusion import MaskedDiffusionScheduler

if TYPE_CHECKING:
    from .memory import ArrowStorage
    from .memory.memory_conditioner import MemoryConditioner

PIPELINES = {"text": UnifiedDiffusionTextPipeline, "code": UnifiedDiffusionCodePipeline}
IMAGE, AUDIO, AVATAR = "image", "audio", "avatar"
MADE = {IMAGE: "pt", AUDIO: "np"}  # what is no text, and the kind of output that is asked of its pipeline
DEFAULT_NEW_TOKENS = 128
logger = logging.get_logger(__name__)


class ArrowEngine:
    """Writes, draws and speaks by diffusion, or writes token by token; serves callers, one request after the other.

    Attributes:
        model, tokenizer: of the diffusion side.
        controlnets: those that came with the checkpoint, by name; `controlnet="tools"` of a request asks for one.
        memory: an `ArrowStorage`, or None.

    Args:
        ar_model: name, folder or GGUF file of an autoregressive model, loaded when it is first asked for.
        memory: an `ArrowStorage`, or a folder that is opened as one, with the network's own embeddings.
        encoder: the name of these in stores.
        vae, image_scheduler: for pictures, as of `UnifiedDiffusionImagePipeline`; without a vae it draws none.
        vocoder, speech_scheduler: for speech, as of `UnifiedDiffusionSpeechPipeline`.
        max_waiting: requests that may wait; one more is refused at once (`QueueFullError`).

    Usage:
        engine = ArrowEngine.from_pretrained()
        engine.diffuse("The history of the bicycle", max_new_tokens=48, seed=0)
        engine.diffuse("She opened the door and", suffix=" so she went back inside.", max_new_tokens=8, seed=0)
    """

    def __init__(
        self,
        model: UnifiedDiffusionModel,
        scheduler: MaskedDiffusionScheduler,
        tokenizer: PreTrainedTokenizerFast,
        ar_model: str | Path | AutoregressiveWriter | None = None,
        memory: "ArrowStorage | str | Path | None" = None,
        max_waiting: int = 32,
        encoder: str = "engine",
        vae: AutoencoderMixin | None = None,
        image_scheduler: SchedulerMixin | None = None,
        vocoder: PreTrainedModel | None = None,
        speech_scheduler: SchedulerMixin | None = None,
        controlnets: NamedControlNets | None = None,
    ):
        self.controlnets = NamedControlNets(None) if controlnets is None else controlnets
        self.vae, self.vocoder = vae, vocoder
        self.speech_scheduler = flow_scheduler_of_speech() if speech_scheduler is None else speech_scheduler
        self.image_scheduler = picture_scheduler() if image_scheduler is None else image_scheduler
        self.model, self.scheduler, self.tokenizer = model, scheduler, tokenizer
        self.queue = RequestQueue(max_waiting=max_waiting)
        self._ar_model, self._loading = ar_model, Lock()
        self._encoder = ScoreNetworkEncoder(model, tokenizer, encoder)
        self.memory = opened(memory, self._encoder) if isinstance(memory, str | Path) else memory
        self._adapters: dict[str, AdapterSet] = {}

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path | None = None,
        ar_model: str | Path | AutoregressiveWriter | None = None,
        memory: "ArrowStorage | str | Path | None" = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        max_waiting: int = 32,
    ) -> "ArrowEngine":
        """The embedded checkpoint, or a folder; one with an autoencoder in `vae` draws too.

        Usage: `ArrowEngine.from_pretrained(ar_model="gpt2", device="cuda")`
        """
        path = EMBEDDED_CHECKPOINT if name_or_path is None else name_or_path
        parts = load_parts(path, dtype)
        image_scheduler, vae = load_image_parts(path, dtype) if has_image_parts(path) else (None, None)
        speech_scheduler, vocoder = load_speech_parts(path)
        for part in (parts[0], vae, vocoder):
            if device is not None and part is not None:
                part.to(device)
        options: dict[str, Any] = {"ar_model": ar_model, "memory": memory, "max_waiting": max_waiting}
        if memory is not None:
            options["encoder"] = encoder_name(path)
        options |= {"vocoder": vocoder, "speech_scheduler": speech_scheduler, "controlnets": NamedControlNets(path)}
        return cls(*parts, **options, vae=vae, image_scheduler=image_scheduler)

    @cached_property
    def picture_memory(self) -> PictureMemory | None:
        """What the checkpoint itself remembers of pictures, read once somebody draws; another may be put in."""
        return load_picture_memory(self.model.config._name_or_path)

    @property
    def ar(self) -> AutoregressiveWriter:
        """The autoregressive side, loaded when it is first asked for and kept beside the other.

        Raises:
            ValueError: the engine was made without `ar_model`.
        """
        if self._ar_model is None:
            raise ValueError("mode 'ar' needs an ar_model (name, folder or GGUF file), got None")
        with self._loading:
            if not isinstance(self._ar_model, AutoregressiveWriter):
                writer = AutoregressiveWriter.from_pretrained(self._ar_model)
                writer.model.to(self.model.device)
                self._ar_model = writer
            return self._ar_model

    def diffuse(
        self, prompt: str | list[str] | None = None, modality: str | Sequence[str] = "text", **options: Any
    ) -> Any:
        """Generate by diffusion and wait for it.

        Args:
            prompt: what comes before, the caption, or what is said; None starts from nothing. A list gives a list.
            modality: "text", "code", "image", "audio" or "avatar"; or several of "text", "audio", "avatar" and "image",
                made together. Then text goes on from the prompt; without text the prompt is what is said.
            options: as for `submit`.

        Returns:
            str for text and code, prompt and suffix included; uint8 (height, width, 3) for an image, float32 (samples,)
            for speech, float32 (frames, 52) for an avatar, 20 frames a second; for several modalities a mapping of
            them. With `return_result=True` a `Result` of it, for speech with its sampling rate and when its words are
            said.

        Raises:
            ValueError: for an argument that breaks a rule.
            QueueFullError, RequestTimeoutError: as for `submit`.

        Usage: `engine.diffuse('def add(a, b):\\n', modality="code", seed=0)`
        """
        return waited_for(self.submit(prompt, modality, **options))

    def submit(
        self,
        prompt: str | list[str] | None = None,
        modality: str | Sequence[str] = "text",
        *,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        memory_guided: bool = False,
        memory_strength: float = 1.0,
        memory_candidates: int = 1,
        namespace: str = "default",
        num_recalled: int = 16,
        adapter: str | None = None,
        seed: int | list[int] | None = None,
        suffix: str | list[str] | None = None,
        max_new_tokens: int | None = None,
        timeout_s: float | None = None,
        return_result: bool = False,
        **options: Any,
    ) -> Request:
        """Queue a request for `diffuse`; it can be waited for, awaited and cancelled.

        Args:
            num_steps: denoising passes. None: drafts of 4 tokens in one pass, each checked by the causal path (with
                `block_length=1` the pass that checks a token drafts the next); with a suffix, guidance, energies or
                `check_drafts=False` one pass for two tokens; for images and speech as the checkpoint says.
            guidance_scale: 1 is none, and so is None, except for images and speech: as the checkpoint says.
            memory_guided: let what `memory` recalls for the prompt steer text and code, or its pictures an image.
            memory_strength: how much, 0 (bit for bit as without) to 10; 1 is as trained, or, of a network without
                a trained memory conditioner, as the memories read before the prompt. Other strengths then take twice
                the passes. Of images see `UnifiedDiffusionImagePipeline`.
            memory_candidates: texts that are written of each prompt; the one that the memories say most about is kept
                (drawn by `FromContext`). For text and code, with a network that reads memories.
            namespace, num_recalled: whose memories, and how many.
            suffix, max_new_tokens: of text and code.
            adapter: the name of a loaded adapter, "auto" for the one whose examples are nearest to the prompt, None for
                what `set_adapter` chose.
            seed: None draws one; the `Result` says which. A list has one a prompt, which gives what it gives alone.
            timeout_s: from now on, waiting included.
            return_result: give a `Result` with timings and, of text and code, uncertainty.
            options: as for the pipeline of the modality (`controlnet`, also by the name of one that came with the
                checkpoint; `block_length`, `temperature`, `stop`, `streamer`, ...;
                `height`, `width`, `negative_prompt`, `image`, `mask_image`, `strength`, ...; `reference_audio`,
                `reference_text`, `speaker_guidance_scale`, `speed`, ...; of several `text`, `audio`, `avatar`, `image`
                for what is given, `duration_s`, `spans`, ...).

        Raises:
            QueueFullError: at once, when too many wait.
            ValueError: for an unknown modality, memory where there is none, its settings where it is not asked for,
                or an image without an autoencoder.

        Usage: `request = engine.submit("Once", seed=0, timeout_s=10); request.result()`
        """
        if not memory_guided:  # they would do nothing
            settings = {"memory_strength": memory_strength, "memory_candidates": memory_candidates}
            check_left_out(
                "memory_guided=False", {name: None if value == 1 else value for name, value in settings.items()}
            )
        if not isinstance(modality, str) or modality == AVATAR:
            check_left_out("several modalities", {"suffix": suffix, "memory_guided": memory_guided or None})
            chosen = {"guidance_scale": guidance_scale, "num_inference_steps": num_steps}
            chosen |= {"num_text_tokens": max_new_tokens}
            options |= {name: value for name, value in chosen.items() if value is not None}
            return self._submit_together(prompt, modality, options, adapter, seed, timeout_s, return_result)
        self._check_modality(modality)
        self._tell_limits([modality])
        conditioner = self._conditioner(prompt, modality, memory_strength, options) if memory_guided else None
        chosen_among = self._candidates(modality, memory_candidates, options) if memory_guided else {}
        if options.get("controlnet") is not None:
            options["controlnet"] = self.controlnets.resolve(options["controlnet"], self.model.device)
        chosen = {"guidance_scale": guidance_scale, "suffix": suffix}
        options |= {name: value for name, value in chosen.items() if value is not None}
        if modality in MADE:
            unfit = {"suffix": suffix, "max_new_tokens": max_new_tokens, "output_type": options.get("output_type")}
            check_left_out(modality, unfit)
            options |= {"num_inference_steps": num_steps, "output_type": MADE[modality]}
        else:
            length = DEFAULT_NEW_TOKENS if max_new_tokens is None else max_new_tokens
            check_positive("max_new_tokens", length)
            options |= {"max_new_tokens": length, **steps_for(length, num_steps, options)}
        seed = secrets.randbelow(LARGEST_SEED) if seed is None else seed

        use_adapter = self._adapters_of("diffusion").request(adapter, prompt)

        def work(step: Step) -> Any:
            # a pipeline of its own for each request: pipelines remember an interrupt
            pipe = self._pipeline(modality)
            watch = StepWatch(step, options.pop("callback_on_step_end", None), return_result and modality not in MADE)
            recalls = []
            if conditioner is not None:
                prompts = as_texts("prompt", prompt)
                recalls = conditioner.recall(
                    namespace, prompts, num_recalled, modality=IMAGE if modality == IMAGE else None
                )
                told = conditioner.picture_options if modality == IMAGE else conditioner.options
                steering = told(recalls, memory_strength)
                options.update(steering | chosen_among if steering else {})
                step()
            with use_adapter() as applied:
                output = pipe(prompt, seed=seed, **watch.callback_options(options), **options)
            made = handed_out(output, modality)
            made = made if isinstance(prompt, list) or len(made) > 1 else made[0]
            if not return_result:
                return made
            recalled = [recall.memories for recall in recalls]
            extra = {"num_forward_passes": output.num_forward_passes, "adapter": applied}
            if conditioner is not None:
                extra["recalled"] = recalled if isinstance(prompt, list) else recalled[0]
            if modality == AUDIO:
                extra |= {name: getattr(output, name) for name in ("alignments", "checks", "scores")}
            elif modality != IMAGE:
                extra |= {
                    "finished": output.finished,
                    "completion_ids": output.completion_ids,
                    "acceptance_rate": output.acceptance_rate,
                    "energy_history": output.energy_history,
                }
            rate = output.sampling_rate_hz if modality == AUDIO else None
            return Result(made, seed, tuple(watch.step_ms), tuple(watch.uncertainty), rate, extra)

        return self.queue.submit(work, timeout_s)

    def _submit_together(
        self,
        prompt: str | list[str] | None,
        modality: str | Sequence[str],
        options: dict[str, Any],
        adapter: str | None,
        seed: int | list[int] | None,
        timeout_s: float | None,
        return_result: bool,
    ) -> Request:
        """Queue a request for an avatar, or for several modalities at once."""
        asked = asked_modalities(modality)
        self._check_trained(asked)
        self._tell_limits(asked)
        seed = secrets.randbelow(LARGEST_SEED) if seed is None else seed
        given = told_together(prompt, asked, options)
        use_adapter = self._adapters_of("diffusion").request(adapter, prompt)

        def work(step: Step) -> Any:
            parts = (self.model, self.scheduler, self.speech_scheduler, self.tokenizer)
            pipe = UnifiedDiffusionJointPipeline(*parts, self.vocoder, self.vae, self.image_scheduler)
            pipe.set_progress_bar_config(disable=True)
            watch = StepWatch(step, given.pop("callback_on_step_end", None), False)
            with use_adapter() as applied:
                output = pipe(modality=asked, seed=seed, **watch.callback_options(given), **given)
            made = made_together(output, isinstance(prompt, list))
            made = made[modality] if isinstance(modality, str) else made
            if not return_result:
                return made
            times = {name: getattr(output, name) for name in ("words", "phonemes", "visemes", "avatar_rate_hz")}
            extra = {"num_forward_passes": output.num_forward_passes, "adapter": applied, **times}
            return Result(made, seed, tuple(watch.step_ms), (), output.sampling_rate_hz, extra)

        return self.queue.submit(work, timeout_s)

    def generate(
        self,
        prompt: str | list[str],
        mode: str = "ar",
        *,
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        stop_strings: str | list[str] | None = None,
        seed: int | None = None,
        num_return_sequences: int = 1,
        streamer: BaseStreamer | None = None,
        adapter: str | None = None,
        timeout_s: float | None = None,
        **options: Any,
    ) -> str | list[str]:
        """Write after a prompt, token by token ("ar") or by diffusion; these arguments mean the same in both modes.

        Args:
            temperature: 0 takes the likeliest; None is the model's own.
            stop_strings: strings that end the text; they are left out.
            seed: the same seed gives the same text in the same mode.
            streamer: gets tokens as they are written; of the tokenizer of the mode.
            adapter: as for `submit`, of the side of the mode.
            options: as for transformers' `generate`, or for `submit`.

        Returns:
            prompt and completion; a list where several prompts or sequences were asked for.

        Raises:
            ValueError: an unknown mode, no autoregressive model, or an argument that breaks a rule.

        Usage: `engine.generate("Once upon a time", mode="ar", max_new_tokens=32, temperature=0)`
        """
        check_choice("mode", mode, SIDES)
        check_positive("max_new_tokens", max_new_tokens)
        common: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "stop": stop_strings,
            "num_return_sequences": num_return_sequences,
            "streamer": streamer,
        }
        if mode == "diffusion":
            return self.diffuse(prompt, seed=seed, adapter=adapter, timeout_s=timeout_s, **common, **options)
        writer, use_adapter = self.ar, self._adapters_of("ar").request(adapter, prompt)

        def work(step: Step) -> str | list[str]:
            with use_adapter():
                written = writer(prompt, seed=seed, on_step=step, **common, **options)
            prompts = [prompt] if isinstance(prompt, str) else prompt
            repeated = [text for text in prompts for _ in range(num_return_sequences)]
            texts = [before + after for before, after in zip(repeated, written.completions, strict=True)]
            return texts if isinstance(prompt, list) or len(texts) > 1 else texts[0]

        return waited_for(self.queue.submit(work, timeout_s))

    def encode(self, texts: str | Sequence[str], mode: str = "diffusion") -> Float[Tensor, "texts width"]:
        """Unit vectors of texts, float32: the mean of the final features of either side.

        Raises:
            ValueError: an unknown mode, no strings, or an empty one.

        Usage: `engine.encode(["a cat", "a dog"]) @ engine.encode("a kitten").T`
        """
        check_choice("mode", mode, SIDES)
        texts, encode = as_texts("texts", texts), self._encode_with(mode)
        return waited_for(self.queue.submit(lambda step: encode(texts)))

    def _encode_with(self, side: str) -> Encode:
        if side == "ar":
            return self.ar.encode
        return lambda texts: torch.nn.functional.normalize(torch.from_numpy(self._encoder(texts)), dim=1)

    def load_adapter(
        self, folder: str | Path, name: str, side: str = "diffusion", examples: Sequence[str] = ()
    ) -> None:
        """Load a PEFT adapter for the "diffusion" or the "ar" side; it applies to requests that name it.

        Args:
            examples: texts like those it was trained on, by which `adapter="auto"` finds it.

        Raises:
            ValueError: an adapter of the other side (with the file and the reason), a name that is taken, or files that
                are none of an adapter.

        Usage: `engine.load_adapter("adapters/poems", "poems"); engine.diffuse("The sea", adapter="poems")`
        """
        adapters = self._adapters_of(side)
        waited_for(self.queue.submit(lambda step: adapters.load(folder, name, examples)))

    def set_adapter(self, name: str | None, side: str = "diffusion") -> None:
        """The adapter of requests that name none: a loaded one, "auto", or None for the model as it is.

        Raises:
            ValueError: a name that was not loaded.
        """
        adapters = self._adapters_of(side)
        adapters.check(name)
        adapters.active = name

    def _adapters_of(self, side: str) -> AdapterSet:
        check_choice("side", side, SIDES)
        if side not in self._adapters:
            # the router runs inside requests, hence past the queue
            model = self.ar.model if side == "ar" else self.model
            self._adapters[side] = AdapterSet(side, model, self._encode_with(side))
        return self._adapters[side]

    def close(self) -> None:
        """Finish what is queued, then take no more."""
        self.queue.close()

    def _conditioner(
        self, prompt: object, modality: str, strength: float, options: Mapping[str, Any]
    ) -> "MemoryConditioner":
        """What asks the memory; ValueError where there is none, or nothing to ask it."""
        if self.memory is None:
            raise ValueError("memory_guided needs a memory (an ArrowStorage or its folder), got None")
        if modality == AUDIO:
            raise ValueError(f"memory_guided must be False for {modality}, got True")
        as_texts("prompt", prompt)
        # the memory gives these, and memory_strength the scale
        unfit = ("context", "context_scale", "condition", "memory_images", "memory_weights")
        check_left_out("memory_guided", {name: options.get(name) for name in unfit})
        from .memory.memory_conditioner import MemoryConditioner, check_strength  # FAISS and datasets take seconds

        check_strength(strength)
        return MemoryConditioner(self.model, self.tokenizer, self.memory, self._encoder.name)

    def _candidates(self, modality: str, number: int, options: Mapping[str, Any]) -> dict[str, Any]:
        """How one of several texts is chosen by a memory; ValueError where it cannot be."""
        check_positive("memory_candidates", number)
        if number == 1:
            return {}
        from .memory.memory_conditioner import has_sources

        if modality == IMAGE or has_sources(self.model):
            what = "images" if modality == IMAGE else "a network with condition sources"
            raise ValueError(f"memory_candidates must be 1 for {what}, got {number!r}")
        check_left_out(
            "memory_candidates above 1", {name: options.get(name) for name in ("energies", "num_candidates")}
        )
        return by_context(number)

    def _pipeline(self, modality: str) -> DiffusionPipeline:
        if modality == AUDIO:
            pipe = UnifiedDiffusionSpeechPipeline(self.model, self.speech_scheduler, self.tokenizer, self.vocoder)
        elif modality == IMAGE:
            pipe = UnifiedDiffusionImagePipeline(self.model, self.image_scheduler, self.tokenizer, self.vae)
            pipe.picture_memory = self.picture_memory
        else:
            pipe = PIPELINES[modality](self.model, self.scheduler, self.tokenizer)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def _check_modality(self, modality: str) -> None:
        check_choice("modality", modality, (*PIPELINES, *MADE))
        self._check_trained([modality])
        if modality == IMAGE and self.vae is None:
            raise ValueError(
                "modality 'image' needs an autoencoder (a checkpoint folder with 'vae', or vae=), got None"
            )

    def _check_trained(self, modalities: Sequence[str]) -> None:
        trained = self.model.checkpoint_facts.get("supported_modalities", modalities)
        if not set(modalities) <= set(trained):
            got = ", ".join(map(repr, sorted(set(modalities) - set(trained))))
            raise ValueError(f"modality must be one that the checkpoint was trained for, {trained}, got {got}")

    def _tell_limits(self, modalities: Sequence[str]) -> None:
        """Warn, once, of what the checkpoint's metadata says that it does badly."""
        for limit in limits_of(self.model.checkpoint_facts, modalities):
            logger.warning_once(f"This checkpoint's limits, {limit}")


def opened(folder: str | Path, encoder: ScoreNetworkEncoder | None = None, read_only: bool = False) -> "ArrowStorage":
    """The memory in a folder."""
    from .memory import ArrowStorage  # FAISS and datasets take seconds, which only who has a memory needs

    return ArrowStorage(folder, encoder, read_only=read_only)
