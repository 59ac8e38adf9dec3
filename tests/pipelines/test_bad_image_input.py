"""What breaks a rule is refused with the rule and the value, before any pass."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from hf_unified_diffusion.pipelines.pipeline_image import UnifiedDiffusionImagePipeline
from hf_unified_diffusion.schedulers.flow_matching import flow_scheduler
from hf_unified_diffusion.schedulers.scheduling_masked_diffusion import MaskedDiffusionScheduler
from tests.codecs.vaes import tiny_kl

PICTURE = Image.new("RGB", (96, 64))
BAD = [
    ({"height": 100, "width": 96}, "height must be a positive multiple of 32, got 100"),
    ({"height": 96, "width": -32}, "width must be a positive multiple of 32, got -32"),
    ({"height": 96, "width": 96.0}, "width must be a positive multiple of 32, got 96.0"),
    ({"height": 96}, "height and width must be given together, got 96 and None"),
    ({"height": 512, "width": 512}, "a picture must have fewer than 256 tokens of 32 x 32 pixels, got 512 x 512"),
    ({"height": 10**6, "width": 32 * 10**6, "image": PICTURE}, "a picture must have fewer than 256 tokens"),
    ({"num_inference_steps": 0}, "num_inference_steps must be an integer of at least 1, got 0"),
    ({"num_inference_steps": 2.5}, "num_inference_steps must be an integer of at least 1, got 2.5"),
    ({"num_images_per_prompt": 0}, "num_images_per_prompt must be an integer of at least 1, got 0"),
    ({"guidance_scale": math.nan}, "guidance_scale must be a finite number of at least 0, got nan"),
    ({"guidance_scale": -1.0}, "guidance_scale must be a finite number of at least 0, got -1.0"),
    ({"guidance_interval": (0.6, 0.5)}, r"guidance_interval must be .* got \(0.6, 0.5\)"),
    ({"guidance_scale": 1.0, "negative_prompt": "x"}, "guidance_scale must not be 1 with a negative_prompt, got 1"),
    ({"image": PICTURE, "strength": math.nan}, r"strength must be a number in \[0, 1\], got nan"),
    ({"image": PICTURE, "strength": 1.5}, r"strength must be a number in \[0, 1\], got 1.5"),
    ({"image": PICTURE, "strength": "half"}, r"strength must be a number in \[0, 1\], got 'half'"),
    ({"strength": 0.5}, "strength must be left out without an image, got 0.5"),
    ({"output_type": "jpeg"}, "output_type must be one of .* got 'jpeg'"),
    ({"prompt": []}, "prompt must hold at least one string, got an empty list"),
    ({"prompt": 3}, "prompt must be a string or a list of strings, got int"),
    ({"prompt": "x y " * 200}, r"prompt and picture must fit the context of 256 tokens, got \d+ \+ 64 tokens"),
    ({"negative_prompt": "x y " * 200}, r"negative_prompt and picture must fit the context of 256 tokens, got \d+"),
    ({"negative_prompt": ["x", "y"]}, r"negative_prompt must be one string or as many as the prompts \(1\), got 2"),
    ({"mask_image": PICTURE}, "mask_image must come with an image"),
    ({"image": PICTURE, "mask_image": Image.new("L", (64, 96))}, "of the size of the image, 64 x 96, got 96 x 64"),
    (
        {"image": PICTURE, "mask_image": [Image.new("L", (96, 64))] * 2},
        r"one mask or as many as the images \(1\), got 2",
    ),
    ({"image": Image.new("RGB", (97, 64))}, "multiples of 32, got 64 x 97; with height and width they are resized"),
    ({"image": [PICTURE, Image.new("RGB", (64, 64))]}, "must have one size, of multiples of 32, got 64 x 64"),
    (
        {"prompt": ["a"] * 3, "image": [PICTURE] * 2},
        r"image must be one picture or as many as the prompts \(3\), got 2",
    ),
    ({"image": "no/such/file.png"}, "image must be a picture file, got 'no/such/file.png', which is none"),
    ({"image": np.zeros((64, 96, 3), dtype=np.int32)}, "image must be .* got dtype int32"),
    ({"image": torch.full((3, 64, 96), math.nan)}, r"floats of image must be in \[0, 1\], got values from nan to nan"),
    ({"image": PICTURE, "mask_image": np.zeros((64, 96, 3))}, r"mask_image must be an array .* got \(64, 96, 3\)"),
    ({"memory_images": PICTURE}, "memory_images must be a list of pictures for each of 1 prompts, got Image"),
    ({"memory_images": [PICTURE]}, "memory_images must be a list of pictures for each of 1 prompts, got list"),
    ({"memory_images": [[PICTURE], []]}, "memory_images must be a list of pictures for each of 1 prompts, got 2 lists"),
    ({"memory_images": [["no.png"]]}, "memory_images must be a picture file, got 'no.png', which is none"),
    ({"memory_images": [[PICTURE]], "memory_weights": [[1, 1]]}, r"one for each picture, \[1\], got \[2\]"),
    (
        {"memory_images": [[PICTURE]], "memory_weights": [[-1.0]]},
        "memory_weights must be a finite number .* got -1.0",
    ),
    ({"memory_images": [[PICTURE]], "memory_weights": [["x"]]}, "memory_weights must be a finite number .* got 'x'"),
    ({"memory_weights": [[1.0]]}, "memory_weights must come with memory_images"),
    ({"num_candidates": 0}, "num_candidates must be an integer of at least 1, got 0"),
    ({"num_candidates": 2, "prompt": None}, "num_candidates must be 1 without a prompt, got 2"),
    ({"memory_images": [[PICTURE]], "memory_strength": math.inf}, "memory_strength must be a finite number .* got inf"),
    ({"seed": -1}, "seed must be at least 0, got -1"),
    ({"generator": [torch.Generator()] * 2}, r"a list of generators must have one per row \(1\), got 2"),
    ({"callback_on_step_end": print, "callback_on_step_end_tensor_inputs": ["logits"]}, r"got \['logits'\]"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_refused_before_any_pass(image_pipe, monkeypatch, options, message):
    monkeypatch.setattr(type(image_pipe.transformer), "forward", lambda *args, **kwargs: pytest.fail("a pass was made"))
    with pytest.raises(ValueError, match=message):
        image_pipe(**{"prompt": "x", "num_inference_steps": 1, **options})


def test_callbacks_that_change_shapes_are_refused(image_pipe):
    options = {"height": 64, "width": 64, "num_inference_steps": 1}
    with pytest.raises(ValueError, match="a callback's latents must stay torch.float32"):
        image_pipe("x", callback_on_step_end=lambda pipe, step, t, tensors: {"latents": torch.zeros(1)}, **options)


def test_parts_that_do_not_fit_are_refused(model, tokenizer, vae, image_pipe):
    with pytest.raises(ValueError, match="modality 'image' with the 4 channels of the vae, got .*'width': 128"):
        UnifiedDiffusionImagePipeline(model, flow_scheduler(), tokenizer, tiny_kl())
    image_pipe.scheduler = MaskedDiffusionScheduler(mask_token_id=350)
    with pytest.raises(ValueError, match="scheduler must be one of flow matching.* got MaskedDiffusionScheduler"):
        image_pipe("x", height=64, width=64)


def test_decode_checks_tokens_and_kind(image_pipe):
    with pytest.raises(ValueError, match=r"tokens of 64 x 64 pixels must be float \(batch, 4, 128\), got"):
        image_pipe.decode(torch.zeros(1, 6, 128), 64, 64)
    with pytest.raises(ValueError, match="output_type must be one of .* got 'latent'"):
        image_pipe.decode(torch.zeros(1, 4, 128), 64, 64, output_type="latent")
