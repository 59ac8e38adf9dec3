"""LoRA on quantized layers: it trains, is saved and loaded, and merges within the error of quantization."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from hf_unified_diffusion.modeling.parquet_weights import ParquetWeightsMixin
from hf_unified_diffusion.quantization import ArrowQuantConfig, dequantize, quantize_model, register

peft = pytest.importorskip("peft")
register()
# PEFT 0.21 asks transformers 5.23 for a property that it deprecates
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
IDS = torch.arange(18).view(2, 9) * 7


class Llama(ParquetWeightsMixin, LlamaForCausalLM):
    """A transformers model with Parquet folders."""


@pytest.fixture(params=[4, 8])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    shape = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3}
    config = LlamaConfig(**shape, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False)
    quantize_model(Llama(config), ArrowQuantConfig(bits=request.param)).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def adapted(folder: Path) -> "peft.PeftModel":
    torch.manual_seed(1)
    config = peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj", "up_proj", "down_proj"])
    return peft.get_peft_model(Llama.from_pretrained(folder), config)


def train(model: "peft.PeftModel", steps: int = 12) -> list[float]:
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=IDS, labels=IDS).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def answer(model: torch.nn.Module) -> Tensor:
    return model.eval()(input_ids=IDS).logits


def test_adapters_train_on_a_frozen_packed_base(folder: Path) -> None:
    model = adapted(folder)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if "lora" not in name}
    losses = train(model)
    assert losses[-1] < 0.9 * losses[0]
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def test_an_adapter_folder_finds_its_parquet_base(folder: Path) -> None:
    model = adapted(folder)
    train(model)
    model.save_pretrained(folder.parent / "adapter")
    for loaded in (
        peft.PeftModel.from_pretrained(Llama.from_pretrained(folder), folder.parent / "adapter"),
        Llama.from_pretrained(folder.parent / "adapter"),
    ):
        assert torch.equal(answer(loaded), answer(model))


def test_merged_weights_are_the_sum_within_half_a_step(folder: Path) -> None:
    model = adapted(folder)
    train(model)
    layer = model.base_model.model.model.layers[1].mlp.up_proj
    base = layer.get_base_layer()
    wanted = base.dequantized(torch.float32) + layer.get_delta_weight("default").detach()
    layer.merge()
    restored = dequantize(base.weight, base.weight_scale, base.bits)
    step = base.weight_scale.float().repeat_interleave(64 // base.weight_scale.shape[1], dim=1)
    error = (restored - wanted).abs()
    clipped = wanted.abs() >= (2 ** (base.bits - 1) - 1) * step
    assert torch.all((error <= step / 2 * 1.00001) | clipped)
    assert error.norm() < 4 * 2.0**-base.bits * wanted.norm()


def test_a_merged_model_answers_like_the_unmerged(folder: Path) -> None:
    base, model = Llama.from_pretrained(folder), adapted(folder)
    train(model)
    unmerged, untouched = answer(model), answer(base)
    merged = model.merge_and_unload()
    assert type(merged) is Llama
    bound = {4: 0.35, 8: 0.05}[merged.config.quantization_config.bits]
    assert (answer(merged) - unmerged).norm() < bound * (unmerged - untouched).norm()
    merged.save_pretrained(folder.parent / "merged")
    assert torch.equal(answer(Llama.from_pretrained(folder.parent / "merged")), answer(merged))


def test_a_merge_that_rounding_swallows_says_so(folder: Path) -> None:
    model = adapted(folder)
    layer = model.base_model.model.model.layers[1].mlp.up_proj
    step = layer.get_base_layer().weight_scale.float().min().item()
    layer.lora_A["default"].weight.data.fill_(1.0)
    layer.lora_B["default"].weight.data.fill_(0.02 * step / 8)  # each weight moves by a fiftieth of a step
    before = layer.get_base_layer().dequantized(torch.float32).clone()
    with pytest.warns(UserWarning, match=r"rounding to [48] bits swallows more than half of the adapter"):
        layer.merge()
    moved = layer.get_base_layer().dequantized(torch.float32) - before
    assert moved.norm() < 0.5 * 0.02 * step * before.numel() ** 0.5


def test_a_merge_into_rounded_weights_cannot_be_undone(folder: Path) -> None:
    model = adapted(folder)
    model.merge_adapter()
    with pytest.raises(ValueError, match="cannot be unmerged"):
        model.unmerge_adapter()


@pytest.mark.parametrize("option", [{"use_dora": True}, {"lora_bias": True}])
def test_variants_that_need_the_dense_weight_are_refused(folder: Path, option: dict[str, bool]) -> None:
    config = peft.LoraConfig(r=4, target_modules=["up_proj"], **option)
    with pytest.raises(ValueError, match="plain LoRA"):
        peft.get_peft_model(Llama.from_pretrained(folder), config)
