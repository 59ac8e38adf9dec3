"""The console script on a tiny real checkpoint."""

import re

import pytest

from hf_unified_diffusion import UnifiedDiffusionModel
from hf_unified_diffusion.cli import STORIES, main
from tests.tiny import save_tiny_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def test_demo_keeps_what_it_was_given(folder, capsys):
    main(["demo", str(folder)])
    printed = capsys.readouterr().out
    for title, (_, request) in STORIES.items():
        story = printed[printed.index(f"== {title}:") :]
        assert request["prompt"] in story
        assert request.get("suffix", "") in story


def test_demo_is_reproducible(folder, capsys):
    texts = []
    for _ in range(2):
        main(["demo", str(folder)])
        texts.append(re.sub(r"[0-9.]+ s$", "", capsys.readouterr().out, flags=re.MULTILINE))
    assert texts[0] == texts[1]


def test_info_agrees_with_the_checkpoint(folder, capsys):
    main(["info", str(folder)])
    printed = dict(re.findall(r"^(\S.*?)  +(\S.*)$", capsys.readouterr().out, flags=re.MULTILINE))
    model = UnifiedDiffusionModel.from_pretrained(folder)
    assert printed["parameters"] == f"{model.num_parameters() / 1e6:.1f} M"
    assert printed["in the trunk"] == f"{model.trunk_share():.1%}"
    assert 32 <= float(printed["bits per weight"]) < 40  # float32 and the file's header
    assert printed["vocabulary"] == f"{model.config.vocab_size} tokens"


@pytest.mark.parametrize("arguments", [["info", "/nowhere"], ["unknown"], []])
def test_wrong_arguments_end_with_a_message(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "usage: hf-unified-diffusion" in capsys.readouterr().err
