"""Texts as vectors: unit length, one text one vector whatever stands beside it."""

import pytest
import torch

from hf_unified_diffusion.pipelines.text_encoder import encode_texts


def test_unit_vectors_that_do_not_depend_on_the_batch(model, tokenizer):
    texts = ["a", "def f(x):\n    return x", "three small words"] * 7
    together = encode_texts(model, tokenizer, texts)
    assert together.shape == (21, model.config.hidden_size) and together.dtype == torch.float32
    torch.testing.assert_close(together.norm(dim=1), torch.ones(21))
    alone = torch.cat([encode_texts(model, tokenizer, [text]) for text in texts[:3]])
    torch.testing.assert_close(together[:3], alone)
    torch.testing.assert_close(together[:3], together[3:6])
    assert (together[0] @ together[1]).item() < 0.999


@pytest.mark.parametrize(
    ("texts", "rule"),
    [([], "at least one"), ([""], "must not be empty"), (["x" * 4000], "fit the context of 256"), ([1], "strings")],
)
def test_bad_input(model, tokenizer, texts, rule):
    with pytest.raises(ValueError, match=rule):
        encode_texts(model, tokenizer, texts)
