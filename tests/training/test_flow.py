"""Laws of learning continuous modalities: layout, loss, held-out error, what is frozen, what is learned."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Generator

from hf_unified_diffusion.contracts import Segment
from hf_unified_diffusion.processes import GaussianFlow, time_grid
from hf_unified_diffusion.training.distillation import DistillationObjective
from hf_unified_diffusion.training.flow_evaluation import flow_errors
from hf_unified_diffusion.training.flow_layout import FlowConfig, latent_layout, latent_segments
from hf_unified_diffusion.training.latent_data import CaptionedLatents
from hf_unified_diffusion.training.layouts import IGNORED_LABEL
from hf_unified_diffusion.training.mixture import TokenRows
from hf_unified_diffusion.training.objective import ObjectiveConfig, ScoreNetworkObjective
from hf_unified_diffusion.training.run import LearningRate, RunSettings, TrainingRun
from hf_unified_diffusion.training.token_data import PackedTokens
from tests.tiny import tiny_tokenizer
from tests.training.tiny_latents import COLOURS, WIDTH, blobs, picture_model
from tests.training.tiny_training import lively_model

ONLY_PICTURES = ("projections.image*", "heads.image*", "modality_embedding.image")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return blobs(tmp_path_factory.mktemp("latents"), {(2, 2): 60, (1, 2): 20})


@pytest.fixture(scope="module")
def batch(shards):
    """Four-token samples with captions of several lengths."""
    source = CaptionedLatents(shards, tiny_tokenizer(), 64, caption_dropout=0.2)
    return next(b for b in (source.batch(turn, seed=0) for turn in range(9)) if b.values.shape[1] == 4)


def lively_picture_model():
    return lively_model(258, modalities=picture_model().config.modalities)


def rows_of(batch, rows: slice):
    mask = batch.context_mask
    return replace(batch, values=batch.values[rows], context=batch.context[rows], context_mask=mask[rows])


def test_a_sample_does_not_depend_on_its_batch_and_padding(batch):
    """Alone and unpadded, each sample has the clean estimate it has beside longer captions."""
    model, t = lively_picture_model(), torch.full((len(batch.values),), 0.4)
    segments = latent_segments(batch, t, Generator().manual_seed(1))
    together = model(segments=segments).predictions[1]
    for i in range(4):
        length = int(batch.context_mask[i].sum())
        alone = [
            Segment("text", batch.context[i : i + 1, :length]),
            Segment("image", segments[1].values[i : i + 1], time=t[:1], positions=segments[1].positions[i : i + 1]),
        ]
        torch.testing.assert_close(model(segments=alone).predictions[1][0], together[i], atol=1e-5, rtol=1e-4)
        assert segments[1].positions[i, 0].tolist() == [length] * 3
        assert segments[1].positions[i, 3].tolist() == [length, length + 1, length + 1]


def test_one_token_after_the_other_continues_after_the_real_caption(batch):
    """Without a grid (audio) the network's own positions are those of a line behind the caption."""
    model, t = lively_picture_model(), torch.full((len(batch.values),), 0.4)
    context, canvas = latent_segments(replace(batch, positions=None), t, Generator().manual_seed(1))
    line = batch.context_mask.sum(dim=1)[:, None] + torch.arange(4)
    explicit = model(segments=[context, replace(canvas, positions=line.float())]).predictions[1]
    torch.testing.assert_close(model(segments=[context, canvas]).predictions[1], explicit, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("as_grid", [True, False])
def test_copies_behind_one_caption_are_what_each_would_be_alone(batch, as_grid):
    """Several noisy canvases of a sample share its caption, and neither see nor move each other."""
    batch = batch if as_grid else replace(batch, positions=None)
    model, config = lively_picture_model(), FlowConfig(canvases={"image": 3})
    (context, _), *copies = latent_layout(batch, config, Generator().manual_seed(0))
    together = model(segments=[context, *(canvas for canvas, _ in copies)]).predictions[1:]
    assert len({float(canvas.time[0]) for canvas, _ in copies}) == len(copies) == 3
    for clean, (canvas, _) in zip(together, copies, strict=True):
        alone = model(segments=[context, replace(canvas, canvas=None)]).predictions[1]
        torch.testing.assert_close(clean, alone, atol=1e-5, rtol=1e-4)


def test_the_loss_is_the_squared_error_of_the_velocity(batch):
    model, config = lively_picture_model(), FlowConfig(max_weight=math.inf)
    parts = latent_layout(batch, config, Generator().manual_seed(0))
    (_, _), (canvas, target) = parts
    losses = ScoreNetworkObjective(model, ObjectiveConfig(flow=config))(parts)
    flow, clean = GaussianFlow(), model(segments=[segment for segment, _ in parts]).predictions[1]
    velocities = [flow.velocity(x, canvas.values, canvas.time) for x in (clean, target.x_0)]
    expected = (velocities[0] - velocities[1]).square().mean()
    torch.testing.assert_close(losses["flow"], expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(losses["clean"], (clean - target.x_0).square().mean())
    assert torch.equal(losses["loss"], losses["flow"])
    assert canvas.target_time is None and canvas.guidance is None


def test_a_fresh_head_pays_the_mean_square_of_the_data(batch):
    config = FlowConfig(loss="clean")
    losses = ScoreNetworkObjective(picture_model(), ObjectiveConfig(flow=config))(
        latent_layout(batch, config, Generator().manual_seed(0))
    )
    torch.testing.assert_close(losses["flow"], batch.values.square().mean())
    assert torch.equal(losses["flow"], losses["clean"])
    assert flow_errors(picture_model(), [batch])["clean"] == pytest.approx(
        float(batch.values.square().mean()), rel=1e-5
    )


@pytest.mark.parametrize(("tokens", "base"), [(4, 4), (16, 4), (4, 16)])
def test_times_are_shifted_by_the_square_root_of_the_token_count(batch, tokens, base):
    many = replace(batch, values=torch.zeros(999, tokens, WIDTH), context=torch.zeros(999, 1).long(), context_mask=None)
    (_, _), (canvas, target) = latent_layout(replace(many, positions=None), FlowConfig(base_tokens=base), Generator())
    shift = math.sqrt(tokens / base)
    assert canvas.time.median().item() == pytest.approx(shift / (1 + shift), abs=2e-3)
    torch.testing.assert_close(target.weight, canvas.time.pow(-2).clamp(max=400.0))


def test_captions_are_learned_only_where_they_have_a_weight(batch):
    without, beside = (FlowConfig(caption_weight=weight) for weight in (0.0, 0.5))
    (_, silent), _ = latent_layout(batch, without, Generator())
    assert bool((silent.labels == IGNORED_LABEL).all())
    parts = latent_layout(batch, beside, Generator())
    (context, asked), _ = parts
    for row, labels, real in zip(context.values, asked.labels, batch.context_mask, strict=True):
        length = int(real.sum())
        assert labels[: length - 1].tolist() == row[1:length].tolist()
        assert bool((labels[length - 1 :] == IGNORED_LABEL).all())
    losses = ScoreNetworkObjective(lively_picture_model(), ObjectiveConfig(flow=beside))(parts)
    torch.testing.assert_close(losses["loss"], losses["flow"] + 0.5 * losses["causal"])


def test_a_network_is_not_far_from_itself(batch):
    model = lively_picture_model()
    parts = latent_layout(batch, FlowConfig(), Generator().manual_seed(0))
    objective = DistillationObjective(model, copy.deepcopy(model), ObjectiveConfig())
    assert objective(parts)["loss"].item() == pytest.approx(0.0, abs=1e-9)
    with torch.no_grad():
        model.heads["image"].bias.add_(0.5)
    assert objective(parts)["clean"].item() == pytest.approx(0.25, rel=1e-4)


def text_data(modality: str = "text") -> TokenRows:
    tokens = np.asarray(tiny_tokenizer().encode("the cat sat on the mat; ") * 40, dtype=np.uint16)
    return TokenRows(PackedTokens(tokens, np.zeros(len(tokens), np.uint32), modality, len(tokens)), rows=2, length=24)


def new_run(shards, tokens: int = 64, text: bool = True, model=None, dropout: float = 0.0, **changes) -> TrainingRun:
    set_seed(0)
    model = picture_model(dropout=dropout) if model is None else model
    data = [*([text_data()] if text else []), CaptionedLatents(shards, tiny_tokenizer(), tokens)]
    settings = RunSettings(ema_decay=0.9, weight_decay=0.01, **changes)
    objective = ScoreNetworkObjective(model, ObjectiveConfig(block_lengths=(4,)))
    return TrainingRun(Accelerator(cpu=True), objective, data, tiny_tokenizer(), settings)


def losses_of(run: TrainingRun, until: int) -> list[dict[str, float]]:
    records = [run.step(LearningRate(3e-3, 2), run.progress.step / 10) for _ in range(run.progress.step, until)]
    timed = ("seconds", "positions_per_s")
    return [{name: value for name, value in record.items() if name not in timed} for record in records]


def test_an_interrupted_mixture_goes_on_with_the_same_losses(shards, tmp_path):
    """Data order, captions, noise, dropout: the records of a resumed run are those of the unbroken one, bit for bit."""
    settings = {"shares": {"text": 1, "image": 2}, "loss_weights": {"image": 0.5}, "dropout": 0.1}
    unbroken = losses_of(new_run(shards, **settings), 8)
    assert ["image/flow" in record for record in unbroken] == [True, False, True] * 2 + [True, False]
    run = new_run(shards, **settings)
    losses_of(run, 4)
    run.save(tmp_path)
    resumed = new_run(shards, **settings)
    set_seed(777)
    resumed.restore(tmp_path)
    assert losses_of(resumed, 8) == unbroken[4:]


def test_loss_weights_scale_the_gradient(shards):
    norms = []
    for weight in (1.0, 0.25):
        record = losses_of(new_run(shards, text=False, loss_weights={"image": weight}), 1)[0]
        norms.append((record["image/loss"], record["grad_norm"]))
    assert norms[0][0] == norms[1][0]
    assert norms[1][1] == pytest.approx(0.25 * norms[0][1], rel=1e-4)


def text_outputs(model) -> list[torch.Tensor]:
    """What a network says of a text, as context and as canvas."""
    ids = torch.tensor([tiny_tokenizer().encode("the cat sat")])
    with torch.no_grad():
        return [model.eval()(ids).logits, model(ids, timestep=torch.tensor([0.5])).logits]


def test_with_the_trunk_frozen_text_stays_as_it_was_bit_for_bit(shards, tmp_path):
    model = lively_picture_model()
    before, head = text_outputs(model), model.heads["image"].weight.clone()
    run = new_run(shards, text=False, model=model.train(), train_only=ONLY_PICTURES)
    assert sum(p.numel() for p in run.parameters) == 16 + WIDTH * 16 + 16 + WIDTH * 16 + WIDTH
    losses_of(run, 5)
    assert not torch.equal(model.heads["image"].weight, head)
    assert all(torch.equal(a, b) for a, b in zip(before, text_outputs(model), strict=True))
    with run.averaged() as averaged:
        assert all(torch.equal(a, b) for a, b in zip(before, text_outputs(averaged), strict=True))


def test_the_time_embedding_is_shared_only_the_causal_path_does_not_read_it(shards):
    model = lively_picture_model()
    causal, canvas = text_outputs(model)
    losses_of(new_run(shards, text=False, model=model.train(), train_only=(*ONLY_PICTURES, "time_embedding.time.*")), 2)
    after = text_outputs(model)
    assert torch.equal(after[0], causal)
    assert not torch.equal(after[1], canvas)


def test_names_that_nothing_has_are_refused(shards):
    with pytest.raises(ValueError, match="train_only must name parameters .* got \\['heads.audio\\*'\\]"):
        new_run(shards, train_only=("heads.image*", "heads.audio*"))
    with pytest.raises(ValueError, match="shares must be of the modalities \\['image', 'text'\\], got \\['text'\\]"):
        new_run(shards, shares={"text": 1})


def drawn(model, colour: str, count: int = 32) -> torch.Tensor:
    """Samples of a caption by eight Euler steps."""
    ids = torch.tensor([0, *tiny_tokenizer().encode(colour)]).expand(count, -1)
    flow, generator, times = GaussianFlow(), Generator().manual_seed(5), time_grid(8).float()
    x_t = flow.prior((count, 4, WIDTH), generator)
    for t, s in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        now, then = torch.full((count,), t), torch.full((count,), s)
        with torch.no_grad():
            clean = model(segments=[Segment("text", ids), Segment("image", x_t, time=now)]).predictions[1]
        x_t = flow.reverse(clean, x_t, now, then, generator)
    return x_t


def test_a_tiny_network_learns_what_colours_are_called(shards):
    run = new_run(shards, tokens=128, text=False)
    for step in range(120):
        run.step(LearningRate(2e-2, 5), step / 120)
    held_out = [CaptionedLatents(shards, tiny_tokenizer(), 64, 0.0).batch(turn, seed=9) for turn in range(3)]
    with run.averaged() as model:
        errors = flow_errors(model, held_out)
        centres = {colour: drawn(model.eval(), colour).mean(dim=1) for colour in COLOURS}
    assert errors["clean"] < 0.5 * float(torch.cat([b.values.flatten() for b in held_out]).square().mean())
    assert errors["shuffled"] > 1.2 * errors["clean"]
    for colour, found in centres.items():
        distances = {name: (found - torch.tensor(place)).norm(dim=1) for name, place in COLOURS.items()}
        other = next(name for name in COLOURS if name != colour)
        assert (distances[colour] < distances[other]).float().mean() > 0.9


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({"loss": "noise"}, "loss must be one of"),
        ({"max_weight": 0.0}, "max_weight must be positive, got 0.0"),
        ({"time_std": 0.0}, "time_std must be positive, got 0.0"),
        ({"time_mean": {"audio": math.nan}}, "time_mean must be finite, got {.audio.: nan}"),
        ({"base_tokens": 0}, "base_tokens must be at least 1, got 0"),
        ({"caption_weight": -1.0}, "caption_weight must be 0 or more, got -1.0"),
    ],
)
def test_wrong_settings_name_the_rule(wrong, rule):
    with pytest.raises(ValueError, match=rule):
        FlowConfig(**wrong)


def test_held_out_errors_need_batches_and_times(batch):
    for batches, times, rule in (([], (0.5,), "at least one batch"), ([batch], (0.0,), "must be in \\(0, 1\\]")):
        with pytest.raises(ValueError, match=rule):
            flow_errors(picture_model(), batches, times)
