"""The command that serves: its arguments become settings, and what is wrong is said before anything starts."""

import pytest

from hf_unified_diffusion.cli import main
from hf_unified_diffusion.serve import ServeSettings


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["--replicas", "2"], "replicas must be left out without --ray"),
        (["--checkpoint", "nothing"], "checkpoint must be a folder with a config.json, got 'nothing'"),
        (["--max-batch", "0"], "max_batch"),
    ],
)
def test_wrong_arguments_end_with_2(capsys, arguments, rule):
    with pytest.raises(SystemExit, match="2"):
        main(["serve", *arguments])
    assert rule in capsys.readouterr().err


def test_settings_name_the_model_by_its_folder(tmp_path):
    assert ServeSettings().served_name == "unified-diffusion-edge"
    assert ServeSettings(checkpoint=str(tmp_path / "mine")).served_name == "mine"
    assert ServeSettings(model_name="ours").served_name == "ours"
