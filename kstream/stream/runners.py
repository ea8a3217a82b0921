"""Who runs a pipeline: the caller's own thread, or a worker thread behind a bounded queue."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Generic, TypeVar

from ..errors import KstreamError
from .crew import Task, Wake
from .queue import BoundedQueue
from .stage import Pipeline, Sink, Stage, StageError

T = TypeVar("T")


def run_inline(stage: Stage, items: Iterable[Any]) -> list[Any]:
    """Push every item, finish, and give all that came out."""
    out: list[Any] = []
    for item in items:
        out += stage.push(item)
    return out + stage.finish()


class _Promise(Generic[T]):
    """A task in another thread."""

    def __init__(self, future: Future[T]) -> None:
        self._future = future

    @property
    def is_done(self) -> bool:
        return self._future.done()

    def result(self) -> T:
        return self._future.result()


JOIN_S = 0.2
"""How often whoever waits for the end of the work looks whether it was broken off."""


class ThreadCrew:
    """Threads for the stages of one pipeline: some that share work on parts, and one for work in the background.

    Parameters
    ----------
    n_hands : parts that are worked on at the same time; 0 takes as many as there are processors for this process, at
        most 8.
    """

    def __init__(self, n_hands: int = 0) -> None:
        self.n_hands = n_hands or min(len(os.sched_getaffinity(0)), 8)
        self._hands = ThreadPoolExecutor(self.n_hands, "kstream-crew")
        self._back = ThreadPoolExecutor(1, "kstream-background")
        self._wake: Callable[[], None] | None = None

    def attach(self, wake: Callable[[], None]) -> None:
        """Say how a `Wake` gets into the stream."""
        self._wake = wake

    def each(self, work: Callable[[int], None], n: int) -> None:
        """Call ``work(0) .. work(n - 1)``; the caller's thread works too.

        Helpers that are busy with the work of another caller are not waited for.
        """
        numbers = iter(range(n))
        lock = threading.Lock()

        def work_on() -> None:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                work(number)

        helpers = [self._hands.submit(work_on) for _ in range(min(self.n_hands, n) - 1)]
        try:
            work_on()
        finally:
            busy = [helper for helper in helpers if not helper.cancel()]
            wait(busy)  # all of them, before any error is raised: they work in the caller's arrays
        for helper in busy:
            helper.result()

    def submit(self, work: Callable[[], T]) -> Task[T]:
        """Do this in the background thread, and wake the stream when it is done."""
        future = self._back.submit(work)
        future.add_done_callback(lambda _: self.wake())
        return _Promise(future)

    def wake(self) -> bool:
        if self._wake is None:
            return False
        self._wake()
        return True

    def close(self) -> None:
        """Take no more work; what runs now still ends in its own time."""
        self._hands.shutdown(wait=False, cancel_futures=True)
        self._back.shutdown(wait=False, cancel_futures=True)


class ThreadRunner:
    """Runs a pipeline in one worker thread behind a bounded queue, so that receiving and computing overlap.

    `put` blocks while the queue is full: items are never dropped, the sender slows down instead. If the pipeline or
    the sink raises, the worker takes no more work, and `put` and `finish` raise that error (in our form).

    Parameters
    ----------
    pipeline : what to run.
    sink : called in the worker thread with every item that comes out.
    capacity : items, or lists of items, that may wait.
    capacity_bytes : bytes that may wait, as told to `put`.
    done : called in the worker thread with every item that went in, when all that it made has gone to the sink.
    crew : the hands of the pipeline's stages; they wake the stream through this runner, and end with it.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        sink: Sink,
        capacity: int = 256,
        *,
        capacity_bytes: int = 64 << 20,
        done: Sink | None = None,
        crew: ThreadCrew | None = None,
        name: str = "kstream-worker",
    ) -> None:
        self._pipeline, self._sink, self._done, self._crew = pipeline, sink, done, crew
        self._queue: BoundedQueue[Sequence[Any]] = BoundedQueue(capacity, capacity_bytes)
        if crew is not None:
            crew.attach(self._wake)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """True while the worker works, also on what nobody waits for any more: a step cannot be interrupted."""
        return self._thread.is_alive()

    @property
    def error(self) -> BaseException | None:
        """What the pipeline or the sink raised."""
        return self._queue.error

    @property
    def depth(self) -> int:
        """What `put` and `put_all` brought and nobody took yet."""
        return len(self._queue)

    @property
    def depth_bytes(self) -> int:
        """Bytes waiting now."""
        return self._queue.n_bytes

    def put(self, item: Any, n_bytes: int = 0) -> None:
        """Queue one item; waits for room.

        Raises
        ------
        KstreamError, OSError : what the pipeline or the sink raised before.
        """
        self._queue.put((item,), n_bytes)

    def put_all(self, items: Sequence[Any], n_bytes: int = 0) -> None:
        """Queue several items as one, which costs less than one by one; as `put`."""
        self._queue.put(items, n_bytes)

    def finish(self, seconds: float | None = None) -> None:
        """Let the worker take what waits, finish the pipeline and end; raise what it met.

        Raises
        ------
        KstreamError, OSError : what the pipeline or the sink raised, or that the worker took longer than `seconds`.
        """
        self._queue.close()
        deadline = None if seconds is None else time.monotonic() + seconds
        while self._thread.is_alive() and self._queue.error is None:
            self._thread.join(JOIN_S)
            if deadline is not None and time.monotonic() > deadline:
                break
        if self._thread.is_alive() and self._queue.error is None:
            self._queue.break_off(
                KstreamError(f"the pipeline did not finish within {seconds:g} s", where="end of the scan", code="hang")
            )
        if self._queue.error is not None:
            raise self._queue.error

    def abandon(self, error: KstreamError | None = None, seconds: float = 10.0) -> None:
        """End the worker without finishing the pipeline: what waits is discarded, and a blocked `put` raises."""
        self._queue.break_off(error or KstreamError("the session was abandoned", code="abandoned"))
        if threading.current_thread() is not self._thread:
            self._thread.join(seconds)

    def _run(self) -> None:
        while (items := self._queue.get()) is not None:
            for item in items:
                if self._queue.error is None:
                    self._guarded(self._work, item)
        if self._queue.error is None:
            self._guarded(self._pipeline.drain, self._give)
        if self._crew is not None:
            self._crew.close()

    def _wake(self) -> None:
        with contextlib.suppress(KstreamError, OSError):  # a broken queue needs no waking
            self._queue.put((Wake(),), wait=False)

    def _work(self, item: Any) -> None:
        self._pipeline.feed(item, self._give)
        if self._done is not None and not isinstance(item, Wake):
            self._done(item)

    def _give(self, item: Any) -> None:
        """To the sink, unless the work was broken off meanwhile: then no further step is taken."""
        if self._queue.error is not None:
            raise self._queue.error
        self._sink(item)

    def _guarded(self, work: Callable[[Any], None], argument: Any) -> None:
        try:
            work(argument)
        except (KstreamError, OSError) as error:
            self._queue.break_off(error)
        except Exception as error:  # noqa: BLE001 - a dead worker would block the reader for ever
            self._queue.break_off(StageError.of(error, "handing over results"))
