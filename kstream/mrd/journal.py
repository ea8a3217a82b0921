"""Journals: every byte that a session received, in a file that survives the death of its writer.

Layout, all little-endian::

    magic     8 bytes, MAGIC
    head      record "HEAD": JSON with format, kstream, session, started_utc, peer
    data      records "DATA": bytes as they came, with the time at which they came
    end       record "DONE": JSON with complete, reason, n_bytes, n_records, bytes_lost

    record    tag (4 bytes), length of the payload (uint32), ns since the start (uint64), crc32 (uint32), payload

The crc covers tag, length, time and payload (zlib's CRC-32). A file is named ``DATETIME-SESSION.journal.part`` and
locked (flock) while its session lives, and ``DATETIME-SESSION.journal`` once its end is written: a ``.part`` that
nobody locks belonged to a server that died. Names never contain anything that a client said.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..errors import RecordingError
from ._storage import sync_folder

MAGIC = b"\x89KSJ\r\n\x1a\n"  # as PNG does: a transfer that touches line ends or the eighth bit shows at once
FORMAT = 1
SUFFIX = ".journal"
PART = ".journal.part"
MAX_RECORD_BYTES = 64 * 2**20
"""Longest payload of one record; longer ones are split."""

END_ROOM = 4096
"""Bytes left free for the end record when the disk is full."""

MAX_REASON = 500
"""Characters of a reason, so that the end fits its room."""

_RECORD = struct.Struct("<4sIQI")
_CHECKED = struct.Struct("<4sIQ")  # the part of the record's head that its crc covers
_datasync: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync


@dataclass(frozen=True)
class JournalHead:
    """Which session a journal belongs to; never anything about the patient."""

    session: int
    peer: str
    started_utc: str
    kstream: str = ""
    format: int = FORMAT


@dataclass(frozen=True)
class JournalEnd:
    """How a journal ended.

    Parameters
    ----------
    complete : True if everything that was to come is in the file.
    reason : why not, if not.
    n_bytes, n_records : what the data records hold together.
    bytes_lost : bytes of the file that were cut off because they could not be read.
    """

    complete: bool
    reason: str
    n_bytes: int
    n_records: int
    bytes_lost: int = 0


@dataclass(frozen=True)
class Leftover:
    """A journal of a server that died: the name that it has now, and how it ended."""

    path: Path
    n_bytes: int
    bytes_lost: int
    reason: str


class JournalFile:
    """Writes one journal; no threads: every call returns when the operating system has taken the bytes.

    Parameters
    ----------
    descriptor : open for writing, at its end; closed by `seal` and `close`.
    path : where it lies now, ending in ``.part``; renamed by `seal`.
    """

    def __init__(self, descriptor: int, path: Path) -> None:
        self.path = path
        self._descriptor = descriptor
        self._size = 0  # of the file up to the last whole record
        self.n_bytes = 0
        self.n_records = 0

    @classmethod
    def create(cls, folder: Path, session: int, peer: str) -> Self:
        """Start a journal in `folder`, lock it, and write its head.

        Raises
        ------
        OSError
            If the file cannot be made: no folder, no permission, no room.
        """
        now = datetime.now(UTC)
        descriptor, path = _create(folder, f"{now:%Y%m%dT%H%M%S.%fZ}-{session:06d}")
        file = cls(descriptor, path)
        try:
            head = JournalHead(session, peer, now.isoformat(), version("kstream"))
            _write_all(descriptor, MAGIC + _record(b"HEAD", 0, json.dumps(asdict(head)).encode()))
        except OSError:
            file.close()
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        file._size = os.fstat(descriptor).st_size
        return file

    def append(self, payload: memoryview, elapsed_ns: int) -> None:
        """Add received bytes.

        Parameters
        ----------
        payload : the bytes, one-dimensional.
        elapsed_ns : from the start of the journal until they came.

        Raises
        ------
        OSError
            If the system does not take them; what fitted stays in the file as a shorter record.
        """
        for start in range(0, len(payload), MAX_RECORD_BYTES):
            self._append(payload[start : start + MAX_RECORD_BYTES], elapsed_ns)

    def sync(self) -> None:
        """Wait until the disk has everything that was appended; raises OSError, also if the file was deleted."""
        _datasync(self._descriptor)
        if os.fstat(self._descriptor).st_nlink == 0:
            raise OSError(errno.ENOENT, "the file was deleted while it was written")

    def duplicate(self) -> Self:
        """The same open file under another descriptor, for a thread that only syncs."""
        return type(self)(os.dup(self._descriptor), self.path)

    def seal(self, complete: bool, reason: str = "", bytes_lost: int = 0) -> Path:
        """Write the end, wait for the disk, give the file its final name and close it.

        Raises
        ------
        OSError
            If any of that fails; the file is closed and keeps the name that it has.
        """
        try:
            end = JournalEnd(complete, reason[:MAX_REASON], self.n_bytes, self.n_records, bytes_lost)
            _write_all(self._descriptor, _record(b"DONE", 0, json.dumps(asdict(end)).encode()))
            self.sync()
            return self._rename()
        finally:
            self.close()

    def seal_leftover(self) -> Leftover | None:
        """Seal a file whose writer died: cut it behind its last good record, and say so in its end.

        A file that is damaged in the middle only gets its final name, because what follows may be worth a look, and
        one that holds nothing that was received is removed. None if the file is no journal.

        Raises
        ------
        BlockingIOError
            If its writer lives.
        OSError
            If the file cannot be changed.
        """
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            with JournalReader(self.path) as reader:
                for _ in reader.records():
                    pass
        except RecordingError:
            if any(os.pread(self._descriptor, 1, len(MAGIC))):  # it has a head, of another version or damaged
                return None
            self.path.unlink()
            return Leftover(self.path, 0, 0, "it held nothing and was removed")
        if reader.end is not None or reader.is_damaged:
            return Leftover(self._rename(), reader.n_bytes, reader.bytes_lost, reader.fault)
        os.ftruncate(self._descriptor, reader.offset)
        os.lseek(self._descriptor, 0, os.SEEK_END)
        self.n_bytes, self.n_records = reader.n_bytes, reader.n_records
        reason = "the server died while it recorded"
        return Leftover(self.seal(False, reason, reader.bytes_lost), reader.n_bytes, reader.bytes_lost, reason)

    def _rename(self) -> Path:
        final = _final_path(self.path)
        os.rename(self.path, final)
        sync_folder(final.parent)
        self.path = final
        return final

    def close(self) -> None:
        """Close without an end; the lock goes with it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _append(self, payload: memoryview, elapsed_ns: int) -> None:
        head = _head(b"DATA", elapsed_ns, payload)
        n_record = len(head) + len(payload)
        n_written = 0
        try:
            n_written = os.writev(self._descriptor, [head, payload])
            while n_written < n_record:  # a signal or a disk that is nearly full
                rest = payload[max(0, n_written - len(head)) :]
                n_written += os.writev(self._descriptor, [head[n_written:], rest])
        except OSError:
            self._keep_what_fitted(payload[: max(0, n_written - len(head) - END_ROOM)], elapsed_ns)
            raise
        self._count(len(payload))

    def _keep_what_fitted(self, payload: memoryview, elapsed_ns: int) -> None:
        """Turn a record that was cut by a full disk into a whole one with fewer bytes, and free room for the end."""
        with contextlib.suppress(OSError):
            if len(payload):
                head = _head(b"DATA", elapsed_ns, payload)
                os.pwrite(self._descriptor, head, self._size)
                self._count(len(payload))
            os.ftruncate(self._descriptor, self._size)
            os.lseek(self._descriptor, 0, os.SEEK_END)

    def _count(self, n_bytes: int) -> None:
        self._size += _RECORD.size + n_bytes
        self.n_bytes += n_bytes
        self.n_records += 1


class JournalReader:
    """Reads a journal up to its end or to the first record that is cut or damaged; use it in a ``with`` statement.

    ``fault`` and ``end`` are known once `records` is exhausted.

    Attributes
    ----------
    head : which session it was.
    end : the end record; None if the file has none that can be read.
    fault : at which byte reading stopped, and why; empty if the end record was reached.
    is_damaged : True if what stopped the reading is not explained by a writer that was killed or had no room.
    n_bytes, n_records : what was read.
    bytes_lost : bytes of the file behind the last good record, and what was cut off when the journal was sealed.

    Raises
    ------
    RecordingError
        On entry, if the file is missing or is not a journal.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file: Any = None
        self._offset = 0
        self._size = 0
        self.end: JournalEnd | None = None
        self.fault = ""
        self.is_damaged = False
        self.n_bytes = self.n_records = self.bytes_lost = 0

    def __enter__(self) -> Self:
        try:
            self._file = self.path.open("rb")
        except OSError as error:
            raise RecordingError(f"{self.path.name} cannot be read: {error.strerror}", where=str(self.path)) from error
        try:
            self.head = self._read_head()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def offset(self) -> int:
        """Bytes of the file up to the end of the last good record."""
        return self._offset

    def records(self) -> Iterator[tuple[int, bytes]]:
        """Give ``(ns since the start, bytes)`` of every whole data record, in the order of arrival."""
        while (record := self._next()) is not None:
            tag, elapsed_ns, payload = record
            if tag == b"DONE":
                self._finish(payload)
                return
            self.n_bytes += len(payload)
            self.n_records += 1
            yield elapsed_ns, payload

    def _read_head(self) -> JournalHead:
        self._size = os.fstat(self._file.fileno()).st_size
        what = f"{self.path.name} is not a journal of kstream"
        if self._file.read(len(MAGIC)) != MAGIC:
            raise RecordingError(what, where=str(self.path), likely="the file is empty, or of another kind")
        self._offset = len(MAGIC)
        record = self._next()
        try:
            if record is None or record[0] != b"HEAD":
                raise ValueError(self.fault or "its first record is not a head")
            fields = json.loads(record[2])
            if fields["format"] != FORMAT:
                raise RecordingError(
                    f"{self.path.name} has journal format {fields['format']}, this version reads {FORMAT}",
                    where=str(self.path),
                    hint=f"use the version that wrote it: kstream {fields.get('kstream', '')}",
                )
            return JournalHead(**fields)
        except (ValueError, LookupError, TypeError) as error:
            raise RecordingError(f"{what}: {error}", where=str(self.path)) from error

    def _next(self) -> tuple[bytes, int, bytes] | None:
        """The next record, or None with ``fault`` set."""
        left = self._size - self._offset
        if left == 0:
            self._stop("the file ends without an end record; its writer was killed or had no room")
            return None
        if left < _RECORD.size:
            self._stop(f"the file ends inside the head of a record ({left} of {_RECORD.size} bytes)")
            return None
        head = self._file.read(_RECORD.size)
        tag, length, elapsed_ns, crc = _RECORD.unpack(head)
        if tag not in (b"HEAD", b"DATA", b"DONE") or length > MAX_RECORD_BYTES:
            self._stop("the bytes are no record", is_damaged=any(head))
            return None
        if length > left - _RECORD.size:
            self._stop(f"the file ends inside a record ({left - _RECORD.size} of {length} bytes)")
            return None
        payload = self._file.read(length)
        if len(payload) != length or zlib.crc32(payload, zlib.crc32(head[: _CHECKED.size])) != crc:
            self._stop("a record does not match its checksum", is_damaged=True)
            return None
        self._offset += _RECORD.size + length
        return tag, elapsed_ns, payload

    def _stop(self, why: str, is_damaged: bool = False) -> None:
        self.fault = f"at byte {self._offset}: {why}"
        self.is_damaged = is_damaged
        self.bytes_lost = self._size - self._offset

    def _finish(self, payload: bytes) -> None:
        try:
            self.end = JournalEnd(**json.loads(payload))
        except (ValueError, TypeError) as error:
            self._stop(f"the end record cannot be read: {error}", is_damaged=True)
            return
        self.bytes_lost = self.end.bytes_lost
        if (self.end.n_bytes, self.end.n_records) != (self.n_bytes, self.n_records):
            self.is_damaged = True
            self.fault = (
                f"the end record counts {self.end.n_bytes} bytes in {self.end.n_records} records, "
                f"but {self.n_bytes} in {self.n_records} were read"
            )
        elif self._offset != self._size:
            self.is_damaged = True
            self.fault = f"at byte {self._offset}: {self._size - self._offset} bytes follow the end record"


def is_journal(path: Path) -> bool:
    """True if the file begins as a journal does."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def is_being_written(path: Path) -> bool:
    """True if a living process has the file open as its journal."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # a file system without locks: nobody can hold one
    finally:
        os.close(descriptor)
    return False


def recover_leftovers(folder: str | Path) -> list[Leftover]:
    """Seal the ``.part`` files of servers that died, so that nothing in the folder looks as if it were still growing.

    Call it when a server starts. Journals of living servers are left alone, and so is what is not a journal. What
    cannot be read behind the last good record is cut off and counted in the end record.

    Raises
    ------
    RecordingError
        If the folder cannot be read.
    """
    folder = Path(folder)
    try:
        parts = sorted(path for path in folder.iterdir() if path.name.endswith(PART))
    except OSError as error:
        raise RecordingError(
            f"the folder of the journals cannot be read: {error.strerror}", where=str(folder)
        ) from error
    found = []
    for path in parts:
        with contextlib.suppress(OSError):  # taken away meanwhile, or read-only: the next start tries again
            leftover = _seal_leftover(path)
            if leftover is not None:
                found.append(leftover)
    return found


def _seal_leftover(path: Path) -> Leftover | None:
    file = JournalFile(os.open(path, os.O_RDWR | os.O_CLOEXEC), path)
    try:
        return file.seal_leftover()
    except BlockingIOError:  # its server lives
        return None
    finally:
        file.close()


def _final_path(part: Path) -> Path:
    final = part.with_name(part.name.removesuffix(".part"))
    if final.exists():
        raise FileExistsError(errno.EEXIST, "the name of the finished journal is taken", str(final))
    return final


def _create(folder: Path, stem: str) -> tuple[int, Path]:
    """A new locked file; names are taken by creating them, so two servers may share a folder."""
    for number in range(1000):
        name = stem if number == 0 else f"{stem}-{number}"
        path = folder / f"{name}{PART}"
        if (folder / f"{name}{SUFFIX}").exists():
            continue
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            continue
        with contextlib.suppress(OSError):  # file systems without locks exist
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # whoever looks for leftovers holds it for a moment at most
        if os.fstat(descriptor).st_nlink:
            return descriptor, path
        os.close(descriptor)  # taken for an empty leftover before it was locked
    raise FileExistsError(errno.EEXIST, "no free name for a journal", str(folder / stem))


def _record(tag: bytes, elapsed_ns: int, payload: bytes) -> bytes:
    return _head(tag, elapsed_ns, memoryview(payload)) + payload


def _head(tag: bytes, elapsed_ns: int, payload: memoryview) -> bytes:
    checked = _CHECKED.pack(tag, len(payload), max(0, elapsed_ns))
    return checked + zlib.crc32(payload, zlib.crc32(checked)).to_bytes(4, "little")


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
