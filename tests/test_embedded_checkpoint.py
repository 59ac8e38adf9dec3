"""The checkpoint that ships: what a newcomer meets in the first minute, on its real weights."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from transformers import AutoModel, AutoTokenizer, pipeline

from hf_unified_diffusion import (
    ArrowEngine,
    Segment,
    UnifiedDiffusionCodePipeline,
    UnifiedDiffusionImagePipeline,
    UnifiedDiffusionModel,
    UnifiedDiffusionSpeechPipeline,
    UnifiedDiffusionTextPipeline,
    UnifiedVocoderModel,
)
from hf_unified_diffusion.codecs.image_codec import ImageCodec
from hf_unified_diffusion.codecs.mel import STD, log_mel
from hf_unified_diffusion.modeling.embedded import EMBEDDED_CHECKPOINT
from hf_unified_diffusion.pipelines.checkpoints import PICTURE_MEMORY, load_image_parts
from hf_unified_diffusion.quantization import num_weights
from hf_unified_diffusion.training.codec_objective import psnr_db
from hf_unified_diffusion.training.reasoning_examples import reasoning_example, structure_of
from hf_unified_diffusion.training.tool_examples import tool_example
from tests.codecs.sounds import vowel

MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def writer():
    """The text pipeline of the embedded checkpoint."""
    made = UnifiedDiffusionTextPipeline.from_pretrained()
    made.set_progress_bar_config(disable=True)
    return made


def test_it_is_of_the_edge_tier_and_shared(writer):
    model = writer.transformer
    assert num_weights(model) < 100 * MEGABYTE
    assert model.trunk_share() >= 0.9
    assert sum(file.stat().st_size for file in EMBEDDED_CHECKPOINT.iterdir()) < 55 * MEGABYTE


def test_it_round_trips_bit_equal_through_every_loader(writer, tmp_path):
    model = UnifiedDiffusionModel.from_pretrained()
    model.save_pretrained(tmp_path / "model")
    writer.save_pretrained(tmp_path / "pipeline")
    reloaded = [
        UnifiedDiffusionModel.from_pretrained(tmp_path / "model"),
        AutoModel.from_pretrained(tmp_path / "model"),
        DiffusionPipeline.from_pretrained(tmp_path / "pipeline").transformer,
    ]
    expected = model.state_dict()
    for other in reloaded:
        state = other.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def test_the_transformers_pipeline_answers():
    answer = pipeline("unified-diffusion")(
        "def fibonacci(n):", modality="code", max_new_tokens=16, num_inference_steps=4
    )
    assert answer[0]["generated_text"].startswith("def fibonacci(n):")
    assert len(answer[0]["generated_text"]) > len("def fibonacci(n):")


def test_an_infill_keeps_what_was_given(writer):
    output = writer("The cat sat", suffix=" and slept.", max_new_tokens=4, num_inference_steps=4, seed=0)
    assert output.texts[0].startswith("The cat sat") and output.texts[0].endswith(" and slept.")


def test_a_row_does_not_depend_on_its_batch(writer):
    prompts = ["The history of", "A function is a piece of code that", "In the beginning"]
    together = writer(prompts, max_new_tokens=16, num_inference_steps=4, seed=3)
    alone = writer(prompts[:1], max_new_tokens=16, num_inference_steps=4, seed=3)
    assert together.texts[0] == alone.texts[0]


def test_padding_and_cache_leave_logits_within_float_tolerance(writer):
    model, ids = writer.transformer, torch.arange(20, 44)[None]
    canvas, t = torch.full((1, 8), model.config.mask_token_id), torch.ones(1)
    with torch.no_grad():
        whole = model(segments=[Segment("text", ids), Segment("text", canvas, time=t)]).predictions[1]
        cache = model(ids, use_cache=True).cache
        cached = model(canvas, timestep=t, cache=cache).logits
        padded_ids = torch.cat([torch.zeros(1, 5, dtype=torch.int64), ids], dim=1)
        mask = torch.arange(29)[None] >= 5
        padded = model(segments=[Segment("text", padded_ids, mask=mask), Segment("text", canvas, time=t)]).predictions[
            1
        ]
    real = torch.arange(model.config.vocab_size) != model.config.mask_token_id
    assert torch.allclose(whole[..., real], cached[..., real], atol=1e-3)
    assert torch.allclose(whole[..., real], padded[..., real], atol=1e-3)


def test_it_reads_english_better_than_scrambled_english(writer):
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_CHECKPOINT)
    ids = tokenizer(
        "The president asked the Congress for the money to build a new road.", return_tensors="pt"
    ).input_ids
    shuffled = ids[:, torch.randperm(ids.shape[1], generator=torch.Generator().manual_seed(0))]
    with torch.no_grad():
        clean, scrambled = (writer.transformer(x, labels=x).loss for x in (ids, shuffled))
    assert clean + 1 < scrambled


def test_the_code_pipeline_continues_a_function():
    code = UnifiedDiffusionCodePipeline.from_pretrained()
    code.set_progress_bar_config(disable=True)
    prompt = 'def add(a, b):\n    """Return the sum of a and b."""\n'
    assert code(prompt, max_new_tokens=16, num_inference_steps=4, seed=0).completions[0].strip()


@torch.no_grad()
def test_its_image_codec_gives_tokens_that_the_network_takes_and_pictures_back():
    _, vae = load_image_parts(EMBEDDED_CHECKPOINT)
    codec = ImageCodec(vae)
    assert codec.width == UnifiedDiffusionModel.from_pretrained().config.modalities["image"]["width"]
    assert sum(file.stat().st_size for file in (EMBEDDED_CHECKPOINT / "vae").iterdir()) < 7 * MEGABYTE
    y, x = torch.meshgrid(torch.linspace(-1, 1, 256), torch.linspace(-1, 1, 256), indexing="ij")
    disc = torch.where(x.square() + y.square() < 0.5, torch.tensor(-0.8), torch.tensor(1.0))
    pixels = torch.stack([disc, x, y])[None]
    tokens = codec.encode(pixels)
    assert 0.1 < tokens.std() < 3
    assert psnr_db(codec.decode(tokens, 256, 256), pixels) > 26


def test_it_draws_after_what_it_remembers_in_the_colour_that_is_asked_for():
    """A red apple as it is remembered; a purple one, which nobody drew, has its form."""
    pipe = UnifiedDiffusionImagePipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    folder = EMBEDDED_CHECKPOINT / PICTURE_MEMORY
    assert sum(file.stat().st_size for file in folder.iterdir()) < 15 * MEGABYTE
    files = (file for file in EMBEDDED_CHECKPOINT.parents[1].rglob("*") if file.is_file())
    shipped = (file for file in files if "__pycache__" not in file.parts)
    assert sum(file.stat().st_size for file in shipped) < 100 * MEGABYTE
    memory = pipe.picture_memory
    (place,) = memory.recall("a red apple", num=1).places.tolist()
    assert memory.captions[place][0] == "a red apple"
    assert {source["licence"] for source in memory.metadata["sources"]} == {"MIT", "Apache-2.0", "CC-BY-4.0"}
    named = (Path(__file__).parents[1] / "NOTICE").read_text()
    assert all(
        name in named
        for name in ("Noto Emoji", "IconPark", "Fluent Emoji", "Flat Color Icons", "Meteocons", "Streamline")
    )
    sizes = {"height": 128, "width": 128, "seed": 0, "output_type": "pt"}
    red, purple = (pipe(f"a {colour} apple", **sizes) for colour in ("red", "purple"))
    assert red.num_forward_passes == purple.num_forward_passes < 20
    kept = pipe.codec.decode(memory.tokens(torch.tensor([place])), 256, 256)
    kept = torch.nn.functional.interpolate(kept / 2 + 0.5, size=(128, 128), mode="bicubic", antialias=True)
    assert (red.images - kept).square().mean() < 0.01
    middle = [images[0, :, 50:90, 40:90].mean(dim=(1, 2)) for images in (red.images, purple.images)]
    assert middle[0].argmax() == 0 and middle[1].argmin() == 1  # less green than red and blue
    assert middle[1][2] - middle[1][1] > middle[0][2] - middle[0][1] + 0.1


@torch.no_grad()
def test_its_vocoder_is_what_speech_comes_from_and_follows_a_voice():
    speech, engine = UnifiedDiffusionSpeechPipeline.from_pretrained(), ArrowEngine.from_pretrained()
    vocoder = speech.codec.vocoder
    assert isinstance(vocoder, UnifiedVocoderModel) and isinstance(engine.vocoder, UnifiedVocoderModel)
    assert sum(file.stat().st_size for file in (EMBEDDED_CHECKPOINT / "vocoder").iterdir()) < 8 * MEGABYTE
    sound, seconds = vowel(seconds=1.0, pitch_hz=120), (torch.arange(80) + 0.5) / 80
    mels = log_mel(sound)
    assert (log_mel(vocoder(mels)) - mels).abs().mean() * STD < 0.6  # nats; a vowel unlike any it was trained on
    pitch_hz, _ = vocoder.pitch(mels)
    assert (pitch_hz[0] / (120 + 40 * seconds)).log2().abs().median() < 20 / 1200  # cents


def test_its_controlnets_are_small_and_call_tools_and_reason_as_they_were_trained_to():
    engine = ArrowEngine.from_pretrained()
    assert engine.controlnets.names == ["reasoning", "tools"]
    for name in engine.controlnets.names:
        assert num_weights(engine.controlnets[name]) < 0.1 * num_weights(engine.model)
        folder = EMBEDDED_CHECKPOINT / "controlnets" / name
        assert sum(file.stat().st_size for file in folder.iterdir()) < 7 * MEGABYTE
    greedy = {"max_new_tokens": 72, "temperature": 0.0, "seed": 0}
    right = 0
    for index in range(3):
        example = tool_example("test", index)
        written = engine.diffuse(example.prompt, tools=list(example.tools), controlnet="tools", **greedy)
        call, asked = json.loads(written[len(example.prompt) :]), json.loads(example.response)
        right += call["name"] == asked["name"] and call["arguments"] == asked["arguments"]
    assert right >= 1  # of three that no training saw
    questions = [reasoning_example("test", index).prompt for index in range(4)]
    answers = engine.diffuse(questions, controlnet="reasoning", stop="\n\n", **greedy)
    found = [structure_of(text[len(question) :]) for question, text in zip(questions, answers, strict=True)]
    assert sum(answer is not None for answer in found) >= 3
    engine.close()
