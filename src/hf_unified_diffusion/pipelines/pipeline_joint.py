"""Text, sound, a face and a picture together: any of them given, the others generated in the same passes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import SchedulerMixin
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.autoencoders.vae import AutoencoderMixin
from jaxtyping import Int
from PIL.Image import Image
from torch import Generator, Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ..codecs.audio_codec import AudioCodec
from ..codecs.avatar_codec import AvatarCodec
from ..codecs.durations import Durations, phoneme_places
from ..codecs.image_codec import ImageCodec
from ..codecs.phonemes import PhonemeCodec, Pronunciation
from ..codecs.pictures import Pictures, read_pictures
from ..codecs.text_codec import TextCodec
from ..modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from ..processes.randomness import spawn_generators
from ..schedulers.scheduling_masked_diffusion import MaskedDiffusionScheduler
from .checkpoint_pipeline import CheckpointPipeline
from .checkpoints import (
    has_image_parts,
    load_image_parts,
    load_parts,
    load_speech_parts,
)
from .context_denoiser import evaluating
from .image_inputs import own_size
from .joint_canvases import Canvas, FlowCanvas, JointDenoiser, Pace, TokenCanvas, diffuse_jointly
from .joint_inputs import (
    JOINT_MODALITIES,
    Avatars,
    GivenClip,
    JointOptions,
    Waveforms,
    asked_modalities,
    clip_tokens,
    each_row,
    gather_clip,
    row_prompts,
    scales_of,
)
from .joint_layout import JointLayout
from .joint_timing import spoken_or_none, timings
from .pipeline_output import UnifiedDiffusionJointPipelineOutput
from .step_hooks import Callback, joint_step_hook, tensor_names
from .text_inputs import LARGEST_SEED, as_texts, row_generators

DEFAULT_SIZE = 256
SPAN = (0.0, 1.0)


class UnifiedDiffusionJointPipeline(CheckpointPipeline):
    """Generates any subset of text, audio, avatar and image from any other, one pass of the network a step.

    Args:
        transformer: the score network, with the modalities "audio" (400 wide) and "avatar" (52 wide).
        scheduler: of tokens.
        speech_scheduler: of sound and face: any of diffusers that takes velocities, with one pass a step.
        tokenizer: fast, of the network.
        vocoder: makes log-mels sound; None: Griffin-Lim.
        vae, image_scheduler: for pictures; without them none are drawn.

    Usage:
        pipe = UnifiedDiffusionJointPipeline.from_pretrained()  # the embedded checkpoint
        pipe(modality=["audio", "avatar"], text="Hello, world!", seed=0).avatar
        pipe("The sea", modality=["text", "audio", "avatar"], duration_s=3.0, seed=0).texts
        pipe(modality="avatar", audio=waveform, seed=0).avatar
    """

    model_cpu_offload_seq = "transformer->vocoder->vae"
    _optional_components = ["vocoder", "vae", "image_scheduler"]
    _callback_tensor_inputs = list(JOINT_MODALITIES)

    def __init__(
        self,
        transformer: UnifiedDiffusionModel,
        scheduler: MaskedDiffusionScheduler,
        speech_scheduler: SchedulerMixin,
        tokenizer: PreTrainedTokenizerFast,
        vocoder: PreTrainedModel | None = None,
        vae: AutoencoderMixin | None = None,
        image_scheduler: SchedulerMixin | None = None,
    ):
        super().__init__()
        widths = {"audio": AudioCodec.width, "avatar": AvatarCodec.width}
        for name, width in widths.items():
            if transformer.config.continuous_width(name) != width:
                spec = transformer.config.modalities.get(name)
                raise ValueError(f"the transformer must have the continuous modality {name!r} of {width}, got {spec}")
        if transformer.config.bos_token_id is None:
            raise ValueError("the transformer must have a bos_token_id, with which every sequence begins, got None")
        self.register_modules(
            transformer=transformer,
            scheduler=scheduler,
            speech_scheduler=speech_scheduler,
            tokenizer=tokenizer,
            vocoder=vocoder,
            vae=vae,
            image_scheduler=image_scheduler,
        )

    @classmethod
    def parts_of(cls, folder: str | Path, **kwargs: Any) -> dict[str, Any]:
        """The arguments of the pipeline from the folder of a model."""
        names = ("transformer", "scheduler", "tokenizer", "speech_scheduler", "vocoder")
        parts = dict(zip(names, (*load_parts(folder, **kwargs), *load_speech_parts(folder)), strict=True))
        if has_image_parts(folder):
            parts["image_scheduler"], parts["vae"] = load_image_parts(folder, kwargs.get("dtype"))
        return parts

    @property
    def durations(self) -> Durations:
        """How long phonemes take: as the checkpoint's metadata says of sound, else of English read aloud."""
        seconds = self.transformer.checkpoint_facts.get("audio", {}).get("seconds_per_class")
        return Durations() if seconds is None else Durations(seconds)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        modality: str | Sequence[str] = ("text", "audio", "avatar"),
        *,
        text: str | list[str] | None = None,
        audio: Waveforms | None = None,
        avatar: Avatars | None = None,
        image: Pictures | None = None,
        duration_s: float | None = None,
        num_text_tokens: int = 32,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 16,
        guidance_scale: float | Mapping[str, float] = 1.0,
        spans: Mapping[str, tuple[float, float]] | None = None,
        seed: int | list[int] | None = None,
        generator: Generator | list[Generator] | None = None,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = (),
        return_dict: bool = True,
    ) -> UnifiedDiffusionJointPipelineOutput | tuple:
        """Generate together.

        Args:
            prompt: what comes before; a list makes a batch. Text goes on from it.
            modality: what to return, of "text", "audio", "avatar" and "image"; what of it is not given is generated.
            text: what is said, one a row or one for all; needs sound or face.
            audio: float in [-1, 1] at 24 kHz, (samples,) or (rows, samples).
            avatar: a track, or coefficients at 20 frames a second, (frames, 52) or (rows, frames, 52).
            image: a picture, see `codecs.pictures`; needs a vae.
            duration_s: of the clip, in (0, 60]; left out it is that of `audio` or `avatar`, else by the length of
                `text`, else 3 s. Rows share it.
            num_text_tokens: of a generated text, at most; it may end earlier.
            height, width: of a generated picture; 256.
            num_inference_steps: passes, each for all modalities.
            guidance_scale: 1 is none; above it closer to all that is given. A mapping says it by modality.
            spans: by modality, the share of the steps in which it is denoised: {"text": (0, 0.5)} has the text ready
                half way. By default all go side by side.
            seed: at least 0, or a list of one per row; asking for one more modality changes no other's noise.
            generator: gives the seed, or a list of one per row; without both torch's global generator gives the seed.
            callback_on_step_end: called as (pipe, step, time, tensors) and returns the tensors, possibly changed; the
                time falls from 1 - 1/steps to 0.
            callback_on_step_end_tensor_inputs: modalities that are generated, as they are at the next time.
            return_dict: False for a tuple.

        Raises:
            ValueError: for an argument that breaks a rule; the message states the rule and the value.

        Usage: `pipe(modality=["audio", "avatar"], text=["Yes.", "No."], guidance_scale=2.0, seed=0)`
        """
        options = JointOptions(
            modality=asked_modalities(modality),
            num_inference_steps=num_inference_steps,
            guidance_scale=scales_of(guidance_scale),
            duration_s=duration_s,
            num_text_tokens=num_text_tokens,
            spans=spans or {},
        )
        device, clip = self._execution_device, gather_clip(text, audio, avatar, AudioCodec())
        pictures = None if image is None else torch.stack(read_pictures("image", image))
        counts = [count for count in (clip.num_rows, None if pictures is None else len(pictures)) if count is not None]
        prompts = row_prompts(prompt, max(counts, default=None))
        layout = self._layout(options, prompts, clip, pictures, (height, width), device)
        given = {*layout.given, *(["text"] if clip.spoken is not None else [])}
        wanted = [name for name in options.modality if name not in given]
        if not wanted:
            raise ValueError(f"modality must hold one that is not given, got {options.modality} with {sorted(given)}")
        names = tensor_names(self, callback_on_step_end, callback_on_step_end_tensor_inputs)
        if not set(names) <= set(wanted):
            raise ValueError(f"callback_on_step_end_tensor_inputs must be generated ones of {wanted}, got {names}")
        generators = row_generators(seed, generator, len(prompts), device)
        canvases = self._canvases(wanted, options, layout, generators)
        scales = options.guidance_scale if layout.guided else None
        denoiser = JointDenoiser(self.transformer, layout.contexts(), scales)
        self._interrupt = False
        with evaluating(self.transformer), self.progress_bar(total=num_inference_steps) as progress:
            hook = joint_step_hook(self, callback_on_step_end, names, canvases, num_inference_steps, progress)
            diffuse_jointly(denoiser, canvases, num_inference_steps, hook)
        made = {canvas.modality: canvas.x_t for canvas in canvases}
        output = self._output(options, prompts, text, clip, layout, made, denoiser.num_passes)
        self.maybe_free_model_hooks()
        return output if return_dict else output.to_tuple()

    def _layout(
        self,
        options: JointOptions,
        prompts: list[str],
        clip: GivenClip,
        pictures: Tensor | None,
        size: tuple[int | None, int | None],
        device: torch.device,
    ) -> JointLayout:
        """Rows, clip and picture of a request in one sequence; ValueError where they do not fit together."""
        rows, bos = len(prompts), self.transformer.config.bos_token_id
        given = {
            name: each_row(part, rows, name)
            for name, part in (("audio", clip.audio), ("avatar", clip.avatar))
            if part is not None
        }
        phonemes, places, grid = None, None, self._grid(options, pictures, size)
        tokens = clip_tokens(options, clip, self.durations)
        if clip.spoken is not None and tokens is not None:
            codec, spoken = PhonemeCodec(self.tokenizer), each_row(clip.spoken, rows, "text")
            phonemes = [codec.encode(each.symbols) for each in spoken]
            places = [phoneme_places(each.symbols, tokens) for each in spoken]
        if pictures is not None:
            given["image"] = each_row(ImageCodec(self.vae).encode(pictures.to(device)), rows, "image")
        guided = any(options.guidance_scale[name] != 1 for name in options.modality)
        conditioned = any(prompts) or phonemes is not None or bool(given)
        ids = [[bos, *row] for row in TextCodec(self.tokenizer).encode(prompts)]
        return JointLayout(ids, tokens, phonemes, places, given, grid, guided and conditioned, bos, device)

    def _grid(
        self, options: JointOptions, pictures: Tensor | None, size: tuple[int | None, int | None]
    ) -> tuple[int, int] | None:
        """Rows and columns of the picture's tokens, None without one; ValueError without a vae."""
        if pictures is None and "image" not in options.modality:
            if size != (None, None):
                raise ValueError(f"height and width must be left out without a picture, got {size}")
            return None
        if self.vae is None or self.image_scheduler is None:
            raise ValueError("a picture needs vae and image_scheduler, got a pipeline without")
        if pictures is not None:
            size = own_size(list(pictures), ImageCodec(self.vae).downsampling)
        return ImageCodec(self.vae).grid(*(DEFAULT_SIZE if side is None else side for side in size))

    def _canvases(
        self, wanted: list[str], options: JointOptions, layout: JointLayout, generators: list[Generator]
    ) -> list[Canvas]:
        """What is generated, as noise; every modality has random numbers of its own."""
        seeds = [int(torch.randint(LARGEST_SEED, (), generator=g, device=g.device)) for g in generators]
        canvases: list[Canvas] = []
        for name in wanted:
            place = JOINT_MODALITIES.index(name)
            own = [spawn_generators(seed, 1, layout.device, first=place)[0] for seed in seeds]
            pace = Pace.of(options.spans.get(name, SPAN), options.num_inference_steps)
            if name == "text":
                count, mask = options.num_text_tokens, self.scheduler.config.mask_token_id
                x_t = torch.full((len(seeds), count), mask, dtype=torch.int64, device=layout.device)
                canvases.append(TokenCanvas(name, x_t, layout.places(name, count), self.scheduler, own, pace))
                continue
            positions = layout.places(name)
            shape = (positions.shape[1], self.transformer.config.modalities[name]["width"])
            scheduler = self.image_scheduler if name == "image" else self.speech_scheduler
            canvases.append(FlowCanvas.noise(name, shape, positions, scheduler, own, pace))
        return canvases

    def _output(
        self,
        options: JointOptions,
        prompts: list[str],
        text: str | list[str] | None,
        clip: GivenClip,
        layout: JointLayout,
        made: dict[str, Tensor],
        num_passes: int,
    ) -> UnifiedDiffusionJointPipelineOutput:
        """Everything decoded, and what is said when."""
        asked, tokens, rows = options.modality, {**layout.given, **made}, len(prompts)
        said = each_row(as_texts("text", text), rows, "text") if text is not None else None
        spoken: list[Pronunciation | None] = [None] * rows
        if clip.spoken is not None:
            spoken = list(each_row(clip.spoken, rows, "text"))
        if "text" in made:
            written = [self._written(ids) for ids in made["text"]]
            said = [before + after for before, after in zip(prompts, written, strict=True)]
            spoken = [spoken_or_none(completion) for completion in written]
        faces = AvatarCodec().decode(tokens["avatar"]).cpu().numpy() if "avatar" in tokens else None
        times = timings(spoken, layout.clip_tokens, faces, self.durations)
        sound = AudioCodec(self.vocoder).decode(tokens["audio"]).cpu().numpy() if "audio" in asked else None
        return UnifiedDiffusionJointPipelineOutput(
            texts=said if "text" in asked else None,
            audio=sound,
            avatar=faces if "avatar" in asked else None,
            images=self._images(tokens["image"], layout.grid) if "image" in asked and layout.grid else None,
            words=None if times is None else [each.words for each in times],
            phonemes=None if times is None else [each.phonemes for each in times],
            visemes=None if times is None else [each.visemes for each in times],
            sampling_rate_hz=None if sound is None else AudioCodec.sampling_rate_hz,
            avatar_rate_hz=AvatarCodec.tokens_per_second if "avatar" in asked else None,
            tokens=made,
            num_forward_passes=num_passes,
        )

    def _images(self, tokens: Tensor, grid: tuple[int, int]) -> list[Image]:
        codec = ImageCodec(self.vae)
        pixels = codec.decode(tokens, *(side * codec.downsampling for side in grid))
        return VaeImageProcessor().postprocess(pixels, "pil")

    def _written(self, ids: Int[Tensor, "length"]) -> str:
        """The text of a canvas up to its end token."""
        end = self.transformer.config.eos_token_id
        ends = end if isinstance(end, list) else [end]
        kept = ids.tolist()
        first = min((i for i, token in enumerate(kept) if token in ends), default=len(kept))
        return TextCodec(self.tokenizer).decode(kept[:first])
