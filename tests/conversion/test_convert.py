"""Laws of conversion: bits are kept where they can be, errors are bounded and told where not, nothing is half done."""

from pathlib import Path

import pytest
import torch

from hf_unified_diffusion import UnifiedDiffusionConfig, UnifiedDiffusionModel, UnifiedDiffusionTextPipeline
from hf_unified_diffusion.cli import main
from hf_unified_diffusion.conversion.convert import convert_checkpoint
from tests.tiny import save_tiny_checkpoint, tiny_model, tiny_tokenizer

TEXT = "How many words are needed to tell one number from another? " * 2


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("source") / "dense")


def state(folder: Path) -> dict[str, torch.Tensor]:
    return UnifiedDiffusionModel.from_pretrained(folder).state_dict()


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_dense_weights_go_to_parquet_and_back_bit_for_bit(source: Path, tmp_path: Path) -> None:
    convert_checkpoint(source, tmp_path / "parquet", "parquet")
    convert_checkpoint(tmp_path / "parquet", tmp_path / "back", "safetensors")
    assert (tmp_path / "parquet" / "model.arrowquant.parquet").exists()
    assert (tmp_path / "back" / "model.safetensors").exists()
    assert equal(state(source), state(tmp_path / "parquet"))
    assert equal(state(source), state(tmp_path / "back"))


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_weights_keep_their_bits_in_both_formats(source: Path, tmp_path: Path, bits: int) -> None:
    report = convert_checkpoint(source, tmp_path / "parquet", "parquet", bits=bits, group_size=8)
    convert_checkpoint(tmp_path / "parquet", tmp_path / "safetensors", "safetensors")
    assert equal(state(tmp_path / "parquet"), state(tmp_path / "safetensors"))
    assert 0 < max(report.errors.values()) < {4: 0.15, 8: 0.01}[bits]
    assert report.bits_per_weight < 32 and report.bytes_after < report.bytes_before


def test_dequantized_weights_are_what_the_codes_stand_for(source: Path, tmp_path: Path) -> None:
    convert_checkpoint(source, tmp_path / "int4", "parquet", bits=4, group_size=8)
    convert_checkpoint(tmp_path / "int4", tmp_path / "dense", "safetensors", bits=32)
    ids = torch.arange(9)[None]
    models = [UnifiedDiffusionModel.from_pretrained(tmp_path / name).eval() for name in ("int4", "dense")]
    assert not getattr(models[1], "is_quantized", False)
    torch.testing.assert_close(models[0](ids).logits, models[1](ids).logits)


def test_a_converted_folder_still_writes(source: Path, tmp_path: Path) -> None:
    convert_checkpoint(source, tmp_path / "out", "parquet", bits=8)
    assert UnifiedDiffusionTextPipeline.from_pretrained(tmp_path / "out")("a", max_new_tokens=4, seed=0).texts[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shards_go_to_parquet_and_back_to_shards_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    tiny_model().to(dtype).save_pretrained(tmp_path / "source", max_shard_size="50KB")
    tiny_tokenizer().save_pretrained(tmp_path / "source")
    convert_checkpoint(tmp_path / "source", tmp_path / "parquet")
    convert_checkpoint(tmp_path / "parquet", tmp_path / "back", "safetensors", max_shard_size="50KB")
    for name in ("source", "back"):
        assert len(list((tmp_path / name).glob("model-*-of-*.safetensors"))) > 1
    assert next(iter(state(tmp_path / "source").values())).dtype == dtype
    assert equal(state(tmp_path / "source"), state(tmp_path / "parquet"))
    assert equal(state(tmp_path / "source"), state(tmp_path / "back"))


@pytest.mark.parametrize(("bits", "dtype"), [(None, torch.float32), (4, torch.bfloat16), (8, torch.float32)])
def test_a_dry_run_foretells_the_sizes_and_writes_nothing(tmp_path: Path, bits: int | None, dtype: torch.dtype) -> None:
    tiny_model().to(dtype).save_pretrained(tmp_path / "source")
    tiny_tokenizer().save_pretrained(tmp_path / "source")
    foretold = convert_checkpoint(tmp_path / "source", tmp_path / "out", "safetensors", bits, 8, dry_run=True)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    made = convert_checkpoint(tmp_path / "source", tmp_path / "out", "safetensors", bits, 8)
    assert (foretold.num_weights, foretold.bits_per_weight) == (made.num_weights, made.bits_per_weight)
    assert foretold.bytes_before == made.bytes_before
    header = int.from_bytes((tmp_path / "out" / "model.safetensors").read_bytes()[:8], "little") + 8
    assert foretold.bytes_after == made.bytes_after - header


def save_trained_checkpoint(folder: Path) -> UnifiedDiffusionModel:
    """Two layers that know TEXT by heart, so that rounding them costs something."""
    torch.manual_seed(0)
    shape = {"vocab_size": 258, "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128}
    config = UnifiedDiffusionConfig(**shape, num_attention_heads=2, num_key_value_heads=1, mask_token_id=257)
    model, ids = UnifiedDiffusionModel(config), torch.tensor(tiny_tokenizer()(TEXT)["input_ids"])[None]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return model


def test_two_bits_are_refused_unless_the_measured_loss_meets_a_budget(tmp_path: Path) -> None:
    model, source, out = save_trained_checkpoint(tmp_path / "source"), tmp_path / "source", tmp_path / "out"
    with pytest.raises(ValueError, match="2 bits need a loss_budget"):
        convert_checkpoint(source, out, bits=2)
    with pytest.raises(ValueError, match="loss_budget must be at least 0 and come with a text"):
        convert_checkpoint(source, out, bits=2, loss_budget=0.5)
    with pytest.raises(ValueError, match=r"may grow by at most 1\.0%, got \d"):
        convert_checkpoint(source, out, tier_name="edge", text=TEXT, loss_budget=0.01)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    report = convert_checkpoint(source, out, tier_name="edge", text=TEXT, loss_budget=1000.0)
    assert report.perplexity is not None
    rows = torch.tensor(tiny_tokenizer()(TEXT)["input_ids"])[None]
    for network, told in zip((model, UnifiedDiffusionModel.from_pretrained(out)), report.perplexity, strict=True):
        with torch.no_grad():  # perplexity by its definition
            log_probs = network.eval()(rows).logits[:, :-1].log_softmax(-1)
        assert told == pytest.approx((-log_probs.gather(-1, rows[:, 1:, None])).mean().exp().item(), rel=1e-4)


def test_a_dry_run_reports_and_writes_nothing(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    main(["convert", str(source), str(tmp_path / "out"), "--format", "parquet", "--bits", "8", "--dry-run"])
    printed = capsys.readouterr().out
    assert "bits per weight" in printed and "(nothing written)" in printed
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_nothing_behind(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(UnifiedDiffusionModel, "save_pretrained", full_disk)
    with pytest.raises(OSError, match="no space"):
        convert_checkpoint(source, tmp_path / "out", "parquet")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"bits": 3}, "bits must be one of"),
        ({"bits": True}, "bits must be one of"),
        ({"weights_format": "pickle"}, "weights_format must be one of"),
        ({"source": Path("/nowhere")}, "source must be a checkpoint folder"),
        ({"destination": Path("/")}, "destination must not exist yet"),
        ({"bits": 4, "group_size": 3}, "group_size must be"),
        ({"bits": 4, "tier_name": "edge"}, "give bits or a tier, and not both"),
        ({"tier_name": "moon"}, "tier must be one of"),
        ({"vocab_size": 260}, "are for autoregressive sources"),
        ({"text": "a", "bits": 8}, "at least two tokens, got 1"),
        ({"text": "abc", "loss_budget": float("nan")}, "loss_budget must be at least 0"),
    ],
)
def test_bad_input_names_the_rule(source: Path, tmp_path: Path, changed: dict, message: str) -> None:
    arguments = {"source": source, "destination": tmp_path / "out", "weights_format": "parquet", **changed}
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(**arguments)
    assert list(tmp_path.iterdir()) == []
