"""Remembered pictures: found by their captions, and what they do to a picture that is drawn."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from hf_unified_diffusion import ArrowEngine, ArrowStorage, MaskedDiffusionScheduler
from hf_unified_diffusion.conditioning.score_network_encoder import ScoreNetworkEncoder
from hf_unified_diffusion.memory.memory_conditioner import MemoryConditioner, likely
from hf_unified_diffusion.pipelines.pipeline_image import UnifiedDiffusionImagePipeline
from tests.codecs.vaes import tiny_dc
from tests.tiny import tiny_model, tiny_tokenizer

SMALL = {"height": 64, "width": 96, "seed": 0}
CAPTIONS = ["my dog Rex", "the red car", "a boat"]
PICTURES = list(np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    encoder = ScoreNetworkEncoder(tiny_model(), tiny_tokenizer(), "tiny")
    with ArrowStorage(tmp_path_factory.mktemp("memory"), encoder) as storage:
        storage.add("anna", ["Rex is my dog.", "my dog Rex barks", "the dog"])
        storage.add("anna", PICTURES, captions=CAPTIONS, modality="image")
        storage.add("texts", ["Rex is my dog."])
        yield storage


@pytest.fixture(scope="module")
def engine(storage):
    engine = ArrowEngine(
        tiny_model(), MaskedDiffusionScheduler(mask_token_id=257), tiny_tokenizer(), memory=storage, vae=tiny_dc(128)
    )
    yield engine
    engine.close()


@pytest.fixture
def pipe(engine):
    pipe = UnifiedDiffusionImagePipeline(engine.model, engine.image_scheduler, engine.tokenizer, engine.vae)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(pipe, *args, **options):
    return pipe(*args, **{**SMALL, "num_inference_steps": 4, "output_type": "latent", **options}).images


def tokens_of(pipe, picture):
    options = {"image": picture, "height": 64, "width": 96, "strength": 0.0, "output_type": "latent"}
    return pipe(**options).images


def test_pictures_are_found_by_their_captions_and_texts_do_not_hide_them(storage):
    for caption, picture in zip(CAPTIONS, PICTURES, strict=True):
        (found,) = storage.search("anna", caption, k=1, modality="image")
        assert np.array_equal(found.payload, picture) and found.metadata == {"caption": caption}
        assert found.score == pytest.approx(1.0, abs=1e-5)
    assert len(storage.search("anna", "dog", k=6)) == 6
    assert {memory.modality for memory in storage.search("anna", "dog", k=6, modality="text")} == {"text"}
    assert len(storage.recall("anna", "dog", k=6, modality="image").memories) == 3
    assert storage.search("texts", "dog", k=6, modality="image") == []


def test_few_among_many_are_found(storage, tmp_path):
    with ArrowStorage(tmp_path, ScoreNetworkEncoder(tiny_model(), tiny_tokenizer(), "tiny"), flat_rows=50) as many:
        many.add("anna", [f"text {i}" for i in range(200)])
        many.add("anna", PICTURES[0], captions=["text 7"], modality="image")
        assert [memory.modality for memory in many.search("anna", "text 150", k=2, modality="image")] == ["image"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"captions": ["one"]}, "captions must be one for each of 3 payloads, without embeddings, got 1"),
        ({"captions": CAPTIONS, "embeddings": np.ones((3, 4))}, "without embeddings, got 3 and embeddings"),
        ({"captions": "abc"}, "captions must be a list of non-empty str, got 'abc'"),
        ({"captions": ["a", "", "b"]}, "captions must be a list of non-empty str"),
        ({}, "embeddings must be given but for texts"),
    ],
)
def test_wrong_captions_are_refused_and_nothing_is_added(storage, options, message):
    before = storage.stats("anna")
    with pytest.raises(ValueError, match=message):
        storage.add("anna", PICTURES, modality="image", **options)
    assert storage.stats("anna") == before


def test_an_unknown_modality_is_refused(storage):
    with pytest.raises(ValueError, match="modality must be one of .* got 'smell'"):
        storage.search("anna", "dog", modality="smell")


def test_a_single_picture_comes_back_at_a_large_strength_and_nearer_at_a_larger(pipe):
    (target,) = tokens_of(pipe, PICTURES[0])
    distances = [
        (drawn(pipe, "ab", memory_images=[[PICTURES[0]]], memory_strength=s)[0] - target).norm()
        for s in (0.0, 0.5, 1.0, 2.0, 1e6)
    ]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-3 * distances[0]


def test_at_strength_zero_and_without_pictures_it_is_the_same_picture(pipe):
    plain = drawn(pipe, ["ab", "a cat"])
    zero = drawn(pipe, ["ab", "a cat"], memory_images=[PICTURES, PICTURES], memory_strength=0.0)
    some = drawn(pipe, ["ab", "a cat"], memory_images=[[], PICTURES])
    assert torch.equal(zero, plain) and torch.equal(drawn(pipe, ["ab", "a cat"], memory_images=[[], []]), plain)
    torch.testing.assert_close(some[0], plain[0], atol=1e-5, rtol=0)
    assert not torch.allclose(some[1], plain[1], atol=1e-2)


def test_a_row_does_not_depend_on_its_batch_nor_on_pictures_of_no_weight(pipe):
    rows, weights = [PICTURES, PICTURES[:1]], [[0.5, 0.0, 0.5], [1.0]]
    together = drawn(pipe, ["ab", "a cat"], seed=[3, 4], memory_images=rows, memory_weights=weights)
    for row, (prompt, seed) in enumerate([("ab", 3), ("a cat", 4)]):
        given = [p for p, w in zip(rows[row], weights[row], strict=True) if w]
        alone = drawn(pipe, prompt, seed=seed, memory_images=[given])
        torch.testing.assert_close(alone[0], together[row], atol=1e-4, rtol=0)


def test_several_pictures_a_prompt_have_the_memory_of_their_prompt(pipe):
    images = drawn(pipe, ["ab", "a cat"], num_images_per_prompt=2, memory_images=[PICTURES[:1], PICTURES[1:2]],
                   memory_strength=1e6)  # fmt: skip
    for row, picture in enumerate([PICTURES[0]] * 2 + [PICTURES[1]] * 2):
        torch.testing.assert_close(images[row], tokens_of(pipe, picture)[0], atol=1e-2, rtol=0)


def test_what_a_mask_keeps_is_kept_beside_a_memory(pipe):
    """What is known is surer than what is remembered."""
    picture, mask = Image.new("RGB", (96, 64), "teal"), Image.new("L", (96, 64))
    mask.paste(255, (0, 0, 32, 64))
    told = {"image": picture, "mask_image": mask, "memory_images": [PICTURES[:1]], "memory_strength": 1e6}
    (tokens,) = drawn(pipe, "ab", **told)
    kept, remembered = tokens_of(pipe, picture)[0], tokens_of(pipe, PICTURES[0])[0]
    left = torch.tensor([True, False, False] * 2)
    assert torch.equal(tokens[~left], kept[~left])
    torch.testing.assert_close(tokens[left], remembered[left], atol=1e-2, rtol=0)


def test_the_engine_draws_what_the_pipeline_draws_from_what_is_recalled(engine, pipe):
    options = {"num_steps": 4, **SMALL}
    plain = engine.diffuse("my dog", "image", **options)
    told = {"memory_guided": True, "namespace": "anna", "num_recalled": 2, "return_result": True}
    result = engine.diffuse("my dog", "image", **told, **options)
    recalled = result.extra["recalled"]
    assert [memory.modality for memory in recalled] == ["image"] * 2 and not np.array_equal(result.output, plain)
    (recall,) = MemoryConditioner(engine.model, engine.tokenizer, engine.memory).recall(
        "anna", ["my dog"], 2, modality="image"
    )
    given = {"memory_images": [[m.payload for m in recall.memories]]}
    given["memory_weights"] = [likely([m.score for m in recall.memories])]
    expected = pipe("my dog", num_inference_steps=4, **given, **SMALL, output_type="pt").images[0]
    assert np.array_equal(result.output, (expected * 255).round().byte().permute(1, 2, 0).numpy())
    zero = engine.diffuse("my dog", "image", memory_guided=True, namespace="anna", memory_strength=0, **options)
    nothing = engine.diffuse("my dog", "image", memory_guided=True, namespace="texts", **options)
    assert np.array_equal(zero, plain) and np.array_equal(nothing, plain)


def test_how_likely_a_picture_is_depends_on_the_order_of_scores_not_on_their_scale():
    scores = [0.9, 0.7, 0.1]
    weights = likely(scores)
    assert weights == pytest.approx(likely([0.9 + 0.05 * (s - 0.9) for s in scores]), rel=1e-4)
    assert weights == sorted(weights, reverse=True) and sum(weights) == pytest.approx(1.0)
    assert weights[0] / weights[2] == pytest.approx(math.exp(8), rel=1e-4)
    assert (
        likely([0.5, 0.5 + 1e-7]) == pytest.approx([0.5, 0.5], rel=1e-2) and likely([0.3]) == [1.0] and not likely([])
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory_strength": -1}, "memory_strength must be in"),
        ({"memory_images": [PICTURES]}, "memory_images must be left out for memory_guided"),
        ({"modality": "audio"}, "memory_guided must be False for audio"),
    ],
)
def test_wrong_requests_are_refused(engine, options, message):
    request = {"prompt": "ab", "modality": "image", "memory_guided": True, "namespace": "anna", **options}
    with pytest.raises(ValueError, match=message):
        engine.diffuse(**request)
