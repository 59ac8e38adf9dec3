"""A function that is continued past its end is cut to exactly itself."""

import argparse
import ast
import inspect
import textwrap

import pytest

from hf_unified_diffusion.pipelines.code_boundaries import end_of_function, leaves_body_open, parses, whole_statements

SOURCES = [inspect.getsource(argparse), inspect.getsource(textwrap)]
AFTER = ["\nprint(1)\n", "\n\n@decorated\ndef other():\n    pass\n", "\nx", "if __name__ == '__main__':\n    main()\n"]


def functions():
    for source in SOURCES:
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.decorator_list:
                yield pytest.param(ast.get_source_segment(source, node), id=node.name)


@pytest.mark.parametrize("function", list(functions()))
@pytest.mark.parametrize("after", AFTER)
def test_cut_is_the_function(function, after):
    header = function.split("\n", 1)[0] + "\n"
    completion = function[len(header) :] + "\n" + after
    end = end_of_function(header, completion)
    assert completion[:end] == function[len(header) :] + "\n"
    assert ast.dump(ast.parse(header + completion[:end])) == ast.dump(ast.parse(function))


@pytest.mark.parametrize("function", list(functions()))
def test_no_end_while_the_body_goes_on(function):
    header = function.split("\n", 1)[0] + "\n"
    assert end_of_function(header, function[len(header) :]) is None


def test_margins_inside_strings_and_brackets_are_no_end():
    prompt, body = "def f(x):\n", '    text = """\nat the margin\n"""\n    return g(\nx,\n)\n'
    assert end_of_function(prompt, body + "done = 1\n") == len(body)


def test_comments_at_the_margin_are_no_end():
    assert end_of_function("def f():\n", "    a = 1\n# why\n    return a\n") is None


def test_broken_code_ends_at_the_first_margin():
    assert end_of_function("def f():\n", "    return (\nx = 1\ny = 2\n") == len("    return (\n")


def test_body_may_begin_in_the_prompt():
    assert end_of_function("def f():\n    a", " = 1\nb = 2") == len(" = 1\n")
    assert end_of_function("def f():", "\n    return 1\nb = 2") == len("\n    return 1\n")


@pytest.mark.parametrize("prompt", ["", "import os\n", "def f():\n    pass\n\nx = f()\n", "# def f():\n", "defer(\n"])
def test_prompts_without_open_body_are_never_cut(prompt):
    assert not leaves_body_open(prompt)
    assert end_of_function(prompt, "\nx = 1\ny = 2\n") is None


@pytest.mark.parametrize(
    "prompt", ["class A:\n", "async def f():", "import os\n\ndef f(\n    x,\n):\n    '''Doc.'''\n"]
)
def test_open_bodies(prompt):
    assert leaves_body_open(prompt)


@pytest.mark.parametrize("function", list(functions()))
@pytest.mark.parametrize("share", [0.5, 0.8, 1.0])
def test_whole_statements_parse_and_are_the_most_that_does(function, share):
    header, body = function.split("\n", 1)
    header, body = header + "\n", body[: int(share * len(body))]
    kept = whole_statements(header, body)
    lines = [place + 1 for place, letter in enumerate(body) if letter == "\n"]
    best = max((end for end in [*lines, len(body)] if body[:end].strip() and parses(header + body[:end])), default=None)
    assert kept == best
    assert share < 1 or kept == len(body)


def test_no_whole_statement():
    assert whole_statements("def f():\n", "    return (") is None
    assert whole_statements("def f():\n    pass\n", "  \n ") is None
    assert whole_statements("def f(:\n", "    return 1\n") is None


def test_parses():
    assert (
        parses("x = 1")
        and parses("'\\d' is x")
        and not parses("x = ")
        and not parses("x\x00")
        and not parses("(" * 10_000)
    )
