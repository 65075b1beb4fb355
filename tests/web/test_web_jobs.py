"""The queue: order, bounds, cancelling what waits and what works, and threads that outlive a failing job."""

import threading

import pytest
import torch

from clearsr.web.errors import RequestError
from clearsr.web.estimate import checked
from clearsr.web.jobs import JobQueue, StoppedError


@pytest.fixture
def queue():
    queue = JobQueue(places=3, concurrency=1, seconds=20)
    yield queue
    queue.close()


def started(queue, work):
    ticket = queue.reserve()
    queue.start(ticket, work)
    return ticket


def test_jobs_run_in_order_and_give_their_places_back(queue):
    order = []
    for _ in range(5):
        tickets = [started(queue, lambda _, n=n: order.append(n) or n) for n in range(3)]
        assert [ticket.future.result(10) for ticket in tickets] == [0, 1, 2]
    assert order == [0, 1, 2] * 5
    assert queue.counts() == (0, 0)


def test_full_means_full_whether_at_work_or_waiting(queue):
    free = threading.Event()
    tickets = [started(queue, lambda _: free.wait(10)), queue.reserve(), queue.reserve()]
    with pytest.raises(RequestError) as refusal:
        queue.reserve()
    assert refusal.value.status == 429
    tickets[2].cancel()
    queue.reserve().cancel()
    free.set()
    tickets[0].future.result(10)


def test_cancelling_what_waits_and_what_works(queue):
    begun, seen = threading.Event(), []

    def endless(ticket):
        begun.set()
        while True:
            ticket.check()

    at_work = started(queue, endless)
    waiting = started(queue, lambda _: seen.append("must not run"))
    assert begun.wait(10)
    assert (at_work.ahead, waiting.ahead) == (None, 0)
    waiting.cancel()
    at_work.cancel()
    for ticket in (waiting, at_work):
        with pytest.raises(StoppedError):
            ticket.future.result(10)
    assert seen == []
    at_work.cancel()  # again: nothing happens
    assert started(queue, lambda _: "next").future.result(10) == "next"


def test_a_failing_job_costs_no_thread(queue):
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            started(queue, lambda _: 1 / 0).future.result(10)
    assert started(queue, lambda _: "fine").future.result(10) == "fine"


def test_time_counts_from_the_beginning_of_the_work():
    queue = JobQueue(places=1, concurrency=1, seconds=0.01)

    def endless(ticket):
        while True:
            ticket.check()

    with pytest.raises(StoppedError) as stop:
        started(queue, endless).future.result(10)
    assert stop.value.status == 504
    queue.close()


def test_checks_reach_every_layer_of_this_thread_and_leave_nothing_behind():
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1)))
    calls = []
    with checked(network, lambda: calls.append(threading.get_ident())):
        network[0](torch.zeros(1, 2))
        network[1](torch.zeros(1, 1, 2, 2))
        other = threading.Thread(target=lambda: network[0](torch.zeros(1, 2)))
        other.start()
        other.join()
    network[0](torch.zeros(1, 2))
    assert calls == [threading.get_ident()] * 2

    def stop():
        raise StoppedError("cancelled")

    with pytest.raises(StoppedError), checked(network, stop):
        network[0](torch.zeros(1, 2))
    network[0](torch.zeros(1, 2))
