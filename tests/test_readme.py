"""The README's first lines run, and give what they promise; the words themselves belong to one machine's rounding."""

import contextlib
import io
import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_first_lines_print_what_the_readme_says() -> None:
    code, shown = re.search(r"```python\n(.*?)```\n\nprints\n\n```text\n(.*?)```", README, re.DOTALL).groups()
    written = io.StringIO()
    with contextlib.redirect_stdout(written):
        exec(code, {})
    for text in (shown, written.getvalue()):
        assert text.startswith("The history of the bicycle")
        assert '\ndef is_even(n):\n    """Whether a number is even."""\n' in text
        assert re.search(r"\nShe opened the door and.* so she went back inside\.\n", text, re.DOTALL)
        assert re.search(r"\nRate it from 1 to 5: [1-5]\n$", text)
