"""The file below an HDF5 file that we write.

HDF5 (2.0 and before) does not survive a disk that refuses bytes: chunks and metadata that cannot be flushed keep their
datasets half closed, and closing the file then reads freed memory: the process dies of SIGSEGV, wherever h5py is used
in it. So HDF5 is never told. The first refusal is noted, what it writes from then on stays in memory until the file
is closed, and the caller looks at `error` after each of its calls.
"""

from __future__ import annotations

import errno
import fcntl
import io
import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

log = logging.getLogger("kstream.mrd")


class Storage(io.RawIOBase):
    """A locked temporary file that accepts every byte, for h5py's file-object driver.

    Parameters
    ----------
    path : made, or emptied if a writer that died left it behind.

    Raises
    ------
    OSError
        If it cannot be made; BlockingIOError if another writer that lives has it open.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.error: OSError | None = None
        self._path = path
        self._position = 0
        self._refused: list[tuple[int, bytes]] = []
        self._descriptor = _open_locked(path)
        self._end = os.fstat(self._descriptor).st_size
        if self._end:
            log.warning("%s was left behind by a writer that was killed; it is replaced", path)
            os.ftruncate(self._descriptor, 0)
            self._end = 0

    def raise_error(self) -> None:
        """Raise what the disk refused, if anything."""
        if self.error is not None:
            raise self.error

    def sync(self) -> None:
        """Wait until the disk has all bytes; raises OSError."""
        self.raise_error()
        os.fsync(self._descriptor)

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._end}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer from the file and from what it refused; what was never written reads as zeros."""
        view = memoryview(buffer).cast("B")
        view[:] = bytes(len(view))
        begin, end = self._position, self._position + len(view)
        n_read = 0
        while n_read < len(view) and (n := os.preadv(self._descriptor, [view[n_read:]], begin + n_read)):
            n_read += n
        for start, data in self._refused:
            low, high = max(start, begin), min(start + len(data), end)
            if low < high:
                view[low - begin : high - begin] = data[low - start : high - start]
        self._position = end
        return len(view)

    def write(self, data: Any) -> int:
        """Take all bytes; a refusal of the disk is noted in `error`."""
        view = memoryview(data).cast("B")
        n_written = 0
        try:
            while self.error is None and n_written < len(view):
                n_written += os.pwrite(self._descriptor, view[n_written:], self._position + n_written)
        except OSError as error:
            self.error = error
        if n_written < len(view):
            self._refused.append((self._position + n_written, bytes(view[n_written:])))
        self._position += len(view)
        self._end = max(self._end, self._position)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        self._end = self._position if size is None else size
        if self.error is None:
            try:
                os.ftruncate(self._descriptor, self._end)
            except OSError as error:
                self.error = error
        return self._end

    def close(self) -> None:
        if not self.closed:
            super().close()
            os.close(self._descriptor)
            self._refused.clear()


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Let handlers that may raise wait until the block is over: KeyboardInterrupt above all.

    Python runs handlers in the main thread, between any two of its instructions: also inside the methods of `Storage`
    that HDF5 calls, which would be a refusal like one of the disk. Elsewhere handlers do not run, nor can they be set.
    """
    came: list[tuple[int, FrameType | None]] = []
    handlers: dict[int, Callable[[int, FrameType | None], object]] = {}
    with suppress(ValueError):  # not the main thread
        for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            handler = signal.getsignal(kind)
            if callable(handler):
                signal.signal(kind, lambda number, frame: came.append((number, frame)))
                handlers[kind] = handler
    try:
        yield
    finally:
        for number in reversed(handlers):
            signal.signal(number, handlers[number])
        for number, frame in came:
            handlers[number](number, frame)


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the names in a folder, where its file system can do that; raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # network file systems
            raise
    finally:
        os.close(descriptor)


def _open_locked(path: Path) -> int:
    """Open a file that nobody else writes; a file that its writer renamed meanwhile is not taken for ours."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _lock(descriptor)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):  # file systems without locks exist
            raise
