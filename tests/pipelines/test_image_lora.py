"""Adapters on the pipeline that draws: they steer pictures, mix, swap, and each row of a batch may have its own."""

import pytest
import torch

from hf_unified_diffusion import UnifiedDiffusionImagePipeline
from hf_unified_diffusion.conditioning.picture_memory import PictureMemory
from hf_unified_diffusion.schedulers.flow_matching import flow_scheduler
from tests.codecs.vaes import tiny_dc
from tests.tiny import tiny_model, tiny_tokenizer

peft = pytest.importorskip("peft")
# PEFT 0.21 asks transformers 5.24 for a property that it deprecates
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
SMALL = {"height": 32, "width": 64, "num_inference_steps": 2, "guidance_scale": 2.0, "output_type": "latent"}


def drawing_model():
    """A tiny network whose picture head is not zero."""
    model = tiny_model().double()
    torch.nn.init.normal_(model.heads["image"].weight, std=0.2, generator=torch.Generator().manual_seed(0))
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = []
    for seed in range(2):
        adapted = peft.get_peft_model(drawing_model(), peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"]))
        torch.manual_seed(seed)
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter)
        made.append(tmp_path_factory.mktemp(f"adapter{seed}"))
        adapted.save_pretrained(made[-1])
    return made


@pytest.fixture
def pipe(folders):
    pipe = UnifiedDiffusionImagePipeline(drawing_model(), flow_scheduler(), tiny_tokenizer(), tiny_dc(128))
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(folders[0], adapter_name="ink")
    pipe.load_lora_weights(folders[1], adapter_name="oil")
    return pipe


def drawn(pipe, prompt, seed=0, **options):
    return pipe(prompt, generator=[torch.Generator().manual_seed(seed)], **SMALL, **options).images


def test_adapters_steer_pictures_and_leave_no_trace(pipe):
    plain = UnifiedDiffusionImagePipeline(drawing_model(), flow_scheduler(), tiny_tokenizer(), tiny_dc(128))
    plain.set_progress_bar_config(disable=True)
    expected = drawn(plain, "a red apple")
    pipe.set_adapters(["ink", "oil"], [0.7, 0.3])
    mixed = drawn(pipe, "a red apple")
    assert not torch.allclose(mixed, expected, atol=1e-2)
    pipe.fuse_lora()
    torch.testing.assert_close(drawn(pipe, "a red apple"), mixed, atol=1e-5, rtol=1e-5)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    torch.testing.assert_close(drawn(pipe, "a red apple"), expected, atol=1e-6, rtol=1e-6)


def test_each_row_has_its_own_adapter_with_guidance(pipe):
    names = ["oil", None, "ink"]
    generators = [torch.Generator().manual_seed(i) for i in range(3)]
    together = pipe(["a", "b", "c"], adapter_names=names, generator=generators, **SMALL).images
    for row, name in enumerate(names):
        pipe.disable_lora() if name is None else pipe.set_adapters(name)
        torch.testing.assert_close(together[row : row + 1], drawn(pipe, "abc"[row], seed=row), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="adapter_names must be one for each of 2 rows, got 1"):
        pipe(["a", "b"], adapter_names=["ink"], **SMALL)


def test_what_adapters_learned_is_not_led_by_the_checkpoints_own_memory(pipe):
    """Unless it is asked for; without an active adapter it leads again."""
    pipe.picture_memory = PictureMemory.of([["a red apple"]], torch.zeros(1, 2, 128), (1, 2))
    pipe.transformer.checkpoint_facts = {"image": {"own_memory": True, "memory_strength": 1000.0}}
    ways = {
        "active": lambda: pipe.set_adapters("ink"),
        "fused": lambda: pipe.fuse_lora(adapter_names=["ink"]),
    }
    for enter in ways.values():
        enter()
        alone = drawn(pipe, "a red apple", own_memory=False)
        assert torch.equal(drawn(pipe, "a red apple"), alone) and alone.abs().max() > 0.1
        assert drawn(pipe, "a red apple", own_memory=True).abs().max() < 1e-3
    pipe.unfuse_lora()
    rows = drawn(pipe, "a red apple", adapter_names=["oil"])
    assert torch.equal(rows, drawn(pipe, "a red apple", adapter_names=["oil"], own_memory=False))
    pipe.unload_lora_weights()
    assert drawn(pipe, "a red apple").abs().max() < 1e-3
