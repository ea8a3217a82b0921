"""Pipe mode: a session over standard input and output, and recordings as byte streams to feed it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import ConfigError, KstreamError, PeerError
from ..mrd.codec import ID_BYTES, encode, encode_parts
from ..mrd.messages import Close, ConfigFile, Message, MessageId
from ..mrd.recovering import open_recording
from .connection import PipeConnection
from .metrics import ServerMetrics
from .replay import opening
from .session import ServerSession
from .settings import ServerSettings
from .store import ModelStore, SegmentSource

PATIENT_S = 86_400.0
"""Deadlines of a pipe: whoever fills it may work for long before the first byte, and can be seen and interrupted."""


class StreamConnection(PipeConnection):
    """A pipe whose stream may lack its configuration, as ``ismrmrd_hdf5_to_stream`` writes it without ``-c``.

    Parameters
    ----------
    preset : configuration for a stream that begins with HEADER; empty leaves the stream as it is.
    """

    def __init__(self, fd_in: int, fd_out: int, preset: str = "") -> None:
        super().__init__(fd_in, fd_out)
        self._preset = preset
        self._first = bytearray()
        self._is_open = not preset  # what comes is passed on
        self._ahead = b""

    def _read(self, view: memoryview) -> int:
        if not self._is_open:
            self._peek()
        if self._ahead:
            n_bytes = min(len(view), len(self._ahead))
            view[:n_bytes] = self._ahead[:n_bytes]
            self._ahead = self._ahead[n_bytes:]
            return n_bytes
        return super()._read(view)

    def _peek(self) -> None:
        """Read the id of the first message, and put the configuration before it if it is a header."""
        while len(self._first) < ID_BYTES:
            rest = bytearray(ID_BYTES - len(self._first))
            n_bytes = super()._read(memoryview(rest))
            if not n_bytes:
                break
            self._first += rest[:n_bytes]
        is_header = int.from_bytes(self._first, "little") == MessageId.HEADER
        self._ahead = (encode(ConfigFile(self._preset)) if is_header else b"") + bytes(self._first)
        self._is_open = True


def stream(
    fd_in: int,
    fd_out: int,
    *,
    preset: str = "",
    config: Path | None = None,
    settings: tuple[str, ...] = (),
    models: SegmentSource | None = None,
    guard: Callable[[ServerSession], contextlib.AbstractContextManager[None]] = lambda _: contextlib.nullcontext(),
) -> KstreamError | None:
    """Serve one session over a pair of descriptors; gives the error that ended it, None if all went well.

    Parameters
    ----------
    fd_in, fd_out : pipes or files; they stay open.
    preset : configuration for a stream that begins with HEADER.
    config, settings : TOML file, and ``section.key=value``, for the session.
    guard : gives a context manager around the session, which may `interrupt` it.
    """
    limits = ServerSettings(
        handshake_s=PATIENT_S,
        message_s=PATIENT_S,
        idle_s=PATIENT_S,
        send_s=PATIENT_S,
        config=config,
        settings=settings,
    )
    connection = StreamConnection(fd_in, fd_out, preset)
    session = ServerSession(connection, 1, limits, models or ModelStore(), ServerMetrics(), lambda: None)
    with guard(session):
        session.run()
    return session.error


def write_stream(
    recording: Path, target: Path, preset: str, parameters: dict[str, Any] | None = None, group: str | None = None
) -> int:
    """Write a recording as the bytes that `replay` would send; gives the number of acquisitions.

    Parameters
    ----------
    target : a file, or ``-`` for standard output.

    Raises
    ------
    RecordingError : the file is not a recording.
    PeerError : whoever reads the stream went away.
    """
    n_acquisitions = 0
    with open_recording(recording, group) as source, _opened(target, recording) as out:
        try:
            for message in opening(source.xml, preset, parameters, wants_summary=False):
                _write(out, message)
            for acquisition in source.acquisitions():
                _write(out, acquisition)
                n_acquisitions += 1
            _write(out, Close())
            out.flush()
        except BrokenPipeError:
            raise PeerError(
                "whoever reads the stream went away", where=f"after {n_acquisitions} acquisitions", code="no_reader"
            ) from None
    return n_acquisitions


def _write(out: BinaryIO, message: Message) -> None:
    out.writelines(encode_parts(message))


@contextlib.contextmanager
def _opened(target: Path, recording: Path) -> Iterator[BinaryIO]:
    if str(target) == "-":
        refuse_terminal(sys.stdout.fileno(), "standard output")
        with contextlib.suppress(BrokenPipeError), os.fdopen(os.dup(sys.stdout.fileno()), "wb") as out:
            yield out
        return
    if target.exists() and target.samefile(recording):
        raise ConfigError("the stream would overwrite the recording", where=str(target), hint="another file")
    with target.open("wb") as file:
        yield file


def refuse_terminal(descriptor: int, name: str) -> None:
    """Bytes are not for people.

    Raises
    ------
    ConfigError : the descriptor is a terminal.
    """
    if os.isatty(descriptor):
        raise ConfigError(
            f"{name} is a terminal", likely="nothing was redirected", hint="kstream stream < in.mrd > out.mrd"
        )
