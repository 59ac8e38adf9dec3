"""Pairs of passages and memories, and where the conditioner's training starts."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Generator

from hf_unified_diffusion import ArrowQuantConfig, UnifiedDiffusionModel
from hf_unified_diffusion.contracts import Condition, Segment
from hf_unified_diffusion.conversion.export import export_checkpoint
from hf_unified_diffusion.conversion.merging import PROGRESS_FILE, merge_tensors, write_part
from hf_unified_diffusion.memory.memory_conditioner import ITEM, TEXT, memory_condition, read_texts
from hf_unified_diffusion.training.memory_pairs import KINDS, MemoryMix, MemoryPairs, cut_passages
from hf_unified_diffusion.training.memory_start import (
    after_last_attention,
    before_last_attention,
    conditioner_modules,
    start_conditioner,
)
from tests.tiny import tiny_model, tiny_tokenizer

LENGTH, MEMORY = 8, 5


def seeded(seed=0):
    return Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def passages():
    """Document i holds only tokens 10 i .. 10 i + 9."""
    random = np.random.default_rng(0)
    documents = [random.integers(10 * i, 10 * i + 10, size) for i, size in enumerate((40, 7, 16, 33, 24))]
    return cut_passages(documents, LENGTH, MEMORY)


def test_documents_are_cut_in_turn_and_short_ones_left_out(passages):
    assert passages.row_document.tolist() == [0, 0, 0, 1, 2, 2, 3, 3]
    assert passages.item_document.tolist() == [0, 0, 1, 2, 2, 3]
    assert passages.rows.shape == (8, LENGTH) and passages.items.shape == (6, MEMORY)
    first = passages.first(2)
    assert first.row_document.tolist() == [0, 0, 0, 1] and torch.equal(first.items, passages.items[:3])


def test_no_token_is_in_a_passage_and_in_a_memory():
    parts = cut_passages([np.arange(40), np.arange(100, 140)], LENGTH, MEMORY)
    assert not torch.isin(parts.rows, parts.items).any()


@pytest.mark.parametrize("kind", KINDS)
def test_memories_are_of_their_kind(passages, kind):
    pairs = MemoryPairs(passages, torch.randn(60, 16, generator=seeded()))
    rows = torch.arange(len(passages.rows))
    items = pairs.draw(rows, kind, seeded(1))
    same = passages.item_document[items] == passages.row_document[rows][:, None]
    assert items.shape == (len(rows), MemoryMix().slots)
    assert bool((same == (kind == "right")).all())


def test_the_near_memory_shares_rare_tokens():
    embeddings = torch.randn(60, 32, generator=seeded())
    documents = [np.r_[1:9, 50:58], np.r_[20:28, 1:9], np.r_[30:38, 40:48], np.r_[11:19, 20:28]]
    passages = cut_passages(documents, LENGTH, LENGTH)
    pairs = MemoryPairs(passages, embeddings)
    scores = pairs.item_vectors @ pairs.row_vectors[0]
    assert int(scores.argmax()) == 1  # of the second document, which repeats the first one's passage


def test_a_mix_drops_the_right_ones_as_often_as_it_says():
    generator, mix = seeded(), MemoryMix(slots=3, dropout=0.25, near=1.0)
    drawn = [mix.draw(generator) for _ in range(2000)]
    assert np.mean(["right" not in kinds for kinds in drawn]) == pytest.approx(0.25, abs=0.04)
    assert {kind for kinds in drawn for kind in kinds} == {"right", "near"}


@pytest.mark.parametrize(
    ("documents", "memory_length", "message"),
    [([np.arange(40), np.arange(9)], 4, "at least two documents"), ([np.arange(40)] * 2, 9, "memory_length")],
)
def test_what_gives_no_pairs_is_refused(documents, memory_length, message):
    with pytest.raises(ValueError, match=message):
        cut_passages(documents, LENGTH, memory_length)


@pytest.fixture(scope="module")
def started():
    model = tiny_model(cross_attention_every=2)
    _, texts = read_texts(model, torch.randint(1, 250, (4, 6), generator=seeded()))
    start_conditioner(model, texts.flatten(0, 1), seeded())
    return model


def conditions(model, seed=0):
    items, texts = read_texts(model, torch.randint(1, 250, (2, 6), generator=seeded(seed)))
    everything = torch.ones(2, 6, dtype=torch.bool)
    return memory_condition(model, items[:, None], everything[:, :1], texts, everything)


def test_the_two_halves_of_the_network_make_the_whole(started):
    ids = torch.randint(1, 250, (2, 7), generator=seeded(2))
    segments = [Segment("text", ids), Segment("text", ids.clone(), time=torch.full((2,), 0.5))]
    before = before_last_attention(started, segments)
    for condition in (None, conditions(started)):
        (context, canvas), _ = started.features(segments, condition)
        after = after_last_attention(started, before, condition)
        torch.testing.assert_close(after, torch.cat([context, canvas], dim=1), rtol=1e-4, atol=1e-4)


def test_only_the_conditioner_trains_and_without_memory_nothing_has_changed(started):
    trained = {name for name, p in started.named_parameters() if p.requires_grad}
    assert {name.rpartition(".")[0].split(".")[0] for name in trained} == {
        "condition_projections",
        "shared_transformer",
    }
    assert all("cross_attn" in name or name.startswith("condition_projections") for name in trained)
    ids = torch.randint(1, 250, (1, 7), generator=seeded(3))
    assert torch.equal(started(ids).logits, tiny_model(cross_attention_every=2)(ids).logits)
    assert not torch.equal(started(ids.expand(2, -1), condition=conditions(started)).logits[:1], started(ids).logits)


def test_the_start_makes_a_remembered_token_likelier_where_it_was_expected():
    """Attention that reads what was expected finds the place in the memory, and says the token that followed."""
    model = tiny_model(cross_attention_every=2)
    ids = torch.randint(1, 250, (1, 12), generator=seeded(4))
    items, texts = read_texts(model, ids)
    start_conditioner(model, texts[0], seeded())
    everything = torch.ones(1, 12, dtype=torch.bool)
    condition = memory_condition(model, items[:, None], everything[:, :1], texts, everything)
    steered = Condition(condition.tokens, condition.mask, torch.full(condition.mask.shape, 5.0))
    plain, found = (model(ids, condition=c).logits[0, :-1].log_softmax(-1) for c in (None, steered))
    gain = (found - plain).gather(1, ids[0, 1:, None])
    assert gain.mean() > 0.1


def test_a_network_whose_last_layer_has_no_attention_is_refused():
    with pytest.raises(ValueError, match="cross_attention_every must divide"):
        conditioner_modules(tiny_model(cross_attention_every=0))


@pytest.fixture
def conditioner_file(started, tmp_path):
    tensors = {
        f"{name}.{key}": value.detach().contiguous()
        for name, module in conditioner_modules(started).items()
        for key, value in module.state_dict().items()
    }
    write_part(tensors, tmp_path / "conditioner.safetensors", {"step": 2})
    return tmp_path / "conditioner.safetensors"


def test_a_written_part_is_whole_beside_its_progress(started, conditioner_file):
    folder, tensors = conditioner_file.parent, load_file(conditioner_file)
    assert {file.name for file in folder.iterdir()} == {conditioner_file.name, PROGRESS_FILE}
    assert json.loads((folder / PROGRESS_FILE).read_text()) == {"step": 2}
    state = started.state_dict()
    assert tensors and all(torch.equal(state[name], value) for name, value in tensors.items())
    write_part({"a.weight": torch.eye(2).T[:, :1]}, conditioner_file, {"step": 3})  # not contiguous
    assert {name: value.tolist() for name, value in load_file(conditioner_file).items()} == {"a.weight": [[1], [0]]}


def test_merging_changes_the_conditioner_and_no_other_code(started, conditioner_file, tmp_path):
    tiny_model(cross_attention_every=2).save_pretrained(tmp_path / "dense")
    tiny_tokenizer().save_pretrained(tmp_path / "dense")
    config = ArrowQuantConfig(bits=4, group_size=32, modules_to_not_convert=[])
    before = export_checkpoint(
        tmp_path / "dense", tmp_path / "edge", config, ["text"], training={"canvas": {"step": 1}}
    )
    (tmp_path / "edge" / "README.md").write_text("card")
    merge_tensors(tmp_path / "edge", conditioner_file, tmp_path / "edge", training={"memory_conditioner": {"step": 2}})
    after = UnifiedDiffusionModel.from_pretrained(tmp_path / "edge").eval()
    assert (tmp_path / "edge" / "README.md").read_text() == "card"
    assert after.checkpoint_facts["training"] == {"canvas": {"step": 1}, "memory_conditioner": {"step": 2}}
    for name, value in before.state_dict().items():
        assert "layers.1.cross_attn" in name or torch.equal(after.state_dict()[name], value), name
    assert set(after.config.condition_sources) == {ITEM, TEXT}
    ids = torch.randint(1, 250, (2, 7), generator=seeded(5))
    assert torch.equal(after(ids).logits, before.eval()(ids).logits)
    condition = conditions(started)
    found = after(ids, condition=condition).logits - after(ids).logits
    expected = started(ids, condition=condition).logits - started(ids).logits
    assert torch.nn.functional.cosine_similarity(found[..., :-1].flatten(), expected[..., :-1].flatten(), dim=0) > 0.5


def test_tensors_without_a_place_are_refused_and_the_checkpoint_stays(conditioner_file, tmp_path):
    tiny_model(cross_attention_every=0).save_pretrained(tmp_path / "plain")
    tiny_tokenizer().save_pretrained(tmp_path / "plain")
    files = {file.name: file.read_bytes() for file in (tmp_path / "plain").iterdir()}
    with pytest.raises(ValueError, match=r"tensors must be of the network.*cross_attn"):
        merge_tensors(tmp_path / "plain", conditioner_file, tmp_path / "plain")
    assert {file.name: file.read_bytes() for file in (tmp_path / "plain").iterdir()} == files
