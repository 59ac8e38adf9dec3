"""Pictures: what is known stays, what is seeded repeats, and no row depends on another."""

import numpy as np
import pytest
import torch
from diffusers import FlowMapEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from PIL import Image

from hf_unified_diffusion.codecs.image_codec import ImageCodec
from hf_unified_diffusion.contracts import Segment
from hf_unified_diffusion.pipelines.image_inputs import per_row
from hf_unified_diffusion.pipelines.pipeline_image import UnifiedDiffusionImagePipeline
from hf_unified_diffusion.processes import GaussianFlow, spawn_generators
from hf_unified_diffusion.schedulers.flow_matching import flow_scheduler
from tests.codecs.vaes import tiny_taesd

SMALL = {"height": 64, "width": 96, "num_inference_steps": 3, "seed": 0}
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))
HALF = Image.new("L", (96, 64))
HALF.paste(255, (0, 0, 40, 64))  # cuts through the second column of tokens


def latents(pipe, *args, **options):
    return pipe(*args, **{**SMALL, "output_type": "latent", **options}).images


def tokens_of(pipe, picture):
    return pipe.codec.encode(torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 127.5 - 1)


@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
def test_it_is_the_flow_of_the_network_after_the_caption(image_pipe, model, guidance_scale):
    """Euler's method written out, with everything computed anew in each step."""
    codec = image_pipe.codec
    x_t = GaussianFlow().prior((1, 6, 128), spawn_generators(0, 1))

    def clean(text, x_t, t):
        ids = torch.tensor([[0, *image_pipe.tokenizer(text)["input_ids"]]])
        rows = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 1, 1], [0, 1, 2]]) + ids.shape[1]
        segments = [Segment("text", ids), Segment("image", x_t, time=t, positions=rows[None].float())]
        return model(segments=segments).predictions[1].float()

    for t, s in zip(image_pipe_times := [1.0, 2 / 3, 1 / 3], [*image_pipe_times[1:], 0.0], strict=True):
        with torch.no_grad():
            time = torch.tensor([t])
            with_it, without = clean("a red apple", x_t, time), clean("a blur", x_t, time)
        x_0 = without + guidance_scale * (with_it - without)
        x_t = x_t + (s - t) * (x_t - x_0) / t
    image_pipe.scheduler = flow_scheduler(use_dynamic_shifting=False)
    avoided = {} if guidance_scale == 1 else {"negative_prompt": "a blur"}
    found = latents(image_pipe, "a red apple", guidance_scale=guidance_scale, **avoided)
    torch.testing.assert_close(found, x_t, atol=1e-4, rtol=1e-4)
    pixels = image_pipe("a red apple", guidance_scale=guidance_scale, **avoided, **SMALL, output_type="pt").images
    torch.testing.assert_close(pixels, codec.decode(found, 64, 96) / 2 + 0.5)


def test_the_caption_is_computed_once(image_pipe):
    lengths = []
    hook = image_pipe.transformer.register_forward_hook(
        lambda module, args, kwargs, output: lengths.append([len(p[0]) for p in output.predictions]), with_kwargs=True
    )
    output = image_pipe("ab", guidance_scale=1.0, **SMALL)
    hook.remove()
    caption = 1 + len(image_pipe.tokenizer("ab")["input_ids"])
    assert lengths == [[caption, 6], [6], [6]] and output.num_forward_passes == 3


def test_same_seed_same_picture(image_pipe):
    first, again = (image_pipe("a red apple", **SMALL).images[0] for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, image_pipe("a red apple", **{**SMALL, "seed": 1}).images[0])
    assert not np.array_equal(first, image_pipe("a blue fish", **SMALL).images[0])
    by_generator = {**SMALL, "seed": None, "generator": spawn_generators(0, 1)}
    assert np.array_equal(first, image_pipe("a red apple", **by_generator).images[0])


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("scheduler", [None, FlowMatchHeunDiscreteScheduler, FlowMapEulerDiscreteScheduler])
def test_a_batch_of_four_is_four_single_pictures(image_pipe, guidance_scale, scheduler):
    if scheduler is not None:
        image_pipe.scheduler = scheduler.from_config(image_pipe.scheduler.config)
    prompts = ["a", "a red apple on a table", "two fish", "x" * 40]
    together = image_pipe(prompts, guidance_scale=guidance_scale, **SMALL, output_type="pt").images
    for row, prompt in enumerate(prompts):
        alone = {**SMALL, "seed": None, "generator": spawn_generators(0, 1, first=row), "output_type": "pt"}
        picture = image_pipe(prompt, guidance_scale=guidance_scale, **alone).images
        torch.testing.assert_close(picture[0], together[row], atol=1e-4, rtol=0)  # 1/255 is a grey level


def test_several_pictures_a_prompt_and_all_kinds_of_output(image_pipe):
    options = {**SMALL, "num_images_per_prompt": 2}
    pictures = image_pipe(["a", "b"], **options).images
    arrays = image_pipe(["a", "b"], **options, output_type="np").images
    tensors = image_pipe(["a", "b"], **options, output_type="pt", return_dict=False)[0]
    assert [picture.size for picture in pictures] == [(96, 64)] * 4
    assert arrays.shape == (4, 64, 96, 3) and tensors.shape == (4, 3, 64, 96)
    for picture, array, tensor in zip(pictures, arrays, tensors, strict=True):
        assert np.array_equal(np.array(picture), (array * 255).round().astype(np.uint8))
        assert np.array_equal(array, tensor.permute(1, 2, 0).numpy())
    assert len({picture.tobytes() for picture in pictures}) == 4
    tokens = image_pipe(["a", "b"], **options, output_type="latent").images
    again = image_pipe.decode(tokens, 64, 96)
    assert [picture.tobytes() for picture in again] == [picture.tobytes() for picture in pictures]


def test_sizes_are_the_checkpoints_unless_told(image_pipe, model):
    assert image_pipe("a", num_inference_steps=1, seed=0).images[0].size == (256, 256)
    told = {"size": 64, "num_inference_steps": 2, "guidance_scale": 2.0, "guidance_interval": [0.9, 1.0]}  # of JSON
    model.checkpoint_facts = {"image": told}
    try:
        output = image_pipe("a", seed=0)
    finally:
        model.checkpoint_facts = {}
    assert output.images[0].size == (64, 64) and output.num_forward_passes == 3  # one of the two steps is guided


def test_strength_zero_is_the_codecs_reconstruction(image_pipe):
    tokens = tokens_of(image_pipe, PICTURE)
    output = image_pipe("anything", image=PICTURE, strength=0.0, num_inference_steps=3)
    (expected,) = image_pipe.decode(tokens, 64, 96)
    assert np.array_equal(output.images[0], expected) and output.num_forward_passes == 0


def test_strength_one_is_drawing_from_nothing(image_pipe):
    assert torch.equal(latents(image_pipe, "a", image=PICTURE), latents(image_pipe, "a"))


@torch.no_grad()
def test_strength_half_starts_from_the_noisy_picture(image_pipe, model):
    """The last of two steps goes to the estimate for the tokens at its time."""
    image_pipe.scheduler = flow_scheduler(use_dynamic_shifting=False)
    half = torch.tensor([0.5])
    x_t = GaussianFlow().corrupt(tokens_of(image_pipe, PICTURE), half, spawn_generators(0, 1))
    context = Segment("text", torch.tensor([[0]]))
    places = torch.tensor([[[1, 1 + row, 1 + column] for row in (0, 1) for column in (0, 1, 2)]]).float()
    expected = model(segments=[context, Segment("image", x_t, time=half, positions=places)]).predictions[1]
    options = {"image": PICTURE, "strength": 0.5, "num_inference_steps": 2, "guidance_scale": 1.0}
    torch.testing.assert_close(latents(image_pipe, **options), expected.float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("scheduler", [None, FlowMatchHeunDiscreteScheduler, FlowMapEulerDiscreteScheduler])
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_inpainting_keeps_what_is_not_masked(image_pipe, scheduler, strength):
    if scheduler is not None:
        image_pipe.scheduler = scheduler.from_config(image_pipe.scheduler.config)
    options = {"image": PICTURE, "mask_image": HALF, "strength": strength, "num_inference_steps": 3, "seed": 0}
    tokens = image_pipe("a", **options, output_type="latent").images.reshape(2, 3, 128)
    own = tokens_of(image_pipe, PICTURE).reshape(2, 3, 128)
    assert torch.equal(tokens[:, 2], own[:, 2])  # the third column has nothing masked
    assert not torch.isclose(tokens[:, :2], own[:, :2]).all(dim=-1).any()
    given, keep = np.array(PICTURE), ~(np.array(HALF) >= 128)
    pasted = np.array(image_pipe("a", **options).images[0])
    assert np.array_equal(pasted[keep], given[keep]) and not np.array_equal(pasted, given)
    plain = np.array(image_pipe("a", **options, paste_unmasked=False).images[0])
    assert np.array_equal(plain[~keep], pasted[~keep])


def test_unmasked_pixels_stay_within_the_codecs_own_error_without_pasting(model, tokenizer):
    """With a codec whose tokens do not see far, what lies far from the mask is the codec's reconstruction."""
    spec, vae = model.config.modalities, tiny_taesd(latent_channels=128)
    pipe = UnifiedDiffusionImagePipeline(model, flow_scheduler(), tokenizer, vae)
    pipe.set_progress_bar_config(disable=True)
    mask = Image.new("L", (96, 64))
    mask.paste(255, (0, 0, 8, 64))
    options = {"image": PICTURE, "num_inference_steps": 2, "seed": 0, "output_type": "pt"}
    drawn = pipe("a", mask_image=mask, paste_unmasked=False, **options).images
    reconstructed = pipe("a", strength=0.0, **options).images
    assert spec["image"]["width"] == 128
    torch.testing.assert_close(drawn[..., 64:], reconstructed[..., 64:], atol=1e-5, rtol=0)
    assert (drawn[..., :8] - reconstructed[..., :8]).abs().mean() > 1e-3


def test_masks_of_all_and_of_nothing(image_pipe):
    whole, nothing = Image.new("L", (96, 64), 255), Image.new("L", (96, 64), 0)
    given = {"image": PICTURE, "seed": 0, "num_inference_steps": 3}
    assert torch.equal(latents(image_pipe, "a", image=PICTURE, mask_image=whole), latents(image_pipe, "a"))
    kept = image_pipe("a", mask_image=nothing, paste_unmasked=False, **given).images[0]
    assert np.array_equal(kept, image_pipe("a", strength=0.0, **given).images[0])


def test_each_row_has_its_own_picture_and_mask(image_pipe):
    other, rest = PICTURE.rotate(180), Image.fromarray(255 - np.array(HALF))
    options = {"num_inference_steps": 2, "output_type": "pt"}
    together = image_pipe(["a", "b"], image=[PICTURE, other], mask_image=[HALF, rest], seed=0, **options).images
    given = ((PICTURE, HALF), (other, rest))
    for row, (prompt, (picture, mask)) in enumerate(zip("ab", given, strict=True)):
        generator = spawn_generators(0, 1, first=row)
        alone = image_pipe(prompt, image=picture, mask_image=mask, generator=generator, **options).images
        torch.testing.assert_close(alone[0], together[row], atol=1e-4, rtol=0)
    assert per_row(torch.tensor([1, 2]), 4).tolist() == [1, 1, 2, 2]


def test_pictures_are_resized_where_a_size_is_given(image_pipe):
    odd = PICTURE.resize((50, 70))
    output = image_pipe("a", image=odd, mask_image=odd.convert("L"), strength=0.5, **SMALL).images[0]
    assert output.size == (96, 64)


def test_a_callback_sees_the_tokens_of_each_step_changes_them_and_interrupts(image_pipe):
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append((step, float(timestep), {name: value.clone() for name, value in tensors.items()}))
        pipe._interrupt = step == 1
        return {"latents": tensors["latents"] * 0 + step}

    names = ("latents", "clean_latents")
    options = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": names}
    final = latents(image_pipe, "a", **options)
    assert [step for step, _, _ in seen] == [0, 1] and (final == 1).all()
    assert seen[0][1] >= 999 and seen[1][1] < 999  # UniPC's names of times are rounded down
    (preview,) = image_pipe.decode(seen[0][2]["clean_latents"], 64, 96)
    assert preview.size == (96, 64)
    free = latents(image_pipe, "a", num_inference_steps=1)
    seen.clear()
    latents(image_pipe, "a", num_inference_steps=1, **options)
    torch.testing.assert_close(seen[0][2]["latents"], free)
    torch.testing.assert_close(seen[0][2]["clean_latents"], free, atol=1e-5, rtol=0)  # one step goes all the way


def test_the_progress_bar_counts_steps(image_pipe, capsys):
    image_pipe.set_progress_bar_config(disable=False)
    image_pipe("a", **SMALL)
    assert "3/3" in capsys.readouterr().err


def test_any_autoencoder_of_the_width_draws(model, tokenizer):
    pipe = UnifiedDiffusionImagePipeline(model, flow_scheduler(), tokenizer, tiny_taesd(latent_channels=128))
    pipe.set_progress_bar_config(disable=True)
    assert ImageCodec(pipe.vae).downsampling == 8
    assert pipe("a", height=16, width=24, num_inference_steps=2, seed=0).images[0].size == (24, 16)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_the_candidate_that_the_caption_says_most_about_is_kept(image_pipe, model, guidance_scale):
    """The rule written out: with the caption less than without, at half the noise, twice."""
    seen = {}

    def watch(pipe, step, timestep, tensors):
        seen["last"] = tensors["latents"]
        return tensors

    options = {"num_candidates": 3, "guidance_scale": guidance_scale}
    kept = latents(image_pipe, "a red apple", callback_on_step_end=watch, **options)
    candidates, generator, losses = seen["last"], torch.Generator().manual_seed(0), 0.0
    rows = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 1, 1], [0, 1, 2]])
    for _ in range(2):
        x_t = (candidates + GaussianFlow().prior((1, 6, 128), generator)) / 2
        for text, sign in (("a red apple", 1), ("", -1)):
            ids = torch.tensor([[0, *(image_pipe.tokenizer(text)["input_ids"] if text else [])]] * 3)
            positions = (rows + ids.shape[1])[None].float().expand(3, -1, -1)
            segments = [Segment("text", ids), Segment("image", x_t, time=torch.full((3,), 0.5), positions=positions)]
            with torch.no_grad():
                guess = model(segments=segments).predictions[1].float()
            losses = losses + sign * (guess - candidates).square().mean(dim=(1, 2))
    assert torch.equal(kept, candidates[losses.argmin()][None])
    assert torch.allclose(candidates[:1], latents(image_pipe, "a red apple", guidance_scale=guidance_scale), atol=1e-5)


def test_candidates_of_a_row_do_not_depend_on_its_batch(image_pipe):
    prompts, options = ["a red apple", "a cat"], {"num_candidates": 2, "num_images_per_prompt": 2, "seed": [3, 4, 5, 6]}
    together = latents(image_pipe, prompts, **options)
    alone = [
        latents(image_pipe, prompt, **options | {"seed": seeds})
        for prompt, seeds in zip(prompts, ([3, 4], [5, 6]), strict=True)
    ]
    assert together.shape[0] == 4 and torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_what_is_known_stays_in_every_candidate(image_pipe):
    options = {"image": PICTURE, "mask_image": HALF, "num_candidates": 2}
    drawn = image_pipe("a red apple", **options, **SMALL, output_type="np").images[0]
    assert np.array_equal(np.round(drawn[:, 64:] * 255), np.array(PICTURE)[:, 64:])
