"""Learning speech: what is told, what is dropped, what is asked, and that it is learned."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import Dataset
from torch import Generator

from hf_unified_diffusion.codecs.audio_codec import AudioCodec
from hf_unified_diffusion.codecs.phonemes import PhonemeCodec, pronounce
from hf_unified_diffusion.codecs.speech_layout import SpeechRow, lay_out, stacked_rows
from hf_unified_diffusion.contracts import Segment
from hf_unified_diffusion.pipelines.pipeline_speech import UnifiedDiffusionSpeechPipeline
from hf_unified_diffusion.processes import GaussianFlow
from hf_unified_diffusion.schedulers.flow_matching import speech_scheduler
from hf_unified_diffusion.training.flow_evaluation import flow_errors
from hf_unified_diffusion.training.flow_layout import FlowConfig, FlowTarget, speech_layout
from hf_unified_diffusion.training.objective import ObjectiveConfig, ScoreNetworkObjective
from hf_unified_diffusion.training.run import LearningRate, RunSettings, TrainingRun
from hf_unified_diffusion.training.speech_data import SpokenRows, batches_of, decoded, open_speech
from tests.tiny import tiny_tokenizer
from tests.training.tiny_speech import SECONDS, TEXTS, VOICES, row, speech_model, write_speech

NO_DROPOUT = {"text_dropout": 0.0, "reference_dropout": 0.0, "wordless": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_speech(tmp_path_factory.mktemp("speech"), {"train": 4, "validation": 2})


@pytest.fixture(scope="module")
def shards(folder, tmp_path_factory):
    return open_speech((folder / "train").glob("*.parquet"), tmp_path_factory.mktemp("cache"))


def rows_of(shards, **options):
    return SpokenRows(shards, tiny_tokenizer(), **{"tokens": 60, **NO_DROPOUT, **options})


def said(text, voice):
    return AudioCodec().encode(decoded(row(text, voice)["audio"])[None])[0]


def test_rows_are_the_utterances_and_references_others_of_the_voice(shards):
    ids = PhonemeCodec(tiny_tokenizer()).encode
    known = {tuple(ids(pronounce(text).symbols)): text for text in TEXTS}
    batch = rows_of(shards).batch(0, seed=0)
    assert sum(map(len, batch.sounds)) == batch.num_tokens <= 60
    for told, sound in zip(batch.rows, batch.sounds, strict=True):
        text = known[tuple(told.phoneme_ids)]
        (voice,) = [name for name in VOICES if torch.equal(said(text, name), sound)]
        assert told.num_tokens == len(sound)
        other = known[tuple(told.reference.phoneme_ids)]
        assert other != text and torch.equal(told.reference.sound, said(other, voice))


def test_an_epoch_has_every_row_once_whatever_the_processes(shards):
    source = rows_of(shards)
    alone = [source.batch(turn, seed=1) for turn in range(8)]
    shared = [source.batch(turn, 1, process, 2) for turn in range(4) for process in range(2)]
    for one, other in zip(alone, shared, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.sounds, other.sounds, strict=True))
        assert [row.phoneme_ids for row in one.rows] == [row.phoneme_ids for row in other.rows]
    batches = batches_of(shards.lengths, 60, Generator().manual_seed(3))
    assert sorted(place for batch in batches for place in batch) == list(range(len(shards)))
    assert all(len(batch) * max(shards.lengths[batch]) <= 60 for batch in batches)


@dataclass(frozen=True)
class Spoken:
    """What a pipeline spoke, as an utterance to train on."""

    text: str
    tokens: torch.Tensor
    voices = ("low",)

    @property
    def lengths(self):
        return np.array([len(self.tokens)])

    def symbols(self, place):
        return list(pronounce(self.text).symbols)  # a list, as shards and packs give

    def ends_s(self, place):
        return []  # then they are predicted, as the pipeline does

    def sound(self, place):
        return self.tokens


def test_the_network_is_told_the_same_in_training_and_by_the_pipeline():
    seen = []
    pipe = UnifiedDiffusionSpeechPipeline(speech_model(258), speech_scheduler(), tiny_tokenizer())
    pipe.set_progress_bar_config(disable=True)
    pipe.transformer.register_forward_pre_hook(lambda *call: seen.append(call[2]["segments"]), with_kwargs=True)
    (tokens,) = pipe("Who saw it?", num_inference_steps=1, guidance_scale=1.0, seed=0, output_type="latent").audios
    batch = rows_of(Spoken("Who saw it?", tokens)).batch(0, seed=0)
    trained = [segment for segment, _ in speech_layout(batch, FlowConfig(), Generator().manual_seed(0))]
    (asked,) = seen
    assert [part.modality for part in asked] == [part.modality for part in trained] == ["text", "text", "audio"]
    assert all(torch.equal(a.positions, b.positions) for a, b in zip(asked, trained, strict=True))
    assert all(torch.equal(a.values, b.values) for a, b in zip(asked[:2], trained[:2], strict=True))


def test_phonemes_stand_at_their_true_times_and_references_may_be_wordless(shards):
    for told in rows_of(shards).batch(0, seed=0).rows:
        symbols = len(told.phoneme_ids)
        assert told.places == pytest.approx([20 * SECONDS * (k + 0.5) for k in range(symbols)], abs=1e-4)
        assert len(told.reference.places) == len(told.reference.phoneme_ids) > 0
    for told in rows_of(shards, wordless=1.0).batch(0, seed=0).rows:
        assert (told.reference.phoneme_ids, told.reference.places) == ((), ())
        assert len(told.reference.sound) > 0 and len(told.phoneme_ids) > 0


@pytest.mark.parametrize(("text", "reference", "told"), [(1.0, 0.0, 0), (0.0, 1.0, 1), (0.0, 0.0, 2)])
def test_dropout_leaves_out_what_it_says(shards, text, reference, told):
    rows = rows_of(shards, text_dropout=text, reference_dropout=reference).batch(0, seed=0).rows
    assert {(len(each.phoneme_ids) > 0) + (each.reference is not None) for each in rows} == {told}


def test_what_references_say_is_one_draw_of_a_micro_batch(shards):
    source = rows_of(shards, reference_dropout=0.4, wordless=0.5)
    kinds = []
    for turn in range(24):
        told = {
            "none" if row.reference is None else "words" if row.reference.phoneme_ids else "wordless"
            for row in source.batch(turn, seed=0).rows
        }
        assert len(told) == 1
        kinds.append(told.pop())
    assert set(kinds) == {"none", "words", "wordless"}


def test_only_noisy_sound_is_asked_for_and_the_reference_is_clean(shards):
    batch = rows_of(shards).batch(1, seed=0)
    parts = speech_layout(batch, FlowConfig(), Generator().manual_seed(0))
    asked = [segment for segment, target in parts if isinstance(target, FlowTarget)]
    told = [segment for segment, target in parts if target is None]
    assert [segment.modality for segment in asked] == ["audio"] and not asked[0].is_context
    assert [segment.modality for segment in told] == ["text", "audio", "text"] and all(s.is_context for s in told)
    for given, each in zip(told[1].values, batch.rows, strict=True):
        assert torch.equal(given[: len(each.reference.sound)], each.reference.sound)


def test_padding_has_no_part_in_errors():
    clean, x_0 = torch.zeros(2, 4, 3), torch.ones(2, 4, 3)
    x_0[1, 2:] = 100
    mask = torch.tensor([[True] * 4, [True] * 2 + [False] * 2])
    assert FlowTarget(x_0, torch.ones(2), mask).errors(clean).tolist() == [1.0, 1.0]


def test_faces_come_on_the_same_clock_with_times_of_their_own(shards):
    batch = rows_of(shards, faces=True).batch(0, seed=0)
    assert [face.shape for face in batch.faces] == [(len(sound), 52) for sound in batch.sounds]
    *_, (sound, _), (face, target) = speech_layout(batch, FlowConfig(given_rate=0.0), Generator().manual_seed(0))
    assert (sound.modality, face.modality) == ("audio", "avatar") and target.x_0.shape[2] == 52
    assert torch.equal(sound.positions, face.positions) and not torch.equal(sound.time, face.time)


def test_of_sound_and_face_either_is_given_clean_now_and_then(shards):
    batch, generator = rows_of(shards, faces=True).batch(0, seed=0), Generator().manual_seed(0)
    layouts = [speech_layout(batch, FlowConfig(given_rate=0.5), generator) for _ in range(40)]
    clean = [[part.modality for part, target in parts[-2:] if target is None] for parts in layouts]
    assert {tuple(names) for names in clean} == {(), ("audio",), ("avatar",)}
    for parts, names in zip(layouts, clean, strict=True):
        assert all(part.is_context == (target is None) for part, target in parts) and len(names) < 2
    assert torch.equal(layouts[0][-1][0].positions, layouts[0][-2][0].positions)
    alone = speech_layout(rows_of(shards).batch(0, seed=0), FlowConfig(given_rate=1.0), generator)
    assert not alone[-1][0].is_context  # without a face, sound is always asked for
    with pytest.raises(ValueError, match=r"given_rate must be in \[0, 1\], got 2"):
        FlowConfig(given_rate=2)


def test_each_modality_has_times_of_its_own(shards):
    batch = rows_of(shards, faces=True).batch(0, seed=0)
    config = FlowConfig(time_mean={"audio": 40.0}, given_rate=0.0)  # all but noise alone
    *_, (sound, _), (face, _) = speech_layout(batch, config, Generator().manual_seed(0))
    *_, (_, _), (usual, _) = speech_layout(batch, FlowConfig(given_rate=0.0), Generator().manual_seed(0))
    assert bool((sound.time == 1).all()) and torch.equal(face.time, usual.time)


def face_error(model, batch, told):
    """Squared error of the face at t = 0.7, with the sound given or not."""
    layout, x_0 = lay_out([SpeechRow((), len(sound)) for sound in batch.sounds], 0), stacked_rows(batch.faces, "cpu")
    t, places = torch.full((len(x_0),), 0.7), {"positions": layout.positions, "mask": layout.mask}
    x_t = GaussianFlow().corrupt(x_0, t, Generator().manual_seed(1))
    segments = [*layout.contexts, *([Segment("audio", stacked_rows(batch.sounds, "cpu"), **places)] if told else [])]
    with torch.no_grad():
        clean = model(segments=[*segments, Segment("avatar", x_t, time=t, **places)]).predictions[-1]
    return float(FlowTarget(x_0, t, layout.mask).errors(clean).mean())


def test_face_and_sound_are_learned_together(shards):
    """Both errors fall, and the face is told more by the sound that it goes with than by another's."""
    set_seed(0)
    model = speech_model(258)
    source = rows_of(shards, faces=True, tokens=240, text_dropout=1.0)  # phonemes at their times would do without sound
    batch = source.batch(0, seed=0)
    others = replace(batch, sounds=[*batch.sounds[1:], batch.sounds[0]])
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith("token_embedding"))
    objective = ScoreNetworkObjective(model, ObjectiveConfig(flow=FlowConfig(max_weight=4.0, given_rate=0.5)))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    generator, before = Generator().manual_seed(0), face_error(model, batch, told=True)
    losses = []
    for _ in range(100):
        losses.append(objective(speech_layout(batch, objective.config.flow, generator))["loss"])
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert torch.stack(losses[-10:]).mean() < 0.7 * torch.stack(losses[:10]).mean()
    after = face_error(model, batch, told=True)
    assert after < 0.7 * before and after < 0.95 * face_error(model, others, told=True)


def test_held_out_errors_are_one_for_a_network_that_knows_nothing(shards):
    batches = [rows_of(shards).batch(0, seed=0)]
    generator = Generator().manual_seed(0)
    unit = [
        replace(each, sounds=[torch.randn(sound.shape, generator=generator) for sound in each.sounds])
        for each in batches
    ]
    found = flow_errors(speech_model(258), unit)
    assert found["clean"] == pytest.approx(1.0, abs=0.1) and found["shuffled"] == pytest.approx(found["clean"])


def test_the_held_out_error_falls_and_text_stays_as_it_is(folder, shards, tmp_path):
    """A tiny network on eight utterances, heard on four with other texts."""
    set_seed(0)
    unseen = open_speech((folder / "validation").glob("*.parquet"), tmp_path)
    batches = [rows_of(unseen).batch(0, seed=0)]
    model = speech_model(258)
    words = model.token_embedding.weight.detach().clone()
    before = flow_errors(model, batches)["clean"]
    trained = ("projections.*", "heads.a*", "shared_transformer*", "time_embedding*")
    settings = RunSettings(weight_decay=0.0, ema_decay=0.5, train_only=trained)
    objective = ScoreNetworkObjective(model, ObjectiveConfig(flow=FlowConfig(max_weight=4.0)))
    source = rows_of(shards, faces=True, tokens=120)
    run = TrainingRun(Accelerator(cpu=True), objective, [source], tiny_tokenizer(), settings)
    records = [run.step(LearningRate(5e-3, 5), step / 25) for step in range(25)]
    with run.averaged() as averaged:
        after = flow_errors(averaged, batches)["clean"]
    assert after < 0.8 * before
    assert np.mean([r["audio/clean"] for r in records[-5:]]) < 0.8 * np.mean([r["audio/clean"] for r in records[:5]])
    assert torch.equal(model.token_embedding.weight, words)


def test_shards_that_do_not_fit_are_refused(tmp_path, shards):
    with pytest.raises(ValueError, match="at least one Parquet file"):
        open_speech([], tmp_path)
    Dataset.from_dict({"audio": [b""], "text": ["x"]}).to_parquet(str(tmp_path / "x.parquet"))
    with pytest.raises(ValueError, match="phonemes"):
        open_speech([tmp_path / "x.parquet"], tmp_path / "cache")
    for wrong in ({"tokens": 0}, {"text_dropout": 2.0}, {"reference_dropout": -0.1}, {"wordless": 1.5}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            rows_of(shards, **wrong)
