"""Adapters on a pipeline: sums of deltas, fusing and undoing it, swapping, and batches whose rows have their own."""

import pytest
import torch

from hf_unified_diffusion import ArrowQuantConfig, MaskedDiffusionScheduler, UnifiedDiffusionTextPipeline
from hf_unified_diffusion.modeling import adapters
from tests.tiny import tiny_model, tiny_tokenizer

peft = pytest.importorskip("peft")
# PEFT 0.21 asks transformers 5.24 for a property that it deprecates
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

IDS = torch.arange(1, 25).reshape(3, 8)
SHORT = {"max_new_tokens": 8, "num_inference_steps": 4, "seed": 0, "temperature": 0.02}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three adapters with weights that matter; the third has other layers."""
    made = []
    for seed, targets in enumerate((["q_proj", "up_proj"], ["q_proj", "up_proj"], ["v_proj"])):
        adapted = peft.get_peft_model(tiny_model(), peft.LoraConfig(r=4, lora_alpha=4 + seed, target_modules=targets))
        torch.manual_seed(seed)
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter)
        made.append(tmp_path_factory.mktemp(f"adapter{seed}"))
        adapted.save_pretrained(made[-1])
    return made


@pytest.fixture
def pipe(folders):
    """In float64, so that a wrong term and rounding cannot be confused; "a" is part of every weight's name."""
    scheduler = MaskedDiffusionScheduler(mask_token_id=257)
    pipe = UnifiedDiffusionTextPipeline(tiny_model().double(), scheduler, tiny_tokenizer())
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(folders[0], adapter_name="a")
    pipe.load_lora_weights(folders[1], adapter_name="b")
    pipe.load_lora_weights(folders[2], adapter_name="c")
    return pipe


def logits(pipe):
    with torch.no_grad():
        return pipe.transformer(IDS).logits


def dense_weights(pipe):
    return {name: value for name, value in pipe.transformer.state_dict().items() if "lora_" not in name}


def deltas(pipe, names):
    """Sum of the named adapters' deltas at weight 1, by layer."""
    total = {}
    for path, layer in pipe.transformer.named_modules():
        if hasattr(layer, "get_delta_weight"):
            found = [layer.get_delta_weight(name).double() * weight for name, weight in names if name in layer.lora_A]
            total[path] = sum(found, torch.zeros_like(layer.base_layer.weight))
    return total


def test_two_adapters_at_weights_are_the_sum_of_deltas(pipe):
    pipe.set_adapters(["a", "b", "c"])
    expected = deltas(pipe, [("a", 0.7), ("b", -0.25), ("c", 2.0)])
    pipe.set_adapters(["a", "b", "c"], [0.7, -0.25, 2.0])
    mixed = logits(pipe)
    plain = tiny_model().double()
    with torch.no_grad():
        for path, delta in expected.items():
            plain.get_submodule(path).weight += delta
        torch.testing.assert_close(mixed, plain(IDS).logits, atol=1e-9, rtol=1e-9)
    assert pipe.get_active_adapters() == ["a", "b", "c"]
    pipe.set_adapters(["b", "a"], 0.5)
    assert pipe.get_active_adapters() == ["b", "a"] and pipe.get_list_adapters() == {"transformer": ["a", "b", "c"]}
    assert not torch.allclose(logits(pipe), mixed, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_fusing_changes_nothing_and_is_undone(pipe, dtype):
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-4}[dtype]
    pipe.transformer.to(dtype)
    pipe.set_adapters(["a", "b"], [0.7, 0.3])
    before, weights = logits(pipe), {name: value.clone() for name, value in dense_weights(pipe).items()}
    pipe.fuse_lora()
    assert pipe.fused_loras == ["a", "b"] and pipe.num_fused_loras == 2
    torch.testing.assert_close(logits(pipe), before, atol=tolerance, rtol=tolerance)
    assert any(not torch.equal(value, weights[name]) for name, value in dense_weights(pipe).items())
    for call in (lambda: pipe.set_adapters("a"), pipe.disable_lora, pipe.fuse_lora, lambda: pipe.delete_adapters("a")):
        with pytest.raises(ValueError, match="must be unfused first"):
            call()
    pipe.unfuse_lora()
    for name, value in dense_weights(pipe).items():
        torch.testing.assert_close(value, weights[name], atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(logits(pipe), before, atol=tolerance, rtol=tolerance)


def test_fused_adapters_stay_when_their_layers_go(pipe):
    pipe.set_adapters("a", 2.0)
    before = logits(pipe)
    pipe.fuse_lora(adapter_names=["a"], lora_scale=1.0)
    pipe.unload_lora_weights()
    assert not adapters.lora_layers(pipe.transformer) and pipe.get_list_adapters() == {}
    torch.testing.assert_close(logits(pipe), before, atol=1e-9, rtol=1e-9)
    assert dense_weights(pipe).keys() == tiny_model().state_dict().keys()


def test_unloading_and_disabling_give_the_model_back(pipe):
    plain = tiny_model().double()(IDS).logits
    pipe.set_adapters(["a", "c"], 0.5)
    on = logits(pipe)
    pipe.disable_lora()
    assert torch.equal(logits(pipe), plain) and pipe.get_active_adapters() == []
    pipe.enable_lora()
    assert torch.equal(logits(pipe), on)
    pipe.delete_adapters("c")
    assert pipe.get_list_adapters() == {"transformer": ["a", "b"]} and pipe.get_active_adapters() == ["a"]
    pipe.set_adapters("a", 0.5)
    pipe.unload_lora_weights()
    assert torch.equal(logits(pipe), plain)
    pipe.unload_lora_weights()


def test_a_hot_swap_keeps_name_weight_and_layers(pipe, folders):
    pipe.set_adapters("b", 0.5)
    expected, layers = logits(pipe), adapters.lora_layers(pipe.transformer)
    pipe.set_adapters("c")
    only_c = logits(pipe)
    pipe.set_adapters("a", 0.5)
    pipe.load_lora_weights(folders[1], adapter_name="a", hotswap=True)
    torch.testing.assert_close(logits(pipe), expected, atol=1e-12, rtol=1e-12)
    assert adapters.lora_layers(pipe.transformer) == layers
    pipe.set_adapters("c")
    assert torch.equal(logits(pipe), only_c)  # others are left alone
    with pytest.raises(ValueError, match="same layers and ranks as 'a'"):
        pipe.load_lora_weights(folders[2], adapter_name="a", hotswap=True)
    pipe.set_adapters("a", 0.5)
    torch.testing.assert_close(logits(pipe), expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(("options", "suffix"), [({}, None), ({"guidance_scale": 2.0}, None), ({}, "yz")])
def test_each_row_of_a_batch_has_its_own_adapter(pipe, options, suffix):
    names = ["a", None, "b", "c"]
    options = {**SHORT, **options, "suffix": suffix, "block_length": 4}
    del options["seed"]
    generators = [torch.Generator().manual_seed(i) for i in range(4)]
    together = pipe(["ab"] * 4, adapter_names=names, generator=generators, **options).texts
    alone = []
    for i, name in enumerate(names):
        pipe.disable_lora() if name is None else pipe.set_adapters(name)
        alone += pipe("ab", generator=[torch.Generator().manual_seed(i)], **options).texts
    assert together == alone and len(set(together)) == 4
    pipe.set_adapters("a")
    again = pipe("ab", generator=[torch.Generator().manual_seed(0)], **options).texts
    assert again == together[:1]  # a batch leaves what is active as it was


def test_checked_drafts_of_rows(pipe):
    options = {**SHORT, "check_drafts": True, "block_length": 4, "num_inference_steps": 2}
    together = pipe(["ab", "ab"], adapter_names=["b", "a"], **options).texts
    pipe.set_adapters("b")
    assert pipe("ab", **options).texts == together[:1] != together[1:]


def test_adapters_on_quantized_weights(folders, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    quantization = ArrowQuantConfig(bits=8, group_size=32)
    scheduler = MaskedDiffusionScheduler(mask_token_id=257)
    model = type(tiny_model()).from_pretrained(tmp_path, quantization_config=quantization)
    pipe = UnifiedDiffusionTextPipeline(model, scheduler, tiny_tokenizer())
    plain = logits(pipe)
    for name, folder in zip("ab", folders, strict=False):
        pipe.load_lora_weights(folder, adapter_name=name)
    pipe.set_adapters(["a", "b"], [0.5, 0.5])
    mixed = logits(pipe)
    pipe.fuse_lora()
    error, size = (logits(pipe) - mixed)[..., :257].std(), (mixed - plain)[..., :257].std()
    assert error < 0.1 * size  # rounding, beside what the adapters do
    pipe.unfuse_lora()
    torch.testing.assert_close(logits(pipe), mixed)


def test_saving_gives_the_same_adapter(pipe, folders, tmp_path):
    pipe.set_adapters("b")
    expected = logits(pipe)
    pipe.save_lora_weights(tmp_path, "b")
    pipe.unload_lora_weights()
    pipe.load_lora_weights(tmp_path)
    assert pipe.get_active_adapters() == ["default_0"]
    torch.testing.assert_close(logits(pipe), expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "rule"),
    [
        (lambda p, f: p.load_lora_weights(f[0], adapter_name="a"), "adapter_name must be new"),
        (lambda p, f: p.load_lora_weights(f[0], hotswap=True), "hotswap needs the adapter_name"),
        (lambda p, f: p.load_lora_weights(f[0], adapter_name="x", hotswap=True), "must be among"),
        (lambda p, f: p.load_lora_weights(f[0] / "none"), "Repo id must be"),
        (lambda p, f: p.set_adapters(["a", "x"]), r"must be among \['a', 'b', 'c'\], got \['x'\]"),
        (lambda p, f: p.set_adapters(["a", "b"], [1.0]), "must be one number or 2 of them, got 1"),
        (lambda p, f: p.fuse_lora(components=["unet"]), "components must be"),
        (lambda p, f: p.unfuse_lora(), "unfusing needs adapters that are fused"),
        (lambda p, f: p("ab", adapter_names=["x"]), "must be among"),
        (lambda p, f: p(["ab", "ac"], adapter_names=["a"]), "adapter_names must be one for each of 2 rows, got 1"),
    ],
)
def test_bad_input(pipe, folders, call, rule):
    with pytest.raises((ValueError, OSError), match=rule):
        call(pipe, folders)
