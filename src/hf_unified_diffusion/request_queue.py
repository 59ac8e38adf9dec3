"""A bounded queue of requests: refused at once when full, cancelled or timed out within one step, failing alone."""

import asyncio
import threading
from collections.abc import Callable
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


class RequestQueue:
    """Runs requests in the order they came, `max_running` at a time; at most `max_waiting` wait.

    Usage:
        queue = RequestQueue()
        request = queue.submit(lambda step: write(prompt, on_step=step), timeout_s=30)
        request.result()

    Raises:
        ValueError: a bound below its least.
    """

    def __init__(self, max_running: int = 1, max_waiting: int = 32):
        for name, value, least in (("max_running", max_running, 1), ("max_waiting", max_waiting, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
        self.max_running, self.max_waiting = max_running, max_waiting
        self._workers = ThreadPoolExecutor(max_running, thread_name_prefix="unified-diffusion")
        self._lock, self._unfinished = threading.Lock(), 0

    def submit(self, work: Callable[[Step], Any], timeout_s: float | None = None) -> Request:
        """Queue `work`, which gets the function to call at each of its steps.

        Raises:
            QueueFullError: at once, when all places are taken.
            ValueError: for a timeout that is not above 0.

        Usage: `queue.submit(lambda step: 1 + 1).result()  # 2`
        """
        if timeout_s is not None and not timeout_s > 0:
            raise ValueError(f"timeout_s must be above 0, got {timeout_s!r}")
        with self._lock:
            if self._unfinished >= self.max_running + self.max_waiting:
                raise QueueFullError(
                    f"the queue is full: {self.max_running} requests run and {self.max_waiting} wait; try again later"
                )
            self._unfinished += 1
        request = Request(timeout_s)
        request.add_done_callback(self._free_place)
        self._workers.submit(self._run, request, work)
        return request

    def close(self) -> None:
        """Finish what was queued, then take no more."""
        self._workers.shutdown()

    def _free_place(self, request: Future) -> None:
        with self._lock:
            self._unfinished -= 1

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
