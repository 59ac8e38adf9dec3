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


def held(queue):
    """A request that keeps the queue busy; what is submitted meanwhile waits."""
    work = Blocked()
    queue.submit(work)
    assert work.begun.wait(5)
    return work


def test_rows_of_one_key_run_together_and_others_apart():
    queue = RequestQueue(max_waiting=8, max_batch=3)
    work, batches = held(queue), []

    def squares(rows, batch):
        batches.append(rows)
        return [row**2 for row in rows]

    requests = [queue.submit_row(row, row % 2, squares) for row in range(8)]
    requests[4].cancel()
    work.released.set()
    assert [request.result(5) for request in requests if not request.cancelled()] == [0, 1, 4, 9, 25, 36, 49]
    assert batches == [[0, 2, 6], [1, 3, 5], [7]]  # as many as a batch may have, in the order of the first
    queue.close()


def test_a_row_of_a_batch_ends_at_its_next_step_and_frees_its_place_while_the_others_go_on(queue):
    work, seen, begun, released = held(queue), [], threading.Event(), threading.Event()

    def stepping(rows, batch):
        begun.set()
        for _ in range(3):
            assert released.wait(5)
            batch.step()
            seen.append([batch.goes_on(row) for row in range(len(rows))])
        return rows

    requests = [queue.submit_row(row, "key", stepping) for row in "abc"]
    work.released.set()
    assert begun.wait(5) and requests[1].cancel()
    released.set()
    assert requests[0].result(5) == "a" and requests[2].result(5) == "c"
    with pytest.raises(CancelledError):
        requests[1].result(5)
    assert seen == [[True, False, True]] * 3


def test_a_batch_of_which_all_rows_are_cancelled_ends_at_its_next_step(queue):
    work, steps = held(queue), []

    def stepping(rows, batch):
        for request in requests:
            request.cancel()
        while True:
            steps.append(1)
            batch.step()

    requests = [queue.submit_row(row, "key", stepping) for row in "ab"]
    work.released.set()
    for request in requests:
        with pytest.raises(CancelledError):
            request.result(5)
    assert len(steps) == 1 and queue.submit(lambda step: "next").result(5) == "next"


def test_a_bad_row_fails_alone(queue):
    work = held(queue)

    def inverse(rows, batch):
        return [1 / row for row in rows]

    requests = [queue.submit_row(row, "key", inverse) for row in (1, 0, 2)]
    work.released.set()
    assert [requests[0].result(5), requests[2].result(5)] == [1, 0.5]
    with pytest.raises(ZeroDivisionError):
        requests[1].result(5)


def test_a_running_batch_takes_one_place_and_its_waiting_rows_one_each(queue):
    work, begun, released = held(queue), threading.Event(), threading.Event()

    def wait(rows, batch):
        begun.set()
        assert released.wait(5)
        return rows

    for row in range(3):
        queue.submit_row(row, "key", wait)
    with pytest.raises(QueueFullError):
        queue.submit_row(3, "key", wait)
    work.released.set()
    assert begun.wait(5)
    waiting = [queue.submit_row(row, "key", wait) for row in range(3)]
    with pytest.raises(QueueFullError):
        queue.submit_row(3, "key", wait)
    released.set()
    assert [request.result(5) for request in waiting] == [0, 1, 2]
