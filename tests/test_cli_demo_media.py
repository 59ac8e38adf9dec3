"""The demo's pictures and sounds: what a checkpoint can, in files that open."""

import shutil

import pytest
import soundfile
from PIL import Image

from hf_unified_diffusion.cli_demo_media import CAPTIONS, COLUMNS, show_media
from hf_unified_diffusion.codecs.avatar_track import AvatarTrack
from hf_unified_diffusion.modeling.embedded import EMBEDDED_CHECKPOINT
from tests.codecs.vaes import tiny_dc
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_model(bos_token_id=0, eos_token_id=0, max_position_embeddings=512).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    tiny_dc(128).save_pretrained(folder / "vae")
    shutil.copytree(EMBEDDED_CHECKPOINT / "vocoder", folder / "vocoder")
    return str(folder)


def test_all_of_it_is_written_and_told(folder, tmp_path, capsys):
    facts = {"supported_modalities": ["text", "image", "audio", "avatar"], "limits": {"image": "no shapes."}}
    show_media(folder, facts, tmp_path)
    printed = capsys.readouterr().out
    files = {path.name: path for path in tmp_path.iterdir()}
    made = {"cloned.wav", "face.gif", "hello.wav", "mouth.json", "pictures.png", "recoloured.png", "together.wav"}
    assert set(files) == made
    assert all(str(path) in printed for path in files.values()) and CAPTIONS[-1] in printed
    assert printed.count("(image: no shapes.)") == 1
    with Image.open(files["pictures.png"]) as sheet:
        width, height = sheet.size
    assert len(CAPTIONS) % COLUMNS == 0 and width * (len(CAPTIONS) // COLUMNS) == height * COLUMNS
    for name in ("hello.wav", "cloned.wav", "together.wav"):
        samples, rate = soundfile.read(files[name])
        assert rate == 24000 and samples.ndim == 1 and len(samples) > rate / 2
    assert AvatarTrack.read(files["mouth.json"]).words


def test_what_a_checkpoint_was_not_trained_for_is_left_out(folder, tmp_path, capsys):
    show_media(folder, {"supported_modalities": ["text", "code", "avatar"]}, tmp_path / "none")
    assert capsys.readouterr().out == "" and not (tmp_path / "none").exists()
    show_media(folder, {"supported_modalities": ["audio"]}, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cloned.wav", "hello.wav"]
