"""What is spoken is plain and held out, rows are whole, shards come back, and the float graph computes the same."""

import importlib.util
from random import Random

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_unified_diffusion.codecs.loudness import LEVEL_DB, level_db
from hf_unified_diffusion.codecs.phonemes import pronounce
from hf_unified_diffusion.training import speech_sentences
from hf_unified_diffusion.training.data_sources import SPEECH_SOURCES_FILE, load_packages, permissive
from hf_unified_diffusion.training.speech_clips import SpeechClips, read_flac, read_rows
from hf_unified_diffusion.training.speech_corpus import (
    measure_speech,
    shard_order,
    speech_row,
    write_shard,
    write_speech_report,
)
from hf_unified_diffusion.training.speech_plan import HELD_OUT_VOICES, plan_lines
from hf_unified_diffusion.training.speech_sentences import sentences, spoken_texts, written_sentence
from tests.codecs.sounds import vowel

PROSE = "The {} sat down. It rained on the old {} all day! Who ate the {}? X = 3; y\n\nHE SHOUTED AT THE {}."
NOUNS = ["cat", "dog", "owl", "fox", "hen", "cow", "pig", "ram", "ant", "bee"]


@pytest.fixture
def texts(tmp_path, monkeypatch):
    """A text corpus of one source, some of whose test sentences are in train too."""
    monkeypatch.setattr(speech_sentences, "PROSE", ("prose",))
    for split, nouns in (("train", NOUNS[:7]), ("test", NOUNS[5:]), ("validation", NOUNS[8:])):
        (tmp_path / split).mkdir()
        rows = {"text": [PROSE.format(*[noun] * 4) for noun in nouns]}
        Dataset.from_dict(rows).to_parquet(tmp_path / split / "prose.parquet")
    return tmp_path


def test_sentences_are_plain():
    found = list(sentences(iter([PROSE.format(*["cat"] * 4)])))
    assert found == ["The cat sat down.", "It rained on the old cat all day!", "Who ate the cat?"]
    assert list(sentences(iter(['wag (verb): move; "the dog wagged its tail"']))) == ["The dog wagged its tail."]


def test_held_out_texts_are_not_in_train(texts):
    train, test = (set(spoken_texts(texts, split)) for split in ("train", "test"))
    assert len(train) > 20 and len(test) > 8
    assert not train & test
    assert list(spoken_texts(texts, "train")) == list(spoken_texts(texts, "train"))


def test_written_sentences_can_be_spoken():
    for seed in range(40):
        assert pronounce(written_sentence(Random(seed))).symbols


def test_voices_and_mixes_are_held_out(texts):
    voices = ["af_heart", "am_adam", "bf_emma", *HELD_OUT_VOICES]
    mixes = [("af_heart", "bf_emma", 0.6)]
    train, test = (plan_lines(split, texts, voices, mixes, 12) for split in ("train", "test"))
    assert not {voice for line in train for voice in line.voices} & set(HELD_OUT_VOICES)
    assert {line.voice for line in test} & set(HELD_OUT_VOICES) and {line.voice for line in test} - set(HELD_OUT_VOICES)
    assert "af_heart*0.6+bf_emma" in {line.voice for line in train}
    plain = plan_lines("train", texts, voices, [], 12)
    pairs = [(a, b) for a, b in zip(plain, train, strict=True) if len(b.voices) == 1]
    assert all(a == b for a, b in pairs)  # mixes leave the other lines as they are


def test_unbuilt_corpus_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="make data"):
        plan_lines("train", tmp_path, ["af_heart"], [], 1)


def row(silence_s: float = 0.5, voice: str = "af_heart"):
    silence = np.zeros(int(24_000 * silence_s), np.float32)
    sound = np.concatenate([silence, vowel(0.5)[0].numpy(), silence])
    ends = [silence_s + 0.1, silence_s + 0.3, 2 * silence_s + 0.5]
    return speech_row(sound, ends, "aha", ["ˈ", "ɑ", "h"], voice, "kokoro", "Apache-2.0")


def test_rows_are_trimmed_levelled_and_timed():
    made = row()
    sound = read_flac(made.audio)
    assert abs(len(sound) / 24_000 - 0.6) < 0.08
    assert abs(level_db(sound) - LEVEL_DB) < 0.5
    assert made.phoneme_ends_s == sorted(made.phoneme_ends_s)
    assert made.phoneme_ends_s[-1] <= len(sound) / 24_000
    assert abs(made.phoneme_ends_s[0] - 0.15) < 0.05  # 50 ms of silence are left


def test_shards_come_back_and_are_counted(tmp_path):
    for split, number in shard_order({"train": 20, "test": 3}):
        write_shard([row(voice=f"voice {number}")], tmp_path / split / f"kokoro-{number:04d}.parquet")
    assert [part for part, _ in shard_order({"train": 40, "test": 16})] == ["test", "train", "train", "train"]
    (back,) = read_rows(tmp_path / "test" / "kokoro-0000.parquet")
    assert back["phonemes"] == ["ˈ", "ɑ", "h"] and back["licence"] == "Apache-2.0"
    found = measure_speech(tmp_path)
    assert {(line["split"], line["rows"]) for line in found} == {("train", 2), ("test", 1)}
    assert "| train | kokoro | Apache-2.0 | 2 |" in write_speech_report(found, tmp_path).read_text()
    assert not list(tmp_path.glob("*/.*"))  # nothing half written


def test_clips_are_of_the_shards_and_new_ones_are_found(tmp_path):
    with pytest.raises(FileNotFoundError, match="make data-speech"):
        SpeechClips(tmp_path, 2400, seed=0)
    write_shard([row()], tmp_path / "a.parquet")
    clips = SpeechClips(tmp_path, 2400, seed=0)
    before = clips.seconds
    torch.testing.assert_close(clips.batch(3), SpeechClips(tmp_path, 2400, seed=0).batch(3))
    assert clips.batch(3).shape == (3, 2400) and clips.batch(3).abs().max() <= 1
    write_shard([row()], tmp_path / "b.parquet")
    clips.refresh()
    assert clips.seconds == pytest.approx(2 * before)
    assert SpeechClips(tmp_path, 48_000, seed=0).batch(1)[0, -2400:].abs().max() == 0  # short sounds end in silence


def test_what_is_trained_on_is_permissive():
    packages = load_packages(SPEECH_SOURCES_FILE)
    permissive(package for package in packages if package.kind != "evaluation")
    assert {package.source for package in packages if package.kind == "evaluation"} == {"joe", "asterisk"}


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxruntime")),
    reason="needs the extra speech-data",
)
def test_float_graph_is_the_quantized_one_without_rounding():
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from hf_unified_diffusion.training.speech_teacher import float_graph, frugal_session

    rng = np.random.default_rng(0)
    weight, zero = rng.integers(0, 255, (8, 5)).astype(np.uint8), np.array(120, np.uint8)
    constants = {"w": weight, "w_zero": zero, "w_scale": np.array(0.01, np.float32)}
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        helper.make_node("MatMulInteger", ["q", "w", "zero", "w_zero"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["float_sum"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["scale", "w_scale"], ["both"]),
        helper.make_node("Mul", ["float_sum", "both"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 5])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = rng.normal(size=(4, 8)).astype(np.float32)
    (rounded,) = frugal_session(model.SerializeToString()).run(["y"], {"x": x})
    float_graph(model.graph)
    onnx.checker.check_model(model)
    (exact,) = frugal_session(model.SerializeToString()).run(["y"], {"x": x})
    np.testing.assert_allclose(exact, x @ ((weight.astype(np.float32) - 120) * 0.01), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(rounded, exact, atol=0.1)
