"""Texts under energies: every way of writing moves; what fails is written again, and no more often than asked."""

import pytest
import torch

from hf_unified_diffusion import (
    ArrowEngine,
    CausalLikelihood,
    ForbiddenWords,
    FromContext,
    Length,
    MaskedDiffusionScheduler,
    RequiredWords,
)

WAYS = {
    "blocks": {"block_length": 8},
    "one canvas": {"block_length": None},
    "guidance": {"block_length": 6, "guidance_scale": 2.0},
    "schema": {"regex": "[ -~]{8,60}"},
}
SHORT = {"max_new_tokens": 16, "num_inference_steps": 8, "seed": 0}
PROMPTS = ["x = ", "def f(a):"]


@pytest.mark.parametrize("way", list(WAYS))
def test_forbidden_and_required_words_together(pipe, way):
    plain = pipe(PROMPTS, **SHORT, **WAYS[way]).completions
    vowels = ForbiddenWords(["a", "e"], weight=40.0)
    output = pipe(PROMPTS, energies=[vowels, RequiredWords(["quit"], weight=40.0)], **SHORT, **WAYS[way])
    assert not any("quit" in text for text in plain) and any("e" in text or "a" in text for text in plain)
    for text, history in zip(output.completions, output.energy_history, strict=True):
        assert history[-1].is_accepted and len(history) <= 4
        assert "quit" in text and not set("ae") & set(text)


@pytest.mark.parametrize("bounds", [(3, 5), (12, 16)])
def test_length(pipe, bounds):
    output = pipe(PROMPTS, energies=[Length(*bounds, weight=60.0)], block_length=8, **SHORT)
    assert all(bounds[0] <= len(ids) <= bounds[1] for ids in output.completion_ids)


def test_between_prompt_and_suffix(pipe):
    output = pipe("f(", suffix=")", energies=[RequiredWords(["quit"], weight=40.0)], **SHORT)
    assert "quit" in output.completions[0] and output.texts[0].startswith("f(") and output.texts[0].endswith(")")


@pytest.mark.parametrize("way", list(WAYS))
def test_scale_zero_changes_nothing(pipe, way):
    plain = pipe(PROMPTS, **SHORT, **WAYS[way])
    zero = pipe(PROMPTS, energies=[ForbiddenWords(["a"])], energy_scale=0.0, **SHORT, **WAYS[way])
    assert torch.equal(plain.sequences, zero.sequences) and zero.energy_history is None


def test_a_wish_of_weight_zero_writes_the_same(pipe):
    """Rows one by one are the rows of the batch, bit for bit."""
    plain = pipe(PROMPTS, stop="r", **SHORT)
    output = pipe(PROMPTS, stop="r", energies=[ForbiddenWords(["zzzz"], weight=0.0)], **SHORT)
    assert output.texts == plain.texts and output.finished == plain.finished
    assert [len(history) for history in output.energy_history] == [1, 1]


def test_a_wish_that_cannot_be_met_is_given_up_after_the_retries(pipe):
    """The constraint writes the word that is forbidden."""
    output = pipe(
        "x", regex="(yes|no)a{3,9}", energies=[ForbiddenWords(["a"])], energy_retries=2, energy_growth=3.0, **SHORT
    )
    (history,) = output.energy_history
    assert [attempt.scale for attempt in history] == [1.0, 3.0, 9.0]
    assert not any(attempt.is_accepted for attempt in history)
    assert all(attempt.energies["ForbiddenWords"] >= 3 for attempt in history)
    assert output.num_forward_passes == sum(attempt.num_passes for attempt in history)


def test_a_hard_wish_is_met_by_a_retry(pipe):
    """Too weak at first; the scale grows until the word is gone."""
    energies = [ForbiddenWords(["a", "e", "o", "t"], weight=0.05)]
    (history,) = pipe("x = ", energies=energies, energy_retries=8, energy_growth=4.0, **SHORT).energy_history
    assert not history[0].is_accepted and history[-1].is_accepted and len(history) <= 9
    assert [attempt.scale for attempt in history] == [4.0**i for i in range(len(history))]


@pytest.mark.parametrize("check_drafts", [False, True])
def test_importance_weights_choose_the_likelier_candidates(pipe, check_drafts):
    def energies(weight):
        energy = CausalLikelihood(weight=weight)
        wishes = {"energies": [energy], "num_candidates": 4, "check_drafts": check_drafts}
        outputs = [pipe("x = ", **SHORT | {"seed": seed}, **wishes) for seed in range(4)]
        return [output.energy_history[0][0].energies["CausalLikelihood"] for output in outputs]

    drawn, chosen = energies(0.0), energies(5.0)
    assert all(c <= d for d, c in zip(drawn, chosen, strict=True)) and sum(chosen) < sum(drawn)


@torch.no_grad()
@pytest.mark.parametrize("prompt", ["x =", None])
def test_what_a_context_saves_is_a_difference_of_likelihoods(pipe, model, tokenizer, prompt):
    """Counted here token by token, with and without; without a context it is nothing."""
    context = "def f(a):\n    return a\n\n"
    wishes = {"energies": [FromContext()], "num_candidates": 2, "check_drafts": True}
    output = pipe(prompt, context=context, **wishes, **SHORT)
    (energy,) = output.energy_history[0][0].energies.values()
    ids = output.completion_ids[0].tolist()

    def nats(*before):
        read = [token for text in before for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
        logits = model(torch.tensor([[*read, *ids]])).logits[0].float().log_softmax(dim=-1)
        places = range(len(ids) if prompt is not None else len(ids) - 1)  # nothing predicts the first token of all
        return -sum(float(logits[-len(ids) + i - 1 + (prompt is None), ids[i + (prompt is None)]]) for i in places)

    read = [context] if prompt is None else [context, prompt]
    assert energy == pytest.approx(nats(*read) - nats(*read[1:]), abs=1e-3)
    assert pipe("x = ", **wishes, **SHORT).energy_history[0][0].energies == {"FromContext": 0.0}


def test_candidates_that_the_context_says_more_about_are_chosen(pipe):
    def energies(weight):
        wishes = {"energies": [FromContext(weight=weight)], "num_candidates": 4, "context": "quit = a\n\n"}
        outputs = [pipe("x = ", **SHORT | {"seed": seed}, **wishes) for seed in range(4)]
        return [output.energy_history[0][0].energies["FromContext"] for output in outputs]

    drawn, chosen = energies(0.0), energies(50.0)
    assert all(c <= d + 1e-6 for d, c in zip(drawn, chosen, strict=True)) and sum(chosen) < sum(drawn)


def test_engine(model, tokenizer):
    engine = ArrowEngine(model, MaskedDiffusionScheduler(mask_token_id=tokenizer.mask_token_id), tokenizer)
    options = {"max_new_tokens": 12, "seed": 0, "return_result": True}
    result = engine.diffuse("x = ", energies=[RequiredWords(["quit"], weight=40.0)], **options)
    assert "quit" in result.output and result.extra["energy_history"][0][-1].is_accepted
    engine.close()


BAD = {
    "no list": ({"energies": 3}, "energies must be a list of energies, got int"),
    "no energy": ({"energies": ["a"]}, "energies must each be a TextEnergy such as ForbiddenWords, got str"),
    "weight": ({"energies": [ForbiddenWords(["a"], weight=-1)]}, "weight of ForbiddenWords must be a finite number"),
    "scale": ({"energy_scale": -1.0}, "energy_scale must be a finite number of at least 0"),
    "retries": ({"energy_retries": 1000}, "energy_retries must be an integer in \\[0, 100\\], got 1000"),
    "growth": ({"energy_growth": 0.5}, "energy_growth must be at least 1, got 0.5"),
    "candidates": ({"energies": [CausalLikelihood()]}, "num_candidates must be at least 2 with"),
    "no candidates": ({"num_candidates": 0}, "num_candidates must be an integer of at least 1, got 0"),
    "names": ({"energies": [ForbiddenWords(["a"]), ForbiddenWords(["b"])]}, "energies must have names of their own"),
    "drafts": ({"check_drafts": True}, "check_drafts must be False with \\['ForbiddenWords'\\]"),
    "length": ({"energies": [Length(1, 2)], "suffix": "x"}, "Length must be left out with a suffix or a canvas"),
    "room": ({"energies": [Length(30, 40)]}, "fewest tokens of Length must be at most max_new_tokens \\(16\\), got 30"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(BAD))
def test_refused_before_any_pass(pipe, model, case):
    options, message = BAD[case]
    called = []
    handle = model.register_forward_hook(lambda *call: called.append(call))
    try:
        with pytest.raises(ValueError, match=message):
            pipe("x", **SHORT | {"energies": [ForbiddenWords(["a"])]} | options)
    finally:
        handle.remove()
    assert not called
