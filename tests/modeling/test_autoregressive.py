"""On the causal path the network is the autoregressive model it started from."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from hf_unified_diffusion.modeling.autoregressive import evenly_kept_layers, whole_vocabulary
from hf_unified_diffusion.modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from hf_unified_diffusion.modeling.vocabulary import truncate_bpe
from hf_unified_diffusion.training.data_sources import source_model_path

FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
SHAPE = {
    "vocab_size": 70,
    "hidden_size": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
    "attn_implementation": "eager",
}


def source_model(family: str, **changes):
    """Random weights, norms and biases included."""
    config_class, model_class = FAMILIES[family]
    torch.manual_seed(0)
    model = model_class(config_class(**{**SHAPE, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return model


def tokens_below(size: int):
    return torch.randint(0, size, (2, 20), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def assert_same_logits(model, source):
    ids = tokens_below(source.config.vocab_size)
    expected, found = source(ids).logits, model(ids).logits
    assert found.shape[-1] == expected.shape[-1] + 1
    torch.testing.assert_close(found[..., :-1], expected, atol=1e-4, rtol=1e-4)
    assert (found[..., -1] == float("-inf")).all()  # the mask token is new, and never predicted


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_sources(family, tied):
    source = source_model(family, tie_word_embeddings=tied)
    model = UnifiedDiffusionModel.from_source(source, whole_vocabulary(70)).eval()
    assert_same_logits(model, source)
    assert (model.unembedding is None) == tied


@pytest.mark.parametrize("family", FAMILIES)
def test_dropped_layers_are_a_source_without_them(family):
    source = source_model(family)
    model = UnifiedDiffusionModel.from_source(source, whole_vocabulary(70), layers=[0, 2, 4]).eval()
    smaller = copy.deepcopy(source)
    smaller.model.layers = torch.nn.ModuleList(source.model.layers[i] for i in (0, 2, 4))
    smaller.model.config.num_hidden_layers = 3
    for i, layer in enumerate(smaller.model.layers):
        layer.self_attn.layer_idx = i
    assert_same_logits(model, smaller)
    assert model.config.num_hidden_layers == 3


def test_a_kept_vocabulary_is_a_column_choice():
    """Kept tokens keep their logits; a new one starts at the mean of all embeddings."""
    source = source_model("llama", tie_word_embeddings=False)
    kept = torch.tensor([3, 1, 60, 7, -1])
    model = UnifiedDiffusionModel.from_source(source, kept).eval()
    ids = torch.tensor([[0, 2, 3, 1, 0]])
    with torch.no_grad():
        expected = source(kept[ids]).logits
        found = model(ids).logits
    torch.testing.assert_close(found[..., :4], expected[..., kept[:4]], atol=1e-4, rtol=1e-4)
    embeddings = source.get_input_embeddings().weight
    torch.testing.assert_close(model.token_embedding.weight[4], embeddings.mean(dim=0))


def test_a_bfloat16_source_comes_over_unrounded():
    source = source_model("llama").bfloat16()
    model = UnifiedDiffusionModel.from_source(source, whole_vocabulary(70))
    expected = source.model.layers[0].mlp.up_proj.weight
    assert torch.equal(model.shared_transformer.layers[0].mlp.up_proj.weight, expected.float())


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, one end token and a few merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("a", "b"), ("ab", "c"), ("d", "e"), ("f", "g")]
    vocab = {token: i for i, token in enumerate(["<|endoftext|>", *alphabet, *("".join(pair) for pair in merges)])}
    backend = Tokenizer(models.BPE(vocab, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")


def test_from_a_folder(tmp_path):
    """Path in, network out: whole, with fewer layers, with fewer tokens."""
    tokenizer = byte_tokenizer()
    source = source_model("llama", vocab_size=len(tokenizer))
    source.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert_same_logits(UnifiedDiffusionModel.from_autoregressive(tmp_path).eval(), source)
    small = UnifiedDiffusionModel.from_autoregressive(tmp_path, vocab_size=260, num_hidden_layers=3)
    assert (small.config.vocab_size, small.config.mask_token_id, small.config.num_hidden_layers) == (260, 259, 3)
    kept = truncate_bpe(tokenizer, 260)[1]
    expected = source.get_input_embeddings().weight[kept[:-1]]
    assert torch.equal(small.token_embedding.weight[:-1], expected)


@settings(deadline=None)
@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_kept_layers_are_spread(sizes):
    available, wanted = sizes
    kept = evenly_kept_layers(available, wanted)
    assert len(kept) == wanted
    assert kept == sorted(set(kept))
    assert kept[-1] == available - 1
    assert wanted == 1 or kept[0] == 0


@pytest.mark.parametrize(
    ("config", "rule"),
    [
        (
            LlamaConfig(**SHAPE | {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}),
            "rope_type",
        ),
        (LlamaConfig(**SHAPE, hidden_act="gelu"), "hidden_act must be 'silu', got 'gelu'"),
        (LlamaConfig(**SHAPE, mlp_bias=True), "mlp_bias must be False"),
        (LlamaConfig(**SHAPE, attention_bias=True), "attention_bias must be False"),
        (Qwen2Config(**SHAPE, use_sliding_window=True), "use_sliding_window must be False"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.model_type,
)
def test_a_source_that_computes_otherwise(config, rule):
    source = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ValueError, match=f"cannot start from this {config.model_type}: .*{rule}"):
        UnifiedDiffusionModel.from_source(source, whole_vocabulary(70))


def test_bad_arguments():
    source = source_model("llama")
    everything = whole_vocabulary(70)
    other = GPT2LMHeadModel(GPT2Config(vocab_size=70, n_embd=8, n_layer=1, n_head=2))
    with pytest.raises(ValueError, match=r"the source model must be one of .*'llama'.*, got 'gpt2'"):
        UnifiedDiffusionModel.from_source(other, everything)
    for wrong in (0, -1, 6):
        with pytest.raises(ValueError, match=f"num_hidden_layers must be between 1 and the source's 5, got {wrong}"):
            UnifiedDiffusionModel.from_source(source, everything, num_hidden_layers=wrong)
    for layers in ([], [1, 0], [0, 0], [0, 5], [-1, 2]):
        with pytest.raises(ValueError, match=r"layers must be increasing indices below 5, got \["):
            UnifiedDiffusionModel.from_source(source, everything, layers=layers)
    for kept in (torch.tensor([0, 70]), torch.tensor([0, -2]), torch.tensor([0.5]), torch.tensor([[0]])):
        with pytest.raises(ValueError, match="kept_ids must be int64"):
            UnifiedDiffusionModel.from_source(source, kept)


def test_smollm2_itself():
    """The real SmolLM2-135M: whole, its logits; cut, the logits of its kept tokens."""
    path = source_model_path()
    if not path.exists():
        pytest.skip(f"{path.name} is not in the data cache; `make data` puts it there")
    source = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    model = UnifiedDiffusionModel.from_source(source, whole_vocabulary(source.config.vocab_size)).eval()
    assert_same_logits(model, source)
