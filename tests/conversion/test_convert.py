"""Laws of conversion: bits are kept where they can be, errors are bounded and told where not, nothing is half done."""

from pathlib import Path

import pytest
import torch

from hf_unified_diffusion import UnifiedDiffusionModel, UnifiedDiffusionTextPipeline
from hf_unified_diffusion.cli import main
from hf_unified_diffusion.conversion.convert import convert_checkpoint
from tests.tiny import save_tiny_checkpoint


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


def test_a_dry_run_reports_and_writes_nothing(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    main(["convert", str(source), str(tmp_path / "out"), "--format", "parquet", "--bits", "8", "--dry_run"])
    assert "bits per weight" in capsys.readouterr().out
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
        ({"bits": 2}, "bits must be one of"),
        ({"bits": True}, "bits must be one of"),
        ({"weights_format": "pickle"}, "weights_format must be one of"),
        ({"source": Path("/nowhere")}, "source must hold a checkpoint"),
        ({"destination": Path("/")}, "destination must not exist yet"),
        ({"bits": 4, "group_size": 3}, "group_size must be"),
    ],
)
def test_bad_input_names_the_rule(source: Path, tmp_path: Path, changed: dict, message: str) -> None:
    arguments = {"source": source, "destination": tmp_path / "out", "weights_format": "parquet", **changed}
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(**arguments)
    assert list(tmp_path.iterdir()) == []
