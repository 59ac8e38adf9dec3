"""Laws of the queue: order, bounds, cancellation within a step, failures that stay where they happen."""

import asyncio
import threading
from concurrent.futures import CancelledError

import pytest

from hf_unified_diffusion.request_queue import QueueFullError, RequestQueue, RequestTimeoutError


@pytest.fixture
def queue():
    queue = RequestQueue(max_waiting=3)
    yield queue
    queue.close()


class Blocked:
    """Work that counts its steps until it is released; it says when it has begun."""

    def __init__(self):
        self.begun, self.released, self.steps = threading.Event(), threading.Event(), 0

    def __call__(self, step):
        while not self.released.wait(0.001):
            step()
            self.steps += 1
            self.begun.set()
        return self.steps


def test_requests_run_in_order_and_give_their_own_results(queue):
    order = []
    requests = [queue.submit(lambda step, i=i: (order.append(i), i * i)[1]) for i in range(3)]
    assert [request.result() for request in requests] == [0, 1, 4] and order == [0, 1, 2]


def test_a_full_queue_refuses_at_once_and_has_room_again(queue):
    work = Blocked()
    running = queue.submit(work)
    assert work.begun.wait(5)
    waiting = [queue.submit(lambda step: "waited") for _ in range(3)]
    with pytest.raises(QueueFullError, match="1 requests run and 3 wait"):
        queue.submit(lambda step: None)
    assert waiting[1].cancel()  # a place of one that waits is free at once
    late = queue.submit(lambda step: "late")
    work.released.set()
    assert running.result() > 0 and waiting[0].result() == "waited" and late.result() == "late"
    with pytest.raises(CancelledError):
        waiting[1].result()


def test_cancelling_what_runs_ends_it_at_its_next_step_and_frees_its_place(queue):
    work = Blocked()
    request = queue.submit(work)
    assert work.begun.wait(5) and request.cancel()
    with pytest.raises(CancelledError):
        request.result(5)
    at_the_end = work.steps
    assert queue.submit(lambda step: "next").result(5) == "next"
    assert work.steps == at_the_end and not work.released.is_set()
    assert not request.cancel()


def test_a_failure_belongs_to_its_request(queue):
    def fail(step):
        raise ValueError("this one")

    failing, fine = queue.submit(fail), queue.submit(lambda step: "fine")
    with pytest.raises(ValueError, match="this one"):
        failing.result()
    assert fine.result() == "fine"


def test_a_timeout_ends_what_runs_and_what_waited_too_long(queue):
    work = Blocked()
    running = queue.submit(work, timeout_s=0.05)
    waiting = queue.submit(lambda step: "never", timeout_s=0.01)
    for request in (running, waiting):
        with pytest.raises(RequestTimeoutError):
            request.result(5)


def test_awaited_and_cancelled_by_its_task(queue):
    async def main():
        assert await queue.submit(lambda step: 7) == 7
        work = Blocked()
        task = asyncio.ensure_future(asyncio.wrap_future(queue.submit(work)))
        await asyncio.to_thread(work.begun.wait, 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await queue.submit(lambda step: "after")

    assert asyncio.run(main()) == "after"


def test_several_run_at_once():
    queue, together = RequestQueue(max_running=2), threading.Barrier(2, timeout=5)
    requests = [queue.submit(lambda step: together.wait()) for _ in range(2)]
    assert sorted(request.result() for request in requests) == [0, 1]
    queue.close()


@pytest.mark.parametrize(
    ("bounds", "rule"),
    [
        ({"max_running": 0}, "max_running must be an integer of at least 1, got 0"),
        ({"max_waiting": -1}, "max_waiting must be an integer of at least 0, got -1"),
        ({"max_waiting": 1.5}, "max_waiting must be an integer of at least 0, got 1.5"),
    ],
)
def test_bounds_that_make_no_queue(bounds, rule):
    with pytest.raises(ValueError, match=rule):
        RequestQueue(**bounds)


def test_a_timeout_must_be_above_zero(queue):
    with pytest.raises(ValueError, match="timeout_s must be above 0, got 0"):
        queue.submit(lambda step: None, timeout_s=0)
