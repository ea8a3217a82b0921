"""Takes journals, gives what was received: messages, a recording to read from, an ISMRMRD file.

What counts is what the bytes say: a measurement is complete if its CLOSE was received, whatever became of the server.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from ..errors import ProtocolError, RecordingError
from ..types import Acquisition, Scan
from .buffers import GADGET_FORMATS
from .codec import FORMATS, Decoder, Limits
from .header import parse_header
from .journal import PART, SUFFIX, JournalReader, is_being_written, is_journal
from .messages import Close, ConfigFile, ConfigText, Header, Image, Message, Opaque, Text, Waveform
from .recording import BLOCK, Recording, RecordingWriter
from .session import Session

BLOCK_BYTES = 64 * 2**20
"""A block of acquisitions is written once it holds as much, or ``BLOCK`` of them."""

HANDSHAKE = (ConfigFile, ConfigText, Header, Close)
"""Messages of every session, which are no data."""

Status = Literal["complete", "incomplete", "empty", "exists", "in use", "failed"]


class JournalMessages:
    """The messages of a journal in the order in which they came; iterate once.

    Acquisitions carry the time at which they came, in ns since the journal began.

    Attributes
    ----------
    n_bulk : buckets, buffers and image arrays of Gadgetron, which are only counted.
    incomplete : why CLOSE never came, known after the last message; empty if it came.
    bytes_lost : bytes of session and file that belong to no whole message, known after the last message.
    """

    def __init__(self, reader: JournalReader) -> None:
        self._reader = reader
        self._decoder = Decoder(_limits(reader.path.stat().st_size), GADGET_FORMATS | FORMATS)
        self._rules = Session("server")
        self._n_decoded = 0
        self.n_bulk = 0
        self.incomplete = ""
        self.bytes_lost = 0

    def __iter__(self) -> Iterator[Message]:
        records = self._reader.records()
        fault = ""
        try:
            for elapsed_ns, payload in records:
                yield from self._messages(memoryview(payload), elapsed_ns)
                if self._rules.is_closed:
                    break
        except ProtocolError as error:
            fault = error.what + (f" ({error.where})" if error.where else "")
        for _ in records:  # what follows CLOSE or an error only counts
            pass
        self._judge(fault)

    def _messages(self, payload: memoryview, elapsed_ns: int) -> Iterator[Message]:
        while payload:
            space = self._decoder.space()
            n_bytes = min(len(space), len(payload))
            space[:n_bytes] = payload[:n_bytes]
            payload = payload[n_bytes:]
            self._n_decoded += n_bytes
            for message in self._decoder.filled(n_bytes):
                if isinstance(message, Opaque):
                    self.n_bulk += 1
                    continue
                self._rules.check(message)
                if isinstance(message, Acquisition):
                    message.received_ns = max(1, elapsed_ns)  # 0 says that it never crossed a socket
                yield message
                if self._rules.is_closed:
                    return

    def _judge(self, fault: str) -> None:
        reader = self._reader
        self.bytes_lost = reader.bytes_lost
        if self._rules.is_closed:
            return
        error = self._decoder.error
        said = reader.end.reason if reader.end is not None else ""
        self.incomplete = fault or (error.what if error else "") or said or reader.fault or "the client sent no CLOSE"
        self.bytes_lost += reader.n_bytes - self._n_decoded + self._decoder.pending


class JournalRecording:
    """Reads the acquisitions of a journal as `Recording` reads those of an HDF5 file; use it in a ``with`` statement.

    ``received_ns`` of the acquisitions tells when they came, in ns since the journal began.

    Raises
    ------
    RecordingError
        On entry, if the file is not a journal, or no acquisition was received.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.group = None
        self.xml = b""
        self.n_acquisitions = 0
        self.incomplete = ""

    def __enter__(self) -> Self:
        with JournalReader(self.path) as reader:
            messages = JournalMessages(reader)
            for message in messages:
                self.n_acquisitions += isinstance(message, Acquisition)
                if isinstance(message, Header):
                    self.xml = message.xml
        self.incomplete = messages.incomplete
        if not self.n_acquisitions:
            raise RecordingError(
                f"{self.path.name} has no acquisitions",
                where=str(self.path),
                likely=messages.incomplete or "its session ended after the handshake",
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing stays open between two passes."""

    @cached_property
    def scan(self) -> Scan:
        """The header in our words; raises ScanError or ProtocolError if it cannot be read."""
        return parse_header(self.xml)

    def acquisitions(self) -> Iterator[Acquisition]:
        """Give the acquisitions in the order in which they came."""
        with JournalReader(self.path) as reader:
            for message in JournalMessages(reader):
                if isinstance(message, Acquisition):
                    yield message


def open_recording(path: str | Path, group: str | None = None) -> Recording | JournalRecording:
    """A recording to read from, whatever the file is: ISMRMRD HDF5, or a journal (which has no groups)."""
    return JournalRecording(path) if is_journal(Path(path)) else Recording(path, group)


@dataclass(frozen=True)
class Recovered:
    """What became of one journal.

    Parameters
    ----------
    status : ``complete`` and ``incomplete`` have been written to `output`; ``empty`` had nothing to write; ``exists``:
        `output` was there before and was not touched; ``in use``: a living server writes the journal; ``failed``: it
        is no journal, or the output could not be written.
    reason : why it is not complete; empty if it is.
    n_other : images, queries, texts and what Gadgetron sends in bulk, which a recording has no place for (except
        parameters).
    bytes_received : of the session, as far as they can be read.
    bytes_lost : bytes of session and file that belong to no whole message.
    is_removable : everything that can be used is in `output`.
    """

    journal: Path
    status: Status
    reason: str = ""
    output: Path | None = None
    n_acquisitions: int = 0
    n_waveforms: int = 0
    n_other: int = 0
    bytes_received: int = 0
    bytes_lost: int = 0
    is_removable: bool = False
    session: int = 0
    started_utc: str = ""


def find_journals(path: Path) -> list[Path]:
    """The file itself, or all journals of a folder (sealed or not), oldest first.

    Raises
    ------
    RecordingError
        If there is nothing of that name, or the folder has no journals.
    """
    if not path.is_dir():
        if not path.exists():
            raise RecordingError(f"there is no file {path.name}", where=str(path), hint="check the path")
        return [path]
    found = sorted(p for p in path.iterdir() if p.name.endswith((SUFFIX, PART)))
    if not found:
        raise RecordingError("the folder has no journals", where=str(path), hint="kstream serve --record FOLDER")
    return found


def recover_journal(journal: Path, folder: Path | None = None) -> Recovered:
    """Write what a journal holds as an ISMRMRD file: header, configuration, acquisitions and waveforms.

    Everything that was fully received before the first unusable byte is kept. If CLOSE never came, the file says why in
    the attribute ``incomplete`` of its acquisitions. An existing file is never overwritten, and the journal stays.

    Parameters
    ----------
    journal : the file, sealed or left behind.
    folder : for the output; beside the journal if None.
    """
    stem = journal.name.removesuffix(".part").removesuffix(SUFFIX)
    output = (folder or journal.parent) / f"{stem}.h5"
    if is_being_written(journal):
        return Recovered(journal, "in use", "a server still writes it")
    if output.exists():
        return Recovered(journal, "exists", f"{output.name} is there already and was not touched", output)
    try:
        with JournalReader(journal) as reader:
            found = _recover(reader, output)
            return replace(found, session=reader.head.session, started_utc=reader.head.started_utc)
    except RecordingError as error:
        likely = f" ({error.likely})" if error.likely else ""
        return Recovered(journal, "failed", error.what + likely)


def _recover(reader: JournalReader, output: Path) -> Recovered:
    messages = JournalMessages(reader)
    stream = iter(messages)
    opening: list[Message] = []
    first = None
    for message in stream:
        if isinstance(message, (Acquisition, Waveform)):
            first = message
            break
        opening.append(message)
    if first is None:
        return Recovered(
            reader.path,
            "empty",
            messages.incomplete or "the session ended after the handshake: nothing was measured",
            n_other=messages.n_bulk + sum(not isinstance(m, HANDSHAKE) for m in opening),
            bytes_received=reader.n_bytes,
            bytes_lost=messages.bytes_lost,
            is_removable=not messages.incomplete and not messages.n_bulk,
        )
    header = next(message for message in opening if isinstance(message, Header))  # the session rules make sure of it
    with RecordingWriter(output, header.xml) as writer:
        counts = _write(writer, chain(opening, [first], stream)) + messages.n_bulk
        if messages.incomplete:
            writer.mark_incomplete(messages.incomplete)
    return Recovered(
        reader.path,
        "incomplete" if messages.incomplete else "complete",
        messages.incomplete,
        output,
        n_acquisitions=writer.n_acquisitions,
        n_waveforms=writer.n_waveforms,
        n_other=counts,
        bytes_received=reader.n_bytes,
        bytes_lost=messages.bytes_lost,
        is_removable=not reader.is_damaged and not counts,
    )


def _write(writer: RecordingWriter, messages: Iterable[Message]) -> int:
    """Write all messages that a recording has a place for; gives the number of the others."""
    acquisitions: list[Acquisition] = []
    waveforms: list[Waveform] = []
    n_bytes = n_other = 0
    has_parameters = False
    for message in messages:
        match message:
            case Acquisition():
                acquisitions.append(message)
                n_bytes += message.data.nbytes + message.trajectory.nbytes
            case Waveform():
                waveforms.append(message)
                n_bytes += message.data.nbytes
            case ConfigFile(name=name):
                writer.note_text("config_file", name)
            case ConfigText(text=text):
                writer.note_text("config", text)
            case Text(text=text) if _is_json(text) and not has_parameters:
                writer.note_text("configAdditional", text)
                has_parameters = True
            case Image() | Text():
                n_other += 1
        if max(len(acquisitions), len(waveforms)) >= BLOCK or n_bytes >= BLOCK_BYTES:
            writer.append(acquisitions)
            writer.append_waveforms(waveforms)
            acquisitions, waveforms, n_bytes = [], [], 0
    writer.append(acquisitions)
    writer.append_waveforms(waveforms)
    return n_other


def _limits(n_bytes: int) -> Limits:
    """At least the default ones; those of the server are unknown, but what is larger than its journal is not whole."""
    usual = Limits()
    return replace(usual, **{limit.name: max(getattr(usual, limit.name), n_bytes) for limit in fields(usual)})


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
