"""The Space's own modules, and a studio of a tiny checkpoint with an autoencoder and a memory."""

import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_unified_diffusion import ArrowEngine
from tests.codecs.vaes import tiny_dc
from tests.tiny import tiny_model, tiny_tokenizer

SPACE = Path(__file__).parents[2] / "examples" / "space"


@pytest.fixture(scope="session", autouse=True)
def space_on_the_path():
    sys.path.insert(0, str(SPACE))
    yield
    sys.path.remove(str(SPACE))


@pytest.fixture(scope="session")
def voice_file(tmp_path_factory):
    """A WAV file of a buzz that comes and goes, as a voice does."""
    time = np.arange(38_400) / 24_000
    buzz = sum(np.sin(2 * np.pi * 150 * k * time) / k for k in range(1, 12))
    samples = 0.2 * buzz * (0.6 + 0.4 * np.sin(9 * time)) + 0.01 * np.random.default_rng(0).standard_normal(len(time))
    file = tmp_path_factory.mktemp("voice") / "voice.wav"
    with wave.open(str(file), "wb") as written:
        written.setnchannels(1)
        written.setsampwidth(2)
        written.setframerate(24_000)
        written.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return file


@pytest.fixture(scope="module")
def drawing_checkpoint(tmp_path_factory):
    """A folder whose network has weights in its picture head, and an autoencoder."""
    folder = tmp_path_factory.mktemp("checkpoint")
    model = tiny_model(bos_token_id=0, eos_token_id=0, max_position_embeddings=512)
    generator = torch.Generator().manual_seed(0)
    for name, std in (("image", 0.2), ("audio", 0.1), ("avatar", 0.1)):
        torch.nn.init.normal_(model.heads[name].weight, std=std, generator=generator)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    tiny_dc(128).save_pretrained(folder / "vae")
    return folder


@pytest.fixture(scope="module")
def studio(drawing_checkpoint, tmp_path_factory):
    pytest.importorskip("faiss")
    from studio import Studio

    engine = ArrowEngine.from_pretrained(drawing_checkpoint, memory=tmp_path_factory.mktemp("memories"))
    yield Studio(engine)
    engine.close()
