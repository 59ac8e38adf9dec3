"""Laws of the transformers plug-in and of Parquet checkpoint folders, on a Llama and on the score network."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from hf_unified_diffusion.modeling.configuration_unified_diffusion import UnifiedDiffusionConfig
from hf_unified_diffusion.modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from hf_unified_diffusion.modeling.parquet_weights import PARQUET_NAME, ParquetWeightsMixin
from hf_unified_diffusion.quantization import (
    ArrowQuantConfig,
    FormatError,
    QuantizedEmbedding,
    QuantizedWeight,
    bits_per_weight,
    dequantize_model,
    num_weights,
    quantize_model,
    read_parquet_weights,
    register,
    write_parquet_weights,
)

register()
IDS = torch.arange(18).view(2, 9) * 7
SHAPE = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2}
LAYERS = {"Llama": "model.layers", "UnifiedDiffusionModel": "shared_transformer.layers"}


class Llama(ParquetWeightsMixin, LlamaForCausalLM):
    """A transformers model with Parquet folders."""


def make(kind: type[PreTrainedModel]) -> PreTrainedModel:
    torch.manual_seed(0)
    if kind is Llama:
        return Llama(LlamaConfig(**SHAPE, tie_word_embeddings=False)).eval()
    model = UnifiedDiffusionModel(UnifiedDiffusionConfig(**SHAPE, mask_token_id=255, cross_attention_every=2)).eval()
    for parameter in model.parameters():  # nothing at zero, so that every weight has a say
        parameter.data.normal_(std=0.05)
    return model


@pytest.fixture(scope="module", params=[Llama, UnifiedDiffusionModel], ids=lambda kind: kind.__name__)
def dense(request: pytest.FixtureRequest) -> PreTrainedModel:
    return make(request.param)


@pytest.fixture(scope="module")
def folder(dense: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(type(dense).__name__)
    dense.save_pretrained(path)
    return path


@torch.no_grad()
def answer(model: PreTrainedModel) -> Tensor:
    return model(input_ids=IDS).logits[..., :-1]  # the mask token's logit is -inf


def equal(first: PreTrainedModel, second: PreTrainedModel) -> bool:
    one, two = first.state_dict(), second.state_dict()
    same = all(torch.equal(one[name], two[name]) and one[name].dtype == two[name].dtype for name in one)
    return one.keys() == two.keys() and same and torch.equal(answer(first), answer(second))


def weight_files(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir() if "safetensors" in file.name or "parquet" in file.name)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("weights_format", ["parquet", "safetensors"])
def test_quantized_on_the_fly_saved_and_loaded_bit_equal(
    dense: PreTrainedModel, folder: Path, tmp_path: Path, bits: int, weights_format: str
) -> None:
    config = ArrowQuantConfig(bits=bits, weights_format=weights_format)
    quantized, report = type(dense).from_pretrained(folder, quantization_config=config, output_loading_info=True)
    assert not any(report.values())
    assert quantized.dtype == torch.float32
    assert num_weights(quantized) == dense.num_parameters()
    quantized.save_pretrained(tmp_path)
    assert weight_files(tmp_path) == [PARQUET_NAME if weights_format == "parquet" else "model.safetensors"]
    loaded, report = type(dense).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert equal(quantized, loaded)
    assert bits_per_weight(loaded) == bits_per_weight(quantized)
    assert loaded.name_or_path == str(tmp_path)


def test_more_bits_answer_closer_to_the_dense_model(dense: PreTrainedModel, folder: Path) -> None:
    errors = []
    for bits in (8, 4, 2):
        quantized = type(dense).from_pretrained(folder, quantization_config=ArrowQuantConfig(bits=bits))
        errors.append((answer(quantized) - answer(dense)).norm().item())
    assert errors == sorted(errors)
    assert errors[0] < 0.05 * answer(dense).norm().item()


def test_quantizing_in_memory_equals_quantizing_on_load(dense: PreTrainedModel, folder: Path, tmp_path: Path) -> None:
    loaded = type(dense).from_pretrained(folder, quantization_config=ArrowQuantConfig(bits=4))
    in_memory = quantize_model(type(dense).from_pretrained(folder), ArrowQuantConfig(bits=4))
    assert equal(loaded, in_memory)
    in_memory.save_pretrained(tmp_path)
    assert equal(type(dense).from_pretrained(tmp_path), in_memory)
    with pytest.raises(ValueError, match="must be dense"):
        quantize_model(in_memory, ArrowQuantConfig(bits=8))


def test_rounded_tokens_are_chosen_by_the_config_and_kept_out_of_the_ends(
    dense: PreTrainedModel, folder: Path, tmp_path: Path
) -> None:
    name = LAYERS[type(dense).__name__]
    quantize_model(type(dense).from_pretrained(folder), ArrowQuantConfig(bits=2)).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="loading attributes"):
        rounding = type(dense).from_pretrained(tmp_path, quantization_config=ArrowQuantConfig(activation_bits=8))
    rounding.save_pretrained(tmp_path / "saved")
    for model in (rounding, type(dense).from_pretrained(tmp_path / "saved")):
        found = [model.get_submodule(f"{name}.{i}.self_attn.q_proj").activation_bits for i in range(4)]
        assert found == [16, 8, 8, 16]
        assert model.config.quantization_config.activation_bits == 8
    exact = answer(type(dense).from_pretrained(tmp_path))
    assert (answer(rounding) - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_dequantized_models_give_the_same_answers(
    dense: PreTrainedModel, folder: Path, tmp_path: Path, bits: int
) -> None:
    quantized = type(dense).from_pretrained(folder, quantization_config=ArrowQuantConfig(bits=bits))
    quantized.save_pretrained(tmp_path)
    wanted = answer(quantized)
    with pytest.warns(UserWarning, match="loading attributes"):
        at_load = type(dense).from_pretrained(tmp_path, quantization_config=ArrowQuantConfig(dequantize=True))
    for model in (at_load, quantized.dequantize()):
        assert not any(isinstance(module, QuantizedWeight) for module in model.modules())
        assert not model.is_quantized
        assert torch.equal(answer(model), wanted)
        assert {name for name, _ in model.named_parameters()} == {name for name, _ in dense.named_parameters()}


def test_a_model_is_made_dense_in_place_and_a_dense_one_stays_itself(dense: PreTrainedModel, folder: Path) -> None:
    model = type(dense).from_pretrained(folder, quantization_config=ArrowQuantConfig(bits=4))
    wanted = answer(model)
    for _ in range(2):  # what is dense already is left alone
        dequantize_model(model)
        assert not any(isinstance(module, QuantizedWeight) for module in model.modules())
        assert torch.equal(answer(model), wanted)


def test_dense_folders_round_trip_through_parquet(dense: PreTrainedModel, tmp_path: Path) -> None:
    dense.save_pretrained(tmp_path, weights_format="parquet", metadata={"licence": "apache-2.0"})
    assert weight_files(tmp_path) == [PARQUET_NAME]
    assert equal(type(dense).from_pretrained(tmp_path), dense)
    weights = read_parquet_weights(tmp_path / PARQUET_NAME, verify="full")
    assert weights.metadata["licence"] == "apache-2.0"
    assert weights.metadata["bits_per_weight"] == 32
    quantized = type(dense).from_pretrained(tmp_path, quantization_config=ArrowQuantConfig(bits=4))
    assert bits_per_weight(quantized) < 16


def test_loading_copies_nothing(dense: PreTrainedModel, folder: Path, tmp_path: Path) -> None:
    type(dense).from_pretrained(folder, quantization_config=ArrowQuantConfig(bits=4)).save_pretrained(tmp_path)
    loaded = type(dense).from_pretrained(tmp_path, verify_weights="header")
    lines = Path("/proc/self/maps").read_text().splitlines()
    spans = [line.split()[0].split("-") for line in lines if line.endswith(str(tmp_path / PARQUET_NAME))]
    for tensor in loaded.state_dict().values():
        assert any(int(low, 16) <= tensor.data_ptr() < int(high, 16) for low, high in spans)


def test_a_model_saves_over_the_file_it_is_mapped_from(dense: PreTrainedModel, folder: Path, tmp_path: Path) -> None:
    type(dense).from_pretrained(folder, quantization_config=ArrowQuantConfig(bits=4)).save_pretrained(tmp_path)
    loaded = type(dense).from_pretrained(tmp_path)
    before = answer(loaded)
    for weights_format in ("parquet", "safetensors", "parquet"):
        loaded.save_pretrained(tmp_path, weights_format=weights_format)
        assert weight_files(tmp_path) == [PARQUET_NAME if weights_format == "parquet" else "model.safetensors"]
        assert equal(type(dense).from_pretrained(tmp_path), loaded)
    assert torch.equal(answer(loaded), before)


@pytest.mark.parametrize("quantization_config", [None, ArrowQuantConfig(bits=4)])
def test_dtype_is_the_compute_dtype(
    dense: PreTrainedModel, tmp_path: Path, folder: Path, quantization_config: ArrowQuantConfig | None
) -> None:
    type(dense).from_pretrained(folder, quantization_config=quantization_config).save_pretrained(
        tmp_path, weights_format="parquet"
    )
    half = type(dense).from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.dtype == half(input_ids=IDS).logits.dtype == torch.bfloat16
    full = type(dense).from_pretrained(tmp_path)
    assert (answer(half).float() - answer(full)).norm() < 0.05 * answer(full).norm()
    if quantization_config is not None:
        for name, tensor in full.state_dict().items():
            if name.endswith("_scale") or tensor.dtype == torch.uint8:
                assert torch.equal(half.state_dict()[name], tensor)


def test_the_policy_keeps_the_ends_at_eight_bits(dense: PreTrainedModel) -> None:
    plan = ArrowQuantConfig(bits=4).bits_of_layers(dense)
    layers = LAYERS[type(dense).__name__]
    for name, bits in plan.items():
        inner = name.startswith((f"{layers}.1.", f"{layers}.2."))
        assert bits == (4 if inner else 8), name
    assert {4, 8} <= set(plan.values())
    assert set(ArrowQuantConfig(bits=2, int8_modules=[]).bits_of_layers(dense).values()) == {2}
    assert set(ArrowQuantConfig(bits=8).bits_of_layers(dense).values()) == {8}
    wide = ArrowQuantConfig(bits=4, group_size=128, int8_modules=[]).bits_of_layers(dense)
    assert wide[f"{layers}.1.mlp.down_proj"] == 4  # 128 columns
    assert wide[f"{layers}.1.mlp.up_proj"] == 8  # 64: no whole group
    named = ArrowQuantConfig(bits=4, modules_to_not_convert=["mlp", "self_attn.q"]).bits_of_layers(dense)
    assert not any(".mlp." in name for name in named)
    assert any("self_attn.q_proj" in name for name in named)  # whole components match, not prefixes


def test_the_config_in_the_folder_says_what_was_done(dense: PreTrainedModel, folder: Path, tmp_path: Path) -> None:
    config = ArrowQuantConfig(bits=2, group_size=32, int8_modules=["embeddings"])
    type(dense).from_pretrained(folder, quantization_config=config).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert saved == config.to_dict()
    assert "dequantize" not in saved
    assert ArrowQuantConfig.from_dict(saved).to_dict() == saved


def test_the_embedding_serves_as_unembedding_of_the_score_network(tmp_path: Path) -> None:
    model = make(UnifiedDiffusionModel)
    wanted = model(input_ids=IDS, timestep=torch.tensor([0.3, 0.8])).logits[..., :-1]
    quantize_model(model, ArrowQuantConfig(bits=8))
    assert isinstance(model.token_embedding, QuantizedEmbedding)
    given = model(input_ids=IDS, timestep=torch.tensor([0.3, 0.8])).logits[..., :-1]
    assert (given - wanted).norm() < 0.05 * wanted.norm()


def test_auto_classes_read_a_safetensors_folder(tmp_path: Path) -> None:
    quantized = quantize_model(make(Llama), ArrowQuantConfig(bits=4))
    quantized.save_pretrained(tmp_path, weights_format="safetensors")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is LlamaForCausalLM
    assert torch.equal(answer(loaded), answer(quantized))


def test_tied_layers_stay_dense_and_tied(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Llama(LlamaConfig(**SHAPE, tie_word_embeddings=True)).eval()
    quantize_model(model, ArrowQuantConfig(bits=4))
    assert type(model.lm_head) is nn.Linear
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in read_parquet_weights(tmp_path / PARQUET_NAME)
    loaded = Llama.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert equal(loaded, model)


@pytest.fixture
def quantized_folder(tmp_path: Path) -> Path:
    quantize_model(make(Llama), ArrowQuantConfig(bits=4)).save_pretrained(tmp_path)
    return tmp_path


def test_a_broken_file_is_a_format_error(quantized_folder: Path) -> None:
    file = quantized_folder / PARQUET_NAME
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(FormatError, match="CRC"):
        Llama.from_pretrained(quantized_folder)


def rewritten(file: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = {name: tensor.clone() for name, tensor in read_parquet_weights(file).items()}
    edit(tensors)
    write_parquet_weights(file, tensors)


@pytest.mark.parametrize("value", [torch.nan, -1.0, 0.0])
def test_bad_scales_are_refused_on_load(quantized_folder: Path, value: float) -> None:
    name = "model.layers.1.mlp.up_proj.weight_scale"
    rewritten(quantized_folder / PARQUET_NAME, lambda tensors: tensors[name][0, 0].fill_(value))
    with pytest.raises(ValueError, match=name):
        Llama.from_pretrained(quantized_folder)


@pytest.mark.parametrize("tensor", ["weight", "weight_scale"])
def test_missing_codes_and_scales_are_refused_on_load(quantized_folder: Path, tensor: str) -> None:
    name = f"model.layers.1.mlp.up_proj.{tensor}"
    rewritten(quantized_folder / PARQUET_NAME, lambda tensors: tensors.pop(name))
    with pytest.raises(ValueError, match=name):
        Llama.from_pretrained(quantized_folder)


def test_a_repository_id_is_looked_up_in_the_cache(
    quantized_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache, commit = tmp_path_factory.mktemp("cache"), "0123456789abcdef0123456789abcdef01234567"
    repository = cache / "models--someone--tiny"
    shutil.copytree(quantized_folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    loaded = Llama.from_pretrained("someone/tiny", cache_dir=cache)
    assert loaded.name_or_path == "someone/tiny"
    assert equal(loaded, Llama.from_pretrained(quantized_folder))


def test_config_fields_and_objects_are_accepted(quantized_folder: Path) -> None:
    loaded = Llama.from_pretrained(quantized_folder, use_cache=False, attention_dropout=0.5)
    assert (loaded.config.use_cache, loaded.config.attention_dropout) == (False, 0.5)
    config = AutoConfig.from_pretrained(quantized_folder)
    assert equal(Llama.from_pretrained(quantized_folder, config=config), Llama.from_pretrained(quantized_folder))


def test_missing_folders_are_reported_as_by_transformers(tmp_path: Path) -> None:
    for name in (str(tmp_path / "nothing"), "someone/nothing"):
        with pytest.raises(OSError, match="nothing|couldn't find"):
            Llama.from_pretrained(name)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"bits": 3}, "bits"),
        ({"bits": True}, "bits"),
        ({"group_size": 0}, "group_size"),
        ({"group_size": 6}, "group_size"),
        ({"group_size": 64.0}, "group_size"),
        ({"weights_format": "pickle"}, "weights_format"),
        ({"activation_bits": 4}, "activation_bits"),
        ({"quant_method": "gptq"}, "quant_method"),
    ],
)
def test_bad_configs_are_refused(options: dict[str, object], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        ArrowQuantConfig(**options)


def test_bad_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="weights_format"):
        make(Llama).save_pretrained(tmp_path, weights_format="pickle")


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield
