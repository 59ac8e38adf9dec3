"""What a store recalls becomes condition tokens: whose, how many, and that without strength nothing changes."""

import pytest
import torch
from torch import Generator

from hf_unified_diffusion import ArrowEngine, ArrowStorage, MaskedDiffusionScheduler
from hf_unified_diffusion.conditioning.score_network_encoder import ScoreNetworkEncoder
from hf_unified_diffusion.memory.memory_conditioner import (
    ITEM,
    TEXT,
    MemoryConditioner,
    memory_condition,
    read_texts,
    source_widths,
)
from tests.tiny import tiny_model, tiny_tokenizer

FACTS = ["Anna drinks green tea.", "Bob has two cats.", "The bus leaves at nine.", "Clara sings."]
OPTIONS = {"max_new_tokens": 12, "seed": 0}


def steered_model():
    """A tiny network whose memory speaks: sources, and gates that are open."""
    model = tiny_model(cross_attention_every=2)
    for name, width in source_widths(model.config.hidden_size).items():
        model.add_condition_source(name, width)
    layer = model.shared_transformer.layers[-1]
    torch.nn.init.constant_(layer.cross_attn.gate, 2.0)
    for module in (layer.cross_attn, model.condition_projections):
        for p in module.parameters():
            if p.ndim == 2:
                torch.nn.init.normal_(p, std=0.5, generator=Generator().manual_seed(1))
    return model


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    encoder = ScoreNetworkEncoder(steered_model(), tiny_tokenizer(), "tiny")
    with ArrowStorage(tmp_path_factory.mktemp("memory"), encoder) as storage:
        storage.add("anna", FACTS)
        storage.add("bob", ["Bob's own secret."])
        yield storage


@pytest.fixture(scope="module")
def conditioner(storage):
    return MemoryConditioner(steered_model(), tiny_tokenizer(), storage, encoder="tiny", num_read=2)


@pytest.fixture(scope="module")
def engine(storage):
    scheduler = MaskedDiffusionScheduler(mask_token_id=257)
    engine = ArrowEngine(steered_model(), scheduler, tiny_tokenizer(), memory=storage, encoder="tiny")
    yield engine
    engine.close()


def test_all_vectors_enter_and_the_nearest_texts_token_by_token(conditioner):
    (recall,) = conditioner.recall("anna", ["Anna drinks"], k=3)
    condition = conditioner.condition([recall])
    read = sum(len(memory.payload) for memory in recall.memories[:2])  # one token a byte
    assert condition.tokens.shape == (1, 1 + 3 + read, conditioner.model.config.condition_size)
    assert bool(condition.mask.all())


def test_stored_vectors_are_those_that_reading_gives(conditioner):
    (recall,) = conditioner.recall("anna", ["tea"], k=1)
    ids = torch.tensor(tiny_tokenizer()([recall.memories[0].payload])["input_ids"])
    means, texts = read_texts(conditioner.model, ids)
    everything = torch.ones(1, ids.shape[1], dtype=torch.bool)
    expected = memory_condition(conditioner.model, means[None], everything[:, :1], texts, everything)
    assert torch.allclose(conditioner.condition([recall]).tokens, expected.tokens, atol=1e-4)


def test_a_store_of_another_encoder_gives_the_vectors_of_the_texts_that_are_read(storage):
    conditioner = MemoryConditioner(steered_model(), tiny_tokenizer(), storage, encoder="another", num_read=2)
    (recall,) = conditioner.recall("anna", ["tea"], k=3)
    read = sum(len(memory.payload) for memory in recall.memories[:2])
    assert conditioner.condition([recall]).tokens.shape[1] == 1 + 2 + read


def test_rows_do_not_depend_on_each_other(conditioner):
    recalls = conditioner.recall("anna", ["Anna drinks", "cats"], k=2) + conditioner.recall("nobody", ["x"], k=2)
    together = conditioner.condition(recalls)
    for row, recall in enumerate(recalls):
        alone = conditioner.condition([recall])
        kept = together.tokens[row][together.mask[row]]
        assert len(kept) == (0 if alone is None else alone.tokens.shape[1])
        if alone is not None:
            assert torch.allclose(kept, alone.tokens[0][alone.mask[0]], atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"suffix": "!"}, {"check_drafts": False}, {"guidance_scale": 2.0}])
def test_at_strength_zero_it_is_the_text_without_a_memory_and_above_another(engine, options):
    """Of several seeds, as a draw may come out the same by chance."""

    def texts(**memory):
        return [engine.diffuse("ab", **{**OPTIONS, "seed": seed}, **memory, **options) for seed in range(3)]

    told = {"memory_guided": True, "namespace": "anna"}
    plain = texts()
    assert texts(**told, memory_strength=0) == plain and texts(**told, memory_strength=1.0) != plain


def test_vanishing_strength_is_no_memory(conditioner):
    """Not only where the condition is left out: a value times zero adds nothing."""
    (recall,) = conditioner.recall("anna", ["tea"], k=2)
    ids, time, condition = torch.randint(0, 256, (1, 9)), torch.tensor([0.5]), conditioner.condition([recall])
    nothing = type(condition)(condition.tokens, condition.mask, torch.zeros_like(condition.mask, dtype=torch.float32))
    plain = conditioner.model(ids, timestep=time).logits
    assert torch.equal(conditioner.model(ids, timestep=time, condition=nothing).logits, plain)
    assert not torch.equal(conditioner.model(ids, timestep=time, condition=condition).logits, plain)


def test_a_result_names_what_was_recalled_and_only_of_its_namespace(engine):
    result = engine.diffuse("Bob's", memory_guided=True, namespace="anna", return_result=True, **OPTIONS)
    assert {memory.payload for memory in result.extra["recalled"]} == set(FACTS)
    listed = engine.diffuse(["Bob's", "ab"], memory_guided=True, namespace="bob", return_result=True, **OPTIONS)
    assert [[memory.payload for memory in row] for row in listed.extra["recalled"]] == [["Bob's own secret."]] * 2
    assert "recalled" not in engine.diffuse("ab", return_result=True, **OPTIONS).extra


def test_a_batch_answers_as_alone(engine):
    prompts = ["ab", "Once upon a time"]
    options = {"memory_guided": True, "namespace": "anna", "temperature": 0, **OPTIONS}
    assert engine.diffuse(prompts, **options) == [engine.diffuse(prompt, **options) for prompt in prompts]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory_strength": -1}, "memory_strength must be in"),
        ({"memory_strength": float("nan")}, "memory_strength must be in"),
        ({"num_recalled": 0}, "k must be in"),
        ({"memory_candidates": 2}, "memory_candidates must be 1 for a network with condition sources, got 2"),
        ({"prompt": None}, "prompt must be a string"),
        ({"modality": "image"}, "image"),
    ],
)
def test_wrong_requests_are_refused(engine, options, message):
    with pytest.raises(ValueError, match=message):
        engine.diffuse(**{"prompt": "ab", "memory_guided": True, "namespace": "anna", **OPTIONS, **options})


def test_a_folder_is_opened_as_the_memory_with_the_engines_own_embeddings(storage, tmp_path):
    scheduler = MaskedDiffusionScheduler(mask_token_id=257)
    engine = ArrowEngine(steered_model(), scheduler, tiny_tokenizer(), memory=tmp_path / "new", encoder="tiny")
    engine.memory.add("default", FACTS)
    result = engine.diffuse("tea", memory_guided=True, num_recalled=2, return_result=True, **OPTIONS)
    assert len(result.extra["recalled"]) == 2
    engine.close()
    engine.memory.close()


def test_a_network_without_the_sources_is_refused(storage):
    conditioner = MemoryConditioner(tiny_model(), tiny_tokenizer(), storage)
    with pytest.raises(ValueError, match=f"no trained memory conditioner.*{ITEM}.*{TEXT}"):
        conditioner.condition(conditioner.recall("anna", ["tea"]))


@pytest.fixture(scope="module")
def reader(storage):
    """An engine whose network has no condition sources; its weights are large enough for far tokens to matter."""
    model, scheduler = tiny_model(), MaskedDiffusionScheduler(mask_token_id=257)
    with torch.no_grad():
        for p in model.shared_transformer.parameters():
            p.mul_(8.0 if p.ndim == 2 else 1.0)
    engine = ArrowEngine(model, scheduler, tiny_tokenizer(), memory=storage, encoder="tiny")
    yield engine
    engine.close()


GUIDED = {"memory_guided": True, "namespace": "anna"}
WAYS = [{}, {"suffix": "!"}, {"check_drafts": False}, {"guidance_scale": 2.0}]


@pytest.mark.parametrize("options", WAYS)
def test_a_network_without_sources_reads_the_nearest_texts_before_the_prompt(reader, options):
    plain, none, read, strong = (
        reader.diffuse("tea", **OPTIONS, **options, **more)
        for more in (
            {},
            {**GUIDED, "memory_strength": 0},
            GUIDED,
            {**GUIDED, "memory_strength": 3.0},
        )
    )
    assert none == plain and len({plain, read, strong}) > 1
    recalls = MemoryConditioner(reader.model, reader.tokenizer, reader.memory).recall("anna", ["tea"])
    nearest = [memory.payload for memory in recalls[0].memories[:4]]
    context = "".join(f"{text}\n\n" for text in reversed(nearest))
    assert read == reader.diffuse("tea", context=context, **OPTIONS, **options)
    assert strong == reader.diffuse("tea", context=context, context_scale=3.0, **OPTIONS, **options)


def test_a_batch_that_reads_answers_as_alone(reader):
    prompts = ["ab", "Once upon a time"]
    for strength in (1.0, 2.0):
        options = {**GUIDED, "memory_strength": strength, "temperature": 0, **OPTIONS}
        assert reader.diffuse(prompts, **options) == [reader.diffuse(prompt, **options) for prompt in prompts]


def test_one_of_several_texts_is_chosen_by_the_memory(reader):
    """The first candidate is the text of one alone; at strength 0 there is no memory to choose by."""
    options = {**GUIDED, "memory_strength": 2.0, "return_result": True, **OPTIONS}
    one, two = (reader.diffuse("tea", memory_candidates=n, **options) for n in (1, 2))
    assert one.extra["energy_history"] is None and "FromContext" in two.extra["energy_history"][0][0].energies
    prompts, seeds = ["ab", "tea"], [5, 0]
    together = reader.diffuse(prompts, memory_candidates=3, **options | {"seed": seeds}).output
    alone = zip(prompts, seeds, strict=True)
    assert together == [reader.diffuse(p, memory_candidates=3, **options | {"seed": s}).output for p, s in alone]
    plain = reader.diffuse("tea", **OPTIONS)
    assert reader.diffuse("tea", memory_candidates=2, memory_strength=0, **GUIDED, **OPTIONS) == plain


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory_candidates": 0}, "memory_candidates must be an integer of at least 1, got 0"),
        ({"memory_candidates": 2, "num_candidates": 2}, "num_candidates must be left out for memory_candidates"),
        ({"memory_candidates": 2, "streamer": object()}, "streamer must be left out"),
    ],
)
def test_wrong_candidates_are_refused(reader, options, message):
    with pytest.raises(ValueError, match=message):
        reader.diffuse("ab", **GUIDED, **OPTIONS, **options)


def test_nothing_recalled_is_nothing_read(reader):
    assert reader.diffuse("ab", memory_guided=True, namespace="nobody", **OPTIONS) == reader.diffuse("ab", **OPTIONS)


def test_long_memories_are_cut_and_few_are_read(storage):
    conditioner = MemoryConditioner(tiny_model(), tiny_tokenizer(), storage, num_read=2, max_tokens=5)
    (recall,) = conditioner.recall("anna", ["tea"], k=3)
    first, second = (memory.payload[:5].strip() for memory in recall.memories[:2])
    assert conditioner.options([recall])["context"] == [f"{second}\n\n{first}\n\n"]


@pytest.mark.parametrize("options", [{"context": "mine"}, {"context_scale": 3.0}])
def test_a_context_of_ones_own_beside_a_memory_is_refused(reader, options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} must be left out for memory_guided, got "):
        reader.diffuse("ab", **options, **GUIDED, **OPTIONS)
