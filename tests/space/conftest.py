"""The Space's own modules, and a studio of a tiny checkpoint with an autoencoder and a memory."""

import sys
from pathlib import Path

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


@pytest.fixture(scope="module")
def drawing_checkpoint(tmp_path_factory):
    """A folder whose network has weights in its picture head, and an autoencoder."""
    folder = tmp_path_factory.mktemp("checkpoint")
    model = tiny_model()
    torch.nn.init.normal_(model.heads["image"].weight, std=0.2, generator=torch.Generator().manual_seed(0))
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
