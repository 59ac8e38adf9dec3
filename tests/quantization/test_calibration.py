"""A whole network calibrated: closer to the dense one than by plain rounding, on inputs it has not seen."""

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from hf_unified_diffusion import ArrowQuantConfig, UnifiedDiffusionConfig, UnifiedDiffusionModel
from hf_unified_diffusion.quantization import calibrated_codes, quantize_model
from hf_unified_diffusion.quantization.calibration import input_moments

SHAPE = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2}


def make(kind: type[PreTrainedModel]) -> PreTrainedModel:
    torch.manual_seed(0)
    if kind is LlamaForCausalLM:
        return LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=False)).eval()
    model = UnifiedDiffusionModel(UnifiedDiffusionConfig(**SHAPE, mask_token_id=255, cross_attention_every=2)).eval()
    for parameter in model.parameters():  # nothing at zero, so that every weight has a say
        parameter.data.normal_(std=0.1)
    return model


def inputs(seed: int, count: int = 4) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(0, 250, (4, 32), generator=generator)} for _ in range(count)]


def distance(model: PreTrainedModel, wanted: list[Tensor]) -> float:
    with torch.no_grad():
        found = [model(**batch).logits[..., :250] for batch in inputs(seed=2)]
    return sum(float((a - b).square().mean()) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("kind", [LlamaForCausalLM, UnifiedDiffusionModel])
def test_a_calibrated_network_is_closer_to_the_dense_one(kind: type[PreTrainedModel], bits: int) -> None:
    config, dense = ArrowQuantConfig(bits, 32, int8_modules=["embeddings", "lm_head"]), make(kind)
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    with torch.no_grad():
        wanted = [dense(**batch).logits[..., :250] for batch in inputs(seed=2)]
    codes = calibrated_codes(dense, config, inputs(seed=1))
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())
    plain = distance(quantize_model(make(kind), config), wanted)
    assert distance(quantize_model(dense, config, codes), wanted) < 0.85 * plain


def test_moments_are_the_products_of_what_enters() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 4)).train()
    batches = [{"input": torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(seed))} for seed in range(2)]
    found = input_moments(model, {"0": model[0], "2": model[2]}, batches)
    x = torch.cat([batch["input"].flatten(0, 1) for batch in batches])
    hidden = model[0](x).detach()
    assert torch.allclose(found["0"], x.T @ x, atol=1e-4) and torch.allclose(found["2"], hidden.T @ hidden, atol=1e-4)
    assert model.training and not model[0]._forward_pre_hooks


def test_layers_that_no_batch_reaches_are_left_out() -> None:
    model, config = make(UnifiedDiffusionModel), ArrowQuantConfig(4, 32, int8_modules=[])
    codes = calibrated_codes(model, config, inputs(seed=1, count=1))
    assert set(codes) == {"heads.text.down", "heads.text.up"} | {
        name
        for name, layer in model.shared_transformer.named_modules(prefix="shared_transformer")
        if isinstance(layer, nn.Linear) and "cross_attn" not in name
    }
    quantize_model(model, config, codes)(**inputs(seed=1)[0])


def test_an_error_leaves_the_model_as_it_was() -> None:
    model = make(UnifiedDiffusionModel).train()
    with pytest.raises(TypeError):
        calibrated_codes(model, ArrowQuantConfig(4, 32), [*inputs(seed=1, count=1), {"unknown": 1}])
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_bad_input_is_refused() -> None:
    model, config = make(UnifiedDiffusionModel), ArrowQuantConfig(4, 32)
    with pytest.raises(ValueError, match="needs batches"):
        calibrated_codes(model, config, [])
    codes = calibrated_codes(model, config, inputs(seed=1, count=1))
    name = next(iter(codes))
    with pytest.raises(ValueError, match="layers that the config quantizes"):
        quantize_model(model, config, {"elsewhere": codes[name]})
    packed, scale = codes[name]
    with pytest.raises(ValueError, match="codes must be those of"):
        quantize_model(model, config, {name: (packed[:-1], scale)})
