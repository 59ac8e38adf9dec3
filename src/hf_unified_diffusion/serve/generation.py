"""The engine behind a bounded queue: requests of the same settings that wait run as one batch."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from ..codecs.text_codec import TextCodec
from ..contracts import TOKEN_MODALITIES
from ..engine import ArrowEngine
from ..request_queue import Batch, Request, RequestQueue
from .metrics import Metrics

LONGEST_WAIT_S = 60


@dataclass(frozen=True)
class Ask:
    """What one row asks for.

    Attributes:
        options: of `ArrowEngine.submit`, plain JSON; rows with equal ones may run together.
    """

    prompt: str
    modality: str
    seed: int
    options: Mapping[str, Any]

    @property
    def key(self) -> tuple[str, str]:
        """Rows of one key may run together."""
        return self.modality, json.dumps(self.options, sort_keys=True)


@dataclass(frozen=True)
class Made:
    """What a row got.

    Attributes:
        output: the completion of a text; a picture, uint8 (H, W, 3); sound, float32 (samples,).
        num_tokens: of the completion, 0 for pictures and sound.
        finished: whether a text ended by itself, before its bound.
        sampling_rate_hz: of sound.
    """

    output: Any
    num_tokens: int = 0
    finished: bool = True
    sampling_rate_hz: int = 0


class Generation:
    """Runs what a server is asked for, in batches, through one engine.

    Usage: `generation.submit(Ask("Once", "text", 0, {"max_new_tokens": 8}), timeout_s=60).result().output`
    """

    def __init__(self, engine: ArrowEngine, max_waiting: int = 32, max_batch: int = 8):
        self.engine, self.codec = engine, TextCodec(engine.tokenizer)
        self.queue = RequestQueue(max_running=1, max_waiting=max_waiting, max_batch=max_batch)
        self.metrics = Metrics(lambda: self.queue.num_unfinished)
        self._batch_seconds = 1.0  # a moving average

    @property
    def retry_after_s(self) -> int:
        """When a place is likely to be free: after what a batch takes."""
        return min(LONGEST_WAIT_S, max(1, math.ceil(self._batch_seconds)))

    def submit(self, ask: Ask, timeout_s: float) -> Request:
        """Queue a row; its result is a `Made`.

        Raises:
            QueueFullError: at once, when too many wait.
        """
        return self.queue.submit_row(ask, ask.key, self._run, timeout_s)

    def submit_all(self, asks: list[Ask], timeout_s: float) -> list[Request]:
        """Queue rows, all or none of them.

        Raises:
            QueueFullError: at once, when not all have a place.
        """
        requests: list[Request] = []
        try:
            for ask in asks:
                requests.append(self.submit(ask, timeout_s))
        except BaseException:
            for request in requests:
                request.cancel()
            raise
        return requests

    def submit_streamed(self, ask: Ask, streamer: BaseStreamer, timeout_s: float) -> Request:
        """Queue a row that runs alone, its tokens told to a streamer as they are written."""
        alone = object()
        return self.queue.submit_row(ask, alone, partial(self._run, streamer=streamer), timeout_s)

    def close(self) -> None:
        """Finish what is queued, then take no more."""
        self.queue.close()

    def _run(self, asks: list[Ask], batch: Batch, streamer: BaseStreamer | None = None) -> list[Made]:
        began = perf_counter()
        self.metrics.batch_rows.observe(len(asks))
        options, modality = dict(asks[0].options), asks[0].modality

        def after_step(pipe: Any, index: int, t: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            self.metrics.steps.inc()
            batch.step()
            return tensors

        if modality in TOKEN_MODALITIES:
            options["row_goes_on"] = batch.goes_on
        if streamer is not None:
            options["streamer"] = streamer
        result = self.engine.diffuse(
            [ask.prompt for ask in asks],
            modality,
            seed=[ask.seed for ask in asks],
            callback_on_step_end=after_step,
            return_result=True,
            **options,
        )
        self._batch_seconds = 0.8 * self._batch_seconds + 0.2 * (perf_counter() - began)
        if modality not in TOKEN_MODALITIES:
            return [Made(output, sampling_rate_hz=result.sampling_rate_hz or 0) for output in result.output]
        ends = len(options.get("suffix") or "")
        rows = zip(asks, result.output, result.extra["completion_ids"], result.extra["finished"], strict=True)
        made = [Made(text[len(ask.prompt) : len(text) - ends], len(ids), finished) for ask, text, ids, finished in rows]
        self.metrics.tokens.inc(sum(row.num_tokens for place, row in enumerate(made) if batch.goes_on(place)))
        return made
