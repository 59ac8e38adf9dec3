"""One door, two sides: what the engine gives is what the sides give, for one caller or many."""

import asyncio
import logging
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TextStreamer

from hf_unified_diffusion import ArrowEngine, MaskedDiffusionScheduler, QueueFullError, RequestTimeoutError, Result
from hf_unified_diffusion.pipelines.autoregressive_writer import AutoregressiveWriter
from hf_unified_diffusion.pipelines.pipeline_code import UnifiedDiffusionCodePipeline
from hf_unified_diffusion.pipelines.pipeline_joint import UnifiedDiffusionJointPipeline
from hf_unified_diffusion.pipelines.pipeline_speech import UnifiedDiffusionSpeechPipeline
from hf_unified_diffusion.pipelines.pipeline_text import UnifiedDiffusionTextPipeline
from tests.tiny import save_tiny_checkpoint, tiny_model, tiny_tokenizer

MODES = ("ar", "diffusion")
both_modes = pytest.mark.parametrize("mode", MODES)


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(1)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=257, initializer_range=0.3, eos_token_id=0, bos_token_id=0, pad_token_id=0, **shape)
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def engine():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    scheduler = MaskedDiffusionScheduler(mask_token_id=257)
    engine = ArrowEngine(model, scheduler, tokenizer, AutoregressiveWriter(tiny_llama(), tiny_tokenizer()))
    yield engine
    engine.close()


@pytest.mark.parametrize(
    ("modality", "pipeline"), [("text", UnifiedDiffusionTextPipeline), ("code", UnifiedDiffusionCodePipeline)]
)
def test_diffuse_is_the_pipeline_of_the_modality(engine, modality, pipeline):
    pipe = pipeline(engine.model, engine.scheduler, engine.tokenizer)
    options = {"max_new_tokens": 12, "block_length": 4, "seed": 3}
    expected = pipe("def f():", num_inference_steps=6, **options).texts[0]
    assert engine.diffuse("def f():", modality, num_steps=6, **options) == expected
    assert engine.diffuse(["def f():"], modality, num_steps=6, **options) == [expected]


def test_speech_is_the_pipelines_with_times_and_rate(engine):
    pipe = UnifiedDiffusionSpeechPipeline(engine.model, engine.speech_scheduler, engine.tokenizer)
    expected = pipe("Two fish.", num_inference_steps=2, speed=2.0, seed=3).audios[0]
    options = {"num_steps": 2, "speed": 2.0, "seed": 3}
    found = engine.diffuse("Two fish.", "audio", **options)
    assert found.dtype == np.float32 and np.array_equal(found, expected)
    result = engine.diffuse("Two fish.", "audio", return_result=True, **options)
    assert np.array_equal(result.output, expected) and result.sampling_rate_hz == 24_000 and len(result.step_ms) == 2
    assert [word.label for word in result.extra["alignments"][0].words] == ["Two", "fish"]
    assert len(engine.diffuse(["Two.", "One."], "audio", **options)) == 2


def test_several_modalities_are_a_mapping_made_together(engine):
    pipe = UnifiedDiffusionJointPipeline(engine.model, engine.scheduler, engine.speech_scheduler, engine.tokenizer)
    expected = pipe("ab", modality=("text", "audio", "avatar"), duration_s=0.5, num_inference_steps=2, seed=3)
    options = {"num_steps": 2, "seed": 3}
    found = engine.diffuse("ab", modality=["avatar", "audio", "text"], duration_s=0.5, **options)
    assert list(found) == ["text", "audio", "avatar"] and found["text"] == expected.texts[0]
    assert np.array_equal(found["audio"], expected.audio[0]) and np.array_equal(found["avatar"], expected.avatar[0])
    result = engine.diffuse("My map.", modality=["audio", "avatar"], return_result=True, **options)
    assert set(result.output) == {"audio", "avatar"} and result.sampling_rate_hz == 24_000 and len(result.step_ms) == 2
    assert [word.label for word in result.extra["words"][0]] == ["My", "map"]  # without text, the prompt is said
    assert result.extra["num_forward_passes"] == 2 and result.extra["avatar_rate_hz"] == 20
    face = engine.diffuse(None, "avatar", audio=np.zeros(12_000, np.float32), **options)
    assert face.shape == (10, 52) and face.dtype == np.float32
    two = engine.diffuse(["My map.", "Two."], modality=["audio", "avatar"], **options)
    assert len(two["audio"]) == len(two["avatar"]) == 2
    with pytest.raises(ValueError, match="suffix must be left out for several modalities"):
        engine.diffuse("ab", modality=["text", "audio"], suffix="b")
    with pytest.raises(ValueError, match="modality must be one or more of"):
        engine.diffuse("ab", modality=["text", "smell"])


def test_left_to_itself_it_checks_its_drafts_and_not_where_that_cannot_be(engine):
    plain = engine.diffuse("ab", max_new_tokens=12, seed=0, return_result=True)
    assert plain.extra["acceptance_rate"] is not None
    for options in ({"suffix": "yz"}, {"guidance_scale": 2.0}, {"check_drafts": False}, {"num_steps": 9}):
        result = engine.diffuse("ab", max_new_tokens=12, seed=0, return_result=True, **options)
        assert result.extra["acceptance_rate"] is None


def test_a_result_says_how_it_came_about_and_reproduces(engine, monkeypatch):
    monkeypatch.setattr(engine.model.config, "eos_token_id", None)  # a text that ends early takes fewer steps
    result = engine.diffuse("ab", max_new_tokens=8, num_steps=8, block_length=4, return_result=True)
    assert isinstance(result, Result) and isinstance(result.output, str)
    assert len(result.step_ms) == len(result.uncertainty) == 8
    assert all(0 < nats < 5.6 for nats in result.uncertainty)  # log of 257 tokens, and no certainty
    assert engine.diffuse("ab", max_new_tokens=8, num_steps=8, block_length=4, seed=result.seed) == result.output


def test_seeds_are_drawn_anew_where_none_is_given(engine):
    seeds = {engine.diffuse("ab", max_new_tokens=1, return_result=True).seed for _ in range(4)}
    assert len(seeds) > 1


def test_the_callers_own_callback_still_sees_each_step(engine):
    seen = []

    def callback(pipe, step, t, tensors):
        seen.append((step, sorted(tensors)))
        return tensors

    engine.diffuse("ab", max_new_tokens=8, num_steps=4, block_length=4, seed=0, callback_on_step_end=callback)
    assert seen == [(step, ["sample"]) for step in range(4)]


@pytest.mark.parametrize(
    ("options", "plain"),
    [
        ({"temperature": 0}, {"do_sample": False}),
        ({"temperature": 0.7, "top_k": 5}, {"do_sample": True, "temperature": 0.7, "top_k": 5}),
        ({"top_p": 0.5}, {"do_sample": True, "top_p": 0.5}),
        ({}, {}),
    ],
)
def test_autoregressive_is_transformers_own_generate_token_for_token(engine, options, plain):
    inputs = tiny_tokenizer()(["Once upon"], return_tensors="pt")
    model = tiny_llama()
    torch.manual_seed(5)
    ids = model.generate(**inputs, max_new_tokens=20, **plain)[0, inputs["input_ids"].shape[1] :]
    text = "Once upon" + tiny_tokenizer().decode(ids, skip_special_tokens=True)
    assert engine.generate("Once upon", mode="ar", max_new_tokens=20, seed=5, **options) == text


def test_autoregressive_seeds_leave_the_callers_generator_alone(engine):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    engine.ar("ab", max_new_tokens=4, temperature=1.0, seed=9)
    assert torch.equal(torch.rand(3), expected)


def test_a_batch_is_padded_on_the_left_and_answers_as_alone(engine):
    prompts = ["a", "Once upon a time"]
    alone = [engine.generate(prompt, max_new_tokens=8, temperature=0) for prompt in prompts]
    assert engine.generate(prompts, max_new_tokens=8, temperature=0) == alone


@both_modes
def test_max_new_tokens_bounds_the_length(engine, mode):
    for bound in (1, 7):
        text = engine.generate("ab", mode, max_new_tokens=bound, temperature=1.0, seed=0)
        assert text.startswith("ab") and len(engine.tokenizer.encode(text)) <= 2 + 3 * bound  # broken bytes print as 3


@both_modes
def test_temperature_zero_is_one_text_and_top_k_of_one_is_the_same(engine, mode):
    options = {"max_new_tokens": 8}
    texts = {engine.generate("ab", mode, temperature=0, seed=seed, **options) for seed in range(3)}
    texts |= {engine.generate("ab", mode, temperature=1.0, top_k=1, seed=seed, **options) for seed in range(3)}
    assert len(texts) == 1


@both_modes
def test_seeds_decide(engine, mode):
    texts = [engine.generate("ab", mode, max_new_tokens=8, temperature=1.0, seed=seed) for seed in (1, 1, 2, 3)]
    assert texts[0] == texts[1] and len(set(texts)) == 3


@both_modes
def test_texts_end_before_a_stop_string(engine, mode):
    options = {"max_new_tokens": 24, "temperature": 1.0, "seed": 0}
    whole = engine.generate("ab", mode, **options)
    stop = next(letter for letter in whole[4:] if letter.isascii() and letter.isalpha())
    assert engine.generate("ab", mode, stop_strings=[stop], **options) == whole[: whole.index(stop, 2)]


@both_modes
def test_sequences_per_prompt_come_in_order(engine, mode):
    texts = engine.generate(["ab", "cd"], mode, max_new_tokens=4, num_return_sequences=2, temperature=1.0, seed=0)
    assert [text[:2] for text in texts] == ["ab", "ab", "cd", "cd"]


@both_modes
def test_streaming_shows_what_is_returned(engine, mode, capsys):
    streamer = TextStreamer(tiny_tokenizer())
    text = engine.generate("ab", mode, max_new_tokens=8, temperature=1.0, seed=0, streamer=streamer)
    shown = capsys.readouterr().out
    assert shown.replace("<|endoftext|>", "").strip() == text.strip()


@both_modes
def test_texts_as_unit_vectors(engine, mode):
    vectors = engine.encode(["a", "Once upon a time"], mode)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(engine.encode("a", mode), vectors[:1])
    for bad in ([], [""]):
        with pytest.raises(ValueError, match="at least one"):
            engine.encode(bad, mode)


def test_many_callers_get_what_each_gets_alone(engine):
    requests = [
        (("ab", "xyz", "Once upon")[i % 3], ("text", "code")[i % 2], {"seed": i, "max_new_tokens": 4 + i % 5})
        for i in range(32)
    ]

    def ask(request):
        prompt, modality, options = request
        return engine.diffuse(prompt, modality, **options)

    alone = [ask(request) for request in requests]
    with ThreadPoolExecutor(32) as callers:
        assert list(callers.map(ask, requests)) == alone
    both = [engine.submit(prompt, modality, **options) for prompt, modality, options in requests]
    assert [request.result() for request in both] == alone


def holding(engine, begun, released):
    """A request that stays at its first step until it is released."""

    def wait(pipe, step, t, tensors):
        begun.set()
        assert released.wait(10)
        return tensors

    return engine.submit("ab", max_new_tokens=64, num_steps=64, block_length=64, seed=0, callback_on_step_end=wait)


def test_cancelling_frees_the_place_within_a_step(engine):
    begun, released, steps = threading.Event(), threading.Event(), []

    def count(pipe, step, t, tensors):
        steps.append(step)
        begun.set()
        assert released.wait(10)
        return tensors

    request = engine.submit("ab", max_new_tokens=64, num_steps=64, block_length=64, seed=0, callback_on_step_end=count)
    assert begun.wait(10) and request.cancel()
    released.set()
    with pytest.raises(CancelledError):
        request.result(10)
    assert steps == [0]  # the next step saw it
    assert engine.diffuse("ab", max_new_tokens=1, seed=0).startswith("ab")


def test_a_full_queue_refuses_at_once_and_loses_nothing():
    begun, released = threading.Event(), threading.Event()
    engine = ArrowEngine(tiny_model(), MaskedDiffusionScheduler(mask_token_id=257), tiny_tokenizer(), max_waiting=2)
    held = holding(engine, begun, released)
    assert begun.wait(10)
    waiting = [engine.submit("ab", max_new_tokens=2, seed=seed) for seed in range(2)]
    with pytest.raises(QueueFullError, match="1 requests run and 2 wait"):
        engine.submit("ab", max_new_tokens=2, seed=9)
    released.set()
    assert held.result().startswith("ab")
    assert [request.result() for request in waiting] == [
        engine.diffuse("ab", max_new_tokens=2, seed=seed) for seed in range(2)
    ]
    engine.close()


@both_modes
def test_timeouts(engine, mode):
    with pytest.raises(RequestTimeoutError):
        engine.generate("ab", mode, max_new_tokens=200, temperature=1.0, timeout_s=1e-4)
    assert engine.generate("ab", mode, max_new_tokens=2, timeout_s=60).startswith("ab")


def test_awaiting_from_one_loop(engine):
    async def main():
        return await asyncio.gather(*(engine.submit("ab", max_new_tokens=4, seed=seed) for seed in range(4)))

    assert asyncio.run(main()) == [engine.diffuse("ab", max_new_tokens=4, seed=seed) for seed in range(4)]


def test_a_failing_request_leaves_the_others_alone(engine):
    fine = engine.submit("ab", max_new_tokens=4, seed=0)
    failing = engine.submit("", max_new_tokens=4, seed=0)
    after = engine.submit("ab", max_new_tokens=4, seed=0)
    with pytest.raises(ValueError, match="prompt must not be empty"):
        failing.result()
    assert fine.result() == after.result()


def test_from_folders(tmp_path):
    folder = save_tiny_checkpoint(tmp_path / "ours")
    tiny_llama().save_pretrained(tmp_path / "llama")
    tiny_tokenizer().save_pretrained(tmp_path / "llama")
    engine = ArrowEngine.from_pretrained(folder, ar_model=tmp_path / "llama")
    assert engine.diffuse("ab", max_new_tokens=2, seed=0).startswith("ab")
    assert engine.generate("ab", max_new_tokens=2, temperature=0).startswith("ab")
    assert engine.ar is engine.ar and engine.memory is None
    engine.close()


@pytest.mark.parametrize(
    ("call", "rule"),
    [
        (lambda e: e.diffuse("ab", modality="smell"), "modality must be one of"),
        (lambda e: e.diffuse("ab", modality="audio", suffix="b"), "suffix must be left out for audio"),
        (lambda e: e.diffuse("", modality="audio"), "something to speak"),
        (lambda e: e.diffuse("ab", memory_guided=True), "memory_guided needs a memory"),
        (
            lambda e: e.diffuse("ab", memory_strength=2.0),
            "memory_strength must be left out for memory_guided=False, got 2.0",
        ),
        (
            lambda e: e.diffuse("ab", ["text", "audio"], memory_candidates=2),
            "memory_candidates must be left out for memory_guided=False, got 2",
        ),
        (lambda e: e.diffuse("ab", max_new_tokens=0), "max_new_tokens must be an integer of at least 1, got 0"),
        (lambda e: e.diffuse("ab", num_steps=0), "num_inference_steps must be an integer of at least 1, got 0"),
        (lambda e: e.generate("ab", mode="both"), "mode must be one of"),
        (lambda e: e.generate("", mode="ar"), "prompt must not be empty"),
        (lambda e: e.generate("ab", mode="ar", stop_strings=""), "stop must not hold an empty string"),
        (lambda e: e.submit("ab", timeout_s=0), "timeout_s must be above 0, got 0"),
    ],
)
def test_bad_input(engine, call, rule):
    with pytest.raises(ValueError, match=rule):
        call(engine)


def test_what_is_not_there_says_so(tmp_path):
    engine = ArrowEngine(tiny_model(), MaskedDiffusionScheduler(mask_token_id=257), tiny_tokenizer())
    with pytest.raises(ValueError, match="mode 'ar' needs an ar_model"):
        engine.generate("ab", mode="ar")
    with pytest.raises(ValueError, match=r"must be a file, got .*nothing\.gguf"):
        AutoregressiveWriter.from_pretrained(tmp_path / "nothing.gguf")
    engine.model.checkpoint_facts = {"supported_modalities": ["text"]}
    with pytest.raises(ValueError, match=r"trained for, \['text'\], got 'code'"):
        engine.diffuse("ab", "code")
    engine.close()


def test_what_a_checkpoint_does_badly_is_told_once(caplog, monkeypatch):
    engine = ArrowEngine(tiny_model(), MaskedDiffusionScheduler(mask_token_id=257), tiny_tokenizer())
    monkeypatch.setattr(logging.getLogger("hf_unified_diffusion"), "propagate", True)
    engine.model.checkpoint_facts = {"limits": {"code": "it may not parse, 7 of 9 times."}}
    for modality in ("text", "code", "code"):
        engine.diffuse("ab", modality, max_new_tokens=2, num_steps=1)
    engine.close()
    assert [r.message for r in caplog.records] == ["This checkpoint's limits, code: it may not parse, 7 of 9 times."]


def test_seeds_by_prompt_give_what_each_prompt_gives_alone(engine):
    prompts, seeds = ["ab", "Once upon", "ab"], [5, 6, 7]
    for options in ({"max_new_tokens": 12}, {"max_new_tokens": 8, "num_steps": 4, "block_length": 4}):
        alone = [engine.diffuse(text, seed=seed, **options) for text, seed in zip(prompts, seeds, strict=True)]
        result = engine.diffuse(prompts, seed=seeds, return_result=True, **options)
        assert result.output == alone and result.seed == seeds
    with pytest.raises(ValueError, match=r"a list of seeds must have one per row \(2\), got 1"):
        engine.diffuse(["a", "b"], seed=[1], max_new_tokens=2)


@pytest.mark.parametrize("options", [{}, {"num_steps": 12, "block_length": 4}])
def test_a_row_that_is_not_wanted_any_more_ends_at_its_block_and_leaves_the_others(engine, options):
    prompts, seeds = ["ab", "Once upon", "xyz"], [5, 6, 7]
    options = {"max_new_tokens": 24, "seed": seeds, "return_result": True, **options}
    whole = engine.diffuse(prompts, **options).extra["completion_ids"]
    cut = engine.diffuse(prompts, row_goes_on=lambda row: row != 1, **options).extra["completion_ids"]
    assert 0 < len(cut[1]) < len(whole[1]) and torch.equal(cut[1], whole[1][: len(cut[1])])
    assert torch.equal(cut[0], whole[0]) and torch.equal(cut[2], whole[2])
