"""The journal of a session: bytes are on their way to the disk before anything is done with them.

A thread of its own opens and writes the file, so that a disk that stalls costs the session `stall_s` once and its
recording, never the scan. Another thread asks the disk at an interval to store what the system has taken.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import NamedTuple

from ..mrd.journal import JournalFile, Leftover, recover_leftovers


class _Chunk(NamedTuple):
    """Received bytes for the writing thread; the session waits until it has answered."""

    data: memoryview
    elapsed_ns: int


class _End(NamedTuple):
    """The last job of a writing thread."""

    complete: bool
    reason: str


class JournalFolder:
    """Where a server keeps its journals: one for each session.

    Parameters
    ----------
    folder : it must exist and be writable when a session starts; if not, that session goes unrecorded and says so.
    sync_s : longest time that received bytes stay in memory only; a crash of the machine loses no more.
    stall_s : how long the disk may keep a session waiting before its recording is given up.
    create : makes the file of a session, from folder, session number and peer.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        sync_s: float = 1.0,
        stall_s: float = 5.0,
        create: Callable[[Path, int, str], JournalFile] = JournalFile.create,
    ) -> None:
        self.folder = Path(folder)
        self._sync_s, self._stall_s, self._create = sync_s, stall_s, create
        self._lock = threading.Lock()
        self._open: list[SessionJournal] = []

    def recover_leftovers(self) -> list[Leftover]:
        """Seal what servers that died left in the folder; see `kstream.mrd.journal.recover_leftovers`."""
        return recover_leftovers(self.folder)

    def open(self, session: int, peer: str) -> SessionJournal:
        """Start the journal of a session; returns at once and never raises on disk trouble.

        While the disk keeps the writer of an earlier session blocked, later sessions go unrecorded: otherwise each of
        them would leave another blocked thread behind.
        """
        with self._lock:
            self._open = [journal for journal in self._open if journal.is_alive]
            is_blocked = any(journal.is_blocked for journal in self._open)
            journal = SessionJournal(
                lambda: self._create(self.folder, session, peer),
                sync_s=self._sync_s,
                stall_s=self._stall_s,
                failure="the disk still keeps an earlier recording waiting" if is_blocked else None,
            )
            self._open.append(journal)
            return journal


class SessionJournal:
    """Writes what one session receives; used by the session's reader thread only, except `failure`.

    Parameters
    ----------
    create : opens the file; called in the writing thread, because a dead disk blocks that too.
    sync_s, stall_s : see `JournalFolder`.
    failure : why nothing shall be recorded from the start.
    """

    def __init__(
        self,
        create: Callable[[], JournalFile],
        *,
        sync_s: float = 1.0,
        stall_s: float = 5.0,
        failure: str | None = None,
    ) -> None:
        self.failure: str | None = failure
        """Why the recording stopped before the session did; None while it is well. Tell the client once."""
        self.path: Path | None = None
        """The finished file; None until `close` has sealed it."""
        self._create, self._sync_s, self._stall_s = create, sync_s, stall_s
        self._start_ns: int | None = None
        self._buffer = bytearray(1 << 18)
        self._n_bytes = 0
        self._gave_up = False
        self._is_closed = failure is not None
        self._jobs: SimpleQueue[_Chunk | _End] = SimpleQueue()
        self._answers: SimpleQueue[None] = SimpleQueue()
        self._is_syncing_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kstream-journal", daemon=True)
        if not self._is_closed:
            self._thread.start()

    @property
    def is_alive(self) -> bool:
        """True while the writing thread runs: after `close` only if the disk blocks it."""
        return self._thread.is_alive()

    @property
    def is_blocked(self) -> bool:
        """True while the disk has not answered for longer than `stall_s`."""
        return self._gave_up and self._thread.is_alive()

    def write(self, view: memoryview, received_ns: int) -> None:
        """Record received bytes; returns when the operating system has them, or when recording was given up.

        From then on a ``kill -9`` of the process does not lose them. They are copied first, so the caller's buffer is
        free again even if the disk still holds ours.

        Parameters
        ----------
        view : contiguous bytes.
        received_ns : monotonic time at which they came; the file keeps the time since the first of them.
        """
        if self.failure is not None or self._is_closed or not view.nbytes:
            return
        data = view.cast("B")
        if len(data) > len(self._buffer):
            self._buffer = bytearray(len(data))
        self._buffer[: len(data)] = data
        if self._start_ns is None:
            self._start_ns = received_ns
        self._jobs.put(_Chunk(memoryview(self._buffer)[: len(data)], received_ns - self._start_ns))
        if self._await_answer():
            self._n_bytes += len(data)

    def close(self, complete: bool, reason: str = "") -> None:
        """Seal the file; returns after `stall_s` at the latest, even if the disk does not answer.

        Parameters
        ----------
        complete : True if the client said CLOSE.
        reason : why not.
        """
        if self._is_closed:
            return
        self._is_closed = True
        self._jobs.put(_End(complete, reason))
        if self._await_answer():
            self._thread.join(self._stall_s)

    def _await_answer(self) -> bool:
        try:
            self._answers.get(timeout=self._stall_s)
        except Empty:
            self._fail(f"the disk did not answer for {self._stall_s:g} s")
            self._is_closed = self._gave_up = True
            self._jobs.put(_End(False, ""))  # when it wakes up, the thread ends the file and itself
            return False
        return self.failure is None

    def _fail(self, why: str) -> None:
        if self.failure is None:
            self.failure = f"recording stopped after {self._n_bytes} bytes of this session: {why}"

    # ---- in the writing thread

    def _run(self) -> None:
        job = self._jobs.get()
        file, syncer = self._begin() if isinstance(job, _Chunk) else (None, None)
        while isinstance(job, _Chunk):
            if file is not None:
                try:
                    file.append(job.data, job.elapsed_ns)
                except OSError as error:
                    self._fail(_explained(error))
            if file is not None and self.failure is not None:
                self._seal(file, _End(False, ""), syncer)  # now, before others take the room that is left
                file = None
            self._answers.put(None)
            job = self._jobs.get()
        if file is not None:
            self._seal(file, job, syncer)
        self._answers.put(None)

    def _begin(self) -> tuple[JournalFile | None, threading.Thread | None]:
        """The file and the thread that syncs it; a client that sends nothing leaves no file."""
        try:
            file = self._create()
        except OSError as error:
            self._fail(_explained(error))
            return None, None
        try:
            duplicate = file.duplicate()
        except OSError as error:
            self._fail(_explained(error))
            return file, None
        syncer = threading.Thread(target=self._sync, args=(duplicate,), name="kstream-journal-sync", daemon=True)
        try:
            syncer.start()
        except RuntimeError as error:  # the machine gives no more threads
            duplicate.close()
            self._fail(str(error))
            return file, None
        return file, syncer

    def _seal(self, file: JournalFile, end: _End, syncer: threading.Thread | None) -> None:
        self._is_syncing_over.set()
        if syncer is not None:
            syncer.join()
        try:
            self.path = file.seal(end.complete and self.failure is None, self.failure or end.reason)
        except OSError as error:
            self._fail(f"{_explained(error)}; the file keeps its name {file.path.name}")

    def _sync(self, file: JournalFile) -> None:
        try:
            while not self._is_syncing_over.wait(self._sync_s):
                file.sync()
        except OSError as error:
            self._fail(_explained(error))
        finally:
            file.close()


def _explained(error: OSError) -> str:
    return f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")
