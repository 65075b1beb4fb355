"""The pool on one machine without Ray: this process alone, or processes that are replaced when they die.

And processes that each do one thing and say so.
"""

import logging
import multiprocessing
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import torch

from clearsr.batch.worker import Worker, WorkerBrokenError, given_up
from clearsr.config.batch import WorkConfig
from clearsr.errors import ClearSRError
from clearsr.files.upscale import Job, Result
from clearsr.quiet import own_stderr

logger = logging.getLogger(__name__)

_MAX_DEATHS_LOADING = 3  # in a row; then it is not the pictures


class Share(NamedTuple):
    """What each of the workers gets of the machine.

    Attributes:
        workers: how many there are.
        threads: processor threads of each.
        gpus: GPUs of each, maybe a fraction.
    """

    workers: int
    threads: int
    gpus: float


def run_alone(jobs: Iterable[Job], work: WorkConfig, share: Share) -> Iterator[list[Result]]:
    """Rows of the jobs, one after the other, in this process.

    Raises:
        ClearSRError: the model cannot be loaded.
    """
    before = torch.get_num_threads()
    worker = Worker(work, share.threads)
    try:
        for job in jobs:
            yield [worker.do(job)]
    finally:
        torch.set_num_threads(before)


def run_processes(
    jobs: Iterable[Job],
    work: WorkConfig,
    share: Share,
    max_attempts: int,
    serve: Callable[[Connection, WorkConfig, int, str | None], None] | None = None,
) -> Iterator[list[Result]]:
    """Rows of the jobs as they are done by several processes, in no particular order.

    A job whose process dies is given to another one, up to `max_attempts` times.

    Args:
        max_attempts: processes that a job may cost before it is recorded as failed.
        serve: what a process runs; unset: a `Worker`.

    Raises:
        ClearSRError: the model cannot be loaded.
    """
    pool = _Pool(work, share, serve or _serve)
    try:
        yield from _done_by(pool, iter(jobs), max_attempts)
    finally:
        pool.close()


def _done_by(pool: "_Pool", waiting: Iterator[Job], max_attempts: int) -> Iterator[list[Result]]:
    """The rows of what waits, each time some are done."""
    again: deque[_Task] = deque()
    deaths_loading = 0
    while True:
        for member in pool.idle():
            task = again.popleft() if again else next((_Task(job, 1) for job in waiting), None)
            if task is None:
                break
            member.give(task)
        if not pool.busy() and not again:
            return
        rows = []
        for member, answer in pool.answers():
            if isinstance(answer, ClearSRError):
                raise answer
            if isinstance(answer, Result):
                rows.append(answer)
            if answer is not None:
                deaths_loading = 0
                continue
            task = member.task
            pool.replace(member)
            if task is None:
                deaths_loading += 1
            elif task.attempt < max_attempts:
                again.append(_Task(task.job, task.attempt + 1))
            else:
                rows.append(given_up(task.job, task.attempt))
        if deaths_loading >= _MAX_DEATHS_LOADING:
            raise ClearSRError(
                f"workers end while they load the model, {deaths_loading} in a row; "
                "is there too little memory for --workers?"
            )
        if rows:
            yield rows


class _Task(NamedTuple):
    job: Job
    attempt: int


class _Member:
    """One process, its pipe, and the task in its hands; `is_ready` once the model is loaded."""

    def __init__(self, process: Any, pipe: Connection, number: int) -> None:
        self.process, self.pipe, self.number = process, pipe, number
        self.is_ready = False
        self.task: _Task | None = None

    def give(self, task: _Task) -> None:
        """Hand it a task; if it is dead, its pipe says so when it is asked for answers."""
        self.task = task
        try:
            self.pipe.send(task.job)
        except OSError:
            logger.debug("worker %d is gone", self.process.pid)


class _Pool:
    """A fixed number of worker processes."""

    def __init__(self, work: WorkConfig, share: Share, serve: Callable[..., None]) -> None:
        self._work, self._share, self._serve = work, share, serve
        self._context = multiprocessing.get_context("spawn")  # a fork would share torch's threads and CUDA
        self._members = [self._start(number) for number in range(share.workers)]

    def idle(self) -> list[_Member]:
        """Members that wait for a task."""
        return [member for member in self._members if member.is_ready and member.task is None]

    def busy(self) -> list[_Member]:
        """Members with a task, and those that still load while there may be some."""
        return [member for member in self._members if member.task is not None or not member.is_ready]

    def answers(self) -> list[tuple[_Member, Any]]:
        """What members said, at least one of them: a `Result`, True for ready, an error, None for death."""
        ready = set(wait([member.pipe for member in self._members]))
        found: list[tuple[_Member, Any]] = []
        for member in [member for member in self._members if member.pipe in ready]:
            try:
                answer = member.pipe.recv()
            except (EOFError, OSError):
                found.append((member, None))
                continue
            member.is_ready = True
            if isinstance(answer, Result):
                member.task = None
            found.append((member, answer))
        return found

    def replace(self, member: _Member) -> None:
        """Start another process in place of one that died."""
        member.process.join(5)
        code = member.process.exitcode
        logger.warning("worker %s ended (exit code %s) and is replaced", member.process.pid, code)
        member.pipe.close()
        self._members[self._members.index(member)] = self._start(member.number)

    def close(self) -> None:
        """End all processes; those that are in work remove what they have half-written."""
        for member in self._members:
            member.process.terminate()
        for member in self._members:
            member.process.join(5)
            if member.process.is_alive():
                member.process.kill()
            member.pipe.close()

    def _start(self, number: int) -> _Member:
        ours, theirs = self._context.Pipe()
        device = None
        if self._share.gpus > 0:
            device = f"cuda:{int(number * self._share.gpus) % max(1, torch.cuda.device_count())}"
        arguments = (theirs, self._work, self._share.threads, device)
        process = self._context.Process(target=self._serve, args=arguments, daemon=True)
        process.start()
        theirs.close()  # else the end of the process would not close the pipe
        return _Member(process, ours, number)


def _serve(pipe: Connection, work: WorkConfig, threads: int, device: str | None) -> None:
    """A worker process: load, say so, then a row for each job until the other end of the pipe closes."""
    own_stderr()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, _end)
    try:
        worker = Worker(work, threads, device)
        pipe.send(True)
        while True:
            pipe.send(worker.do(pipe.recv()))
    except ClearSRError as error:
        pipe.send(error)
    except (EOFError, BrokenPipeError):
        return
    except WorkerBrokenError as error:
        logger.error("%s", error)


def _end(number: int, _frame: object) -> None:
    """Leave a worker process by way of every `finally`, once."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def messages_of(
    target: Callable[..., None], arguments: Sequence[tuple[Any, ...]]
) -> Iterator[tuple[int, Any]]:
    """What processes say, one for each of `arguments`: its place there, and the message.

    Args:
        target: called in each with a function that sends a message, and the arguments.

    Raises:
        ClearSRError: of one of them, or one has died.
    """
    context = multiprocessing.get_context("spawn")
    processes: dict[Connection, Any] = {}
    try:
        for own in arguments:
            ours, theirs = context.Pipe()
            processes[ours] = context.Process(target=_tell, args=(theirs, target, own), daemon=True)
            processes[ours].start()
            theirs.close()
        places = {pipe: place for place, pipe in enumerate(processes)}
        while places:
            ready = set(wait(list(places)))
            for pipe in [pipe for pipe in places if pipe in ready]:
                try:
                    message = pipe.recv()
                except (EOFError, OSError):
                    process = processes[pipe]
                    process.join()
                    if process.exitcode:
                        raise ClearSRError(
                            f"a worker ended (exit code {process.exitcode}); is there too little memory for "
                            "so many?"
                        ) from None
                    del places[pipe]
                    continue
                if isinstance(message, ClearSRError):
                    raise message
                yield places[pipe], message
    finally:
        for pipe, process in processes.items():
            process.terminate()
            process.join()
            pipe.close()


def _tell(pipe: Connection, target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """A process of `messages_of`."""
    own_stderr()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in `_serve`
    signal.signal(signal.SIGTERM, _end)
    try:
        target(pipe.send, *arguments)
    except ClearSRError as error:
        pipe.send(error)
