"""Pictures by flow matching: from a caption, from another picture, or into a masked part of one."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import SchedulerMixin
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.autoencoders.vae import AutoencoderMixin
from jaxtyping import Float
from PIL.Image import Image
from torch import Generator, Tensor
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from ..codecs.image_codec import ImageCodec
from ..codecs.picture_positions import image_positions
from ..codecs.pictures import Picture, Pictures
from ..codecs.text_codec import TextCodec, pad_right
from ..conditioning.guidance import guided, guided_within, keeping
from ..conditioning.picture_memory import PictureMemory
from ..contracts import Denoiser
from ..modeling.controlnet import UnifiedControlNetModel
from ..modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from ..schedulers.flow_matching import FLOW, FlowRun, plan_flow
from .candidates import best_of_each, candidate_generators, excess_losses
from .checkpoint_pipeline import CheckpointPipeline
from .checkpoints import load_image_parts, load_parts, load_picture_memory, save_picture_memory
from .context_denoiser import ContextDenoiser, evaluating
from .control_inputs import ControlInput, gather_controls
from .diffusion_core import AfterStep, diffuse
from .image_inputs import (
    OUTPUT_TYPES,
    CaptionRows,
    GivenPictures,
    ImageOptions,
    asked_size,
    check_room,
    gather_captions,
    gather_pictures,
    picture_hints,
)
from .lora import LoraMixin, row_adapters
from .pipeline_hub import PushPipelineMixin
from .pipeline_output import UnifiedDiffusionImagePipelineOutput
from .remembered_pictures import RememberedPictures, gather_remembered, in_shades_asked_for, recalled_pictures
from .step_hooks import Callback, image_step_hook, tensor_names
from .text_inputs import check_choice, per_row, row_generators

logger = logging.get_logger(__name__)
SCORED_TIMES = (0.5, 0.5)  # where captions decide most; two draws of the noise


class UnifiedDiffusionImagePipeline(LoraMixin, PushPipelineMixin, CheckpointPipeline):
    """Draws pictures with a `UnifiedDiffusionModel`.

    Args:
        transformer: the score network.
        scheduler: any of diffusers that takes the velocities of a flow: `FlowMatchEulerDiscreteScheduler`,
            `FlowMatchHeunDiscreteScheduler`, `UniPCMultistepScheduler` set as in `picture_scheduler()`, ...
        tokenizer: fast, of the network.
        vae: any autoencoder of diffusers for pictures whose tokens have the network's width.

    Usage:
        pipe = UnifiedDiffusionImagePipeline.from_pretrained()  # the embedded checkpoint
        pipe("a red apple", height=256, width=256, seed=0).images[0].save("apple.png")
        pipe("a green apple", image="apple.png", strength=0.6, seed=0).images[0]
        pipe("a worm", image="apple.png", mask_image="mask.png", seed=0).images[0]
    """

    modality = "image"
    # where neither the call nor the checkpoint's metadata says otherwise
    defaults: ClassVar[dict[str, Any]] = {
        "num_inference_steps": 10,
        "guidance_scale": 3.0,
        "guidance_interval": (0.0, 1.0),
        "size": 256,
        "own_memory": False,
        "memory_strength": 1.0,
    }
    _memories: tuple[PictureMemory | None] | None = None  # None: nobody has looked yet
    model_cpu_offload_seq = "transformer->vae"
    _callback_tensor_inputs = ["latents", "clean_latents"]

    def __init__(
        self,
        transformer: UnifiedDiffusionModel,
        scheduler: SchedulerMixin,
        tokenizer: PreTrainedTokenizerFast,
        vae: AutoencoderMixin,
    ):
        super().__init__()
        width = ImageCodec(vae).width
        if transformer.config.continuous_width(self.modality) != width:
            raise ValueError(
                f"the transformer must have the continuous modality {self.modality!r} with the {width} channels of the "
                f"vae, got {transformer.config.modalities.get(self.modality)}"
            )
        if transformer.config.bos_token_id is None:
            raise ValueError("the transformer must have a bos_token_id, with which every caption begins, got None")
        self.register_modules(transformer=transformer, scheduler=scheduler, tokenizer=tokenizer, vae=vae)

    @classmethod
    def parts_of(cls, folder: str | Path, **kwargs: Any) -> dict[str, Any]:
        """The arguments of the pipeline from the folder of a model."""
        scheduler, vae = load_image_parts(folder, kwargs.get("dtype"))
        transformer, _, tokenizer = load_parts(folder, **kwargs)
        return {"transformer": transformer, "scheduler": scheduler, "tokenizer": tokenizer, "vae": vae}

    @property
    def picture_memory(self) -> PictureMemory | None:
        """What the checkpoint remembers of pictures, of its local folder; one of your own may be put in, or None."""
        if self._memories is None:
            folders = (self.config.get("_name_or_path"), self.transformer.config._name_or_path)
            found = (load_picture_memory(folder) for folder in folders if folder)
            self._memories = (next((memory for memory in found if memory is not None), None),)
        return self._memories[0]

    @picture_memory.setter
    def picture_memory(self, memory: PictureMemory | None) -> None:
        self._memories = (memory,)

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """As diffusers does, and the memory of pictures beside, if there is one."""
        super().save_pretrained(save_directory, *args, **kwargs)
        save_picture_memory(save_directory, self.picture_memory)

    @property
    def codec(self) -> ImageCodec:
        """The autoencoder, between pixels and tokens."""
        return ImageCodec(self.vae)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        negative_prompt: str | list[str] | None = None,
        image: Pictures | None = None,
        mask_image: Pictures | None = None,
        strength: float = 1.0,
        paste_unmasked: bool = True,
        num_images_per_prompt: int = 1,
        num_candidates: int = 1,
        controlnet: UnifiedControlNetModel | Sequence[UnifiedControlNetModel] | None = None,
        control_image: Pictures | Sequence[Pictures] | None = None,
        controlnet_conditioning_scale: float | Sequence[float] = 1.0,
        control_guidance_start: float | Sequence[float] = 0.0,
        control_guidance_end: float | Sequence[float] = 1.0,
        memory_images: Sequence[Sequence[Picture]] | None = None,
        memory_weights: Sequence[Sequence[float]] | None = None,
        memory_strength: float | None = None,
        own_memory: bool | None = None,
        adapter_names: Sequence[str | None] | None = None,
        seed: int | list[int] | None = None,
        generator: Generator | list[Generator] | None = None,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> UnifiedDiffusionImagePipelineOutput | tuple:
        """Draw.

        Args:
            prompt: the caption; None draws anything. A list makes a batch; a row does not depend on its batch.
            height, width: pixels, multiples of the codec's downsampling; by default those of `image`, else what the
                checkpoint says, 256. Give both to have `image` and `mask_image` resized.
            num_inference_steps: None: what the checkpoint says, 10 by default. Heun's method asks the network twice for
                each.
            guidance_scale: 1 is none, above it away from `negative_prompt` (or from no prompt), with twice the passes.
                None: what the checkpoint says, 3 by default.
            guidance_interval: the lowest and the highest noise level in [0, 1] at which guidance acts; other steps take
                one pass (arXiv:2404.07724). None: what the checkpoint says, by default all levels.
            negative_prompt: what to avoid, one or as many as the prompts; needs guidance.
            image: what to start from, one or as many as the prompts; see `codecs.pictures`.
            mask_image: white where `image` is to be drawn anew; one or as many as the images.
            strength: share of the steps that `image` goes through, in [0, 1]; 0 gives the codec's reconstruction.
            paste_unmasked: give the pixels of `image` itself where the mask is black. False: as the codec decodes them,
                from tokens that are those of `image` wherever nothing of their square is masked.
            num_images_per_prompt: pictures per prompt, one after the other.
            num_candidates: so many are drawn of each picture, and the one is kept that the network itself finds
                likeliest given the prompt: its denoising loss with the prompt less that without (with `negative_prompt`
                where there is one). Callbacks see all.
            controlnet: one or several that were made for the transformer, their hints pictures; what they add is
                summed. With guidance they act on the branch of the prompt.
            control_image: the hint, edges say, in any size: one picture or as many as the prompts; a list of these
                where there are several ControlNets.
            controlnet_conditioning_scale: the weight of what it adds; one for all, or a list.
            control_guidance_start, control_guidance_end: when it acts, in shares of the noise removed; or lists.
            memory_images: for each prompt a list of pictures that lead what is drawn, most where the noise is strong
                (see `conditioning.remembered`); they may be of any size, and a list may be empty.
            memory_weights: how likely each of them is beforehand; by default all the same.
            memory_strength: 0 is as without, bit for bit; at 1 the memory alone decides the first half of a picture,
                and at 10 nearly all of it. None: what the checkpoint says, 1 by default.
            own_memory: whether, where no `memory_images` are given, what `picture_memory` recalls for a prompt leads
                its picture, in shades of the colour that the prompt gives its noun; of a noun that it does not know,
                what is drawn without it is shown in these shades. None: what the checkpoint says, for pictures that
                follow nothing but a prompt: no `image`, ControlNet or LoRA adapter.
            adapter_names: for each prompt the loaded LoRA adapter that it alone has, None for none; by default all have
                those of `set_adapters`.
            seed: at least 0; row i always draws the same noise from a seed. A list has one a row.
            generator: gives the seed, or a list of one per row; without both torch's global generator gives the seed.
            callback_on_step_end: called as (pipe, step, timestep, tensors) and returns the tensors, `latents` possibly
                changed; `pipe.decode(tensors["clean_latents"], height, width)` is a preview.
            callback_on_step_end_tensor_inputs: of "latents", the tokens at the next time, and "clean_latents", the
                estimate of the clean ones, float32 (B, tokens, width).
            output_type: "pil"; "np" and "pt", float32 in [0, 1]; or "latent" for tokens.
            return_dict: False for a tuple.

        Raises:
            ValueError: for an argument that breaks a rule; the message states the rule and the value.

        Usage: `pipe(["a red apple", "two blue fish"], guidance_scale=3.0, seed=0).images`
        """
        options = ImageOptions(
            num_inference_steps=self._chosen("num_inference_steps", num_inference_steps),
            guidance_scale=self._chosen("guidance_scale", guidance_scale),
            guidance_interval=self._chosen("guidance_interval", guidance_interval),
            num_images_per_prompt=num_images_per_prompt,
            strength=strength,
            output_type=output_type,
            num_candidates=num_candidates,
        )
        if prompt is None and num_candidates > 1:
            raise ValueError(f"num_candidates must be 1 without a prompt, got {num_candidates}: nothing to choose by")
        if negative_prompt is not None and options.guidance_scale == 1:
            raise ValueError("guidance_scale must not be 1 with a negative_prompt, got 1: it would do nothing")
        if image is None and strength != 1:
            raise ValueError(f"strength must be left out without an image, got {strength}")
        device, codec, config = self._execution_device, self.codec, self.transformer.config
        most = config.max_position_embeddings
        size = asked_size(height, width, codec, most)
        given = gather_pictures(image, mask_image, size, codec)
        if given is not None:
            size = given.size
        elif size is None:
            size = (self._chosen("size"),) * 2
        grid = codec.grid(*size)
        num_given = 1 if given is None else len(given.pixels)
        repeats = num_images_per_prompt * num_candidates
        rows = gather_captions(
            TextCodec(self.tokenizer), prompt, negative_prompt, num_given, repeats, config.bos_token_id
        )
        row_names = row_adapters(self.transformer, adapter_names, len(rows), repeats)
        check_room(rows, math.prod(grid), most)
        starts = torch.tensor([len(ids) for ids in rows.caption_ids], dtype=torch.float32)
        positions = image_positions(*grid, start=0) + starts[:, None, None]
        hints = picture_hints(controlnet, control_image, size, codec, positions, repeats)
        ranges = controlnet_conditioning_scale, control_guidance_start, control_guidance_end
        counts = len(rows), repeats, config.bos_token_id, device
        controls = gather_controls(controlnet, hints, *ranges, TextCodec(self.tokenizer), *counts)
        lead = self._chosen("memory_strength", memory_strength)
        given_memory = None if memory_images is memory_weights is None else (memory_images, memory_weights)
        adapted = row_names is not None or bool(self.get_active_adapters() or self.fused_loras)
        free = image is None and controlnet is None and not adapted
        asked = self._asked_memory(own_memory, prompt, given_memory, free)
        recalled = [] if asked is None else [asked.recall(each) for each in rows.prompts]
        if asked is None:
            told = memory_images, memory_weights, lead
            remembered = gather_remembered(*told, size, codec, len(rows) // repeats, repeats)
        else:
            remembered = recalled_pictures(asked, recalled, lead, size, codec, repeats)
        own = row_generators(seed, generator, len(rows) // num_candidates, device)
        generators = [each for one in own for each in candidate_generators(one, num_candidates)]
        names = tensor_names(self, callback_on_step_end, callback_on_step_end_tensor_inputs)
        run = plan_flow(self.scheduler, options.num_inference_steps, math.prod(grid), strength, generators, device)
        self._interrupt = False
        with evaluating(self.transformer), evaluating(self.vae), self.progress_bar(total=len(run.times)) as progress:
            hook = image_step_hook(self, callback_on_step_end, names, run.timesteps, progress)
            latents, passes = self._draw(
                rows, grid, given, options, run, hook, device, (controls, row_names, remembered)
            )
            if recalled and lead > 0 and image is None:  # a picture that was given keeps its colours
                latents = in_shades_asked_for(latents, recalled, size, codec)
            images = latents
            if output_type != "latent":
                pixels = self.codec.decode(latents, *size)
                if paste_unmasked and given is not None:
                    pixels = given.pasted_around(pixels)
                images = self._shown(pixels, output_type)
        self.maybe_free_model_hooks()
        output = UnifiedDiffusionImagePipelineOutput(images=images, num_forward_passes=passes)
        return output if return_dict else (images,)

    @torch.no_grad()
    def decode(
        self, latents: Float[Tensor, "batch tokens width"], height: int, width: int, output_type: str = "pil"
    ) -> list[Image] | np.ndarray | Tensor:
        """Pictures from tokens, as `__call__` gives them.

        Raises:
            ValueError: for tokens or sizes that do not fit, or an unknown `output_type`.

        Usage: `pipe.decode(pipe(seed=0, output_type="latent").images, 256, 256)[0]`
        """
        check_choice("output_type", output_type, OUTPUT_TYPES[:-1])
        return self._shown(self.codec.decode(latents, height, width), output_type)

    def _asked_memory(
        self, own_memory: bool | None, prompt: object, given_memory: object, free: bool
    ) -> PictureMemory | None:
        """The checkpoint's memory where it is to lead; ValueError where it cannot.

        Args:
            free: whether nothing but the prompt says what is to be drawn.
        """
        if own_memory is None:
            if not (free and prompt is not None and given_memory is None and self._chosen("own_memory")):
                return None
            if self.picture_memory is None:
                logger.warning_once("This checkpoint draws after a memory of pictures, which is not beside it here.")
            return self.picture_memory
        if not own_memory:
            return None
        if self.picture_memory is None or prompt is None or given_memory is not None:
            raise ValueError(
                "own_memory needs a checkpoint with a memory of pictures and a prompt, and no memory_images, got "
                f"{'no memory' if self.picture_memory is None else 'no prompt' if prompt is None else 'memory_images'}"
            )
        return self.picture_memory

    def _draw(
        self,
        rows: CaptionRows,
        grid: tuple[int, int],
        given: GivenPictures | None,
        options: ImageOptions,
        run: FlowRun,
        after_step: AfterStep,
        device: torch.device,
        steering: tuple[Sequence[ControlInput], list[str] | None, RememberedPictures | None],
    ) -> tuple[Float[Tensor, "batch tokens width"], int]:
        """The tokens of each row's picture, and the passes it took."""
        controls, adapter_names, remembered = steering
        contexts = [self._context(rows.caption_ids, grid, device, adapter_names, controls)]
        denoiser: Denoiser = contexts[0]
        if options.guidance_scale != 1:
            contexts.append(self._context(rows.negative_ids, grid, device, adapter_names))
            steered = guided(contexts[0], contexts[1], options.guidance_scale)
            denoiser = guided_within(options.guidance_interval, steered, contexts[0])
        if remembered is not None:
            denoiser = remembered.steer(denoiser, device)
        known = None
        if given is None:
            x_t = FLOW.prior((len(rows), math.prod(grid), self.codec.width), run.generators).to(device)
        else:
            x_t = x_0 = per_row(self.codec.encode(given.pixels).to(device), len(rows))
            if len(run.times):
                x_t = FLOW.corrupt(x_0, run.times[:1].expand(len(rows)), run.generators)
            known = given.known_tokens(self.codec.downsampling)
        if known is not None:
            known = per_row(known.to(device), len(rows))
            denoiser = keeping(denoiser, x_0, known)
        x_t = diffuse(denoiser, run.step, x_t, run.times, after_step=after_step)
        if known is not None:  # what rounding and callbacks did to them
            x_t = torch.where(known[..., None], x_0, x_t)
        if options.num_candidates > 1:
            if len(contexts) == 1:
                contexts.append(self._context(rows.negative_ids, grid, device, adapter_names))
            losses = excess_losses(contexts[0], contexts[1], list(x_t), SCORED_TIMES)
            x_t = x_t[best_of_each(losses, options.num_candidates)]
        return x_t, sum(context.num_passes for context in contexts)

    def _context(
        self,
        ids: list[list[int]],
        grid: tuple[int, int],
        device: torch.device,
        adapter_names: list[str] | None,
        controls: Sequence[ControlInput] = (),
    ) -> ContextDenoiser:
        """A denoiser of pictures after their captions, which the first pass computes for all."""
        context = ContextDenoiser(self.transformer, self.modality, context_modality="text", adapter_names=adapter_names)
        for control in controls:
            context = control.apply(context)
        context.remember(*pad_right(ids, self.transformer.config.bos_token_id, device))
        starts = torch.tensor([len(row) for row in ids], dtype=torch.float32)
        context.place((image_positions(*grid, start=0) + starts[:, None, None]).to(device))
        return context

    def _shown(
        self, pixels: Float[Tensor, "batch 3 height width"], output_type: str
    ) -> list[Image] | np.ndarray | Tensor:
        return VaeImageProcessor().postprocess(pixels, output_type)
