"""What each tab of the Space does, by the public API: generators of (output, status), one for all visitors.

Nothing here knows Gradio. A visitor is a string; whatever a visitor has running is stopped by `stop`.
"""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from threading import Event
from time import perf_counter
from typing import Any

import numpy as np
from drafts import DraftStreamer, Piece, as_html
from faces import speaking_face
from jsonschema import validate

from hf_unified_diffusion import ArrowEngine, ArrowStorage, Result, SchemaConstraint
from hf_unified_diffusion.codecs.image_codec import ImageCodec
from hf_unified_diffusion.conditioning.tool_hints import describe_tools
from hf_unified_diffusion.memory.memory_conditioner import ITEM, TEXT
from hf_unified_diffusion.modeling.checkpoint_metadata import limits_of
from hf_unified_diffusion.pipelines.named_controlnets import TOOLS
from hf_unified_diffusion.request_queue import Request

GAP = "____"
MAX_MEMORIES = 200  # of a visitor
Shown = Iterator[tuple[Any, str]]
UNTRAINED = {
    "image": "This checkpoint has no trained pictures in it, so it refuses to draw.",
    "audio": "This checkpoint has no trained voice in it, so it refuses to speak.",
    "avatar": "This checkpoint has no trained face in it, so it refuses to act.",
}
ADVICE = "Start the Space with a checkpoint that was trained for it: `python app.py FOLDER`."


class Latest:
    """The newest of what a request brings, and how much it has brought: who looks rarely skips drafts."""

    def __init__(self) -> None:
        self.value: Any = None
        self.count = 0
        self.changed = Event()

    def put(self, value: Any) -> None:
        """Called by the request at each step."""
        self.value, self.count = value, self.count + 1
        self.changed.set()


@dataclass
class Studio:
    """One engine, and what each visitor has running.

    Usage:
        studio = Studio(ArrowEngine.from_pretrained(memory="memories"))
        for output, status in studio.write("anna", "The sea", max_new_tokens=32, seed=0): ...
    """

    engine: ArrowEngine
    running: dict[str, Request] = field(default_factory=dict)

    def lacks(self, *modalities: str) -> str:
        """In plain words what the checkpoint cannot do of these; empty where it can do all."""
        trained = self.engine.model.checkpoint_facts.get("supported_modalities", list(self.engine.model.heads))
        missing = [name for name in modalities if name not in trained]
        if missing:
            return f"{UNTRAINED[missing[0]]} {ADVICE}"
        if "image" in modalities and self.engine.vae is None:
            return f"This checkpoint comes without an autoencoder for pictures, so it refuses to draw. {ADVICE}"
        return ""

    def caveats(self, *modalities: str) -> str:
        """What the checkpoint lacks of these, or else does badly; empty where there is nothing to say."""
        return self.lacks(*modalities) or "  \n".join(limits_of(self.engine.model.checkpoint_facts, modalities))

    def can_be_guided(self) -> bool:
        """Whether the checkpoint has learned to attend to memories."""
        return {ITEM, TEXT} <= set(self.engine.model.config.condition_sources)

    def picture_side(self) -> int:
        """The pixels that heights and widths must be multiples of."""
        return 32 if self.engine.vae is None else ImageCodec(self.engine.vae).downsampling

    def stop(self, visitor: str) -> None:
        """End what a visitor has running, at its next step."""
        request = self.running.pop(visitor, None)
        if request is not None:
            request.cancel()

    def leave(self, visitor: str) -> None:
        """Stop, and forget what the visitor let us remember."""
        self.stop(visitor)
        if self.engine.memory is not None:
            self.engine.memory.forget(visitor)

    def write(self, visitor: str, prompt: str, modality: str = "text", suffix: str = "", **options: Any) -> Shown:
        """A text as it is written, as HTML; options as of `ArrowEngine.submit`."""
        latest = Latest()
        streamer = DraftStreamer(self.engine.tokenizer, latest.put, prompt, suffix)

        def final(result: Result) -> tuple[str, str]:
            # whitespace at the end of a prompt may be written anew
            before = prompt if result.output.startswith(prompt) else prompt.rstrip()
            between = result.output[len(before) :].removesuffix(suffix)
            told = f"uncertainty {result.uncertainty[0]:.2f} to {result.uncertainty[-1]:.2f} nats a token"
            if "recalled" in result.extra:
                told += f", {len(result.extra['recalled'])} memories recalled"
            return as_html([("given", before), ("written", between), ("given", suffix)]), facts(result, told)

        options |= {"suffix": suffix or None, "streamer": streamer}
        yield from self._follow(visitor, self._ask(prompt, modality, **options), latest, as_html, final)

    def infill(self, visitor: str, text: str, modality: str = "text", **options: Any) -> Shown:
        """What a gap of four underscores stands for."""
        if text.count(GAP) != 1:
            raise ValueError(f"the text must hold the gap {GAP} once, got it {text.count(GAP)} times")
        before, after = text.split(GAP)
        yield from self.write(visitor, before, modality, after, **options)

    def call(self, visitor: str, prompt: str, definition: str, **options: Any) -> Shown:
        """JSON that keeps to a schema, or calls one of the tools of a list, under their ControlNet if there is one.

        Args:
            definition: JSON: a list is one of tools in transformers' format, anything else a JSON schema.
        """
        try:
            given = json.loads(definition)
        except json.JSONDecodeError as error:
            raise ValueError(f"the schema or list of tools must be JSON, got {error}") from error
        make = SchemaConstraint.from_tools if isinstance(given, list) else SchemaConstraint.from_json_schema
        constraint, latest = make(given), Latest()
        if isinstance(given, list) and TOOLS in self.engine.controlnets.names:
            options |= {"controlnet": TOOLS, "control_hint": describe_tools(given)}

        def final(result: Result) -> tuple[str, str]:
            written = json.loads(result.output[len(prompt) :])
            validate(written, json.loads(constraint.source))
            return json.dumps(written, indent=2, ensure_ascii=False), facts(result, "it parses and validates")

        options["streamer"] = DraftStreamer(self.engine.tokenizer, latest.put, "")
        asked = self._ask(prompt, "text", constraint=constraint, **options)
        yield from self._follow(visitor, asked, latest, plain, final)

    def draw(self, visitor: str, prompt: str, height: int, width: int, **options: Any) -> Shown:
        """A picture, uint8 (height, width, 3), after each step as the network sees it by then."""
        latest = Latest()

        def preview(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            latest.put(np.asarray(pipe.decode(tensors["clean_latents"], height, width)[0]))
            return tensors

        options |= {"height": height, "width": width, "callback_on_step_end": preview}
        options["callback_on_step_end_tensor_inputs"] = ["clean_latents"]
        yield from self._follow(visitor, self._ask(prompt, "image", **options), latest, as_is, drawn)

    def speak(self, visitor: str, text: str, reference: str | None = None, said: str = "", **options: Any) -> Shown:
        """Sound as (sampling rate, float32 samples), in the voice of a sound file where one is given.

        Args:
            said: what is said in the reference, word by word, if its pace is to be kept.
        """
        latest = Latest()
        if reference is not None:
            options |= {"reference_audio": reference, "reference_text": said or None}
        options["callback_on_step_end"] = told_of(latest)
        yield from self._follow(visitor, self._ask(text, "audio", **options), latest, nothing, heard)

    def act(self, visitor: str, text: str, with_words: bool, **options: Any) -> Shown:
        """Sound and face, and words where they are asked for, that belong together: HTML of a face that speaks.

        Args:
            text: what is said, or with words what they go on from.
        """
        latest = Latest()

        def final(result: Result) -> tuple[str, str]:
            made, rate = result.output, result.extra["avatar_rate_hz"]
            shown = speaking_face(made["avatar"], made["audio"], result.sampling_rate_hz, rate)
            words = as_html([("written", made["text"])]) if with_words else ""
            return shown + words, facts(result, f"{len(made['avatar'])} faces")

        asked = ["text", "audio", "avatar"] if with_words else ["audio", "avatar"]
        options["callback_on_step_end"] = told_of(latest)
        yield from self._follow(visitor, self._ask(text, asked, **options), latest, nothing, final)

    def remember(self, visitor: str, texts: str) -> str:
        """Keep each line as a memory of the visitor alone."""
        memory, lines = self._memory(), [line.strip() for line in texts.splitlines() if line.strip()]
        if not lines:
            raise ValueError("there must be a line to remember, got none")
        if len(lines) + len(self.memories(visitor)) > MAX_MEMORIES:
            raise ValueError(f"a visitor may have {MAX_MEMORIES} memories, got {len(lines)} more")
        memory.add(visitor, lines, source="visitor")
        return f"Remembered {len(lines)}."

    def memories(self, visitor: str, query: str = "", k: int = 5) -> list[list[Any]]:
        """Rows of number, text and score; all of them without a query."""
        memory = self._memory()
        if not query.strip():
            return [[found.id, found.payload, None] for found in memory.memories(visitor)]
        return [[found.id, found.payload, round(found.score, 3)] for found in memory.search(visitor, query, k)]

    def forget(self, visitor: str, number: str = "") -> str:
        """Really remove the memory of a number, or without one all of the visitor's; their bytes leave the disk."""
        if number.strip() and not number.strip().isdecimal():
            raise ValueError(f"what to forget must be the number of a memory, got {number!r}")
        count = self._memory().forget(visitor, [int(number)] if number.strip() else None)
        return f"Forgot {count}. No file holds {'it' if count == 1 else 'them'} any more."

    def _memory(self) -> ArrowStorage:
        if self.engine.memory is None:
            raise ValueError("this Space was started without a memory")
        return self.engine.memory

    def _ask(self, prompt: str, modality: str | list[str], **options: Any) -> Callable[[], Request]:
        """What submits a request to the engine."""
        return lambda: self.engine.submit(prompt or None, modality, return_result=True, **options)

    def _follow(
        self,
        visitor: str,
        submit: Callable[[], Request],
        latest: Latest,
        show: Callable[[Any], Any],
        final: Callable[[Any], tuple[Any, str]],
    ) -> Shown:
        """The newest that `latest` holds while a request runs, then its result; ends with whoever reads it."""
        self.stop(visitor)
        began, seen, output = perf_counter(), 0, None
        request = self.running[visitor] = submit()
        request.add_done_callback(lambda _: latest.changed.set())
        try:
            yield None, "Waiting for a turn ..."
            while not request.done():
                latest.changed.wait()
                latest.changed.clear()
                if latest.count > seen:
                    seen, output = latest.count, show(latest.value)
                    yield output, f"Step {seen}, {perf_counter() - began:.1f} s"
            output, told = final(request.result())
            yield output, f"Done in {perf_counter() - began:.1f} s: {told}."
        except CancelledError:
            yield output, f"Stopped after {seen} steps."
        finally:
            request.cancel()
            if self.running.get(visitor) is request:
                del self.running[visitor]


def facts(result: Result, more: str = "") -> str:
    """What a result says of itself."""
    return f"{result.extra['num_forward_passes']} passes, seed {result.seed}" + (f", {more}" if more else "")


def told_of(latest: Latest) -> Callable[..., dict[str, Any]]:
    """A callback that only counts steps."""

    def count(pipe: Any, step: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        latest.put(None)
        return tensors

    return count


def heard(result: Result) -> tuple[Any, str]:
    """A sound as Gradio takes it, and how long it is."""
    told = f"{len(result.output) / result.sampling_rate_hz:.1f} s of sound"
    return (result.sampling_rate_hz, result.output), facts(result, told)


def drawn(result: Result) -> tuple[Any, str]:
    """A picture."""
    return result.output, facts(result)


def nothing(value: Any) -> None:
    """There is nothing to show before the end."""


def plain(pieces: list[Piece]) -> str:
    """Pieces as one text."""
    return "".join(text for _, text in pieces)


def as_is(value: Any) -> Any:
    """The value itself."""
    return value
