"""A queue that is bounded in items and in bytes, and that can be broken from either side."""

from __future__ import annotations

import threading
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")


class BoundedQueue(Generic[T]):
    """First in, first out; `put` blocks while the queue is full, so that whoever fills it slows down.

    Any number of threads may put, one takes. One item always fits, however large it is: the bound is passed by at most
    one item. A broken queue raises its error in `put` and gives nothing more.

    What came and what went are counted apart, each by one side only, so that the common case needs no more than the
    interpreter's own queue: with a condition variable around a deque the server took a third fewer acquisitions.

    Parameters
    ----------
    max_items, max_bytes : bounds of what waits.
    """

    def __init__(self, max_items: int, max_bytes: int) -> None:
        self._max_items, self._max_bytes = max_items, max_bytes
        self._items: SimpleQueue[tuple[T, int] | None] = SimpleQueue()  # None: nothing more comes
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._n_waiting = 0
        self._n_put = self._bytes_put = 0
        self._n_taken = self._bytes_taken = 0
        self._error: BaseException | None = None

    def __len__(self) -> int:
        return self._n_put - self._n_taken

    @property
    def n_bytes(self) -> int:
        """Bytes that wait now."""
        return self._bytes_put - self._bytes_taken

    @property
    def error(self) -> BaseException | None:
        """What broke the queue."""
        return self._error

    def put(self, item: T, n_bytes: int = 0, wait: bool = True) -> None:
        """Add an item; waits for room, unless `wait` is False (for whoever empties the queue and must not wait).

        Raises
        ------
        BaseException : whatever broke the queue.
        """
        with self._lock:
            if wait and self._is_full(n_bytes):
                self._wait_for_room(n_bytes)
            if self._error is not None:
                raise self._error
            self._n_put += 1
            self._bytes_put += n_bytes
            self._items.put((item, n_bytes))

    def get(self) -> T | None:
        """The next item; waits for it. None when the queue is broken, or closed and empty."""
        taken = self._items.get()
        if taken is None or self._error is not None:
            self._items.put(None)  # for whoever asks again
            return None
        item, n_bytes = taken
        self._n_taken += 1
        self._bytes_taken += n_bytes
        if self._n_waiting:
            with self._lock:
                self._room.notify_all()
        return item

    def close(self) -> None:
        """Say that nothing more will be put; what waits is still given."""
        self._items.put(None)

    def break_off(self, error: BaseException) -> None:
        """Discard what waits and raise `error` in every `put` from now on; the first error stays."""
        with self._lock:
            self._error = self._error or error
            try:
                while True:
                    self._items.get_nowait()
            except Empty:
                self._n_taken, self._bytes_taken = self._n_put, self._bytes_put
            self._items.put(None)
            self._room.notify_all()

    def _wait_for_room(self, n_bytes: int) -> None:
        self._n_waiting += 1
        while self._error is None and self._is_full(n_bytes):
            self._room.wait()
        self._n_waiting -= 1

    def _is_full(self, n_bytes: int) -> bool:
        n_items = self._n_put - self._n_taken
        return n_items > 0 and (n_items >= self._max_items or self.n_bytes + n_bytes > self._max_bytes)
