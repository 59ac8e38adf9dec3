"""Laws of a training run: resumed is unbroken, saved is whole, accumulated is one batch, and it learns."""

import math
import shutil

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from hf_unified_diffusion import UnifiedDiffusionConfig, UnifiedDiffusionModel
from hf_unified_diffusion.training.mixture import TokenRows
from hf_unified_diffusion.training.objective import ObjectiveConfig, ScoreNetworkObjective
from hf_unified_diffusion.training.run import MOST_LEFT_OUT, LearningRate, RunSettings, TrainingRun
from hf_unified_diffusion.training.run_log import append_record, forget_after, read_records
from hf_unified_diffusion.training.token_data import PackedTokens
from tests.tiny import tiny_tokenizer
from tests.training.tiny_training import TINY_SHAPE

RATE = LearningRate(3e-3, warmup_steps=2)


def token_data(modality: str, text: str = "the cat sat on the mat; ", repeats: int = 60) -> PackedTokens:
    """One document that repeats a line."""
    tokens = np.asarray(tiny_tokenizer().encode(text) * repeats, dtype=np.uint16)
    return PackedTokens(tokens, np.zeros(len(tokens), dtype=np.uint32), modality, len(text) * repeats)


def new_run(objective: ObjectiveConfig | None = None, micro_steps: int = 1, rows: int = 2, **changes) -> TrainingRun:
    """A run from scratch with dropout, so that every random state matters; one modality if the objective is causal."""
    set_seed(0)
    objective = objective or ObjectiveConfig()
    shape = {**TINY_SHAPE, "dropout": 0.1 if objective.canvas else 0.0, "cross_attention_every": 2}
    model = UnifiedDiffusionModel(UnifiedDiffusionConfig(vocab_size=258, mask_token_id=257, **shape)).train()
    names = ("text", "code") if objective.canvas else ("text",)
    data = [TokenRows(token_data(name), rows, length=24) for name in names]
    settings = RunSettings(ema_decay=0.9, **changes)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=micro_steps)
    return TrainingRun(accelerator, ScoreNetworkObjective(model, objective), data, tiny_tokenizer(), settings)


def take(run: TrainingRun, until: int) -> list[dict[str, float]]:
    return [run.step(RATE, run.progress.step / 10) for _ in range(run.progress.step, until)]


def weights(run: TrainingRun) -> list[torch.Tensor]:
    """Trained weights, then their moving averages."""
    return [p.detach().clone() for p in [*run.parameters, *run.ema.shadow_params]]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="module")
def unbroken() -> list[torch.Tensor]:
    """What six steps in one go end with."""
    run = new_run()
    take(run, 6)
    return weights(run)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder saved after three steps; copy before changing it."""
    folder = tmp_path_factory.mktemp("run")
    run = new_run()
    take(run, 3)
    run.save(folder)
    return folder


@pytest.mark.parametrize("micro_steps", [1, 3])
def test_what_is_made_ahead_is_what_would_be_made(micro_steps):
    """With the next step's progress known, its micro-batches are made early, and are the same; none is made in vain."""
    told, asked = new_run(micro_steps=micro_steps), []
    parts = told.parts
    told.parts = lambda index, progress: asked.append((index, progress)) or parts(index, progress)
    for _ in range(5):
        told.step(RATE, told.progress.share(5), told.progress.following(5))
    untold = new_run(micro_steps=micro_steps)
    for step in range(5):
        untold.step(RATE, step / 5)
    assert same(weights(told), weights(untold))
    assert asked == [(index, index // micro_steps / 5) for index in range(5 * micro_steps)]


def resumed(folder) -> list[torch.Tensor]:
    """What new objects, with other random states, end with when they go on from a folder to six steps."""
    run = new_run()
    set_seed(12345)
    run.restore(folder)
    assert run.progress.step == 3
    take(run, 6)
    return weights(run)


def test_a_resumed_run_is_the_unbroken_one_bit_for_bit(unbroken, saved):
    assert same(resumed(saved), unbroken)


def test_a_run_by_muon_resumes_and_differs(tmp_path):
    whole = new_run(trunk_optimizer="muon")
    take(whole, 4)
    broken = new_run(trunk_optimizer="muon")
    take(broken, 2)
    broken.save(tmp_path)
    again = new_run(trunk_optimizer="muon")
    again.restore(tmp_path)
    take(again, 4)
    by_adamw = new_run()
    take(by_adamw, 4)
    assert same(weights(again), weights(whole)) and not same(weights(whole), weights(by_adamw))
    muon, adamw = whole.optimizers
    counted = sum(len(group["params"]) for optimizer in (muon, adamw) for group in optimizer.param_groups)
    assert counted == len(whole.parameters)
    assert {p.ndim for group in muon.param_groups for p in group["params"]} == {2}


def test_another_seed_is_another_run(unbroken):
    run = new_run(seed=1)
    take(run, 6)
    assert not same(weights(run), unbroken)


def test_the_average_is_saved_and_loads_as_a_model(saved):
    run = new_run()
    run.restore(saved)
    loaded = UnifiedDiffusionModel.from_pretrained(saved / "model")
    with run.averaged() as model:
        for name, value in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value)


def test_averages_come_in_and_go_out_again():
    run = new_run()
    take(run, 3)
    before, averages = weights(run), list(run.ema.shadow_params)
    with run.averaged() as model:
        assert model is run.model
        assert same([p.detach() for p in run.parameters], averages)
        assert not same(weights(run), before)
    assert same(weights(run), before)


def cut_off_before_it_is_complete(folder) -> None:
    """The next save stopped while writing."""
    shutil.copytree(folder / "model", folder / "partial" / "model")
    (folder / "partial" / "state").mkdir()
    (folder / "partial" / "state" / "model.safetensors").write_bytes(b"cut")


def cut_off_before_the_first_move(folder) -> None:
    """A save was complete, and nothing of it in place; what is in place is damaged, to see that it is replaced."""
    (folder / "complete").mkdir()
    for name in ("model", "state"):
        shutil.move(folder / name, folder / "complete" / name)
        (folder / name).mkdir()
        (folder / name / "old").write_text("older")


def cut_off_between_the_moves(folder) -> None:
    """The model was in place, the old state deleted, the new one not yet moved."""
    (folder / "complete").mkdir()
    shutil.move(folder / "state", folder / "complete" / "state")


@pytest.mark.parametrize(
    "cut_off", [cut_off_before_it_is_complete, cut_off_before_the_first_move, cut_off_between_the_moves]
)
def test_a_save_that_was_cut_off_loses_nothing(saved, unbroken, tmp_path, cut_off):
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    cut_off(folder)
    assert same(resumed(folder), unbroken)
    run = new_run()
    run.restore(folder)
    run.save(folder)
    assert {path.name for path in folder.iterdir()} == {"model", "state"}
    assert {path.name for path in (folder / "state").iterdir()} == {path.name for path in (saved / "state").iterdir()}
    assert same(resumed(folder), unbroken)


def test_what_was_never_saved_cannot_be_resumed(tmp_path):
    with pytest.raises(ValueError, match="a run to resume must have been saved, got no"):
        new_run().restore(tmp_path)


def test_accumulated_rows_are_one_batch():
    """Where nothing is drawn (the causal twin; rows of one document), 2 micro-steps of 2 rows are 1 of 4.

    With canvases the law holds in distribution only: counts of hidden tokens are stratified within a micro-batch.
    """
    twin = ObjectiveConfig(canvas=False)
    apart = new_run(twin, micro_steps=2, rows=2)
    logged = take(apart, 4)  # before the next run: accelerate holds one number of micro-steps for all
    together = new_run(twin, micro_steps=1, rows=4)
    for one, other in zip(logged, take(together, 4), strict=True):
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
        assert one["tokens"] == other["tokens"] == one["positions"]
    for x, y in zip(weights(apart), weights(together), strict=True):
        torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-3)


def test_thirty_steps_learn_a_repeated_line():
    run = new_run(ObjectiveConfig(block_lengths=(4,), infill_rate=0.0), rows=4)
    records = [run.step(LearningRate(1e-2, 3), 0.0) for _ in range(30)]
    for name in ("text/causal", "text/canvas", "code/hidden"):
        losses = [record[name] for record in records if name in record]
        assert np.mean(losses[-3:]) < 0.8 * losses[0]
    assert 0.8 * math.log(257) < records[0]["text/causal"] < 1.2 * math.log(257)


def test_what_trains_gets_a_gradient_and_what_does_not_stays():
    run = new_run()
    trained = {id(p) for p in run.parameters}
    frozen = {name: p.detach().clone() for name, p in run.model.named_parameters() if id(p) not in trained}
    assert any(".cross_attn." in name for name in frozen)
    for index in range(2):  # one micro-batch of each modality
        run.micro_step(*run.parts(index, 1.0))
    assert all(p.grad is not None for p in run.parameters)
    take(run, 2)
    for name, p in run.model.named_parameters():
        assert name not in frozen or torch.equal(p, frozen[name])


def test_a_step_whose_gradient_is_not_finite_is_left_out_and_too_many_stop_the_run():
    run, fault = new_run(), ObjectiveConfig(causal_weight=math.inf)
    run.step(RATE, 0.0)
    before, average, sound = weights(run), [p.clone() for p in run.ema.shadow_params], run.objective.config
    run.objective.config = fault
    for count in range(1, MOST_LEFT_OUT + 1):
        record = run.step(RATE, 0.0)
        assert record["left_out"] == count and "grad_norm" not in record
        assert all(map(math.isfinite, record.values()))
    assert same(weights(run), before)
    assert all(map(torch.equal, run.ema.shadow_params, average))
    with pytest.raises(FloatingPointError, match="got norm .* in step 5"):
        run.step(RATE, 0.0)
    run.objective.config = sound
    assert run.step(RATE, 0.0)["grad_norm"] > 0
    assert not same(weights(run), before)
    assert run.left_out == 0


def test_the_rate_warms_up_in_a_line_and_falls_to_its_final_share():
    rate = LearningRate(4e-4, warmup_steps=10, final_share=0.1)
    warm = [rate.at(step, 0.0) for step in range(20)]
    assert warm[:10] == pytest.approx([4e-5 * (step + 1) for step in range(10)])
    assert warm[10:] == pytest.approx([4e-4] * 10)
    fall = [rate.at(100, progress / 20) for progress in range(21)]
    assert fall == sorted(fall, reverse=True)
    assert fall[0] == pytest.approx(4e-4)
    assert fall[10] == pytest.approx((4e-4 + 4e-5) / 2)
    assert fall[20] == rate.at(100, 1.7) == pytest.approx(4e-5)


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({"loss_weights": {"text": -1.0}}, "loss_weights must be finite and 0 or more, got {'text': -1.0}"),
        ({"trunk_optimizer": "sgd"}, "trunk_optimizer must be one of \\('adamw', 'muon'\\), got 'sgd'"),
        ({"beta2": 1.0}, "beta2 must be in \\[0, 1\\), got 1.0"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be positive, got 0.0"),
        ({"weight_decay": -0.1}, "weight_decay must be 0 or more, got -0.1"),
        ({"ema_decay": 1.1}, "ema_decay must be in \\[0, 1\\], got 1.1"),
    ],
)
def test_wrong_settings_name_the_rule(wrong, rule):
    with pytest.raises(ValueError, match=rule):
        RunSettings(**wrong)


def test_a_log_forgets_what_a_resumed_run_will_write_again(tmp_path):
    log = tmp_path / "log.jsonl"
    forget_after(log, 3)
    assert not log.exists()
    for step in range(1, 7):
        append_record(log, {"step": step, "loss": 1 / step})
    with log.open("a") as file:
        file.write('{"step": 7, "lo')
    assert [record["step"] for record in read_records(log)] == [1, 2, 3, 4, 5, 6]
    forget_after(log, 4)
    append_record(log, {"step": 5})
    assert [record["step"] for record in read_records(log)] == [1, 2, 3, 4, 5]
    assert read_records(log)[3] == {"step": 4, "loss": 0.25}
