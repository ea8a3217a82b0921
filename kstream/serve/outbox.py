"""What waits to be sent to one peer: bounded, in order, sent by a thread of its own."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import KstreamError, PeerError
from ..stream import StageError
from ..stream.queue import BoundedQueue
from .connection import Buffer, Connection

TURN_S = 0.05


@dataclass(frozen=True)
class _Outgoing:
    parts: Sequence[Buffer]
    sent: Callable[[int], None] | None


class Outbox:
    """Sends messages whole and in order, while the pipeline already works on what comes next.

    `put` waits while more than `max_bytes` are unsent: a client that reads slowly slows its own pipeline, hence its
    own sender, and nothing else. Once a message could not be sent whole, nothing more is sent, for the client could
    not read it.

    Parameters
    ----------
    send_s : longest time for one message to be taken.
    max_bytes : unsent bytes that may wait.
    """

    def __init__(self, connection: Connection, send_s: float, max_bytes: int, name: str) -> None:
        self._connection, self._send_s = connection, send_s
        self._queue: BoundedQueue[_Outgoing] = BoundedQueue(1 << 20, max_bytes)
        self.n_bytes = 0
        self._until = math.inf
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def depth_bytes(self) -> int:
        """Bytes waiting now."""
        return self._queue.n_bytes

    def put(self, parts: Sequence[Buffer], sent: Callable[[int], None] | None = None, wait: bool = True) -> None:
        """Queue one message, or nothing but a callback.

        Parameters
        ----------
        parts : the buffers of the message.
        sent : called in the sending thread, once all is handed to the system, with the monotonic time in ns at which
            the first byte was.
        wait : for room; False in the sending thread itself, which makes the room.

        Raises
        ------
        PeerError : the client did not take what was sent before.
        """
        self._queue.put(_Outgoing(parts, sent), _size(parts), wait)

    def flush(self, seconds: float) -> bool:
        """Wait until all that was put has been sent; False if sending failed or took longer than that."""
        done = threading.Event()
        with contextlib.suppress(KstreamError):
            self.put([], lambda _: done.set(), wait=False)
            self._wait(done.wait, done.is_set, seconds)
        return done.is_set() and self.error is None

    def finish(self, seconds: float) -> bool:
        """Send what waits and end the thread; False if sending failed or took longer than `seconds`.

        Each message has its own time, and only a client that lets it pass, or all together take longer than
        `seconds`, loses what was made for it.
        """
        self._queue.close()
        self._wait(self._thread.join, lambda: not self._thread.is_alive(), seconds)
        if self._thread.is_alive():
            self._queue.break_off(PeerError("the client did not take the last messages", code="send_timeout"))
            self._connection.abort()
            self._thread.join(TURN_S)
        return self.error is None

    def hurry(self, seconds: float) -> None:
        """From another thread: whoever waits in `flush` or `finish` waits no longer than this from now on."""
        self._until = time.monotonic() + seconds

    def _wait(self, turn: Callable[[float], object], is_over: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not is_over() and self.error is None and time.monotonic() < min(deadline, self._until):
            turn(TURN_S)

    @property
    def error(self) -> BaseException | None:
        """Why nothing more is sent."""
        return self._queue.error

    def _run(self) -> None:
        while (outgoing := self._queue.get()) is not None:
            try:
                first_ns = self._connection.send(outgoing.parts, self._send_s)
            except TimeoutError:
                self._queue.break_off(
                    PeerError(
                        f"the client did not take a message within {self._send_s:g} s",
                        where=f"after {self.n_bytes} bytes sent",
                        likely="it does not read what we send",
                        hint="kstream serve --send-s",
                        code="send_timeout",
                    )
                )
                return
            except (OSError, ValueError) as error:  # ValueError: the connection was closed under us
                self._queue.break_off(
                    PeerError(f"the connection broke while sending: {error}", code="connection_broke")
                )
                return
            self.n_bytes += _size(outgoing.parts)
            if outgoing.sent is not None and not self._called(outgoing.sent, first_ns):
                return

    def _called(self, sent: Callable[[int], None], first_ns: int) -> bool:
        try:
            sent(first_ns)
        except Exception as error:  # noqa: BLE001 - a dead sender would block the pipeline for ever
            self._queue.break_off(StageError.of(error, "taking note of what was sent"))
            return False
        return True


def _size(parts: Sequence[Buffer]) -> int:
    return sum(memoryview(part).nbytes for part in parts)
