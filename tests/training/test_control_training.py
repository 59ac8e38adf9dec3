"""Examples for ControlNets: checkable, apart by split; what a step asks for; the script, cut off and resumed."""

import json
import runpy
from pathlib import Path

import pytest
import torch
from jsonschema import Draft202012Validator
from torch import Generator

from hf_unified_diffusion import UnifiedControlNetModel
from hf_unified_diffusion.conditioning.schema_constraint import call_schema
from hf_unified_diffusion.training.control_examples import split_of
from hf_unified_diffusion.training.control_objective import ControlObjective, EncodedExample, control_layout
from hf_unified_diffusion.training.objective import ObjectiveConfig
from hf_unified_diffusion.training.reasoning_examples import reasoning_example, structure_of
from hf_unified_diffusion.training.tool_examples import KINDS, SEEN, TOOL_SPLITS, UNSEEN, tool_example
from tests.tiny import save_tiny_checkpoint
from tests.training.tiny_training import lively_model

SCRIPT = Path(__file__).parents[2] / "examples" / "train_controlnet.py"
ROWS = [EncodedExample([1, 2], [3, 4, 5], [6, 7, 8, 9]), EncodedExample([1], [2], [3, 4])]
END, MASK = 0, 11


@pytest.mark.parametrize("split", TOOL_SPLITS)
def test_calls_are_valid_and_their_values_are_of_the_split_and_in_the_request(split):
    listed = [kind.kind for action in (*SEEN, *UNSEEN) for kind in action.slots if isinstance(kind.kind, tuple)]
    choices = {value for kinds in listed for value in kinds}
    for index in range(60):
        example = tool_example(split, index)
        assert example == tool_example(split, index)
        call = json.loads(example.response)
        schemas = {tool["function"]["name"]: call_schema(tool, "#") for tool in example.tools}
        assert Draft202012Validator(schemas[call["name"]]).is_valid(call)
        assert call["name"] in example.hint
        for value in call["arguments"].values():
            assert str(value) in example.prompt
            assert value in choices or split_of(value) == ("test" if split == "unseen" else split)


def test_unseen_actions_are_in_no_other_split():
    names = {name for action in UNSEEN for name in action.names}
    offered = {
        tool["function"]["name"] for s in TOOL_SPLITS[:3] for i in range(60) for tool in tool_example(s, i).tools
    }
    assert not names & offered
    assert set(KINDS) >= {slot.kind for action in SEEN for slot in action.slots if isinstance(slot.kind, str)}


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_answers_follow_from_the_steps(split):
    for index in range(60):
        example = reasoning_example(split, index)
        assert structure_of(example.response) == example.answer
        for line in example.response.splitlines():
            calculation, _, result = line.partition(": ")[2].partition(" = ")
            assert not result or eval(calculation, {"__builtins__": {}}) == int(result)
        assert example.response.rstrip().splitlines()[-2].endswith(str(example.answer))


@pytest.mark.parametrize("text", ["", "Answer: 3", "Reasoning: x\nAnswer: 3", "Reasoning: x\nStep 2: y\nAnswer: 3"])
def test_what_lacks_the_structure(text):
    assert structure_of(text) is None


def test_no_split_of_another_name():
    for make in (tool_example, reasoning_example):
        with pytest.raises(ValueError, match="split must be one of"):
            make("dev", 0)


def test_only_responses_with_their_end_are_asked_for():
    [(context, target), (canvas, hidden)], hint = control_layout(ROWS, "text", MASK, END, 2, Generator().manual_seed(0))
    assert hint.values.tolist() == [[1, 2], [1, 0]]
    assert target.labels.tolist() == [[-100, -100, 6, 7, 8, 9, 0, -100], [3, 4, 0, -100, -100, -100, -100, -100]]
    assert context.mask.tolist()[1] == [True] * 4 + [False] * 4
    assert canvas.positions[1, :3].tolist() == [1, 2, 3]
    assert canvas.reach[0].tolist() == [3, 3, 5, 5, 7, 7]  # each block sees the prompt and the blocks before it
    full = torch.tensor([[6, 7, 8, 9, 0, 0], [3, 4, 0, 0, 0, 0]])
    masked = canvas.values == MASK
    assert torch.equal(torch.where(masked, hidden.labels, canvas.values), full)
    assert bool((hidden.labels[~masked] == -100).all()) and not bool((masked & ~canvas.mask).any())


def test_a_step_on_repeated_rows_lowers_their_loss():
    base = lively_model()
    controlnet = UnifiedControlNetModel.from_transformer(base, num_blocks=1)
    objective = ControlObjective(base, controlnet, ObjectiveConfig(causal_weight=1.0))
    optimizer = torch.optim.AdamW(controlnet.parameters(), lr=3e-2)
    losses = []
    for _ in range(12):
        loss = objective(*control_layout(ROWS, "text", MASK, END, 4, Generator().manual_seed(0)))["loss"]
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.3


def test_the_script_cut_off_and_resumed_is_the_unbroken_run(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    base, main = save_tiny_checkpoint(tmp_path / "base"), runpy.run_path(str(SCRIPT))["main"]

    def run(name: str, steps: int, *more: str) -> UnifiedControlNetModel:
        given = {
            "task": "reasoning",
            "output_dir": tmp_path / name,
            "pretrained_model_name_or_path": base,
            "num_blocks": 1,
            "train_batch_size": 1,
            "max_train_steps": steps,
            "learning_rate": 1e-2,
            "lr_warmup_steps": 1,
            "checkpointing_steps": 2,
            "validation_steps": 100,
            "num_validation_batches": 1,
            "mixed_precision": "no",
            "bits": 8,
        }
        main([text for key, value in given.items() for text in (f"--{key}", str(value))] + list(more))
        return UnifiedControlNetModel.from_pretrained(tmp_path / name)

    whole = run("whole", 3)
    assert any(bool(residual.weight.any()) for residual in whole.residuals)
    assert UnifiedControlNetModel.from_pretrained(tmp_path / "whole" / "quantized").is_quantized
    start = UnifiedControlNetModel.from_pretrained(tmp_path / "whole" / "quantized")
    start.dequantize(torch.float32)
    further = run("further", 1, "--controlnet_model_name_or_path", str(tmp_path / "whole" / "quantized")).state_dict()
    assert not [name for name, value in start.named_parameters() if torch.equal(further[name], value)]  # all train
    resumed = run("whole", 3, "--resume_from_checkpoint", "checkpoint-2")
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value)
    with pytest.raises(ValueError, match="resume_from_checkpoint must be one of"):
        run("whole", 3, "--resume_from_checkpoint", "checkpoint-9")
