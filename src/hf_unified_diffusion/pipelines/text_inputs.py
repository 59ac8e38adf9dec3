"""What a text request may be, checked once at the door, and its rows as tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Generator, Tensor

from ..codecs.text_codec import TextCodec
from ..conditioning.energy import check_scale
from ..conditioning.schema_constraint import SchemaConstraint
from ..contracts import Condition
from ..processes.randomness import spawn_generators

OUTPUT_TYPES = ("text", "seq")
LONGEST_AHEAD = 2  # tokens of a draft that is made ahead
LARGEST_SEED = 2**31 - 1


def check_positive(name: str, value: object) -> None:
    """Raise ValueError unless the value is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")


def check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    """Raise ValueError unless the value is one of those allowed."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {sorted(allowed)}, got {value!r}")


@dataclass(frozen=True)
class TextOptions:
    """How to write, as in `UnifiedDiffusionTextPipeline.__call__`; ValueError where a rule is broken."""

    num_inference_steps: int
    max_new_tokens: int
    block_length: int | None
    guidance_scale: float
    num_return_sequences: int
    check_drafts: bool
    output_type: str
    fixed_length: bool  # an infill or a given canvas: one canvas, no end token
    context_scale: float

    def __post_init__(self) -> None:
        for name in ("num_inference_steps", "max_new_tokens", "num_return_sequences"):
            check_positive(name, getattr(self, name))
        if self.block_length is not None:
            check_positive("block_length", self.block_length)
        check_scale("guidance_scale", self.guidance_scale)
        check_choice("output_type", self.output_type, OUTPUT_TYPES)
        if self.num_inference_steps < len(self.block_sizes):
            raise ValueError(
                f"num_inference_steps must be at least the number of blocks, {len(self.block_sizes)} "
                f"({self.max_new_tokens} tokens in blocks of {self.block_length}), got {self.num_inference_steps}"
            )
        if self.check_drafts and self.fixed_length:
            raise ValueError(
                "check_drafts must be False with a suffix or a canvas: the causal path sees no later token"
            )

    @property
    def block_sizes(self) -> list[int]:
        """Tokens of each canvas, in order."""
        if self.fixed_length or self.block_length is None:
            return [self.max_new_tokens]
        whole, rest = divmod(self.max_new_tokens, self.block_length)
        return [self.block_length] * whole + [rest] * (rest > 0)

    @property
    def block_steps(self) -> list[int]:
        """Denoising passes of each canvas; they add up to num_inference_steps, the first canvases get what is over."""
        least, over = divmod(self.num_inference_steps, len(self.block_sizes))
        return [least + (i < over) for i in range(len(self.block_sizes))]

    @property
    def largest_context(self) -> int:
        """Tokens beyond the given ones that the context must have room for."""
        if not self.check_drafts:
            return self.max_new_tokens
        room = self.block_sizes[0] + 1  # a short row's draft may stand behind a long row's text,
        return self.max_new_tokens + room * (2 if self.block_sizes[0] <= LONGEST_AHEAD else 1)  # the next behind that


@dataclass(frozen=True)
class TextRows:
    """The rows of a batch.

    Attributes:
        prompts, suffixes: the strings of each row, "" where none was given.
        prompt_ids, suffix_ids, negative_ids: their tokens; those of a prompt without its `opening`.
        context_ids: of what is read before the prompt, and is no part of the text.
        openings: what each row's first token must start with: whitespace from the end of the prompt (`TextCodec.heal`).
        canvas: int64 (B, n), what to fill, or None.
    """

    prompts: list[str]
    suffixes: list[str]
    prompt_ids: list[list[int]]
    suffix_ids: list[list[int]]
    negative_ids: list[list[int]]
    openings: list[str]
    canvas: Int[Tensor, "batch length"] | None
    context_ids: list[list[int]]

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def read_ids(self) -> list[list[int]]:
        """Each row's context and prompt."""
        return [[*context, *prompt] for context, prompt in zip(self.context_ids, self.prompt_ids, strict=True)]


def as_texts(name: str, value: object) -> list[str]:
    """One or more strings as a list; ValueError for anything else."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        kind = type(value).__name__
        if isinstance(texts, list | tuple):
            kind += f" with {next(type(t).__name__ for t in texts if not isinstance(t, str))}"
        raise ValueError(f"{name} must be a string or a list of strings, got {kind}")
    if not texts:
        raise ValueError(f"{name} must hold at least one string, got an empty list")
    return list(texts)


def given_constraint(
    constraint: SchemaConstraint | None, json_schema: object, tools: object, regex: object
) -> SchemaConstraint | None:
    """The constraint of a call, from the one argument of four that may be given; ValueError for more."""
    values = {"constraint": constraint, "json_schema": json_schema, "tools": tools, "regex": regex}
    given = [name for name, value in values.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"at most one of {list(values)} must be given, got {given}")
    if not given or constraint is not None:
        if not isinstance(constraint, SchemaConstraint | None):
            raise ValueError(f"constraint must be a SchemaConstraint, got {type(constraint).__name__}")
        return constraint
    return getattr(SchemaConstraint, f"from_{given[0]}")(values[given[0]])


def stop_strings(value: object) -> list[str]:
    """Strings that end a text; an empty one would end every text at once."""
    texts = as_texts("stop", value)
    if "" in texts:
        raise ValueError(f"stop must not hold an empty string, got {texts}")
    return texts


def matched(name: str, value: object, count: int | None) -> list[str] | None:
    """The strings of an optional argument, one per prompt; a single string serves all prompts."""
    if value is None:
        return None
    texts = as_texts(name, value)
    if len(texts) == 1 and count is not None:
        return texts * count
    if count is not None and len(texts) != count:
        raise ValueError(f"{name} must be one string or as many as the prompts ({count}), got {len(texts)}")
    return texts


def matched_condition(condition: Condition | None, num_rows: int, repeats: int) -> Condition | None:
    """A condition of one row, or of one a prompt, with one row for each of the batch; ValueError for other counts."""
    if condition is None:
        return None
    given = len(condition.tokens)
    if given not in (1, num_rows // repeats):
        raise ValueError(f"condition must have 1 row or as many as the prompts ({num_rows // repeats}), got {given}")
    return condition.select(per_row(torch.arange(given, device=condition.tokens.device), num_rows))


def per_row(values: Tensor, rows: int) -> Tensor:
    """One entry for each row, from one for all or one for every so many rows."""
    return values.repeat_interleave(rows // len(values), dim=0)


def gather_rows(
    codec: TextCodec,
    prompt: str | list[str] | None,
    suffix: str | list[str] | None,
    negative_prompt: str | list[str] | None,
    canvas: Tensor | None,
    repeats: int,
    heal: bool = True,
    context: str | list[str] | None = None,
) -> TextRows:
    """Tokenize what was given, each row `repeats` times; ValueError for wrong types and counts.

    `heal` says whether whitespace at the end of a prompt is written again (`TextCodec.heal`).
    """
    prompts = None if prompt is None else as_texts("prompt", prompt)
    if prompts is not None and "" in prompts:
        raise ValueError("prompt must not be empty (leave it out to start from nothing), got ''")
    count = None if prompts is None else len(prompts)
    suffixes = matched("suffix", suffix, count)
    count = len(suffixes) if count is None and suffixes is not None else count
    if count is None and canvas is not None:
        count = len(canvas)
    count = 1 if count is None else count
    negatives = matched("negative_prompt", negative_prompt, count) or [""] * count
    contexts = matched("context", context, count) or [""] * count
    prompts, suffixes = prompts or [""] * count, suffixes or [""] * count
    if canvas is not None:
        if len(canvas) not in (1, count):
            raise ValueError(f"canvas must have 1 row or as many as the prompts ({count}), got {len(canvas)}")
        canvas = canvas.expand(count, -1).repeat_interleave(repeats, dim=0)
    prompts, suffixes, negatives, contexts = (
        [t for t in texts for _ in range(repeats)] for texts in (prompts, suffixes, negatives, contexts)
    )
    healed = [codec.heal(text) if heal and canvas is None else (text, "") for text in prompts]
    prompt_ids, suffix_ids, negative_ids, context_ids = (
        codec.encode(texts) for texts in ([text for text, _ in healed], suffixes, negatives, contexts)
    )
    openings = [opening for _, opening in healed]
    return TextRows(prompts, suffixes, prompt_ids, suffix_ids, negative_ids, openings, canvas, context_ids)


def allowed_openings(
    rows: TextRows, codec: TextCodec, vocab_size: int, device: torch.device
) -> Bool[Tensor, "batch vocab"] | None:
    """Which tokens each row may begin with, None where all rows may begin with any."""
    if not any(rows.openings):
        return None
    known = {text: codec.starting_with(text) for text in set(rows.openings)}
    allowed = torch.zeros(len(rows), vocab_size, dtype=torch.bool)
    for row, text in enumerate(rows.openings):
        allowed[row, : len(known[text])] = known[text]
    return allowed.to(device)


def check_canvas(canvas: Tensor | None, vocab_size: int, mask_token_id: int) -> None:
    """Raise ValueError unless the canvas is int64 (batch, length) of known ids, a mask among them."""
    if canvas is None:
        return
    if not isinstance(canvas, Tensor) or canvas.dtype not in (torch.int64, torch.int32) or canvas.ndim != 2:
        got = f"{canvas.dtype} {tuple(canvas.shape)}" if isinstance(canvas, Tensor) else type(canvas).__name__
        raise ValueError(f"canvas must be int64 token ids (batch, length), got {got}")
    if canvas.numel() == 0 or int(canvas.min()) < 0 or int(canvas.max()) >= vocab_size:
        raise ValueError(f"canvas must hold ids in [0, {vocab_size}), got {tuple(canvas.shape)} with others")
    if not bool((canvas == mask_token_id).any(dim=1).all()):
        raise ValueError(
            f"each row of canvas must hold the mask token {mask_token_id} at least once, got a row without"
        )


def given_context(context: Any, scale: Any, controlnet: object) -> tuple[Any, float]:
    """The context of a call and its scale: at scale 0 none. ValueError for a scale that is none, or of nothing."""
    check_scale("context_scale", scale)
    if scale == 0:
        return None, 1.0
    if scale != 1 and (context is None or not any(as_texts("context", context))):
        raise ValueError(f"context_scale must be 1 or 0 without a context, got {scale!r}: it would do nothing")
    if scale != 1 and controlnet is not None:
        raise ValueError(f"context_scale must be 1 or 0 with a controlnet, got {scale!r}")
    return context, float(scale)


def check_room(rows: TextRows, new_tokens: int, most: int) -> None:
    """Raise ValueError unless what is read, new tokens and suffix fit the context."""
    given = max(map(len, rows.read_ids)) + max(map(len, rows.suffix_ids))
    negative = max(map(len, rows.negative_ids))
    whole = "context, prompt and suffix" if any(rows.context_ids) else "prompt and suffix"
    for name, length in ((whole, given), ("negative_prompt", negative)):
        if length + new_tokens > most:
            raise ValueError(
                f"{name} and the new tokens must fit the context of {most}, got {length} + {new_tokens} tokens"
            )


def row_generators(
    seed: int | list[int] | None, generator: Generator | list[Generator] | None, count: int, device: torch.device
) -> list[Generator]:
    """One generator per row, so that no row's tokens depend on its batch.

    A list of seeds has one a row, which then draws what it draws alone. A generator gives the seed by one draw; without
    either torch's global generator does.
    """
    if seed is not None and generator is not None:
        raise ValueError(f"give seed or generator, not both; got seed={seed!r} and a {type(generator).__name__}")
    if isinstance(generator, list | tuple):
        if len(generator) != count:
            raise ValueError(f"a list of generators must have one per row ({count}), got {len(generator)}")
        return list(generator)
    if isinstance(seed, list):
        if len(seed) != count:
            raise ValueError(f"a list of seeds must have one per row ({count}), got {len(seed)}")
        return [row_generators(one, None, 1, device)[0] for one in seed]
    if seed is None:
        at = "cpu" if generator is None else generator.device
        seed = int(torch.randint(LARGEST_SEED, (), generator=generator, device=at))
    elif isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"seed must be an integer, got {seed!r}")
    return spawn_generators(seed, count, device)
