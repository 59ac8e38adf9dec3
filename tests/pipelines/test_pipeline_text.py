"""Laws of writing: rows, blocks, caches, guidance and infills."""

import pytest
import torch
from transformers import TextDiffusionStreamer
from transformers.generation.streamers import BaseStreamer

from hf_unified_diffusion.codecs.text_codec import TextCodec
from hf_unified_diffusion.contracts import Segment
from hf_unified_diffusion.pipelines.text_inputs import LONGEST_AHEAD
from hf_unified_diffusion.processes.randomness import spawn_generators
from hf_unified_diffusion.schedulers.scheduling_masked_diffusion import MaskedDiffusionScheduler

PROMPTS = ["def parse(", "x", "self.foo = bar", "import os ", "a b c d e f g", "def f():\n\n", "(", "class A:\n    "]
SHORT = {"max_new_tokens": 20, "block_length": 8, "num_inference_steps": 7, "seed": 3}
MANY_ENDS = list(range(0, 350, 9))
WAYS = {
    "blocks": {},
    "whole": {"block_length": None},
    "guided": {"guidance_scale": 2.0, "negative_prompt": "self"},
    "infill": {"suffix": " = 1"},
    "greedy": {"temperature": 0.0},
    "entropy": {"entropy_bound": 4.0},
    "shaped": {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "ordering": "entropy"},
    "checked": {"check_drafts": True, "num_inference_steps": 3},
    "checked twice": {"check_drafts": True, "num_inference_steps": 6},
    "checked greedy": {"check_drafts": True, "temperature": 0.0},
    "checked guided": {"check_drafts": True, "guidance_scale": 2.0, "negative_prompt": "self"},
    "context": {"context": "import os\n\n"},
    "context, scaled": {"context": "import os\n\n", "context_scale": 2.0},
    "context, scaled infill": {"context": "import os\n\n", "context_scale": 0.5, "suffix": " = 1"},
}
every_way = pytest.mark.parametrize("way", WAYS)


@pytest.fixture(params=["no ends", "many ends"])
def ends(request, model):
    """With many end tokens rows end everywhere; given back afterwards."""
    before = model.config.eos_token_id
    model.config.eos_token_id = MANY_ENDS if request.param == "many ends" else None
    yield model.config.eos_token_id or []
    model.config.eos_token_id = before


def ids_of(output):
    return [ids.tolist() for ids in output.completion_ids]


@every_way
def test_batch_of_one_equals_batch_of_eight(pipe, ends, way):
    """Other rows, their lengths and the padding they bring change nothing."""
    options = {**SHORT, **WAYS[way]}
    together = pipe(PROMPTS, **options)
    for row, prompt in enumerate(PROMPTS):
        alone = pipe(prompt, **{**options, "seed": None}, generator=[spawn_generators(3, len(PROMPTS))[row]])
        assert alone.texts == together.texts[row : row + 1]
        assert ids_of(alone) == ids_of(together)[row : row + 1]
        assert alone.finished == together.finished[row : row + 1]


@every_way
def test_what_comes_out(pipe, ends, way, tokenizer):
    """Given strings are kept, lengths are bounded, ends and padding stay out, masks are gone."""
    options, codec = {**SHORT, **WAYS[way]}, TextCodec(tokenizer)
    output = pipe(PROMPTS, **options)
    for row, (prompt, ids) in enumerate(zip(PROMPTS, ids_of(output), strict=True)):
        assert output.texts[row] == prompt + output.completions[row] + options.get("suffix", "")
        before, opening = codec.heal(prompt)
        assert output.completions[row] == codec.decode(ids)[len(opening) :]
        assert tokenizer.mask_token_id not in ids and not set(ids) & set(ends)
        assert len(ids) == SHORT["max_new_tokens"] or (output.finished[row] and len(ids) < SHORT["max_new_tokens"])
        given = codec.encode([before, options.get("suffix", "")])
        whole = [*given[0], *ids, *given[1]]
        sequence = output.sequences[row].tolist()
        assert sequence[: len(whole)] == whole and set(sequence[len(whole) :]) <= {tokenizer.pad_token_id}
    if "suffix" not in options:
        assert any(output.finished) == bool(ends)


@every_way
def test_a_seed_repeats_and_another_does_not(pipe, way):
    options = {**SHORT, **WAYS[way]}
    assert pipe("x", **options).texts == pipe("x", **options).texts
    changes = pipe("x", **options).texts != pipe("x", **{**options, "seed": 4}).texts
    assert changes == (options.get("temperature") != 0.0)


def test_generator_and_global_seed(pipe):
    options = {**SHORT, "seed": None}
    first, second, third = (
        pipe("x", **options, generator=torch.Generator().manual_seed(seed)).texts for seed in (0, 0, 1)
    )
    assert first == second != third
    torch.manual_seed(5)
    first, second = (pipe("x", **options).texts for _ in range(2))
    torch.manual_seed(5)
    assert pipe("x", **options).texts == first != second


def test_num_return_sequences_are_rows(pipe):
    output = pipe(["x", "self"], num_return_sequences=2, **SHORT)
    assert output.texts == pipe(["x", "x", "self", "self"], **SHORT).texts
    assert len(set(output.texts)) == 4


@pytest.mark.parametrize(("steps", "block_length", "blocks"), [(16, 32, 4), (5, 32, 4), (9, 100, 2), (3, None, 1)])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_passes_are_the_steps(pipe, model, steps, block_length, blocks, scale):
    """All blocks together take num_inference_steps passes, commits included; guidance doubles them."""
    model.config.eos_token_id = None
    try:
        called = []
        handle = model.register_forward_hook(lambda *call: called.append(call))
        options = {"block_length": block_length, "guidance_scale": scale, "temperature": 0.5}
        output = pipe("x", max_new_tokens=128, num_inference_steps=steps, **options)
        assert output.num_forward_passes == len(called) == steps * (1 if scale == 1 else 2)
    finally:
        handle.remove()
        model.config.eos_token_id = 0


@torch.no_grad()
@pytest.mark.parametrize("block_length", [8, 5, None])
def test_cached_equals_uncached(pipe, model, tokenizer, block_length):
    """Blocks through the cache are blocks that see everything before them in one plain forward pass."""
    prompt, total, steps = "def parse(", 20, 8
    mask = tokenizer.mask_token_id
    scheduler = MaskedDiffusionScheduler(mask_token_id=mask)
    size = total if block_length is None else block_length
    generators = spawn_generators(0, 1)
    done = torch.tensor([tokenizer.encode(prompt)])
    start, starts = done.shape[1], range(0, total, size)
    for block, first in enumerate(starts):
        canvas = torch.full((1, min(size, total - first)), mask)
        scheduler.set_timesteps(steps // len(starts) + (block < steps % len(starts)))
        for t in scheduler.timesteps:
            if not (canvas == mask).any():
                break
            time = (canvas == mask).double().mean(1)
            logits = model(segments=[Segment("text", done), Segment("text", canvas, time=time)]).logits
            canvas = scheduler.step(logits, t, canvas, generator=generators).prev_sample
        done = torch.cat([done, canvas], dim=1)
    model.config.eos_token_id, before = None, model.config.eos_token_id
    try:
        options = {"max_new_tokens": total, "num_inference_steps": steps, "block_length": block_length, "seed": 0}
        output = pipe(prompt, **options)
    finally:
        model.config.eos_token_id = before
    assert ids_of(output) == [done[0, start:].tolist()]


@torch.no_grad()
@pytest.mark.parametrize("steps", [(8, 3), (8, 7), (8, 20), (1, 20), (2, 10)])
@pytest.mark.parametrize("prompt", ["def parse(", "def f():\n", None])
def test_checked_greedy_drafts_are_the_greedy_autoregressive_text(pipe, model, tokenizer, ends, steps, prompt):
    blocks = dict(zip(("block_length", "num_inference_steps"), steps, strict=True))
    output = pipe(prompt, check_drafts=True, temperature=0.0, **{**SHORT, **blocks})
    written, codec = ids_of(output)[0], TextCodec(tokenizer)
    before, opening = codec.heal(prompt or "")
    # From nothing, the first token has no causal prediction and is the draft's.
    given = codec.encode([before])[0] if prompt else written[:1]
    ids, size = list(given), len(given) + SHORT["max_new_tokens"] - (prompt is None)
    while len(ids) < size and ids:
        logits = model(torch.tensor([ids])).logits[0, -1]
        if len(ids) == len(given) and opening:
            logits[~codec.starting_with(opening)] = -torch.inf
        if int(logits.argmax()) in ends:
            break
        ids.append(int(logits.argmax()))
    assert written == (ids[len(given) :] if prompt else ids)
    assert 0 <= output.acceptance_rate <= 1


@torch.no_grad()
@pytest.mark.parametrize("blocks", [{}, {"block_length": 1, "num_inference_steps": 20}])
@pytest.mark.parametrize(
    "less", [{"guidance_scale": 2.5, "negative_prompt": "self"}, {"context": "self.bar\n", "context_scale": 2.5}]
)
def test_checked_guided_drafts_are_the_greedy_guided_text(pipe, model, tokenizer, ends, less, blocks):
    output = pipe("def parse(", check_drafts=True, temperature=0.0, **{**SHORT, **less, **blocks})
    codec = TextCodec(tokenizer)
    prompt, extra = codec.encode(["def parse(", less.get("context", less.get("negative_prompt"))])
    read, null = ([*extra, *prompt], prompt) if "context" in less else (prompt, extra)
    ids = []
    while len(ids) < SHORT["max_new_tokens"]:
        clean, other = (model(torch.tensor([[*before, *ids]])).logits[0, -1].float() for before in (read, null))
        token = int(torch.where(clean.isneginf(), clean, other + 2.5 * (clean - other)).argmax())
        if token in ends:
            break
        ids.append(token)
    assert ids_of(output) == [ids]


@pytest.mark.parametrize("way", ["blocks", "infill", "checked", "checked greedy", "guided"])
def test_a_context_is_read_before_the_prompt_and_is_no_part_of_the_text(pipe, ends, way):
    options = {**SHORT, **WAYS[way]}
    output = pipe(["x", "self"], context=["import os\n\n", "def f(a):"], **options)
    for row, whole in enumerate(["import os\n\nx", "def f(a):self"]):
        generator = [spawn_generators(3, 2)[row]]
        alone = pipe(whole, **{**options, "seed": None}, generator=generator)
        assert ids_of(output)[row] == ids_of(alone)[0]
    assert output.texts[0].startswith("x") and output.sequences.shape[1] < alone.sequences.shape[1]


@every_way
def test_a_context_of_scale_zero_is_not_read_and_of_scale_one_read_once(pipe, way):
    options = {**SHORT, **WAYS[way], "context": None, "context_scale": 1.0}
    plain = pipe("x", **options)
    none = pipe("x", **{**options, "context": "import os\n\n", "context_scale": 0})
    once = pipe("x", **{**options, "context": "import os\n\n"})
    assert none.texts == plain.texts and none.num_forward_passes == plain.num_forward_passes
    assert once.texts != plain.texts
    if not options.get("check_drafts"):
        assert once.num_forward_passes == plain.num_forward_passes


@torch.no_grad()
def test_checked_drafts_are_distributed_as_the_autoregressive_text(pipe, model, tokenizer):
    """All pairs of tokens under top-k 2, drafted in one pass, against their exact probabilities."""
    rows, prompt = 4000, "def parse("
    options = {"max_new_tokens": 2, "block_length": 2, "num_inference_steps": 1, "top_k": 2, "temperature": 3.0}
    ids = ids_of(pipe(prompt, check_drafts=True, num_return_sequences=rows, seed=0, **options))
    given = tokenizer.encode(prompt)
    seen = 0
    for first, p_first in top_two(model, given):
        for second, p_second in top_two(model, [*given, first]):
            share = ids.count([first, second]) / rows
            p = p_first * p_second
            assert abs(share - p) <= 5 * (p * (1 - p) / rows) ** 0.5
            seen += share
    assert seen == pytest.approx(1)


@torch.no_grad()
def test_drafts_made_ahead_are_distributed_as_the_autoregressive_text(pipe, model, tokenizer):
    """The third token is drafted behind what was not yet written, or is the check's: exact, over all first two."""
    rows, top, prompt = 4000, 24, "def parse("
    options = {"max_new_tokens": 3, "block_length": 1, "num_inference_steps": 3, "top_k": top, "temperature": 3.0}
    model.config.eos_token_id, before = None, model.config.eos_token_id
    try:
        output = pipe(prompt, check_drafts=True, num_return_sequences=rows, seed=0, **options)
    finally:
        model.config.eos_token_id = before
    assert 0.01 < output.acceptance_rate < 0.99  # both ways were taken
    begun, weight = torch.tensor([tokenizer.encode(prompt)]), torch.ones(1)
    for _ in range(2):
        best = (model(begun).logits[:, -1].float() / 3.0).topk(top)
        begun = torch.cat([begun.repeat_interleave(top, dim=0), best.indices.view(-1, 1)], dim=1)
        weight = (weight[:, None] * best.values.softmax(dim=-1)).flatten()
    best = (model(begun).logits[:, -1].float() / 3.0).topk(top)
    p = torch.zeros(model.config.vocab_size)
    p.index_add_(0, best.indices.flatten(), (weight[:, None] * best.values.softmax(dim=-1)).flatten())
    third = torch.tensor([ids[2] for ids in ids_of(output)]).bincount(minlength=len(p))
    assert bool(((third / rows - p).abs() <= 5 * (p * (1 - p) / rows).sqrt() + 1e-9).all())


@pytest.mark.parametrize("options", [{}, {"temperature": 0.0}, {"guidance_scale": 2.0, "negative_prompt": "self"}])
def test_drafts_made_ahead_do_not_depend_on_the_batch(pipe, options):
    """Rows of other lengths end at other times."""
    options = {**SHORT, "check_drafts": True, "block_length": 2, "num_inference_steps": 10, **options}
    prompts = ["def parse(", "x", "x = 1\ny"]
    together = ids_of(pipe(prompts, **options))
    for row, prompt in enumerate(prompts):
        alone = pipe(prompt, **{**options, "seed": None}, generator=[spawn_generators(3, 3)[row]])
        assert together[row] == ids_of(alone)[0]


def top_two(model, ids):
    best = (model(torch.tensor([ids])).logits[0, -1].float() / 3.0).topk(2)
    return list(zip(best.indices.tolist(), best.values.softmax(-1).tolist(), strict=True))


@pytest.mark.parametrize("drafts", [1, 2, 3])
def test_a_round_writes_what_it_accepts_and_one_token_more(pipe, ends, drafts):
    """A round is two passes, or one where the check before has drafted ahead."""
    output = pipe(
        "x",
        check_drafts=True,
        max_new_tokens=12,
        block_length=drafts,
        num_inference_steps=12 // drafts,
        temperature=0.0,
    )
    rounds = output.num_forward_passes - 1 if drafts <= LONGEST_AHEAD else output.num_forward_passes / 2
    written = rounds * (drafts * output.acceptance_rate + 1)
    assert written - drafts <= len(output.completion_ids[0]) + output.finished[0] <= written


def test_guidance_scale_zero_is_the_negative_prompt_alone(pipe):
    """The two contexts grow alike, so the null's text is that of a run that starts from the negative prompt."""
    null = pipe("def parse(", guidance_scale=0.0, negative_prompt="self", **SHORT)
    assert null.completions == pipe("self", **SHORT).completions
    assert pipe("def parse(", guidance_scale=0.0, **SHORT).completions == pipe(**SHORT).completions
    assert pipe("def parse(", guidance_scale=2.0, **SHORT).completions != pipe("def parse(", **SHORT).completions


def test_negative_prompts_belong_to_their_rows(pipe):
    options = {**SHORT, "guidance_scale": 2.0, "seed": None, "temperature": 0.0}
    negatives = ["self", "", "import os"]
    together = pipe(["x", "y", "z"], negative_prompt=negatives, **options)
    alone = [pipe(p, negative_prompt=n, **options).texts[0] for p, n in zip("xyz", negatives, strict=True)]
    assert together.texts == alone


@torch.no_grad()
@pytest.mark.parametrize(("prompt", "suffix"), [("def f(", "):\n"), (None, " = 1"), ("x", "")])
def test_an_infill_sees_both_sides_at_their_places(pipe, model, tokenizer, prompt, suffix):
    """The first pass is one forward pass of prompt, canvas and suffix with the positions of a whole text."""
    seen = []

    def keep(pipe, step, t, tensors):
        seen.append(tensors["logits"])
        return tensors

    options = {"max_new_tokens": 6, "num_inference_steps": 3, "seed": 0}
    pipe(prompt, suffix, callback_on_step_end=keep, callback_on_step_end_tensor_inputs=["logits"], **options)
    before, after = (torch.tensor(tokenizer.encode(text or ""), dtype=torch.int64) for text in (prompt, suffix))
    canvas = torch.full((1, 6), tokenizer.mask_token_id)
    places = torch.arange(len(before) + 6 + len(after))[None]
    outside = torch.cat([places[:, : len(before)], places[:, len(before) + 6 :]], dim=1)
    segments = [
        Segment("text", torch.cat([before, after])[None], positions=outside.float()),
        Segment("text", canvas, time=torch.ones(1), positions=places[:, len(before) : len(before) + 6].float()),
    ]
    expected = model(segments=segments).logits
    expected[..., 0] = -torch.inf  # an end in the middle is no fill
    torch.testing.assert_close(seen[0], expected)


def test_given_tokens_of_a_canvas_stay(pipe, tokenizer):
    mask = tokenizer.mask_token_id
    canvas = torch.randint(1, 300, (3, 15), generator=torch.Generator().manual_seed(0))
    hidden = torch.rand(3, 15, generator=torch.Generator().manual_seed(1)) < 0.5
    for remask_rate in (0.0, 0.5):
        pipe.scheduler = MaskedDiffusionScheduler(mask_token_id=mask, remask_rate=remask_rate)
        output = pipe(["x", "self", "y"], canvas=canvas.masked_fill(hidden, mask), num_inference_steps=6, seed=0)
        filled = torch.stack(output.completion_ids)
        assert torch.equal(filled[~hidden], canvas[~hidden])
        assert not (filled == mask).any() and not (filled[hidden] == tokenizer.eos_token_id).any()


def test_control_tokens_in_a_prompt_are_text(pipe, tokenizer):
    prompt = "<mask> and <|endoftext|>"
    output = pipe(prompt, suffix="<mask>", **SHORT)
    assert output.texts[0] == prompt + output.completions[0] + "<mask>"
    assert not {tokenizer.mask_token_id, tokenizer.eos_token_id} & set(output.sequences[0].tolist())


@pytest.mark.parametrize("prompt", ["Once upon ", "def f():\n", "x\n\n\n", "class A:\n    ", "\ta\t", " \n"])
def test_whitespace_at_the_end_of_a_prompt_is_kept(pipe, tokenizer, prompt):
    for options in ({}, {"suffix": "!"}, {"check_drafts": True}, {"guidance_scale": 2.0}):
        output = pipe(prompt, **SHORT, **options)
        ids = output.completion_ids[0]
        assert output.texts[0] == prompt + output.completions[0] + options.get("suffix", "")
        opening = TextCodec(tokenizer).heal(prompt)[1]
        assert tokenizer.decode(ids[:1]).startswith(opening)
        assert (opening == "") == (not prompt.strip())


def test_stop_strings_cut_before_themselves(pipe):
    whole = pipe("x", **SHORT).completions[0]
    stop = whole[len(whole) // 2 : len(whole) // 2 + 2]
    output = pipe("x", stop=[stop, "never there"], **SHORT)
    assert output.completions[0] == whole[: whole.index(stop)]
    assert output.finished == [True]
    assert output.texts[0] == "x" + output.completions[0]


def test_end_rules_end_rows(pipe, tokenizer):
    output = pipe(PROMPTS, end_rules=[lambda prompt, completion: 3 if prompt == "x" else None], **SHORT)
    assert output.finished == [prompt == "x" for prompt in PROMPTS]
    assert len(output.completions[1]) == 3
    assert [len(ids) for row, ids in enumerate(ids_of(output)) if row != 1] == [20] * 7
    assert tokenizer.decode(output.completion_ids[1]).startswith(output.completions[1])


def test_callback_sees_every_step_and_may_change_the_canvas(pipe):
    steps = []

    def all_commas(pipe, step, t, tensors):
        steps.append((step, float(t), sorted(tensors)))
        return {"sample": torch.full_like(tensors["sample"], 12)}

    output = pipe("x", callback_on_step_end=all_commas, **SHORT)
    assert set(ids_of(output)[0]) == {12}
    assert steps == [(i, 1.0, ["sample"]) for i in range(3)]  # nothing is left to do after the first step of a block
    with pytest.raises(ValueError, match=r"a callback's sample must stay torch.int64 \(1, 8\), got torch.float32"):
        pipe("x", callback_on_step_end=lambda *call: {"sample": torch.zeros(1, 8)}, **SHORT)


@every_way
def test_an_interrupt_leaves_what_is_written(pipe, tokenizer, way):
    def stop(pipe, step, t, tensors):
        pipe._interrupt = step == 1
        return tensors

    options = {**SHORT, **WAYS[way]}
    output = pipe("x", callback_on_step_end=stop, **options)
    assert tokenizer.mask_token_id not in output.sequences
    assert output.texts[0].startswith("x") and output.texts[0].endswith(options.get("suffix", ""))
    again = pipe("x", **options)
    assert len(again.completion_ids[0]) >= len(output.completion_ids[0])


class Collector(BaseStreamer):
    """Keeps what it is given."""

    def __init__(self):
        self.tokens, self.drafts, self.ended = [], [], False

    def put(self, value):
        self.tokens += value.tolist()

    def put_draft(self, value):
        self.drafts.append(value)

    def end(self):
        self.ended = True


@every_way
def test_a_streamer_gets_the_text_in_order(pipe, way):
    streamer = Collector()
    output = pipe("x", streamer=streamer, **{**SHORT, **WAYS[way]})
    assert streamer.tokens == output.sequences[0].tolist()
    assert streamer.ended and all(draft.shape[0] == 1 for draft in streamer.drafts)
    assert len(streamer.drafts) >= 3


def test_transformers_streamer_prints_drafts_and_text(pipe, tokenizer, capsys):
    output = pipe("x = ", streamer=TextDiffusionStreamer(tokenizer), **SHORT)
    printed = capsys.readouterr().out
    assert "<mask>" in printed
    final = "".join(part.split("\033[J")[-1] for part in printed.split("\0337"))
    assert final.rstrip("\n").endswith(tokenizer.decode(output.sequences[0])[-5:])


def test_outputs_as_tokens_and_as_tuple(pipe):
    whole = pipe("x", **SHORT)
    bare = pipe("x", output_type="seq", **SHORT)
    assert bare.texts is None and bare.completions is None and torch.equal(bare.sequences, whole.sequences)
    parts = pipe("x", return_dict=False, **SHORT)
    assert torch.equal(parts[0], whole.sequences) and parts[1] == whole.texts


def test_a_call_leaves_the_pipeline_as_it_was(pipe):
    before = (dict(pipe.scheduler.config), pipe.scheduler.timesteps.clone())
    pipe("x", temperature=0.3, ordering="random", **SHORT)
    assert dict(pipe.scheduler.config) == before[0] and torch.equal(pipe.scheduler.timesteps, before[1])


def test_a_model_in_training_writes_without_dropout_and_goes_on_training(pipe, model):
    expected = pipe("x", **SHORT).texts
    dropouts = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    try:
        model.train()
        for dropout in dropouts:
            dropout.p = 0.5
        assert pipe("x", **SHORT).texts == expected
        with pytest.raises(ValueError, match="stop here"):
            pipe("x", end_rules=[refuse], **SHORT)
        assert model.training
    finally:
        model.eval()
        for dropout in dropouts:
            dropout.p = 0.0


def refuse(prompt, completion):
    raise ValueError("stop here")


def test_progress_bar_counts_steps(pipe, capsys):
    pipe.set_progress_bar_config(disable=False)
    pipe("x", **SHORT)
    assert "7/7" in capsys.readouterr().err
