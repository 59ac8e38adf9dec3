"""Speech: the flow written out, what is given stays, what is seeded repeats, and no row depends on another."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from hf_unified_diffusion.codecs.audio_codec import AudioCodec
from hf_unified_diffusion.codecs.clock import audio_positions, phoneme_positions
from hf_unified_diffusion.codecs.durations import phoneme_places
from hf_unified_diffusion.codecs.phonemes import PhonemeCodec, pronounce
from hf_unified_diffusion.codecs.sounds import read_sound
from hf_unified_diffusion.contracts import Segment
from hf_unified_diffusion.pipelines.pipeline_speech import UnifiedDiffusionSpeechPipeline
from hf_unified_diffusion.pipelines.speech_inputs import crossfaded
from hf_unified_diffusion.processes import GaussianFlow, spawn_generators
from hf_unified_diffusion.schedulers.flow_matching import speech_scheduler

FEW = {"num_inference_steps": 2, "seed": 0}
TOKENS = {**FEW, "output_type": "latent"}
TEXT = "Two red fish."


@pytest.fixture(scope="module")
def speech_model(model):
    """The tiny network with an open head for sound."""
    speaker = deepcopy(model)
    with torch.no_grad():
        speaker.heads["audio"].weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    return speaker


@pytest.fixture
def speech_pipe(speech_model, tokenizer):
    pipe = UnifiedDiffusionSpeechPipeline(speech_model, speech_scheduler(), tokenizer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def voice(seconds=1.6, pitch_hz=150, seed=0):
    """A buzz that comes and goes."""
    time = torch.arange(int(24_000 * seconds)) / 24_000
    buzz = sum(torch.sin(2 * torch.pi * pitch_hz * k * time) / k for k in range(1, 12))
    noise = 0.01 * torch.randn(len(time), generator=torch.Generator().manual_seed(seed))
    return (0.2 * buzz * (0.6 + 0.4 * torch.sin(9 * time)) + noise).clamp(-1, 1)


REFERENCE = {"reference_audio": voice(), "reference_text": "One fish."}


@pytest.mark.parametrize("scales", [(1.0, 1.0), (2.0, 2.0), (1.0, 2.0), (2.0, 1.5)])
def test_it_is_the_flow_of_the_network_after_reference_and_phonemes(speech_pipe, speech_model, tokenizer, scales):
    """Euler's method written out, with everything computed anew in each step."""
    ids = PhonemeCodec(tokenizer).encode
    says = pronounce(TEXT).symbols
    said = ids(says)
    sound = AudioCodec().encode(read_sound("it", voice())[None])
    (found,) = speech_pipe(
        TEXT, **REFERENCE, **TOKENS, guidance_scale=scales[0], speaker_guidance_scale=scales[1]
    ).audios
    length, before = len(found), sound.shape[1]

    def clean(x_t, t, with_text, with_voice):
        start = 1 + before * with_voice
        segments = [Segment("text", torch.tensor([[0]]), positions=torch.zeros(1, 1, 3))]
        if with_voice:
            segments.append(Segment("audio", sound, positions=audio_positions(before, start=1)[None]))
        if with_text:
            places = phoneme_positions(phoneme_places(says, length), start)
            segments.append(Segment("text", torch.tensor([said]), positions=places[None]))
        segments.append(Segment("audio", x_t, time=t, positions=audio_positions(length, start)[None]))
        return speech_model(segments=segments).predictions[-1].float()

    x_t = GaussianFlow().prior((1, length, 400), spawn_generators(0, 1))
    scheduler = speech_scheduler()
    scheduler.set_timesteps(sigmas=[1.0, 0.5])
    for t, s in zip(scheduler.sigmas[:-1], scheduler.sigmas[1:], strict=True):
        with torch.no_grad():
            everything, text, nothing = (clean(x_t, t[None], *has) for has in ((1, 1), (1, 0), (0, 0)))
        x_0 = nothing + scales[0] * (text - nothing) + scales[1] * (everything - text)
        x_t = x_t + (s - t) * (x_t - x_0) / t
    torch.testing.assert_close(found, x_t[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("scales", "reference", "passes"),
    [((1, 1), {}, 2), ((2, 3), {}, 4), ((1, 1), REFERENCE, 2), ((1, 2), REFERENCE, 4), ((2, 3), REFERENCE, 6)],
)
def test_only_the_branches_that_the_scales_leave_in_are_asked(speech_pipe, scales, reference, passes):
    output = speech_pipe(TEXT, **reference, **TOKENS, guidance_scale=scales[0], speaker_guidance_scale=scales[1])
    assert output.num_forward_passes == passes


@pytest.mark.parametrize(("interval", "passes"), [((0, 1), 6), ((0.9, 1), 4), ((0, 0.85), 4), ((0.85, 0.9), 2)])
def test_steps_outside_the_interval_are_not_guided(speech_pipe, interval, passes):
    """Two steps, at the noise levels 1 and 0.8."""
    scales = {"guidance_scale": 2, "speaker_guidance_scale": 3}
    output = speech_pipe(TEXT, **REFERENCE, **TOKENS, **scales, guidance_interval=interval)
    assert output.num_forward_passes == passes
    plain = speech_pipe(TEXT, **REFERENCE, **TOKENS, guidance_scale=1, speaker_guidance_scale=1).audios[0]
    assert torch.equal(output.audios[0], plain) == (passes == 2)


def test_the_context_is_computed_once(speech_pipe):
    lengths = []
    hook = speech_pipe.transformer.register_forward_hook(
        lambda module, args, kwargs, output: lengths.append(len(output.predictions)), with_kwargs=True
    )
    speech_pipe(TEXT, **REFERENCE, **TOKENS, guidance_scale=1, speaker_guidance_scale=1)
    hook.remove()
    assert lengths == [4, 1]


def test_same_seed_same_sound(speech_pipe):
    first, again = (speech_pipe(TEXT, **FEW).audios[0] for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, speech_pipe(TEXT, **{**FEW, "seed": 1}).audios[0])
    other = speech_pipe(TEXT, **FEW, **REFERENCE).audios[0]
    assert other.shape != first.shape or not np.array_equal(first, other)
    by_generator = {**FEW, "seed": None, "generator": spawn_generators(0, 1)}
    assert np.array_equal(first, speech_pipe(TEXT, **by_generator).audios[0])


@pytest.mark.parametrize("reference", [{}, REFERENCE])
def test_a_batch_is_its_single_sounds(speech_pipe, reference):
    texts = ["Two red fish.", "No.", "One."]
    together = speech_pipe(texts, **TOKENS, **reference).audios
    for row, text in enumerate(texts):
        alone = {**TOKENS, "seed": None, "generator": spawn_generators(0, 1, first=row)}
        torch.testing.assert_close(speech_pipe(text, **alone, **reference).audios[0], together[row], atol=1e-4, rtol=0)


def test_speed_is_the_length(speech_pipe):
    slow, plain, fast = (len(speech_pipe(TEXT, speed=speed, **TOKENS).audios[0]) for speed in (0.5, 1.0, 2.0))
    assert abs(slow - 2 * plain) <= 2 and abs(plain - 2 * fast) <= 2
    quick = {**REFERENCE, "reference_text": "One fish and two fish and three fish swim by."}
    assert len(speech_pipe(TEXT, **quick, **TOKENS).audios[0]) < len(speech_pipe(TEXT, **REFERENCE, **TOKENS).audios[0])
    wordless = {"reference_audio": voice()}  # nobody knows how fast it is: the corpus' rate
    assert len(speech_pipe(TEXT, **wordless, **TOKENS).audios[0]) == plain


def test_times_of_words_rise_within_the_sound(speech_pipe):
    output = speech_pipe("Two red fish. No!", **FEW)
    (alignment,), seconds = output.alignments, len(output.audios[0]) / output.sampling_rate_hz
    assert [word.label for word in alignment.words] == ["Two", "red", "fish", "No"]
    for labels in (alignment.words, alignment.phonemes):
        times = [time for label in labels for time in (label.start_s, label.end_s)]
        assert times == sorted(times) and times[0] >= 0 and times[-1] <= seconds


def test_long_texts_are_spoken_in_parts_by_one_voice(speech_pipe, monkeypatch):
    monkeypatch.setattr("hf_unified_diffusion.pipelines.speech_inputs.LONGEST_PART_S", 1.2)
    seen = []
    hook = speech_pipe.transformer.register_forward_hook(
        lambda module, args, kwargs, output: seen.append([s.modality for s in kwargs["segments"]]), with_kwargs=True
    )
    output = speech_pipe("Two red fish. No blue ones!", **FEW, guidance_scale=1)
    hook.remove()
    assert seen[0] == ["text", "text", "audio"]
    assert ["text", "audio", "text", "audio"] in seen[2:]  # the first part is the reference of the second
    assert [word.label for word in output.alignments[0].words] == ["Two", "red", "fish", "No", "blue", "ones"]


def test_crossfade_keeps_what_is_not_faded():
    first, second = torch.ones(100), torch.ones(80)
    joined, starts = crossfaded([first, second], pause=10, fade=16)
    assert starts == [0, 110] and len(joined) == 190
    assert bool((joined[:84] == 1).all()) and bool((joined[126:] == 1).all()) and bool((joined[100:110] == 0).all())
    torch.testing.assert_close(joined[84:100] + joined[110:126], torch.ones(16))  # the fades are one another's rest
    assert bool((joined[84:100].diff() < 0).all())


def test_of_several_candidates_the_likeliest_is_kept(speech_pipe):
    one = speech_pipe(TEXT, **TOKENS)
    best = speech_pipe(TEXT, **TOKENS, num_candidates=3)
    assert one.scores is None and len(best.audios) == len(best.scores) == 1
    few = speech_pipe(TEXT, **TOKENS, num_candidates=2)
    assert best.scores[0] <= few.scores[0]  # more to choose from is never worse
    passes_for_scores = 2 * 3
    assert best.num_forward_passes == one.num_forward_passes + passes_for_scores


def test_the_reference_is_not_changed_and_not_noisy(speech_pipe):
    given, seen = voice(), []
    before = given.clone()
    hook = speech_pipe.transformer.register_forward_hook(
        lambda module, args, kwargs, output: seen.extend(kwargs["segments"]), with_kwargs=True
    )
    speech_pipe(TEXT, reference_audio=given, reference_text="One fish.", **TOKENS, guidance_scale=1)
    hook.remove()
    clean = [segment for segment in seen if segment.modality == "audio" and segment.is_context]
    assert torch.equal(given, before)
    assert len(clean) == 1 and torch.equal(clean[0].values[0], AudioCodec().encode(read_sound("it", given)[None])[0])


def test_saved_and_loaded_it_speaks_the_same(speech_pipe, tmp_path):
    speech_pipe.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    assert isinstance(loaded, UnifiedDiffusionSpeechPipeline) and loaded.vocoder is None
    loaded.set_progress_bar_config(disable=True)
    loaded.transformer.double()
    torch.testing.assert_close(loaded(TEXT, **TOKENS).audios[0], speech_pipe(TEXT, **TOKENS).audios[0])


def test_callbacks_see_and_change_every_step_and_may_interrupt(speech_pipe):
    seen = []

    def look(pipe, step, timestep, tensors):
        seen.append((step, tensors["clean_latents"].shape))
        pipe._interrupt = step == 0
        return {"latents": torch.zeros_like(tensors["latents"])}

    names = ["latents", "clean_latents"]
    output = speech_pipe(TEXT, **TOKENS, callback_on_step_end=look, callback_on_step_end_tensor_inputs=names)
    assert len(seen) == 1 and seen[0][1][0] == 1
    assert not output.audios[0].any()


def test_kinds_of_output_and_several_per_prompt(speech_pipe):
    arrays = speech_pipe(["One.", "Two."], num_audios_per_prompt=2, **FEW).audios
    tensors = speech_pipe(["One.", "Two."], num_audios_per_prompt=2, **FEW, output_type="pt", return_dict=False)[0]
    assert len(arrays) == 4 and len({array.tobytes() for array in arrays}) == 4
    for array, tensor in zip(arrays, tensors, strict=True):
        assert array.dtype == np.float32 and np.array_equal(array, tensor.numpy()) and np.abs(array).max() <= 1


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({"prompt": ""}, "something to speak"),
        ({"prompt": "世界"}, "Latin letters"),
        ({"prompt": 3}, "prompt must be a string"),
        ({"speed": 0}, "speed must be"),
        ({"speed": float("nan")}, "speed must be"),
        ({"num_candidates": 0}, "num_candidates must be"),
        ({"guidance_scale": -1}, "guidance_scale must be"),
        ({"speaker_guidance_scale": float("inf")}, "guidance_scale must be"),
        ({"guidance_interval": (0.6, 0.5)}, "guidance_interval must be"),
        ({"guidance_eta": 1.5}, r"guidance_eta must be a number in \[0, 1\], got 1.5"),
        ({"num_inference_steps": 0}, "num_inference_steps must be"),
        ({"output_type": "wav"}, "output_type must be"),
        ({"reference_text": "One."}, "must come with a reference_audio"),
        ({**REFERENCE, "reference_audio": torch.zeros(48_000)}, "must not be silent"),
        ({**REFERENCE, "reference_audio": torch.zeros(0)}, "at least one sample"),
        ({**REFERENCE, "reference_audio": torch.full((48_000,), torch.nan)}, "must be finite"),
        ({**REFERENCE, "reference_audio": 3 * voice()}, r"must be in \[-1, 1\]"),
        ({**REFERENCE, "reference_audio": voice(0.5)}, "at least 1 s of speech"),
        ({**REFERENCE, "reference_audio": np.ones(24_000 * 3600, np.int16)}, "at most 30 s"),
        ({**REFERENCE, "reference_audio": "nowhere.wav"}, "no file"),
        ({**REFERENCE, "reference_audio": [voice()] * 2}, "as many as the prompts"),
        ({**REFERENCE, "reference_sampling_rate_hz": 4000}, "sampling rate"),
        ({"prompt": "one two three " * 60}, "fit the context"),
    ],
)
def test_what_breaks_a_rule_is_refused_by_name(speech_pipe, wrong, rule):
    with pytest.raises(ValueError, match=rule):
        speech_pipe(**{"prompt": TEXT, **FEW, **wrong})


def test_a_network_without_sound_is_refused(tokenizer, model):
    silent = deepcopy(model)
    silent.config.modalities = {name: spec for name, spec in model.config.modalities.items() if name != "audio"}
    with pytest.raises(ValueError, match="continuous modality 'audio'"):
        UnifiedDiffusionSpeechPipeline(silent, speech_scheduler(), tokenizer)
