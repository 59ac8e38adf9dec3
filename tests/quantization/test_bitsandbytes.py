"""bitsandbytes as an alternative to ArrowQuant: it loads, writes, is saved, and trains QLoRA; inputs and heads stay."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import BitsAndBytesConfig

from hf_unified_diffusion import UnifiedDiffusionConfig, UnifiedDiffusionModel, UnifiedDiffusionTextPipeline
from hf_unified_diffusion.modeling.checkpoint_metadata import METADATA_NAME
from hf_unified_diffusion.quantization import bits_per_weight, num_weights
from tests.tiny import tiny_tokenizer

bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
IDS = torch.arange(24)[None]
CONFIGS = {
    4: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    8: BitsAndBytesConfig(load_in_8bit=True),
}
PACKED = {4: bitsandbytes.nn.Linear4bit, 8: bitsandbytes.nn.Linear8bitLt}


def save_checkpoint(folder: Path, **changes: object) -> UnifiedDiffusionModel:
    """Two layers in which no matrix is zero."""
    torch.manual_seed(0)
    shape = {"vocab_size": 258, "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 1, "mask_token_id": 257, "cross_attention_every": 2}
    model = UnifiedDiffusionModel(UnifiedDiffusionConfig(**shape, **changes)).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=0.1)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return model


@torch.no_grad()
def answer(model: nn.Module) -> torch.Tensor:
    return model(input_ids=IDS, timestep=torch.tensor([0.5])).logits[..., :-1]


@pytest.mark.parametrize("bits", [4, 8])
def test_it_loads_writes_and_is_saved(tmp_path: Path, bits: int) -> None:
    dense = save_checkpoint(tmp_path / "dense")
    model = UnifiedDiffusionModel.from_pretrained(tmp_path / "dense", quantization_config=CONFIGS[bits]).eval()
    assert num_weights(model) == num_weights(dense)
    assert bits < bits_per_weight(model) < 32
    assert (answer(model) - answer(dense)).norm() < {4: 0.25, 8: 0.05}[bits] * answer(dense).norm()
    pipe = UnifiedDiffusionTextPipeline.from_pretrained(tmp_path / "dense", quantization_config=CONFIGS[bits])
    assert isinstance(pipe.transformer.shared_transformer.layers[0].mlp.up_proj, PACKED[bits])
    assert pipe("abc", max_new_tokens=4, num_inference_steps=2, seed=0).texts[0].startswith("abc")
    model.save_pretrained(tmp_path / "saved")
    told = json.loads((tmp_path / "saved" / METADATA_NAME).read_text())
    assert (told["quantization"]["method"], told["quantization"]["bit_width"]) == ("bitsandbytes", bits)
    assert told["parameters"] == num_weights(dense)
    torch.testing.assert_close(answer(UnifiedDiffusionModel.from_pretrained(tmp_path / "saved")), answer(model))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_only_the_trunk_is_packed(tmp_path: Path, bits: int, tied: bool) -> None:
    save_checkpoint(tmp_path, tie_word_embeddings=tied)
    model = UnifiedDiffusionModel.from_pretrained(tmp_path, quantization_config=CONFIGS[bits])
    packed = {name for name, module in model.named_modules() if isinstance(module, PACKED[bits])}
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert packed == {name for name in linear if name.startswith("shared_transformer.layers.")}


@pytest.mark.parametrize("bits", [4, 8])
def test_qlora_trains_and_leaves_the_packed_base(tmp_path: Path, bits: int) -> None:
    save_checkpoint(tmp_path)
    base, untouched = (
        UnifiedDiffusionModel.from_pretrained(tmp_path, quantization_config=CONFIGS[bits]) for _ in range(2)
    )
    model = peft.get_peft_model(base, peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj", "down_proj"])).train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-2)
    losses = []
    for _ in range(8):
        loss = model(input_ids=IDS, labels=IDS).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    # another network gives the answer before: bitsandbytes repacks for the CPU in eval(), and trains no more after
    trained, before = answer(model.eval()), answer(untouched.eval())
    assert (trained - before).norm() > 0.01 * before.norm()
    with model.disable_adapter():
        torch.testing.assert_close(answer(model), before)
