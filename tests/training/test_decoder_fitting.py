"""What a decoder trains on is what the frozen network says, and a trained one joins a checkpoint code by code."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import Generator

from hf_unified_diffusion import ArrowQuantConfig, UnifiedDiffusionModel
from hf_unified_diffusion.contracts import Segment
from hf_unified_diffusion.conversion.export import export_checkpoint
from hf_unified_diffusion.conversion.merging import merge_tensors
from hf_unified_diffusion.modeling.local_decoder import LocalDecoder
from hf_unified_diffusion.quantization import QuantizedWeight
from hf_unified_diffusion.training.decoder_fitting import (
    HeardRows,
    drawn_times,
    errors_by_time,
    heard_rows,
    random_pieces,
    weighted_loss,
)
from hf_unified_diffusion.training.flow_evaluation import estimated
from hf_unified_diffusion.training.run import adamw
from hf_unified_diffusion.training.speech_data import SpokenRows, open_speech
from tests.modeling.test_local_decoder import lively
from tests.tiny import tiny_tokenizer
from tests.training.tiny_speech import speech_model, write_speech

SHAPE = {"frames": 4, "channels": 16, "intermediate_size": 32, "num_blocks": 1}


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speech")
    shards = open_speech((write_speech(folder, {"train": 3}) / "train").glob("*.parquet"), folder / "cache")
    return SpokenRows(shards, tiny_tokenizer(), tokens=120, reference_dropout=0.0).batch(0, seed=0)


@pytest.fixture(scope="module")
def model():
    network = lively(speech_model(258))
    for parameter in network.parameters():
        parameter.data.mul_(0.3)
    return network


def test_copies_are_what_each_alone_would_be(batch, model):
    times = drawn_times(3, len(batch.rows), seeded())
    together = heard_rows(model, batch, times, seeded(1))
    generator = seeded(1)
    alone = HeardRows.joined([heard_rows(model, batch, t[None], generator) for t in times])
    for name, value in vars(together).items():
        torch.testing.assert_close(value, getattr(alone, name), rtol=0.05, atol=0.05)
    assert together.lengths.tolist() == [len(sound) for sound in batch.sounds] * 3
    assert torch.equal(together.x_0, torch.cat(batch.sounds * 3).to(torch.bfloat16))


@torch.no_grad()
def test_the_estimate_is_that_of_the_network_without_its_decoder(batch, model):
    x_0, clean = estimated(model, batch, 0.5, seeded())
    decoded = speech_model(258)
    decoded.load_state_dict(model.state_dict())
    decoded.add_decoder("audio", **SHAPE)
    lively(decoded.decoders)
    rows = heard_rows(decoded.eval(), batch, torch.full((1, len(batch.rows)), 0.5), seeded())
    torch.testing.assert_close(rows.estimate.float(), clean, rtol=0.02, atol=0.02)
    (error,) = errors_by_time(rows, None, clips_at_once=1).values()
    assert error == pytest.approx(float((clean - x_0).square().mean()), rel=0.02)
    (error,) = errors_by_time(rows, decoded.decoders["audio"]).values()
    x_0, clean = estimated(decoded, batch, 0.5, seeded())
    assert error == pytest.approx(float((clean - x_0).square().mean()), rel=0.02)


def test_times_of_a_clip_are_spread_and_rows_are_kept(tmp_path, batch, model):
    times = drawn_times(4, 50, seeded())
    assert (times.sort(dim=0).values == times).all() and times.min() > 0 and times.max() <= 1
    assert (times.diff(dim=0) < 0.5).all()
    rows = heard_rows(model, batch, times[:2, : len(batch.rows)], seeded())
    rows.save(tmp_path / "rows.safetensors")
    again = HeardRows.load(tmp_path / "rows.safetensors")
    assert all(torch.equal(value, getattr(again, name)) for name, value in vars(rows).items())


def numbered_rows(lengths: list[int]) -> HeardRows:
    """Every token says whose it is and where it is in its clip."""
    whose = torch.cat([torch.stack([torch.full((n,), float(k)), torch.arange(n)], 1) for k, n in enumerate(lengths)])
    values = whose.to(torch.bfloat16)
    return HeardRows(values, values, values, values, torch.arange(len(lengths)) / 10.0, torch.tensor(lengths))


def test_a_piece_is_of_one_clip_and_in_order():
    pieces = random_pieces(numbered_rows([3, 9, 40]), count=200, tokens=8, generator=seeded())
    for values, time, mask in zip(pieces.x_0, pieces.time, pieces.mask, strict=True):
        real = values[mask]
        clip = int(real[0, 0])
        assert (real[:, 0] == clip).all() and (real[:, 1].diff() == 1).all() and time == pytest.approx(clip / 10)
        assert len(real) == min(8, [3, 9, 40][clip]) and not values[~mask].any()
    drawn = pieces.x_0[:, 0, 0].float()
    assert 0.6 < (drawn == 2).float().mean() < 0.9  # 40 of 52 tokens


def smooth_rows(generator: Generator, clips: int = 40, tokens: int = 12) -> HeardRows:
    """Sounds whose frames hardly change, and a trunk that knows nothing: neighbours tell the noise away."""
    x_0 = torch.randn(clips, 1, 4, generator=generator).expand(-1, tokens, -1).repeat_interleave(4, dim=2)
    x_0 = x_0.unflatten(2, (4, 4)).transpose(2, 3).flatten(2)  # four frames, each the same four numbers
    noise = torch.randn(x_0.shape, generator=generator)
    t = torch.full((clips,), 0.5)
    x_t = 0.5 * x_0 + 0.5 * noise
    flat = [part.flatten(0, 1).to(torch.bfloat16) for part in (torch.zeros(clips, tokens, 2), 0 * x_0, x_t, x_0)]
    return HeardRows(*flat, t, torch.full((clips,), tokens))


def test_training_finds_what_neighbours_tell():
    rows, held_out = smooth_rows(seeded()), smooth_rows(seeded(1))
    torch.manual_seed(0)
    decoder = LocalDecoder(2, 16, 4, 16, 32, 1)
    optimizer = adamw(list(decoder.parameters()), 0.0, 0.98)
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 5e-3
    for step in range(120):
        pieces = random_pieces(rows, 16, 8, seeded(step)).with_dropout(0.2, seeded(step))
        weighted_loss(pieces.errors(decoder), pieces.time).backward()
        optimizer.step()
        optimizer.zero_grad()
    (before,), (after,) = (errors_by_time(held_out, each).values() for each in (None, decoder))
    one_frame = 0.5  # the posterior variance of a number of variance 1 seen at t = 0.5, without neighbours
    assert after < 0.6 * one_frame < before


def test_dropout_zeroes_its_share_of_what_the_trunk_says_and_keeps_its_mean():
    batch = random_pieces(numbered_rows([400]), count=8, tokens=200, generator=seeded())
    batch = replace(batch, hidden=torch.ones(8, 200, 16))
    dropped = batch.with_dropout(0.25, seeded(1))
    torch.testing.assert_close(dropped.hidden.unique(), torch.tensor([0.0, 4 / 3]))
    assert dropped.hidden.mean().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(batch.with_dropout(0.0, seeded(1)).hidden, batch.hidden)
    assert dropped.x_t is batch.x_t and dropped.x_0 is batch.x_0


@pytest.mark.parametrize("time", [0.0, 0.1, 0.5, 1.0])
def test_errors_weigh_the_more_the_less_noise_there_was(time):
    alone = weighted_loss(torch.ones(1), torch.tensor([time])).item()
    later = weighted_loss(torch.ones(1), torch.tensor([time + 0.1])).item()
    assert alone > later
    both = weighted_loss(torch.tensor([1.0, 2.0]), torch.tensor([time, time + 0.1])).item()
    assert both == pytest.approx((alone + 2 * later) / 2)


def test_merging_adds_the_decoder_and_changes_no_other_code(tmp_path):
    speech_model(258).save_pretrained(tmp_path / "dense")
    tiny_tokenizer().save_pretrained(tmp_path / "dense")
    config = ArrowQuantConfig(bits=4, group_size=16, modules_to_not_convert=[])
    before = export_checkpoint(tmp_path / "dense", tmp_path / "edge", config, ["text"])
    decoder = lively(LocalDecoder(64, 400, **SHAPE))
    tensors = {f"decoders.audio.{name}": value.contiguous() for name, value in decoder.state_dict().items()}
    save_file(tensors, tmp_path / "decoder.safetensors")
    merge_tensors(tmp_path / "edge", tmp_path / "decoder.safetensors", tmp_path / "edge")
    merge_tensors(tmp_path / "edge", tmp_path / "decoder.safetensors", tmp_path / "edge")  # in place of the first
    after = UnifiedDiffusionModel.from_pretrained(tmp_path / "edge").eval()
    state = after.state_dict()
    assert all(torch.equal(state[name], value) for name, value in before.state_dict().items())
    bits = {n: m.bits for n, m in after.decoders["audio"].named_modules() if isinstance(m, QuantizedWeight)}
    assert bits == {"read": 8, "context": 4, "time": 4, "blocks.0.up": 4, "blocks.0.down": 4, "write": 8}
    x_t = torch.randn(1, 6, 400, generator=seeded())
    segment = Segment("audio", x_t, time=torch.full((1,), 0.5))
    with torch.no_grad():
        hidden, _ = after.features([segment])
        estimate = after.estimate(hidden[0], segment, decoded=False).float()
        found = after.estimate(hidden[0], segment).float() - estimate
        expected = decoder(hidden[0].float(), estimate, x_t, segment.time) - estimate
    assert torch.nn.functional.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.9
    del tensors["decoders.audio.write.bias"]
    save_file(tensors, tmp_path / "torn.safetensors")
    with pytest.raises(ValueError, match="a decoder must be of a continuous modality and whole"):
        merge_tensors(tmp_path / "edge", tmp_path / "torn.safetensors", tmp_path / "edge")
