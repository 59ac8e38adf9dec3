"""Adapters stay on their side, apply only while they are asked for, and are found by what they are about."""

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from hf_unified_diffusion import ArrowEngine, MaskedDiffusionScheduler
from hf_unified_diffusion.evolution.adapter_router import AdapterRouter
from hf_unified_diffusion.modeling.adapter_folders import adapter_side, check_adapter_side
from hf_unified_diffusion.pipelines.autoregressive_writer import AutoregressiveWriter
from tests.tiny import tiny_model, tiny_tokenizer

peft = pytest.importorskip("peft")
# PEFT 0.21 asks transformers 5.23 for a property that it deprecates
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(1)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=257, eos_token_id=0, bos_token_id=0, pad_token_id=0, **shape)).eval()


MODELS = {"ar": tiny_llama, "diffusion": tiny_model}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """An adapter of each side, with weights that matter."""
    made = {}
    for side, model in MODELS.items():
        adapted = peft.get_peft_model(model(), peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
        torch.manual_seed(2)
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=4.0)
        made[side] = tmp_path_factory.mktemp(side)
        adapted.save_pretrained(made[side])
    return made


@pytest.fixture
def engine():
    writer = AutoregressiveWriter(tiny_llama(), tiny_tokenizer())
    engine = ArrowEngine(tiny_model(), MaskedDiffusionScheduler(mask_token_id=257), tiny_tokenizer(), writer)
    yield engine
    engine.close()


def write(engine, side, **options):
    return engine.generate("ab", side, max_new_tokens=12, temperature=0.02, seed=0, **options)


@pytest.mark.parametrize("side", MODELS)
def test_an_adapter_is_of_the_side_it_was_trained_on(folders, side):
    made_for, name = adapter_side(folders[side])
    assert made_for == side and "lora_" in name
    check_adapter_side(folders[side], side)


@pytest.mark.parametrize(("side", "other"), [("ar", "diffusion"), ("diffusion", "ar")])
def test_the_guard_refuses_the_other_side_and_says_why(engine, folders, side, other):
    with pytest.raises(
        ValueError, match=rf"adapter_model\.safetensors holds an adapter for the '{other}' side .*lora_"
    ):
        engine.load_adapter(folders[other], "wrong", side)
    before = write(engine, side)
    engine.load_adapter(folders[side], "right", side)
    assert write(engine, side) == before  # nothing is active until it is asked for


@pytest.mark.parametrize("side", MODELS)
def test_an_adapter_applies_to_the_request_that_names_it_alone(engine, folders, side):
    plain = write(engine, side)
    engine.load_adapter(folders[side], "loud", side)
    assert write(engine, side, adapter="loud") != plain
    assert write(engine, side) == plain
    engine.set_adapter("loud", side)
    assert write(engine, side) == write(engine, side, adapter="loud") != plain
    engine.set_adapter(None, side)
    assert write(engine, side) == plain


def test_what_applied_is_in_the_result_and_the_weights_are_as_before(engine, folders):
    before = {name: value.clone() for name, value in engine.model.state_dict().items()}
    engine.load_adapter(folders["diffusion"], "loud", examples=["ab"])
    result = engine.diffuse("ab", max_new_tokens=4, seed=0, adapter="auto", return_result=True)
    assert result.extra["adapter"] == "loud"
    after = {name.replace(".base_layer", ""): value for name, value in engine.model.state_dict().items()}
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_adapter_is_off_after_a_failure(engine, folders):
    plain = write(engine, "diffusion")
    engine.load_adapter(folders["diffusion"], "loud")
    with pytest.raises(ValueError, match="prompt must not be empty"):
        engine.diffuse("", adapter="loud")
    assert write(engine, "diffusion") == plain


def letters(texts):
    """How often each of ten letters occurs, beside a large part that all texts share."""
    rows = torch.tensor([[text.count(letter) + 5.0 for letter in "abcdefghij"] for text in texts])
    return torch.nn.functional.normalize(rows, dim=1)


def test_the_router_finds_the_nearest_examples():
    router = AdapterRouter(letters)
    assert router.choose("abc") is None
    router.add("first", ["aab", "bba"])
    assert router.choose("xyz") == "first"
    router.add("second", ["ccd", "ddc"])
    router.add("third", ["eee", "eef"])
    assert [router.choose(text) for text in ("abab", "dddd", "feee")] == ["first", "second", "third"]
    router.remove("third")
    assert router.choose("feee") in ("first", "second", None)


def test_a_prompt_unlike_all_examples_gets_no_adapter():
    router = AdapterRouter(letters, least_similarity=0.5)
    for name, examples in (("first", ["aaa"]), ("second", ["bbb"])):
        router.add(name, examples)
    assert router.choose("jjjj") is None and router.choose("aaaa") == "first"


@pytest.mark.parametrize("break_it", ["config", "weights", "truncated", "pickle", "both"])
def test_files_that_are_no_adapter(folders, tmp_path, break_it):
    for file in folders["ar"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config, weights = tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors"
    rule = "must hold"
    if break_it == "config":
        config.unlink()
    elif break_it == "weights":
        weights.unlink()
    elif break_it == "truncated":
        weights.write_bytes(weights.read_bytes()[:100])
        rule = "must be readable"
    elif break_it == "pickle":
        weights.rename(tmp_path / "adapter_model.bin")
        rule = "holds a pickle and is not read"
    else:
        save_file({"shared_transformer.a": torch.zeros(1), "model.b": torch.zeros(1)}, weights)
        rule = "weights of one side"
    with pytest.raises(ValueError, match=rule):
        adapter_side(tmp_path)


@pytest.mark.parametrize(
    ("call", "rule"),
    [
        (
            lambda e, f: e.diffuse("ab", adapter="none"),
            r"must be one of \['loud', 'auto'\] or None, got 'none'",
        ),
        (lambda e, f: e.set_adapter("none"), "adapter must be one of"),
        (lambda e, f: e.load_adapter(f, "loud"), "name must be new"),
        (lambda e, f: e.load_adapter(f, "auto"), "name must be new"),
        (lambda e, f: e.load_adapter(f, "x", side="left"), "side must be one of"),
        (lambda e, f: e.load_adapter(f, "x", examples="ab"), "examples must be a list"),
    ],
)
def test_bad_input(engine, folders, call, rule):
    engine.load_adapter(folders["diffusion"], "loud")
    with pytest.raises(ValueError, match=rule):
        call(engine, folders["diffusion"])
