"""Laws of a recipe: its order, its records, what it costs, and what it refuses."""

import json
from pathlib import Path

import pytest

from hf_unified_diffusion.training.recipe import positions_of_a_step, read_recipe, stage_parameters
from hf_unified_diffusion.training.stages import parse_arguments
from tests.training.tiny_training import TINY_SHAPE

RECIPE = """
[all]
output_dir = "{folder}/stages"
tokenizer = "{folder}/tokenizer"
sequence_length = 10
train_batch_size = 2

[prepare.corpus]
record = "{folder}/shards"
command = ["examples/prepare_data.py", "--shards", "{folder}/shards"]

[stages.causal]
config = '{shape}'
canvas = false
max_train_steps = 5

[stages.text]
max_train_steps = 100
max_train_minutes = 1

[distillation]
output_dir = "{folder}/checkpoint"
loss_budget = 0.1
int8_modules = ["embeddings", "heads"]

[report]
output_dir = "{folder}/report"
arguments = ["--quick"]
card = "{folder}/card.md"
"""
SPEED = 1e6


def recipe(folder: Path, text: str = RECIPE) -> Path:
    file = folder / "recipe.toml"
    file.write_text(text.format(folder=folder, shape=json.dumps(TINY_SHAPE)))
    return file


def test_a_step_is_done_when_its_own_record_says_so(tmp_path):
    names = ["corpus", "causal", "text", "distillation", "report", "card"]
    file = recipe(tmp_path)
    assert [step.name for step in read_recipe(file, SPEED)] == names
    assert not any(step.is_done for step in read_recipe(file, SPEED))

    def saved(step: int, seconds: float = 0.0) -> str:
        return json.dumps({"step": step, "tokens": 0, "positions": 0, "seconds": seconds})

    records = [
        ("shards", None),
        ("stages/causal/state/progress.json", saved(5)),
        ("stages/text/complete/state/progress.json", saved(7, seconds=60.0)),
        ("checkpoint/metadata.json", "{}"),
        ("report/evaluation.json", "{}"),
        ("card.md", ""),
    ]
    for number, (name, content) in enumerate(records):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir()
        else:
            path.write_text(content)
        assert [step.is_done for step in read_recipe(file, SPEED)] == [place <= number for place in range(len(names))]
    (tmp_path / "stages/causal/state/progress.json").write_text(saved(4))
    assert not read_recipe(file, SPEED)[1].is_done


def test_each_command_reads_what_the_one_before_wrote(tmp_path):
    corpus, causal, text, distillation, report, card = (step.command for step in read_recipe(recipe(tmp_path), SPEED))
    assert corpus == ["examples/prepare_data.py", "--shards", f"{tmp_path}/shards"]
    assert causal[causal.index("--stages") + 1] == "causal"
    assert text[text.index("--resume") + 1] == "true"
    assert distillation[1] == f"{tmp_path}/stages/text/model"
    assert distillation[-3:] == ["--earlier_stages", f"{tmp_path}/stages/causal", f"{tmp_path}/stages/text"]
    assert distillation[distillation.index("--int8_modules") + 1 :][:2] == ["embeddings", "heads"]
    assert report[report.index("--checkpoint") + 1] == f"{tmp_path}/checkpoint"
    assert card[card.index("--results") + 1] == f"{tmp_path}/report"


def test_cost_is_six_operations_a_parameter_and_position_within_the_minutes(tmp_path):
    _, causal, text, distillation, *_ = read_recipe(recipe(tmp_path), SPEED)
    count = causal.flops / causal.positions / 6
    assert causal.positions == 5 * 2 * 10
    assert text.hours(SPEED) == pytest.approx(1 / 60)
    fast = read_recipe(recipe(tmp_path), 1e18)[2]
    assert fast.positions == 100 * 2 * 10 * 3
    assert distillation.flops == pytest.approx(8 * count * distillation.positions)


def test_positions_of_a_step_follow_the_mixture():
    common = ["--output_dir", "x", "--tokenizer", "x", "--sequence_length", "8", "--train_batch_size", "2"]
    of = lambda *more: positions_of_a_step(parse_arguments([*common, *more]))  # noqa: E731
    assert of() == 48
    assert of("--complementary", "false") == 32
    assert of("--canvas", "false", "--gradient_accumulation_steps", "3") == 48
    pictures = ["--latents", "image=x", "--latent_batch_tokens", "100", "--mixture", "text=1", "image=3"]
    assert of(*pictures) == (48 + 300) / 4


def test_parameters_are_those_of_the_network(tmp_path):
    args = parse_arguments(["--output_dir", "x", "--tokenizer", "x", "--config", json.dumps(TINY_SHAPE)])
    later = parse_arguments(["--output_dir", "y", "--tokenizer", "x", "--initial_model", str(tmp_path / "none")])
    counts = stage_parameters({"first": args, "second": later})
    assert counts[0] == counts[1] > 12288 * TINY_SHAPE["hidden_size"]


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("record = ", "records = ", "must have record and command"),
        ("loss_budget = 0.1", "", "must have output_dir and loss_budget"),
        ("arguments = ", "argument = ", "must have output_dir, arguments and card"),
        ("[report]", "[reports]", "must have the tables all and stages"),
    ],
)
def test_another_form_is_refused(tmp_path, old, new, rule):
    with pytest.raises(ValueError, match=rule):
        read_recipe(recipe(tmp_path, RECIPE.replace(old, new, 1)), SPEED)
