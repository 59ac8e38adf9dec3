"""ControlNets on pictures: fresh ones change nothing, hints steer, rows are their own, what does not fit is refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_unified_diffusion import UnifiedControlNetModel
from hf_unified_diffusion.training.control_pictures import edges

SMALL = {"height": 64, "width": 32, "num_inference_steps": 3, "output_type": "latent"}
PICTURES = [
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (80, 80, 3), dtype=np.uint8)) for seed in (0, 1)
]


@pytest.fixture(params=["image", None], ids=["modality", "projection"])
def controlnet(request, model):
    width = {"hint_width": 128} if request.param is None else {"hint_modality": "image"}
    return UnifiedControlNetModel.from_transformer(model, num_blocks=1, **width).eval().double()


def trained(controlnet):
    torch.manual_seed(0)
    for residual in controlnet.residuals:
        torch.nn.init.normal_(residual.weight, std=0.5)
    return controlnet


def drawn(pipe, prompt, **options):
    return pipe(prompt, **{**SMALL, "seed": 0, **options}).images


def test_a_fresh_one_changes_nothing_and_a_trained_one_goes_by_its_hint(image_pipe, controlnet):
    plain = drawn(image_pipe, "a red apple")
    assert torch.equal(drawn(image_pipe, "a red apple", controlnet=controlnet, control_image=PICTURES[0]), plain)
    trained(controlnet)
    options = {"controlnet": controlnet, "control_guidance_start": 0.0}
    first, second = (drawn(image_pipe, "a red apple", control_image=hint, **options) for hint in PICTURES)
    assert not torch.allclose(first, plain, atol=1e-2) and not torch.allclose(first, second, atol=1e-3)
    off = drawn(image_pipe, "a red apple", control_image=PICTURES[0], controlnet_conditioning_scale=0.0, **options)
    torch.testing.assert_close(off, plain, atol=1e-6, rtol=1e-6)


def test_rows_have_their_own_hints_and_lie_where_their_captions_end(image_pipe, controlnet):
    trained(controlnet)
    prompts = ["a red apple on a table", "a cup"]
    generators = [torch.Generator().manual_seed(row) for row in range(2)]
    options = {"controlnet": controlnet, "seed": None, "guidance_scale": 2.0}
    together = drawn(image_pipe, prompts, control_image=PICTURES, generator=generators, **options)
    for row in range(2):
        generator = [torch.Generator().manual_seed(row)]
        alone = drawn(image_pipe, prompts[row], control_image=PICTURES[row], generator=generator, **options)
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-4, rtol=1e-4)


def test_several_are_summed_and_bad_input_is_refused(image_pipe, controlnet):
    trained(controlnet)
    once = drawn(image_pipe, "a", controlnet=controlnet, control_image=PICTURES[0], controlnet_conditioning_scale=0.8)
    both = {"controlnet": [controlnet, controlnet], "control_image": [PICTURES[0], PICTURES[0]]}
    torch.testing.assert_close(drawn(image_pipe, "a", controlnet_conditioning_scale=0.4, **both), once)
    for options, rule in (
        ({"controlnet": controlnet}, "must be given together"),
        ({"control_image": PICTURES[0]}, "must be given together"),
        ({"controlnet": controlnet, "control_image": PICTURES}, r"as many as the prompts \(1\), got 2"),
        ({"controlnet": [controlnet], "control_image": PICTURES}, "one hint for each of 1, got 2"),
        ({"controlnet": controlnet, "control_image": "none.png"}, "must be a picture file"),
    ):
        with pytest.raises(ValueError, match=rule):
            drawn(image_pipe, "a", **options)


def test_edges_are_where_colours_change():
    picture = Image.new("RGB", (16, 16), "black")
    picture.paste("white", (8, 0, 16, 16))
    found = np.asarray(edges(picture))
    assert found.shape == (16, 16, 3) and found[4, 8].min() > 200 and found[4, 2].max() == found[4, 13].max() == 0
