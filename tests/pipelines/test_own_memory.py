"""A checkpoint that remembers pictures: when its memory leads, and what it leaves alone."""

import json

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Generator
from transformers import pipeline

from hf_unified_diffusion import ArrowEngine, UnifiedDiffusionImagePipeline
from hf_unified_diffusion.codecs.recolouring import in_shades_of
from hf_unified_diffusion.conditioning.picture_memory import PICTURE_MEMORY_NAME, PictureMemory
from hf_unified_diffusion.pipelines.checkpoints import PICTURE_MEMORY, save_image_parts, save_picture_memory

SMALL = {"height": 64, "width": 96, "num_inference_steps": 4, "seed": 0}
CAPTIONS = [["a red apple"], ["a blue car"], ["a green car"]]
PICTURE = Image.new("RGB", (96, 64), "red")


def latents(pipe, *args, **options):
    return pipe(*args, **{**SMALL, "output_type": "latent", **options}).images


@pytest.fixture
def memory(image_pipe):
    tokens = torch.randn(3, 6, image_pipe.codec.width, generator=Generator().manual_seed(0))
    return PictureMemory.of(CAPTIONS, tokens, (2, 3))


@pytest.fixture
def pipe(image_pipe, memory):
    """A pipeline whose checkpoint says that its memory leads."""
    image_pipe.picture_memory = memory
    said = image_pipe.transformer.checkpoint_facts
    image_pipe.transformer.checkpoint_facts = {"image": {"own_memory": True}}
    yield image_pipe
    image_pipe.transformer.checkpoint_facts = said


def test_a_strong_memory_gives_the_picture_back_and_passes_are_saved(pipe, memory):
    apple, car = latents(pipe, ["a red apple", "a blue car"], memory_strength=1000.0)
    torch.testing.assert_close(apple, memory.tokens(torch.tensor([0]))[0], atol=1e-4, rtol=1e-4)
    distances = [(car - one).square().mean() for one in memory.tokens(torch.arange(3))]
    assert min(distances) < 1e-6 and distances[0] > 0.1  # one of the cars, by the seed
    one, without = (
        pipe("a red apple", **SMALL, output_type="latent", **how)
        for how in ({"memory_strength": 1000.0}, {"own_memory": False})
    )
    assert one.num_forward_passes == 0 and without.num_forward_passes == 8


def test_what_is_recalled_leads_as_the_same_pictures_given_do(pipe, memory):
    """By weights of its own; pictures go through 8 bits a number, and tokens of a picture are not exact."""
    recalled = memory.recall("a red apple")
    pixels = pipe.decode(memory.tokens(recalled.places), 64, 96, output_type="np")
    pictures = [list((pixels * 255).round().astype(np.uint8))]
    pipe.picture_memory = PictureMemory.of(
        [CAPTIONS[0]],
        pipe.codec.encode(torch.from_numpy(np.stack(pictures[0])).permute(0, 3, 1, 2) / 127.5 - 1),
        (2, 3),
    )
    led = latents(pipe, "a red apple")
    given = latents(pipe, "a red apple", memory_images=pictures, memory_weights=[recalled.weights.tolist()])
    plain = latents(pipe, "a red apple", own_memory=False)
    assert (led - given).square().mean() < 0.01 * (led - plain).square().mean()


def test_it_leads_only_where_nothing_else_says_what_is_drawn(pipe):
    plain = latents(pipe, "a red apple", own_memory=False)
    led = latents(pipe, "a red apple")
    assert not torch.equal(led, plain) and torch.equal(led, latents(pipe, "a red apple", own_memory=True))
    assert torch.equal(latents(pipe, "a red apple", memory_strength=0), plain)
    assert torch.equal(latents(pipe, "zebra"), latents(pipe, "zebra", own_memory=False))
    assert torch.equal(latents(pipe, "a red apple", memory_images=[[]]), plain)
    assert torch.equal(latents(pipe), latents(pipe, own_memory=False))
    from_picture = {"image": PICTURE, "strength": 0.5}
    assert torch.equal(
        latents(pipe, "a red apple", **from_picture), latents(pipe, "a red apple", **from_picture, own_memory=False)
    )
    assert not torch.equal(
        latents(pipe, "a red apple", **from_picture, own_memory=True), latents(pipe, "a red apple", **from_picture)
    )
    # a checkpoint that does not say so is not led, and rows do not depend on others
    pipe.transformer.checkpoint_facts = {}
    assert torch.equal(latents(pipe, "a red apple"), plain)
    both, neither = (latents(pipe, ["zebra", "a red apple"], own_memory=led) for led in (True, False))
    torch.testing.assert_close(both[0], neither[0])
    assert not torch.allclose(both[1], neither[1], atol=0.1)


def test_a_colour_that_the_caption_does_not_name_is_given_to_what_is_remembered(pipe, memory):
    """At a strength that gives it back: the codec's tokens of the picture in shades of the colour."""
    prompts = ["a blue apple", "a red apple"]
    blue, red = latents(pipe, prompts, memory_strength=1000.0)
    apple = memory.tokens(torch.tensor([0]))
    shaded = in_shades_of(pipe.codec.decode(apple, 64, 96)[0], "blue")
    torch.testing.assert_close(blue, pipe.codec.encode(shaded[None])[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(red, apple[0], atol=1e-4, rtol=1e-4)
    assert torch.equal(blue[None], latents(pipe, prompts[0], memory_strength=1000.0))


def test_what_the_network_draws_by_itself_is_shown_in_the_colour_too(pipe):
    """Where nothing is recalled; rows of other prompts, and all at strength 0, stay as the network draws them."""
    prompts, several = ["a blue zebra", "zebra"], {"num_images_per_prompt": 2}
    found, plain = (latents(pipe, prompts, own_memory=led, **several) for led in (True, False))
    shaded = torch.stack([in_shades_of(picture, "blue") for picture in pipe.codec.decode(plain[:2], 64, 96)])
    torch.testing.assert_close(found[:2], pipe.codec.encode(shaded), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found[:2], plain[:2], atol=0.1) and torch.equal(found[2:], plain[2:])
    assert torch.equal(latents(pipe, prompts, memory_strength=0, **several), plain)
    given = {"image": PICTURE, "strength": 0.5}  # which has colours of its own
    assert torch.equal(latents(pipe, prompts, **given, own_memory=True), latents(pipe, prompts, **given))


def test_other_sizes_are_led_by_the_picture_in_their_size(pipe, memory):
    """At a strength that gives it back: what the codec makes of the resized picture."""
    led = latents(pipe, "a red apple", height=32, width=32, memory_strength=1000.0)
    pixels = pipe.codec.decode(memory.tokens(torch.tensor([0])), 64, 96)
    small = torch.nn.functional.interpolate(pixels, size=(32, 32), mode="bicubic", antialias=True)
    small = small.clamp(pixels.min(), pixels.max())
    torch.testing.assert_close(led, pipe.codec.encode(small), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "a", "memory_images": [[PICTURE]]}, "no memory_images, got memory_images"),
        ({"prompt": None}, "needs a checkpoint with a memory of pictures and a prompt, .* got no prompt"),
        ({"prompt": "a", "memory_strength": -1.0}, "memory_strength must be a finite number .* got -1.0"),
    ],
)
def test_what_cannot_be_is_refused(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        latents(pipe, **options, own_memory=True)
    pipe.picture_memory = None
    with pytest.raises(ValueError, match="own_memory needs a checkpoint .* got no memory"):
        latents(pipe, "a red apple", own_memory=True)


def test_a_memory_of_another_codec_is_refused(pipe):
    pipe.picture_memory = PictureMemory.of([["a"], ["b c"]][1:], torch.zeros(1, 6, 5), (2, 3))
    with pytest.raises(ValueError, match="the memory's tokens must have the codec's 128 numbers, got 5"):
        latents(pipe, "b")


def test_by_every_door_it_leads(pipe, memory, tmp_path):
    expected = pipe("a red apple", **SMALL).images[0]
    model = tmp_path / "model"
    for part in (pipe.transformer, pipe.tokenizer):
        part.save_pretrained(model)
    metadata = json.loads((model / "metadata.json").read_text())
    (model / "metadata.json").write_text(json.dumps({**metadata, "image": {"own_memory": True}}))
    save_image_parts(model, pipe.scheduler, pipe.vae)
    save_picture_memory(model, memory)
    assert (model / PICTURE_MEMORY / PICTURE_MEMORY_NAME).is_file()

    def same(picture):
        return np.abs(np.array(picture, dtype=np.int16) - np.array(expected)).max() <= 1

    loaded = UnifiedDiffusionImagePipeline.from_pretrained(model)
    assert same(loaded("a red apple", **SMALL).images[0])
    loaded.save_pretrained(tmp_path / "pipeline")
    for cls in (DiffusionPipeline, UnifiedDiffusionImagePipeline):
        again = cls.from_pretrained(tmp_path / "pipeline")
        assert same(again("a red apple", own_memory=True, **SMALL).images[0])
    task = pipeline("unified-diffusion", model=str(model))
    assert same(task("a red apple", modality="image", **SMALL)[0]["generated_image"])
    task.save_pretrained(tmp_path / "task")
    assert PictureMemory.load(tmp_path / "task" / PICTURE_MEMORY / PICTURE_MEMORY_NAME).captions == memory.captions
    engine = ArrowEngine.from_pretrained(model)
    sizes = {name: SMALL[name] for name in ("height", "width", "seed")}
    assert same(engine.diffuse("a red apple", modality="image", num_steps=4, **sizes))
    assert not same(engine.diffuse("a red apple", modality="image", num_steps=4, own_memory=False, **sizes))
    engine.close()
