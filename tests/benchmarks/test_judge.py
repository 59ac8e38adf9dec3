"""Nats of the parts of a text."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from judge import Judge, part_of_tokens
from transformers import LlamaConfig, LlamaForCausalLM

from tests.tiny import tiny_tokenizer


@pytest.fixture(scope="module")
def judge() -> Judge:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return Judge(LlamaForCausalLM(LlamaConfig(vocab_size=258, **shape)), tiny_tokenizer(), batch_size=2)


@given(st.lists(st.text(alphabet="ab", max_size=4), min_size=1, max_size=5))
def test_tokens_of_one_character_belong_to_the_part_of_that_character(parts: list[str]) -> None:
    found = part_of_tokens([(i, i + 1) for i in range(len("".join(parts)))], parts)
    assert [found.count(i) for i in range(len(parts))] == [len(part) for part in parts]


def test_parts_add_up_to_the_whole(judge: Judge) -> None:
    split, _ = judge.score([("one ", "two ", "three"), ("a", "b", "cd"), ("", "x y", " z")])
    whole, counts = judge.score([("one ", "two three"), ("a", "bcd"), ("", "x y z")])
    assert split.sum(dim=1).tolist() == pytest.approx(whole[:, 0].tolist(), rel=1e-5)
    assert counts[:, 0].tolist() == [9, 3, 5]


def test_padding_and_company_change_nothing(judge: Judge) -> None:
    rows = [("a", "bc"), ("a longer one", " with more behind it"), ("x", "y")]
    together, _ = judge.score(rows)
    alone = [judge.score([row])[0].item() for row in rows]
    assert together[:, 0].tolist() == pytest.approx(alone, rel=1e-5)
