"""Who runs a pipeline: the caller's own thread, or a worker thread behind a bounded queue."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from typing import Any

from ..errors import KstreamError
from .stage import Pipeline, Sink, Stage, StageError


def run_inline(stage: Stage, items: Iterable[Any]) -> list[Any]:
    """Push every item, finish, and give all that came out."""
    out: list[Any] = []
    for item in items:
        out += stage.push(item)
    return out + stage.finish()


class ThreadRunner:
    """Runs a pipeline in one worker thread behind a bounded queue, so that receiving and computing overlap.

    `put` blocks while the queue is full: items are never dropped, the sender slows down instead. If the pipeline or
    the sink raises, the worker takes no more work, and `put` and `finish` raise that error (in our form).

    Parameters
    ----------
    pipeline : what to run.
    sink : called in the worker thread with every item that comes out.
    capacity : items that may wait.
    done : called in the worker thread with every item that went in, when all that it made has gone to the sink.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        sink: Sink,
        capacity: int = 256,
        *,
        done: Sink | None = None,
        name: str = "kstream-worker",
    ) -> None:
        self._pipeline, self._sink, self._done = pipeline, sink, done
        self._queue: queue.Queue[Any] = queue.Queue(capacity)
        self._error: KstreamError | OSError | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def depth(self) -> int:
        """Items waiting now."""
        return self._queue.qsize()

    def put(self, item: Any) -> None:
        if self._error is not None:
            raise self._error
        self._queue.put(item)

    def finish(self) -> None:
        """Let the worker take what waits, finish the pipeline and end; raise what it met."""
        self._queue.put(_END)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def abandon(self) -> None:
        """End the worker without finishing the pipeline: what waits is discarded."""
        self._error = self._error or KstreamError("the session was abandoned")
        self._queue.put(_END)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not _END:
            if self._error is None:
                self._guarded(self._work, item)
        if self._error is None:
            self._guarded(self._pipeline.drain, self._sink)

    def _work(self, item: Any) -> None:
        self._pipeline.feed(item, self._sink)
        if self._done is not None:
            self._done(item)

    def _guarded(self, work: Callable[[Any], None], argument: Any) -> None:
        try:
            work(argument)
        except (KstreamError, OSError) as error:
            self._error = error
        except Exception as error:  # noqa: BLE001 - a dead worker would block the reader for ever
            self._error = StageError.of(error, "handing over results")


_END = object()
