"""One configuration file: what stages share, what each says, where it starts, and the command line before all."""

from pathlib import Path

import pytest

from hf_unified_diffusion.training.stages import parse_arguments, read_stages

FILE = """
[all]
output_dir = "runs/one"
tokenizer = "tokenizer"
seed = 7
latents = {image = "data/images"}

[stages.text]
config = '{"hidden_size": 8}'
canvas = false

[stages.align]
train_only = ["heads.image*", "projections.image*"]
mixture = {image = 3}

[stages.joint]
loss_weights = {image = 0.5}
seed = 3
"""
EXAMPLE = Path(__file__).parents[2] / "examples" / "unified.toml"


@pytest.fixture
def file(tmp_path):
    (tmp_path / "stages.toml").write_text(FILE)
    return tmp_path / "stages.toml"


def test_a_stage_has_what_is_shared_and_starts_where_the_one_before_ends(file):
    stages = read_stages(file)
    assert list(stages) == ["text", "align", "joint"]
    text, align, joint = stages.values()
    assert (text.initial_model, text.config, text.canvas) == (None, '{"hidden_size": 8}', False)
    assert (align.initial_model, align.config) == ("runs/one/text/model", None)
    assert (joint.initial_model, joint.output_dir) == ("runs/one/align/model", "runs/one/joint")
    assert {stage.tokenizer for stage in stages.values()} == {"tokenizer"}
    assert len({stage.seed for stage in stages.values()}) == 3 and (text.seed, joint.seed) == (7, 3)
    assert align.latent_folders() == {"image": Path("data/images")}
    assert align.run_settings().shares == {"image": 3}
    assert align.run_settings().train_only == ("heads.image*", "projections.image*")
    assert joint.run_settings().loss_weights == {"image": 0.5}
    assert joint.run_settings().train_only == ()


def test_the_command_line_goes_before_the_file_and_some_stages_can_be_asked_for(file):
    stages = read_stages(
        file, ["joint", "align"], ["--learning_rate", "0.5", "--mixture", "text=2", "code=1", "image=1"]
    )
    assert list(stages) == ["align", "joint"]
    assert stages["joint"].initial_model == "runs/one/align/model"
    for stage in stages.values():
        assert stage.learning_rate == 0.5
        assert stage.run_settings().shares == {"text": 2, "code": 1, "image": 1}


def test_the_example_is_valid():
    stages = read_stages(EXAMPLE)
    assert list(stages)[-1] == "quantization_aware"
    assert any(stage.train_only for stage in stages.values())
    assert stages["align_speech"].initial_model == "runs/unified/joint/model"
    assert stages["speech"].initial_model == "runs/unified/align_speech/model" and stages["speech"].faces
    assert stages["quantization_aware"].initial_model == "runs/unified/speech/model"


def test_speech_goes_on_from_a_checkpoint_and_between_its_levels():
    (stage,) = read_stages(EXAMPLE.with_name("speech.toml")).values()
    assert stage.initial_model == stage.teacher == stage.quantization_scales
    assert stage.faces and stage.run_settings().shares == {"text": 2, "code": 2, "image": 4, "audio": 6}


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("[all]\n", "must have the tables all and stages"),
        ("[other]\n[stages.a]\n", "must have the tables all and stages"),
        ("not toml", "a configuration must be TOML"),
        ("[stages.a]\ntokenizer = 'x'\n", "must name an output_dir, got neither"),
        ("[stages.a]\noutput_dir = 'x'\nrows = 3\n", "names of the script's arguments, got \\['rows'\\]"),
    ],
)
def test_files_of_another_form_are_refused(tmp_path, text, rule):
    (tmp_path / "stages.toml").write_text(text)
    with pytest.raises(ValueError, match=rule):
        read_stages(tmp_path / "stages.toml")


def test_a_stage_that_is_not_there_is_refused(file):
    with pytest.raises(ValueError, match="and the stages \\['speech'\\], got .* with the stages \\['text'"):
        read_stages(file, ["speech"])


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["--mixture", "text"], "mixture must be of the form name=int, got 'text'"),
        (["--mixture", "text=half"], "mixture must be of the form name=int, got 'text=half'"),
        (["--loss_weights", "=1"], "loss_weights must be of the form name=float, got '=1'"),
        (["--modalities", "image"], "modalities must be of .* got \\['image'\\]; others come by latents"),
        (["--flow_time_mean", "audio"], "flow_time_mean must be of the form name=float, got 'audio'"),
        (["--flow_loss", "noise"], "loss must be one of"),
        (["--config", "{}", "--initial_model", "x"], "config starts from scratch and initial_model does not"),
        (["--quantization_scales", "x"], "quantization_scales need quantization_bits, got 'x' alone"),
        (["--evaluation_latents", "0"], "evaluation_latents must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_name_the_rule(arguments, rule):
    with pytest.raises(ValueError, match=rule):
        parse_arguments(["--output_dir", "x", "--tokenizer", "y", *arguments])
