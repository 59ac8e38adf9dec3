"""Code by masked diffusion: the text pipeline in the modality code, which knows where a function ends."""

from collections.abc import Sequence
from typing import Any

from .code_boundaries import end_of_function, whole_statements
from .pipeline_output import UnifiedDiffusionTextPipelineOutput
from .pipeline_text import UnifiedDiffusionTextPipeline
from .text_rows import EndRule


class UnifiedDiffusionCodePipeline(UnifiedDiffusionTextPipeline):
    """Writes Python with a `UnifiedDiffusionModel`.

    Usage:
        pipe = UnifiedDiffusionCodePipeline.from_pretrained()
        pipe('def add(a, b):\\n    \"\"\"Sum of two numbers.\"\"\"\\n', seed=0).texts[0]
    """

    modality = "code"

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        suffix: str | list[str] | None = None,
        *,
        stop_at_dedent: bool = True,
        only_whole_statements: bool = True,
        end_rules: Sequence[EndRule] = (),
        **kwargs: Any,
    ) -> UnifiedDiffusionTextPipelineOutput | tuple:
        """Write code.

        Args:
            prompt, suffix: as for text.
            stop_at_dedent: a prompt that leaves a function or class open is continued to the end of that, and no
                further.
            only_whole_statements: code that reaches `max_new_tokens` is cut back to the last line with which it parses
                (and left alone if there is none); False keeps the half-written statement, to go on from.
            end_rules, kwargs: as for `UnifiedDiffusionTextPipeline.__call__`.

        Raises:
            ValueError: for an argument that breaks a rule.

        Usage: `pipe("def fibonacci(n):", max_new_tokens=64).texts[0]`
        """
        given = (suffix, *(kwargs.get(name) for name in ("canvas", "constraint", "json_schema", "tools", "regex")))
        if all(value is None for value in given):
            if stop_at_dedent:
                end_rules = (*end_rules, end_of_function)
            if only_whole_statements:
                kwargs.setdefault("at_bound", whole_statements)
        return super().__call__(prompt, suffix, end_rules=end_rules, **kwargs)
