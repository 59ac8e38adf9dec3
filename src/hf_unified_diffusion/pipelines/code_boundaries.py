"""Where a Python function that a prompt began comes to its end, and where code cut by a bound still parses."""

import ast
import re
import warnings

OPENS_BODY = re.compile(r"(?:async\s+def|def|class)\b")
# the first character of a line at the margin that cannot begin a statement: a comment, or what closes a bracket
NOT_A_STATEMENT = "#)]}"


def end_of_function(prompt: str, completion: str) -> int | None:
    """How many characters of the completion belong to the function or class that the prompt leaves open.

    They end before the first line at the margin that begins something new: the first such line before which
    everything parses, so that brackets and strings that reach the margin are no end; where nothing parses, the first.
    None while the body goes on, and for prompts that leave no function or class open.

    Usage: `end_of_function("def f(x):\\n", "    return x\\n\\nprint(f(1))\\n")  # 14`
    """
    if not leaves_body_open(prompt):
        return None
    text = prompt + completion
    places = [place for place in margin_lines(text) if place > len(prompt) and text[len(prompt) : place].strip()]
    end = next((place for place in places if parses(text[:place])), places[0] if places else None)
    if end is None:
        return None
    return len(text[:end].rstrip()) + 1 - len(prompt)  # one newline stays


def whole_statements(prompt: str, completion: str) -> int | None:
    """How many characters of the completion to keep so that it parses with the prompt: all, or most of its lines.

    None where no line can be kept, so that nothing is lost of code that never parses.

    Usage: `whole_statements("def f(x):\n", "    y = x\n    return (y")  # 10`
    """
    ends = [len(completion), *(match.end() for match in reversed(list(re.finditer("\n", completion))))]
    kept = (end for end in ends if completion[:end].strip())
    return next((end for end in kept if parses(prompt + completion[:end])), None)


def leaves_body_open(source: str) -> bool:
    """Whether the last statement at the margin of a source is a function or class."""
    places = margin_lines(source)
    return bool(places) and OPENS_BODY.match(source, places[-1]) is not None


def margin_lines(source: str) -> list[int]:
    """Where lines begin that may begin a statement at the margin; text in strings counts too."""
    places = [0, *(match.end() for match in re.finditer("\n", source))]
    return [place for place in places if source[place : place + 1].strip() and source[place] not in NOT_A_STATEMENT]


def parses(source: str) -> bool:
    """Whether a source is valid Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd escapes and comparisons in generated code are not ours to report
        try:
            ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):  # ValueError: null bytes
            return False
    return True
