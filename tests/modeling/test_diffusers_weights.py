"""Any model of diffusers goes to Parquet weights and back: equal outputs, no copy, clear refusals."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DModel

from hf_unified_diffusion import FormatError, load_diffusers_model, read_parquet_weights, save_diffusers_model
from hf_unified_diffusion.quantization import write_parquet_weights
from tests.quantization.mapped import lies_in_a_mapping_of

PICTURE = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def tiny_vae(width: int = 8) -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(block_out_channels=(width,), norm_num_groups=4, latent_channels=2).eval()


@torch.no_grad()
def answer(vae: AutoencoderKL) -> torch.Tensor:
    return vae(PICTURE).sample


@pytest.mark.parametrize("max_shard_size", ["1GIB", "20KB"])
def test_an_autoencoder_answers_the_same_from_the_mapped_file(tmp_path: Path, max_shard_size: str) -> None:
    vae = tiny_vae()
    vae.save_pretrained(tmp_path / "vae")
    save_diffusers_model(vae, tmp_path / "vae", {"licence": "apache-2.0"}, max_shard_size)
    names = [path.name for path in (tmp_path / "vae").iterdir()]
    assert not any("safetensors" in name for name in names)  # never both
    assert (len(names) == 2) == (max_shard_size == "1GIB")
    loaded = load_diffusers_model(AutoencoderKL, tmp_path, subfolder="vae")
    assert torch.equal(answer(loaded), answer(vae))
    assert loaded.config.latent_channels == vae.config.latent_channels
    for parameter in loaded.parameters():
        assert lies_in_a_mapping_of(tmp_path / "vae", parameter)
    loaded.save_pretrained(tmp_path / "back")
    assert torch.equal(answer(AutoencoderKL.from_pretrained(tmp_path / "back")), answer(vae))


def test_a_loaded_model_trains_and_leaves_its_file_alone(tmp_path: Path) -> None:
    save_diffusers_model(tiny_vae(), tmp_path)
    loaded = load_diffusers_model(AutoencoderKL, tmp_path, verify_weights="full")
    before = answer(loaded)
    loaded(PICTURE).sample.square().mean().backward()
    torch.optim.SGD(loaded.parameters(), lr=0.1).step()
    assert not torch.equal(answer(loaded), before)
    assert torch.equal(answer(load_diffusers_model(AutoencoderKL, tmp_path)), before)


def test_dtypes_and_metadata_are_kept(tmp_path: Path) -> None:
    save_diffusers_model(tiny_vae().bfloat16(), tmp_path, {"licence": "mit"})
    assert load_diffusers_model(AutoencoderKL, tmp_path).dtype == torch.bfloat16
    metadata = read_parquet_weights(tmp_path / "model.arrowquant.parquet").metadata
    assert metadata == {"format": "pt", "model_type": "AutoencoderKL", "licence": "mit"}


@pytest.mark.parametrize("max_shard_size", ["1GIB", "20KB"])
def test_codes_come_back_within_half_a_step_in_a_quarter_of_the_bytes(tmp_path: Path, max_shard_size: str) -> None:
    vae = tiny_vae(16)
    save_diffusers_model(vae, tmp_path / "dense")
    save_diffusers_model(vae, tmp_path / "int8", max_shard_size=max_shard_size, int8=True)
    loaded = load_diffusers_model(AutoencoderKL, tmp_path / "int8")
    assert loaded.dtype == torch.float32
    for name, weight in vae.state_dict().items():
        found = loaded.state_dict()[name]
        if weight.ndim < 2:
            assert torch.equal(found, weight)
            continue
        # a scale that clips some weights is chosen only where that lowers the row's squared error
        step = weight.flatten(1).abs().amax(1) / 127
        error = (found - weight).flatten(1)
        assert (error.square().mean(1).sqrt() <= 0.5 * step + 1e-12).all(), name
    stored = next(iter((tmp_path / "int8").glob("*.index.json")), tmp_path / "int8" / "model.arrowquant.parquet")
    num_bytes = sum(tensor.nbytes for tensor in read_parquet_weights(stored).values())
    assert num_bytes < 0.5 * sum(tensor.nbytes for tensor in vae.state_dict().values())


def test_codes_without_their_scales_are_refused(tmp_path: Path) -> None:
    vae = tiny_vae()
    save_diffusers_model(vae, tmp_path, int8=True)
    file = tmp_path / "model.arrowquant.parquet"
    weights = read_parquet_weights(file)
    kept = {name: tensor for name, tensor in weights.items() if name != "quant_conv.weight_scale"}
    write_parquet_weights(file, kept, roles={name: weights.roles[name] for name in kept})
    with pytest.raises(ValueError, match="need one scale a row, got None"):
        load_diffusers_model(AutoencoderKL, tmp_path)


def test_other_weights_broken_ones_and_none_are_refused(tmp_path: Path) -> None:
    save_diffusers_model(tiny_vae(), tmp_path)
    config = (tmp_path / "config.json").read_text()
    tiny_vae(width=12).save_config(tmp_path)
    with pytest.raises(ValueError, match="must be those of AutoencoderKL"):
        load_diffusers_model(AutoencoderKL, tmp_path)
    with pytest.raises(ValueError, match="must be those of UNet2DModel"):
        load_diffusers_model(UNet2DModel, tmp_path)
    (tmp_path / "config.json").write_text(config)
    file = tmp_path / "model.arrowquant.parquet"
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 1
    file.write_bytes(data)
    with pytest.raises(FormatError):
        load_diffusers_model(AutoencoderKL, tmp_path)
    file.unlink()
    with pytest.raises(OSError, match="must hold model"):
        load_diffusers_model(AutoencoderKL, tmp_path)
