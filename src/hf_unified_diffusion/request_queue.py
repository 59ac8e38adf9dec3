"""A bounded queue of requests: refused at once when full, cancelled or timed out within one step, failing alone.

Rows that wait under one key run together, as one batch; each is still refused, ended and failing alone.
"""

import asyncio
import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from time import monotonic
from typing import Any

Step = Callable[[], None]


class QueueFullError(RuntimeError):
    """The queue holds as many waiting requests as it may."""


class RequestTimeoutError(TimeoutError):
    """A request took longer than it was given."""


class Request(Future):
    """A request under way: a `concurrent.futures.Future` whose `cancel` also stops what is running, at its next step.

    Usage: `request.cancel()`, `request.result()`, `await request`
    """

    def __init__(self, timeout_s: float | None = None):
        super().__init__()
        self._deadline = None if timeout_s is None else monotonic() + timeout_s
        self._stopped = threading.Event()

    def cancel(self) -> bool:
        """Ask for an end; True unless it is done already. A running request ends at its next step."""
        self._stopped.set()
        return super().cancel() or not self.done()

    def step(self) -> None:
        """What the work calls at each step; raises where the request was cancelled or its time is over."""
        if self._stopped.is_set():
            raise CancelledError("the request was cancelled")
        if self._deadline is not None and monotonic() > self._deadline:
            raise RequestTimeoutError("the request took longer than its timeout")

    def __await__(self) -> Any:
        return asyncio.wrap_future(self).__await__()


class Batch:
    """Requests that run together; the work calls `step` at each of its steps, and may ask which rows still go on.

    Attributes:
        requests: one a row.
    """

    def __init__(self, requests: Sequence[Request]):
        self.requests = requests

    @property
    def num_open(self) -> int:
        """How many are not done."""
        return sum(not request.done() for request in self.requests)

    def goes_on(self, row: int) -> bool:
        """Whether someone still waits for a row."""
        return not self.requests[row].done()

    def step(self) -> None:
        """End the requests that were cancelled or whose time is over; raises where none is left."""
        for request in self.requests:
            if request.done():
                continue
            try:
                request.step()
            except (CancelledError, RequestTimeoutError) as error:
                request.set_exception(error)
        if not self.num_open:
            raise CancelledError("every request of the batch has ended")


# (rows, their batch) -> one result for each
BatchWork = Callable[[list[Any], Batch], Sequence[Any]]


class RequestQueue:
    """Runs requests in the order they came, `max_running` at a time; at most `max_waiting` wait.

    Rows of one key that wait when the first of them has its turn run in one batch of at most `max_batch`.

    Usage:
        queue = RequestQueue()
        request = queue.submit(lambda step: write(prompt, on_step=step), timeout_s=30)
        request.result()

    Raises:
        ValueError: a bound below its least.
    """

    def __init__(self, max_running: int = 1, max_waiting: int = 32, max_batch: int = 8):
        bounds = ("max_running", max_running, 1), ("max_waiting", max_waiting, 0), ("max_batch", max_batch, 1)
        for name, value, least in bounds:
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
        self.max_running, self.max_waiting, self.max_batch = max_running, max_waiting, max_batch
        self._workers = ThreadPoolExecutor(max_running, thread_name_prefix="unified-diffusion")
        self._lock, self._unfinished = threading.Lock(), 0
        self._rows: dict[Hashable, list[tuple[Request, Any]]] = {}
        self._batches: list[Batch] = []

    @property
    def num_unfinished(self) -> int:
        """Requests that run or wait."""
        return self._unfinished

    def submit(self, work: Callable[[Step], Any], timeout_s: float | None = None) -> Request:
        """Queue `work`, which gets the function to call at each of its steps.

        Raises:
            QueueFullError: at once, when all places are taken.
            ValueError: for a timeout that is not above 0.

        Usage: `queue.submit(lambda step: 1 + 1).result()  # 2`
        """
        request = self._admitted(timeout_s)
        self._workers.submit(self._run, request, work)
        return request

    def submit_row(self, row: Any, key: Hashable, work: BatchWork, timeout_s: float | None = None) -> Request:
        """Queue a row that may run in one batch with others of its key; these must have the same `work`.

        A batch that fails is run again row by row, so that a bad row fails alone.

        Raises:
            QueueFullError, ValueError: as for `submit`.

        Usage: `queue.submit_row(3, "squares", lambda rows, batch: [row**2 for row in rows]).result()  # 9`
        """
        request = self._admitted(timeout_s)
        with self._lock:
            self._rows.setdefault(key, []).append((request, row))
        self._workers.submit(self._run_rows, key, work)
        return request

    def _admitted(self, timeout_s: float | None) -> Request:
        if timeout_s is not None and not timeout_s > 0:
            raise ValueError(f"timeout_s must be above 0, got {timeout_s!r}")
        with self._lock:
            beside_the_first = sum(max(0, batch.num_open - 1) for batch in self._batches)
            if self._unfinished - beside_the_first >= self.max_running + self.max_waiting:
                raise QueueFullError(
                    f"the queue is full: {self.max_running} requests run and {self.max_waiting} wait; try again later"
                )
            self._unfinished += 1
        request = Request(timeout_s)
        request.add_done_callback(self._free_place)
        return request

    def close(self) -> None:
        """Finish what was queued, then take no more."""
        self._workers.shutdown()

    def _free_place(self, request: Future) -> None:
        with self._lock:
            self._unfinished -= 1

    def _run_rows(self, key: Hashable, work: BatchWork) -> None:
        """Run the first rows of a key; nothing where an earlier batch took them along."""
        begun: list[tuple[Request, Any]] = []
        with self._lock:
            waiting = self._rows.pop(key, [])
            while waiting and len(begun) < self.max_batch:
                pair = waiting.pop(0)
                if pair[0].set_running_or_notify_cancel():
                    begun.append(pair)
            if waiting:
                self._rows[key] = waiting
        if begun:
            self._run_batch(begun, work)

    def _run_batch(self, begun: Sequence[tuple[Request, Any]], work: BatchWork) -> None:
        batch = Batch([request for request, _ in begun])
        with self._lock:
            self._batches.append(batch)
        try:
            batch.step()  # they may have waited past their timeouts
            results = work([row for _, row in begun], batch)
        except BaseException as error:  # whatever it is belongs to those who wait
            left = [(request, row) for request, row in begun if not request.done()]
            if len(begun) == 1:
                for request, _ in left:
                    request.set_exception(error)
            else:
                for pair in left:
                    self._run_batch([pair], work)
        else:
            for request, result in zip(batch.requests, results, strict=True):
                if not request.done():
                    request.set_result(result)
        finally:
            with self._lock:
                self._batches.remove(batch)

    @staticmethod
    def _run(request: Request, work: Callable[[Step], Any]) -> None:
        if not request.set_running_or_notify_cancel():
            return
        try:
            request.step()  # it may have waited past its timeout
            result = work(request.step)
        except BaseException as error:  # whatever it is belongs to the one who waits for this request
            request.set_exception(error)
        else:
            request.set_result(result)


def waited_for(request: Request) -> Any:
    """The result of a request; who stops waiting (Ctrl-C) cancels it."""
    try:
        return request.result()
    except BaseException:
        request.cancel()
        raise
