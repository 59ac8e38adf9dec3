"""Laws of starting from others' checkpoints: on the causal path the converted network is the source."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from hf_unified_diffusion import UnifiedDiffusionModel, UnifiedDiffusionTextPipeline
from hf_unified_diffusion.conversion.convert import convert_checkpoint
from tests.tiny import END, tiny_tokenizer

FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
# more rows than the tokenizer has tokens, as Qwen's tables have
SHAPE = {"vocab_size": 272, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
IDS = torch.tensor(tiny_tokenizer()("12 or 13 words?")["input_ids"])[None]
# the tokens of a tokenizer without a mask token, in the order of their ids
TOKENS = sorted(tiny_tokenizer().get_vocab(), key=tiny_tokenizer().get_vocab().get)[:-1]
NUM_TOKENS = len(TOKENS)


def source_model(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    config_class, model_class = FAMILIES[family]
    model = model_class(config_class(**SHAPE, tie_word_embeddings=family == "llama"))
    for parameter in model.parameters():
        parameter.data.normal_(std=0.2)
    return model.eval()


def plain_tokenizer() -> PreTrainedTokenizerFast:
    """The byte tokenizer of the tests without its mask token."""
    backend = tiny_tokenizer().backend_tokenizer
    backend.model = models.BPE({token: index for index, token in enumerate(TOKENS)}, [])
    state = json.loads(backend.to_str())
    state["added_tokens"] = state["added_tokens"][:1]
    plain = Tokenizer.from_str(json.dumps(state))
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token=END, bos_token=END)


@torch.no_grad()
def answer(model: PreTrainedModel) -> Tensor:
    return model.eval()(input_ids=IDS).logits[..., :NUM_TOKENS].float()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_autoregressive_folder_becomes_ours(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    source = source_model(family).to(dtype)
    source.save_pretrained(tmp_path / "source")
    plain_tokenizer().save_pretrained(tmp_path / "source")
    foretold = convert_checkpoint(tmp_path / "source", tmp_path / "out", dry_run=True)
    report = convert_checkpoint(tmp_path / "source", tmp_path / "out")
    assert (foretold.num_weights, foretold.bits_per_weight) == (report.num_weights, report.bits_per_weight)
    made = UnifiedDiffusionModel.from_pretrained(tmp_path / "out", dtype=torch.float32)
    torch.testing.assert_close(answer(made), answer(source.float()), atol=1e-4, rtol=1e-4)
    pipe = UnifiedDiffusionTextPipeline.from_pretrained(tmp_path / "out")
    assert pipe.transformer.dtype == dtype
    assert pipe.tokenizer.mask_token_id == made.config.mask_token_id == NUM_TOKENS
    assert pipe("a", max_new_tokens=4, num_inference_steps=2, seed=0).texts[0].startswith("a")


def test_equal_runs_give_equal_files(tmp_path: Path) -> None:
    source_model("llama").save_pretrained(tmp_path / "source")
    plain_tokenizer().save_pretrained(tmp_path / "source")
    for name in ("one", "two"):
        torch.rand(3)  # whatever was drawn before
        convert_checkpoint(tmp_path / "source", tmp_path / name, bits=8, num_hidden_layers=2)
    files = [(tmp_path / name / "model.arrowquant.parquet").read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match="model_type of the source must be one of .* got 'gpt2'"):
        convert_checkpoint(tmp_path, tmp_path / "out")


def test_a_source_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    source = source_model("llama")
    tensors = {name: tensor for name, tensor in source.state_dict().items() if "layers.1.mlp.up_proj" not in name}
    source.save_pretrained(tmp_path / "source", state_dict=tensors)
    plain_tokenizer().save_pretrained(tmp_path / "source")
    with pytest.raises(ValueError, match=r"source must hold every weight, got none for \['model.layers.1.mlp.up_proj"):
        convert_checkpoint(tmp_path / "source", tmp_path / "out")


def write_gguf(path: Path, model: PreTrainedModel, pre: str) -> None:
    """The model as llama.cpp stores it, matrices in Q8_0."""
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    tokens = [*TOKENS[:-1], "he"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL, *[gguf.TokenType.NORMAL] * (len(tokens) - 1)])
    writer.add_token_merges(["h e"])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        for projection, count in heads.items():
            if projection in name:  # llama.cpp interleaves the two halves of each head
                tensor = tensor.view(count, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
        values = tensor.float().contiguous().numpy()
        kind = gguf.GGMLQuantizationType.Q8_0 if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        data = gguf.quants.quantize(values, kind) if values.ndim == 2 else values.astype(np.float32)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("pre", ["smollm", "gpt-2"])
def test_a_gguf_file_becomes_ours(tmp_path: Path, pre: str) -> None:
    config = LlamaConfig(**{**SHAPE, "vocab_size": NUM_TOKENS}, tie_word_embeddings=True)
    torch.manual_seed(0)
    source = LlamaForCausalLM(config).eval()
    for parameter in source.parameters():
        parameter.data.normal_(std=0.2)
    path = tmp_path / "tiny.gguf"
    write_gguf(path, source, pre)
    foretold = convert_checkpoint(path, tmp_path / "out", bits=8, dry_run=True)
    report = convert_checkpoint(path, tmp_path / "out", bits=8)
    assert (foretold.bits_per_weight, foretold.bytes_before) == (report.bits_per_weight, path.stat().st_size)
    convert_checkpoint(path, tmp_path / "dense")
    made = UnifiedDiffusionModel.from_pretrained(tmp_path / "dense")
    dense = GgufConfig(dequantize=True)
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, quantization_config=dense)
    torch.testing.assert_close(answer(made), answer(read), atol=1e-4, rtol=1e-4)
    assert (answer(made) - answer(source)).norm() < 0.1 * answer(source).norm()  # Q8_0 rounds
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "dense")
    assert ("Digits" in str(tokenizer.backend_tokenizer.pre_tokenizer)) == (pre == "smollm")
    assert tokenizer.mask_token_id == made.config.mask_token_id
