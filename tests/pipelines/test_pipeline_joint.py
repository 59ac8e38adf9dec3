"""Several modalities in one pass: any given, the others generated, each by its own process at its own time."""

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchHeunDiscreteScheduler

from hf_unified_diffusion.codecs.audio_codec import AudioCodec
from hf_unified_diffusion.codecs.avatar_codec import AvatarCodec
from hf_unified_diffusion.codecs.avatar_track import AvatarTrack
from hf_unified_diffusion.codecs.clock import audio_positions, phoneme_positions
from hf_unified_diffusion.codecs.durations import phoneme_places
from hf_unified_diffusion.codecs.phonemes import PhonemeCodec, pronounce
from hf_unified_diffusion.contracts import Segment
from hf_unified_diffusion.pipelines.joint_canvases import Pace
from hf_unified_diffusion.pipelines.pipeline_joint import UnifiedDiffusionJointPipeline
from hf_unified_diffusion.processes import spawn_generators
from hf_unified_diffusion.schedulers import MaskedDiffusionScheduler
from hf_unified_diffusion.schedulers.flow_matching import flow_scheduler, speech_scheduler
from tests.codecs.vaes import tiny_dc
from tests.tiny import tiny_model, tiny_tokenizer

SMALL = {"num_inference_steps": 3, "seed": 0}
SOUND = 0.1 * torch.sin(torch.arange(12000) * 0.05)
FACE = np.random.default_rng(0).random((10, 52)).astype(np.float32)
ALL = ("text", "audio", "avatar", "image")


@pytest.fixture(scope="module")
def model():
    """In float64, so that no token hangs on rounding, with heads that have learned something."""
    model = tiny_model(bos_token_id=0, eos_token_id=0, max_position_embeddings=512, initializer_range=0.2).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.time_embedding.time.weight.normal_(0, 0.2, generator=generator)
        for name in ("audio", "avatar", "image"):
            model.heads[name].weight.normal_(0, 0.1, generator=generator)
        for vector in model.modality_embedding.values():
            vector.normal_(0, 0.3, generator=generator)
    return model


@pytest.fixture(scope="module")
def pipe(model):
    scheduler = MaskedDiffusionScheduler(mask_token_id=257)
    parts = {"vae": tiny_dc(128), "image_scheduler": flow_scheduler()}
    pipe = UnifiedDiffusionJointPipeline(model, scheduler, speech_scheduler(), tiny_tokenizer(), **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tokens_of(pipe, *args, **options):
    return pipe(*args, **{**SMALL, **options}).tokens


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0, {"avatar": 3.0}])
def test_one_trunk_pass_a_step_for_all_modalities(pipe, guidance_scale):
    """The counter: the trunk runs once a step, whatever is generated and guided; the context is computed once."""
    passes = []
    hook = pipe.transformer.shared_transformer.register_forward_hook(
        lambda module, args, output: passes.append(tuple(output.shape[:2]))
    )
    options = {"duration_s": 0.5, "num_text_tokens": 6, "height": 64, "width": 64, "num_inference_steps": 5}
    try:
        output = pipe("ab", modality=ALL, guidance_scale=guidance_scale, seed=0, **options)
    finally:
        hook.remove()
    rows, canvas = 1 if guidance_scale == 1.0 else 2, 6 + 10 + 10 + 4
    assert passes == [(rows, 3 + canvas)] + [(rows, canvas)] * 4
    assert output.num_forward_passes == len(passes) == 5
    assert output.audio.shape == (1, 12000) and output.avatar.shape == (1, 10, 52)
    assert output.images[0].size == (64, 64) and output.texts[0].startswith("ab")


def test_it_is_the_flow_of_the_network_with_everything_computed_anew(pipe, model):
    """Euler's method for sound and face written out, the face done a step before the sound: each at its own time."""
    even = flow_scheduler(use_dynamic_shifting=False)
    pipe = UnifiedDiffusionJointPipeline(model, pipe.scheduler, even, pipe.tokenizer)
    pipe.set_progress_bar_config(disable=True)
    found = tokens_of(pipe, modality=["audio", "avatar"], text="my map", duration_s=0.5, spans={"avatar": (0, 0.67)})
    symbols = pronounce("my map").symbols
    ids = torch.tensor([PhonemeCodec(pipe.tokenizer).encode(symbols)])
    clock = audio_positions(10, start=1)[None]
    contexts = [
        Segment("text", torch.tensor([[0]])),
        Segment("text", ids, positions=phoneme_positions(phoneme_places(symbols, 10), start=1)[None]),
    ]
    x = noise_of(pipe, "my map")
    times = {"audio": [1, 2 / 3, 1 / 3, 0], "avatar": [1, 0.5, 0, 0]}
    pipe_times = {name: [torch.tensor([t]).float() for t in ts] for name, ts in times.items()}
    for step in range(3):
        segments = [Segment(n, x[n], time=pipe_times[n][step], positions=clock) for n in ("audio", "avatar")]
        with torch.no_grad():
            clean = model(segments=[*contexts, *segments]).predictions[2:]
        for name, x_0 in zip(("audio", "avatar"), clean, strict=True):
            t, s = pipe_times[name][step], pipe_times[name][step + 1]
            if t > 0:
                x[name] = x[name] + (s - t) * (x[name] - x_0.float()) / t
    for name, expected in x.items():
        torch.testing.assert_close(found[name], expected.float(), atol=1e-3, rtol=1e-3)


def noise_of(pipe, text):
    """What the canvases of sound and face start from."""
    seen = {}
    original = pipe._canvases

    def remembering(*args):
        canvases = original(*args)
        seen.update({canvas.modality: canvas.x_t.clone() for canvas in canvases})
        return canvases

    pipe._canvases = remembering
    try:
        pipe(modality=["audio", "avatar"], text=text, duration_s=0.5, **SMALL)
    finally:
        del pipe._canvases
    return seen


@pytest.mark.parametrize(
    ("modality", "given"),
    [
        (["audio", "avatar"], {"text": "Hello"}),
        (["avatar"], {"audio": SOUND}),
        (["text"], {"audio": SOUND}),
        (["audio"], {"avatar": FACE}),
        (["text", "avatar"], {"audio": SOUND}),
        (["audio"], {"text": "Hello", "avatar": FACE}),
        (["text", "audio"], {"avatar": AvatarTrack(FACE).at(60)}),
        (["text", "audio", "avatar"], {"image": np.zeros((64, 64, 3), dtype=np.uint8)}),
        (["image", "avatar"], {"prompt": "red", "audio": SOUND, "height": 64, "width": 64}),
        (["text", "audio", "avatar"], {"duration_s": 0.4}),
    ],
)
def test_any_subset_from_any_other(pipe, modality, given):
    """Marginal, conditional and joint from one network; what is not asked for is not there."""
    output = pipe(modality=modality, num_text_tokens=5, **given, **SMALL)
    assert set(output.tokens) == set(modality)
    for name, value in (("text", output.texts), ("audio", output.audio), ("avatar", output.avatar)):
        assert (value is not None) == (name in modality)
    clip = {"audio", "avatar"} & set(modality) or {"audio", "avatar"} & set(given)
    assert (output.words is not None) == bool(clip)
    if {"prompt", "text", "image"} & set(given):  # and what is given matters
        kept = {name: value for name, value in given.items() if name not in ("prompt", "text", "image")}
        lasts = {} if {"audio", "avatar"} & set(given) else {"duration_s": output_seconds(output)}
        other = pipe(modality=modality, num_text_tokens=5, **kept, **lasts, **SMALL)
        assert any(not torch.equal(tokens, other.tokens[name]) for name, tokens in output.tokens.items())


def output_seconds(output):
    return output.audio.shape[1] / 24000


def test_what_is_given_is_returned_as_it_is(pipe):
    output = pipe(modality=ALL[:3], text="Hello", avatar=FACE, **SMALL)
    assert output.texts == ["Hello"] and set(output.tokens) == {"audio"}
    np.testing.assert_allclose(output.avatar[0], FACE, atol=1e-5)


def test_same_seed_same_samples_and_asking_for_more_changes_no_other_noise(pipe):
    first, again = (tokens_of(pipe, "a", modality=ALL[:3], duration_s=0.5) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = tokens_of(pipe, "a", modality=ALL[:3], duration_s=0.5, seed=1)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    both = noise_of(pipe, "Hello")
    seen = {}

    def callback(pipe, step, t, tensors):
        seen.setdefault(step, {name: value.clone() for name, value in tensors.items()})
        return tensors

    pipe(
        modality="avatar",
        text="Hello",
        duration_s=0.5,
        spans={"avatar": (0.9, 1)},
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=["avatar"],
        **SMALL,
    )
    assert torch.equal(seen[0]["avatar"], both["avatar"])  # it waits as the noise that it is beside the sound


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_a_batch_is_single_rows(pipe, guidance_scale):
    options = {"duration_s": 0.5, "num_text_tokens": 4, "guidance_scale": guidance_scale, "num_inference_steps": 3}
    prompts = ["a", "the sea", "x y z"]
    whole = pipe(prompts, modality=ALL[:3], seed=0, **options)
    for row, prompt in enumerate(prompts):
        single = pipe(prompt, modality=ALL[:3], generator=spawn_generators(0, 1, first=row), **options)
        assert single.texts == whole.texts[row : row + 1]
        np.testing.assert_allclose(single.avatar[0], whole.avatar[row], atol=1e-4)
        torch.testing.assert_close(single.tokens["audio"][0], whole.tokens["audio"][row], atol=1e-3, rtol=1e-3)


def test_guidance_of_one_pass_is_guidance_of_two(pipe, model):
    """Batched with and without what is given: null + scale (clean - null), at one step to the clean sample."""
    scale, texts = 2.5, ["Hello, you", "No"]
    found = pipe(modality="audio", text=texts, duration_s=0.5, guidance_scale=scale, num_inference_steps=1, seed=0)
    plain = pipe(modality="audio", text=texts, duration_s=0.5, num_inference_steps=1, seed=0).tokens["audio"]
    null = pipe([""] * 2, modality="audio", duration_s=0.5, num_inference_steps=1, seed=0).tokens["audio"]
    torch.testing.assert_close(found.tokens["audio"], null + scale * (plain - null), atol=1e-4, rtol=1e-4)
    assert found.num_forward_passes == 1


def test_words_phonemes_and_visemes_have_times(pipe):
    output = pipe(modality="audio", text="Hello, my mum", duration_s=2.0, **SMALL)
    (words,), (phonemes,), (visemes,) = output.words, output.phonemes, output.visemes
    assert [word.label for word in words] == ["Hello", "my", "mum"]
    assert "".join(phoneme.label for phoneme in phonemes) == "həlOmImʌm"
    assert 1.8 < phonemes[-1].end_s <= 2.0 and visemes[-1].end_s == phonemes[-1].end_s
    assert words[0].end_s <= words[1].start_s <= words[1].end_s <= words[2].start_s
    shown = pipe(modality="audio", text="my map", avatar=FACE, **SMALL)  # a face says when, whatever it looks like
    assert "".join(phoneme.label for phoneme in shown.phonemes[0]) == "mImæp"
    assert 0.4 < shown.visemes[0][-1].end_s <= 0.5


def test_spans_are_the_steps_of_a_share():
    assert Pace.of((0, 1), 16) == Pace(0, 16) and Pace.of((0, 0.5), 16) == Pace(0, 8)
    assert Pace.of((0.5, 1), 3) == Pace(1, 2) and Pace.of((0.99, 1), 1) == Pace(0, 1)


def test_text_may_be_ready_before_sound_begins(pipe):
    """Independent times: the text's masks are gone half way, and sound is still noise then."""
    seen = []

    def callback(pipe, step, t, tensors):
        seen.append((int((tensors["text"] == 257).sum()), tensors["audio"].clone(), float(t)))
        return tensors

    pipe(
        "a",
        modality=["text", "audio"],
        duration_s=0.5,
        num_text_tokens=8,
        num_inference_steps=4,
        seed=0,
        spans={"text": (0, 0.5), "audio": (0.5, 1)},
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=["text", "audio"],
    )
    assert [masks for masks, _, _ in seen] == [4, 0, 0, 0] and [t for _, _, t in seen] == [0.75, 0.5, 0.25, 0]
    assert torch.equal(seen[0][1], seen[1][1]) and not torch.equal(seen[1][1], seen[2][1])


def test_a_callback_may_change_and_interrupt(pipe):
    def callback(pipe, step, t, tensors):
        pipe._interrupt = step == 1
        return {"avatar": torch.full_like(tensors["avatar"], 0.25)}

    names = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ["avatar"]}
    output = pipe(modality=["audio", "avatar"], duration_s=0.5, num_inference_steps=4, seed=0, **names)
    assert (output.tokens["avatar"] == 0.25).all() and output.num_forward_passes == 2
    names["callback_on_step_end"] = lambda pipe, step, t, tensors: {"avatar": tensors["avatar"][:, 1:]}
    with pytest.raises(ValueError, match="a callback's avatar must stay"):
        pipe(modality="avatar", **names, **SMALL)


def test_saved_and_loaded_it_generates_the_same(pipe, tmp_path):
    assert diffusers.UnifiedDiffusionJointPipeline is UnifiedDiffusionJointPipeline
    expected = tokens_of(pipe, "a", modality=ALL, duration_s=0.5, height=32, width=32)
    pipe.save_pretrained(tmp_path)
    for cls in (UnifiedDiffusionJointPipeline, DiffusionPipeline):
        loaded = cls.from_pretrained(tmp_path, dtype=torch.float64)
        loaded.set_progress_bar_config(disable=True)
        assert type(loaded) is UnifiedDiffusionJointPipeline and loaded.vocoder is None
        loaded.vae.float()
        found = tokens_of(loaded, "a", modality=ALL, duration_s=0.5, height=32, width=32)
        assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        ("modality must be one or more of", {"modality": "smell"}),
        ("modality must be one or more of", {"modality": ["audio", "audio"]}),
        ("modality must be one or more of", {"modality": []}),
        ("modality must hold one that is not given", {"modality": "audio", "audio": SOUND}),
        ("text must come with audio or avatar", {"modality": "image", "text": "Hello"}),
        ("duration_s must be above 0 and at most 60", {"duration_s": 0.0}),
        ("duration_s must be above 0 and at most 60", {"duration_s": float("nan")}),
        ("duration_s must be left out with audio", {"duration_s": 1.0, "audio": SOUND}),
        ("duration_s must be left out without sound", {"duration_s": 1.0, "modality": "text"}),
        ("audio and avatar must be of one length", {"modality": "text", "audio": SOUND, "avatar": FACE[:4]}),
        ("audio must be float", {"modality": "avatar", "audio": torch.zeros(3, dtype=torch.int16)}),
        ("audio must be float", {"modality": "avatar", "audio": torch.zeros(0)}),
        ("audio must be finite and in", {"modality": "avatar", "audio": SOUND * float("nan")}),
        ("audio must be finite and in", {"modality": "avatar", "audio": SOUND * 100}),
        ("audio must be at most 60", {"modality": "avatar", "audio": torch.zeros(24000 * 61)}),
        ("coefficients must be in", {"modality": "audio", "avatar": FACE + 1}),
        (
            "prompt must be one string or as many as rows are given \\(2\\), got 3",
            {"prompt": ["a"] * 3, "modality": "avatar", "audio": torch.zeros(2, 99)},
        ),
        (
            "audio must have one row or as many as the prompts \\(3\\), got 2",
            {"text": ["a"] * 3, "modality": "avatar", "audio": torch.zeros(2, 99)},
        ),
        ("guidance_scale must be a finite number", {"guidance_scale": -1.0}),
        ("a modality of guidance_scale must be", {"guidance_scale": {"smell": 2.0}}),
        ("a span must be two rising shares", {"spans": {"text": (0.5, 0.5)}}),
        ("a modality of spans must be", {"spans": {"smell": (0, 1)}}),
        ("num_inference_steps must be an integer", {"num_inference_steps": 0}),
        ("num_text_tokens must be an integer", {"num_text_tokens": 0}),
        ("height and width must be left out", {"height": 64}),
        ("tokens fit the context", {"duration_s": 30.0}),
        ("must be generated ones of", {"callback_on_step_end_tensor_inputs": ["image"]}),
        ("must be among", {"callback_on_step_end_tensor_inputs": ["smell"]}),
    ],
)
def test_bad_input_names_the_rule(pipe, rule, options):
    with pytest.raises(ValueError, match=rule):
        pipe(**{**SMALL, **options})


def test_parts_that_do_not_fit_are_refused(pipe, model):
    parts = (model, pipe.scheduler, flow_scheduler(), pipe.tokenizer)
    with pytest.raises(ValueError, match="a picture needs vae and image_scheduler"):
        UnifiedDiffusionJointPipeline(*parts)(modality="image", **SMALL)
    heun = UnifiedDiffusionJointPipeline(model, pipe.scheduler, FlowMatchHeunDiscreteScheduler(), pipe.tokenizer)
    with pytest.raises(ValueError, match="the flow scheduler must take one pass a step"):
        heun(modality="avatar", **SMALL)
    other = tiny_model(bos_token_id=0, modalities={"text": {"kind": "token"}})
    with pytest.raises(ValueError, match="must have the continuous modality 'audio' of 400, got None"):
        UnifiedDiffusionJointPipeline(other, *parts[1:])
    assert AudioCodec.width == 400 and AvatarCodec.width == 52
