"""LoRA on quantized layers: it trains, is saved and loaded, and merging changes what it does by next to nothing."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from hf_unified_diffusion.modeling.parquet_weights import ParquetWeightsMixin
from hf_unified_diffusion.quantization import (
    ArrowQuantConfig,
    bits_per_weight,
    merged_ranks,
    num_weights,
    quantize_model,
    register,
    stored_bytes,
)

peft = pytest.importorskip("peft")
register()
# PEFT 0.21 asks transformers 5.23 for a property that it deprecates
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
IDS = torch.arange(18).view(2, 9) * 7


class Llama(ParquetWeightsMixin, LlamaForCausalLM):
    """A transformers model with Parquet folders."""


@pytest.fixture(params=[2, 4, 8])
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


def test_merged_weights_are_the_sum_within_half_a_step_of_each_component(folder: Path) -> None:
    model = adapted(folder)
    train(model)
    layer = model.base_model.model.model.layers[1].mlp.up_proj
    base, outer, inner = layer.get_base_layer(), layer.lora_B["default"].weight, layer.lora_A["default"].weight
    codes, before = base.weight.clone(), base.dequantized(torch.float32).clone()
    wanted = before + layer.get_delta_weight("default").detach()
    layer.merge()
    assert torch.equal(base.weight, codes)  # no code moves
    outer, inner = (layer.scaling["default"] * outer).detach().abs(), inner.detach().abs()
    half_out, half_in = base.merged_out_scale.float().T / 2, base.merged_in_scale.float() / 2
    clipped = 1.3  # the scale search may clip the largest weights
    bound = clipped * (half_out.expand_as(outer) @ inner + outer @ half_in.expand_as(inner) + half_out @ half_in)
    assert torch.all((base.dequantized(torch.float32) - wanted).abs() <= bound + 1e-6)


@pytest.mark.parametrize("factor", [1.0, 1e-3])
def test_a_merged_model_answers_like_the_unmerged(folder: Path, factor: float) -> None:
    base, model = Llama.from_pretrained(folder), adapted(folder)
    train(model)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # of the small one each change is far below a step: rounding the sum would swallow it
            parameter.data.mul_(factor)
    unmerged, untouched = answer(model), answer(base)
    merged = model.merge_and_unload()
    assert type(merged) is Llama
    assert (answer(merged) - unmerged).norm() < 0.03 * (unmerged - untouched).norm()


@pytest.mark.parametrize("weights_format", ["parquet", "safetensors"])
def test_a_merged_model_is_saved_loaded_and_merged_into_again(folder: Path, weights_format: str) -> None:
    model = adapted(folder)
    train(model)
    merged, saved = model.merge_and_unload(), folder.parent / "merged"
    merged.save_pretrained(saved, weights_format=weights_format)
    loaded = Llama.from_pretrained(saved)
    assert torch.equal(answer(loaded), answer(merged))
    assert loaded.config.quantization_config.merged_ranks == merged_ranks(merged)
    assert set(merged_ranks(merged).values()) == {8}
    assert bits_per_weight(loaded) == bits_per_weight(merged)
    dense = Llama.from_pretrained(saved).dequantize(torch.float32)
    assert torch.allclose(answer(dense), answer(merged), atol=1e-5)
    again = adapted(saved)
    train(again)
    unmerged = answer(again)
    twice = again.merge_and_unload()
    assert set(merged_ranks(twice).values()) == {16}
    assert (answer(twice) - unmerged).norm() < 0.03 * (unmerged - answer(loaded)).norm()


def test_what_merging_costs_is_in_the_bits_per_weight(folder: Path) -> None:
    base, model = Llama.from_pretrained(folder), adapted(folder)
    merged = model.merge_and_unload()
    layers = [merged.get_submodule(name) for name in merged_ranks(merged)]
    spent = sum(8 * (sum(layer.matrix_shape) + 2 * 2) for layer in layers)  # codes and two scales a component
    assert stored_bytes(merged) - stored_bytes(base) == spent
    assert num_weights(merged) == num_weights(base)


def test_a_merge_is_undone_bit_for_bit(folder: Path) -> None:
    base, model = Llama.from_pretrained(folder), adapted(folder)
    train(model)
    unmerged = answer(model)
    model.merge_adapter()
    assert not torch.equal(answer(model), answer(base))
    model.unmerge_adapter()
    assert torch.equal(answer(model), unmerged)
    assert torch.equal(answer(model.unload()), answer(base))


def test_adapters_on_embeddings_merge(folder: Path) -> None:
    base = Llama.from_pretrained(folder)
    model = peft.get_peft_model(Llama.from_pretrained(folder), peft.LoraConfig(r=4, target_modules=["embed_tokens"]))
    train(model)
    unmerged = answer(model)
    merged = model.merge_and_unload()
    assert (answer(merged) - unmerged).norm() < 0.03 * (unmerged - answer(base)).norm()


def test_a_checkpoint_without_what_was_merged_is_refused(folder: Path) -> None:
    merged, saved = adapted(folder).merge_and_unload(), folder.parent / "merged"
    tensors = {key: value for key, value in merged.state_dict().items() if not key.endswith("1.mlp.up_proj.merged_in")}
    merged.save_pretrained(saved, state_dict=tensors)
    with pytest.raises(ValueError, match=r"got no model.layers.1.mlp.up_proj.merged_in"):
        Llama.from_pretrained(saved)


@pytest.mark.parametrize("option", [{"use_dora": True}, {"lora_bias": True}])
def test_variants_that_need_the_dense_weight_are_refused(folder: Path, option: dict[str, bool]) -> None:
    config = peft.LoraConfig(r=4, target_modules=["up_proj"], **option)
    with pytest.raises(ValueError, match="plain LoRA"):
        peft.get_peft_model(Llama.from_pretrained(folder), config)
