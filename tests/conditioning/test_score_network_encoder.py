"""A text's embedding follows from the text alone."""

import numpy as np
import pytest
import torch

from hf_unified_diffusion.conditioning.score_network_encoder import ScoreNetworkEncoder
from hf_unified_diffusion.contracts import Encoder, Segment
from tests.tiny import save_tiny_checkpoint, tiny_model, tiny_tokenizer

TEXTS = ["tea", "a much longer text about green tea and cups", "x", "tea"] * 5


def test_others_beside_it_and_padding_change_nothing():
    encode = ScoreNetworkEncoder(tiny_model(), tiny_tokenizer(), "tiny")
    together = encode(TEXTS)
    assert isinstance(encode, Encoder)
    assert together.shape == (20, 32)
    assert together.dtype == np.float32
    np.testing.assert_allclose(together, np.concatenate([encode([text]) for text in TEXTS]), atol=1e-5)
    np.testing.assert_allclose(together[0], together[3], atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-2


def test_it_is_the_mean_of_the_causal_states():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    ids = torch.tensor([tokenizer("green tea", add_special_tokens=False)["input_ids"]])
    ((hidden,), _) = model.features([Segment("text", ids)])
    torch.testing.assert_close(model.decode(hidden, "text"), model(ids).logits)  # it is what the heads read
    encoded = ScoreNetworkEncoder(model, tokenizer, "tiny")(["green tea"])
    np.testing.assert_allclose(encoded[0], hidden[0].mean(0).detach().numpy(), atol=1e-5)


def test_other_weights_have_another_name(tmp_path):
    one = ScoreNetworkEncoder.from_pretrained(save_tiny_checkpoint(tmp_path / "tiny"))
    model = tiny_model()
    with torch.no_grad():
        model.token_embedding.weight[3] += 1
    model.save_pretrained(tmp_path / "tiny")
    other = ScoreNetworkEncoder.from_pretrained(tmp_path / "tiny")
    assert one.name.startswith("tiny@")
    assert one.name != other.name


def test_a_text_without_tokens_is_refused():
    with pytest.raises(ValueError, match="at least one token"):
        ScoreNetworkEncoder(tiny_model(), tiny_tokenizer(), "tiny")(["tea", ""])
