"""The code pipeline: another modality, and an end at the end of a function."""

import ast

import torch

SHORT = {"max_new_tokens": 16, "block_length": 16, "num_inference_steps": 4, "seed": 0}


def writes(tokenizer, text):
    """A callback that fills every canvas with a given text, then line feeds."""
    ids = tokenizer.encode(text)

    def write(pipe, step, t, tensors):
        size = tensors["sample"].shape[1]
        return {"sample": torch.tensor([(ids + tokenizer.encode("\n") * size)[:size]])}

    return write


def test_code_is_its_own_modality(pipe, code_pipe):
    assert code_pipe("x", **SHORT).texts != pipe("x", **SHORT).texts


def test_a_function_ends_where_it_ends(code_pipe, tokenizer):
    callback = writes(tokenizer, "\n    return 1\n\nprint(")
    output = code_pipe("def f():", callback_on_step_end=callback, **SHORT)
    assert output.completions == ["\n    return 1\n"] and output.finished == [True]
    assert isinstance(ast.parse(output.texts[0]).body[0], ast.FunctionDef)
    raw = {"stop_at_dedent": False, "only_whole_statements": False}
    through = code_pipe("def f():", callback_on_step_end=callback, **raw, **SHORT)
    assert through.texts[0].startswith("def f():\n    return 1\n\nprint(")


def test_an_open_body_and_other_prompts_go_on(code_pipe, tokenizer):
    for prompt, text in (("def f():", "\n    a = 1\n    b"), ("import os", "\nx = 1\ny = 2")):
        callback = writes(tokenizer, text)
        output = code_pipe(prompt, callback_on_step_end=callback, only_whole_statements=False, **SHORT)
        assert output.completions[0].startswith(text) and output.finished == [False]


def test_the_bound_leaves_whole_statements(code_pipe, tokenizer):
    callback = writes(tokenizer, "\n    a = 1\n    return (a,")
    output = code_pipe("def f():", callback_on_step_end=callback, **SHORT)
    assert output.completions == ["\n    a = 1\n"] and output.finished == [False]
    assert tokenizer.decode(output.completion_ids[0]).rstrip() == "\n    a = 1"
    assert len(output.sequences[0]) == len(tokenizer.encode("def f():")) + len(output.completion_ids[0])


def test_what_never_parses_is_kept(code_pipe, tokenizer):
    callback = writes(tokenizer, "\n    )))")
    output = code_pipe("def f():", callback_on_step_end=callback, **SHORT)
    assert len(output.completion_ids[0]) == SHORT["max_new_tokens"]


def test_infills_are_not_cut(code_pipe):
    output = code_pipe("def f():", suffix="\nx = 1\n", max_new_tokens=6, num_inference_steps=2, seed=0)
    assert len(output.completion_ids[0]) == 6 and output.texts[0].endswith("\nx = 1\n")
