"""The door for ``<connect>``, and what it shares with the MRD server beside it: limits, journals, metrics, stopping."""

from __future__ import annotations

import contextlib
import errno
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from kstream.errors import PeerError
from kstream.mrd.recording import Recording
from kstream.mrd.recovering import find_journals, recover_journal
from kstream.serve import gadget_session
from kstream.serve.connection import Buffer
from kstream.serve.gadget_door import GadgetDoor
from kstream.serve.server import MrdServer
from kstream.serve.settings import LOOPBACK, ServerSettings
from tests.gadgets import specification as spec
from tests.gadgets.gadgetron_double import STARS, Gadgetron, ids, readouts
from tests.serve.conftest import Client

MakeDoor = Callable[..., GadgetDoor]
Both = Callable[..., tuple[MrdServer, GadgetDoor]]
PRESET = "breast-dce-recon"
N_IMAGES = STARS.n_frames * STARS.nz


@pytest.fixture(autouse=True)
def _closed_afterwards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every Gadgetron that dialled hangs up, also if its test failed."""
    dial, made = Gadgetron.dial, []

    def noted(port: int) -> Gadgetron:
        made.append(dial(port))
        return made[-1]

    monkeypatch.setattr(Gadgetron, "dial", noted)
    yield
    for gadgetron in made:
        gadgetron.close()


@pytest.fixture
def both(doors: MakeDoor) -> Iterator[Both]:
    """Makes a running MRD server with a door for Gadgetron."""
    running: list[tuple[MrdServer, threading.Thread]] = []

    def make(**settings: object) -> tuple[MrdServer, GadgetDoor]:
        server = MrdServer(LOOPBACK[:1], 0, ServerSettings(**settings))  # type: ignore[arg-type]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        running.append((server, thread))
        return server, doors(server=server)

    yield make
    for server, thread in running:
        server.stop(0.0)
        thread.join(10)


def measuring(door: GadgetDoor) -> Gadgetron:
    """A Gadgetron whose scan runs: one image has come back."""
    gadgetron = Gadgetron.dial(door.port)
    gadgetron.open(preset=PRESET, target="reconstruct")
    gadgetron.send(picture())
    with gadgetron.socket.makefile("rb") as stream:
        assert spec.read_message(stream).id == 1022
    return gadgetron


def picture() -> bytes:
    return spec.image((7, 3, 1), struct.pack("<42f", *range(42)))


def whole_scan(door: GadgetDoor, *items: bytes) -> list[spec.Incoming]:
    gadgetron = Gadgetron.dial(door.port)
    with contextlib.closing(gadgetron):
        gadgetron.open(preset=PRESET, target="reconstruct")
        return gadgetron.whole_scan(*items)


def until(is_true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while not is_true() and time.monotonic() < deadline:
        time.sleep(0.005)
    return is_true()


# ---- limits ----------------------------------------------------------------------------------------------------------


def test_full_door_says_so_without_a_session(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    server, door = both(max_sessions=1)
    first = measuring(door)
    begun: list[object] = []
    monkeypatch.setattr(gadget_session, "parse_header", begun.append)
    second = Gadgetron.dial(door.port)
    second.open(preset=PRESET, target="reconstruct")
    found = second.receive()
    assert ids(found) == [8, 4]
    assert "busy" in found[0].text
    assert not begun
    assert server.metrics.value("sessions_total", outcome="busy") == 1
    first.close()
    second.close()


def test_one_limit_counts_both_doors(both: Both) -> None:
    server, door = both(max_sessions=1)
    first = measuring(door)
    client = Client(server.port)
    refused = b""
    with contextlib.suppress(ConnectionError):
        while data := client.socket.recv(1 << 16):
            refused += data
    assert b"busy" in refused
    client.socket.close()
    first.send(spec.CLOSE)
    assert ids(first.receive()) == [4]
    assert ids(whole_scan(door)) == [4]  # there is room again
    first.close()


def test_header_that_comes_when_the_last_place_was_taken_is_refused_unread(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, door = both(max_sessions=1)
    early = Gadgetron.dial(door.port)
    early.send(spec.config(spec.properties(preset=PRESET, target="reconstruct")))
    assert until(lambda: any(session is not None for session in door._sessions.values()))
    first = measuring(door)
    begun: list[object] = []
    monkeypatch.setattr(gadget_session, "parse_header", begun.append)
    early.send(spec.header(STARS.scan().xml))
    found = early.receive()
    assert ids(found) == [8, 4]
    assert "busy" in found[0].text
    assert not begun
    early.close()
    first.close()


def test_no_scan_begins_above_the_memory_limit(both: Both) -> None:
    server, door = both(memory_gib=1e-6)
    found = whole_scan(door, picture())
    assert ids(found) == [8, 4]
    assert "memory is used up" in found[0].text
    door.stop()
    assert server.metrics.value("sessions_total", outcome="memory") == 1


def test_memory_watch_ends_the_youngest_scan_of_the_door(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    _, door = both()
    old, young = measuring(door), measuring(door)
    sizes = iter([1 << 50])
    monkeypatch.setattr("kstream.serve.server.resident_bytes", lambda: next(sizes, 0))
    found = young.receive()
    assert ids(found) == [8, 4]
    assert "memory is used up" in found[0].text
    old.send(picture(), spec.CLOSE)
    assert ids(old.receive()) == [1022, 4]
    old.close()
    young.close()


def test_door_without_a_thread_for_a_session_lives(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    server, door = both()
    start = threading.Thread.start

    def fail(thread: threading.Thread) -> None:
        if thread.name in failing:
            raise RuntimeError("can't start new thread")
        start(thread)

    failing: set[str] = set()
    monkeypatch.setattr(threading.Thread, "start", fail)
    for n, name in enumerate(["kstream-gadget", "kstream-send-g1"], 1):
        failing.add(name)
        with contextlib.closing(Gadgetron.dial(door.port)) as dropped:
            assert dropped.socket.recv(1) == b""
        assert until(lambda n=n: server.metrics.value("sessions_total", outcome="error") == n)  # type: ignore[misc]
        failing.clear()
    monkeypatch.undo()
    assert ids(whole_scan(door, picture())) == [1022, 4]


# ---- recording and counting ------------------------------------------------------------------------------------------


def test_recorded_scan_is_recovered_with_every_acquisition(both: Both, tmp_path: Path) -> None:
    _, door = both(record=tmp_path)
    sent = [readout.message for readout in readouts()]
    assert ids(whole_scan(door, *sent, picture())) == [1022] * (N_IMAGES + 1) + [4]
    door.stop()
    (journal,) = find_journals(tmp_path)
    found = recover_journal(journal)
    assert (found.status, found.n_acquisitions, found.n_other) == ("complete", len(sent), 1)
    assert found.output is not None
    with Recording(found.output) as recording:
        assert recording.xml == STARS.scan().xml


def test_recorded_bulk_is_told_and_its_journal_kept(both: Both, tmp_path: Path) -> None:
    _, door = both(record=tmp_path)
    cut = readouts()[5:]
    sent = [spec.bucket(cut[:40], [], [(2, 3)], [spec.stats(*[(0,)] * 9)]), cut[40].message]
    whole_scan(door, *sent)
    whole_scan(door, *sent[:1])
    door.stop()
    mixed, bulk = (recover_journal(journal) for journal in find_journals(tmp_path))
    assert (mixed.status, mixed.n_acquisitions, mixed.n_other, mixed.is_removable) == ("complete", 1, 1, False)
    assert (bulk.status, bulk.n_acquisitions, bulk.n_other, bulk.is_removable) == ("empty", 0, 1, False)


def test_scans_without_a_header_leave_no_journal(both: Both, tmp_path: Path) -> None:
    server, door = both(record=tmp_path)
    gadgetron = Gadgetron.dial(door.port)
    assert ids(gadgetron.whole_scan()) == [4]
    gadgetron.close()
    door.stop()
    assert list(tmp_path.iterdir()) == []
    assert server.metrics.value("sessions_total", outcome="probe") == 1


def test_recording_that_fails_does_not_end_the_scan(both: Both, tmp_path: Path) -> None:
    server, door = both(record=tmp_path / "absent")
    assert ids(whole_scan(door, picture())) == [1022, 4]
    door.stop()
    assert server.metrics.value("recording_failures_total") == 1


def test_sessions_are_counted_with_those_of_the_server(both: Both) -> None:
    server, door = both()
    sent = [readout.message for readout in readouts()]
    gadgetron = measuring(door)
    assert server.metrics.value("open_sessions") == 1
    gadgetron.send(*sent, spec.CLOSE)
    gadgetron.receive()
    gadgetron.close()
    door.stop()
    counted = {name: server.metrics.value(f"{name}_total") for name in ("connections", "acquisitions", "images")}
    assert counted == {"connections": 1, "acquisitions": len(sent), "images": N_IMAGES}
    opening = spec.config(spec.properties(preset=PRESET, target="reconstruct")) + spec.header(STARS.scan().xml)
    assert server.metrics.value("received_bytes_total") == len(b"".join([opening, picture(), *sent, spec.CLOSE]))
    assert server.metrics.value("sent_bytes_total") > N_IMAGES * 198
    assert server.metrics.value("frames_total") == STARS.n_frames
    assert server.metrics.value("sessions_total", outcome="completed") == 1
    assert server.metrics.value("open_sessions") == 0


# ---- stopping --------------------------------------------------------------------------------------------------------


def test_door_that_is_stopped_tells_running_scans(both: Both) -> None:
    server, door = both()
    gadgetron = measuring(door)
    door.stop(0.0)
    found = gadgetron.receive()
    assert ids(found) == [8, 4]
    assert "stopped" in found[0].text
    assert server.metrics.value("sessions_total", outcome="server_stopped") == 1
    gadgetron.close()


def test_connections_without_a_scan_do_not_use_the_grace(both: Both) -> None:
    _, door = both(handshake_s=300.0)
    idle = Gadgetron.dial(door.port)
    idle.send(spec.config(spec.properties(preset=PRESET)))
    assert until(lambda: any(session is not None for session in door._sessions.values()))
    begin = time.monotonic()
    stopping = threading.Thread(target=door.stop, args=(30.0,))
    stopping.start()
    found = idle.receive()
    idle.close()
    stopping.join(20)
    assert time.monotonic() - begin < 10
    assert ids(found) == [8, 4]


def test_second_signal_ends_the_grace_of_scans(both: Both) -> None:
    server, door = both()
    gadgetron = measuring(door)
    begin = time.monotonic()
    server.ask_to_stop()
    stopping = threading.Thread(target=door.stop, args=(30.0,))
    stopping.start()
    assert until(lambda: door._stopping.is_set())
    assert stopping.is_alive()
    server.ask_to_stop()
    assert ids(gadgetron.receive()) == [8, 4]
    gadgetron.close()
    stopping.join(20)
    assert time.monotonic() - begin < 10


def test_session_that_is_ended_stops_reading_a_sender_that_never_pauses(both: Both) -> None:
    """Ending the receiving direction shows only where a reader waits: bytes that are there already are still given."""
    _, door = both()
    gadgetron = measuring(door)
    (session,) = door._running()
    connection = session._connection
    waveform = spec.waveform(2, 3)

    def ready(view: memoryview) -> int:  # a sender that is always ahead of us
        view[: len(waveform)] = waveform
        return len(waveform)

    connection.receive_ready = ready  # type: ignore[method-assign]
    session._ordered = PeerError("enough", code="server_stopped")
    gadgetron.send(waveform)
    reader, found = gadgetron.receive_beside()
    reader.join(10)
    assert ids(found)[-2:] == [8, 4]
    gadgetron.close()


# ---- the end of a scan -----------------------------------------------------------------------------------------------


def test_backlog_gets_its_time_for_each_message_and_not_together(both: Both) -> None:
    """A Gadgetron that reads slowly, yet always reads, gets all of what waits at CLOSE."""
    _, door = both(send_s=0.3)
    gadgetron = measuring(door)
    (session,) = door._running()
    send, pause = session._connection.send, threading.Event()

    def slow(parts: Sequence[Buffer], seconds: float) -> int:
        pause.wait(0.02)
        return send(parts, seconds)

    session._connection.send = slow  # type: ignore[method-assign]
    gadgetron.send(picture() * 40, spec.CLOSE)
    assert ids(gadgetron.receive()) == [1022] * 40 + [4]
    gadgetron.close()


def test_images_that_were_not_sent_are_not_counted(both: Both) -> None:
    server, door = both(send_s=0.3)
    gadgetron = Gadgetron.dial(door.port)
    gadgetron.open(preset=PRESET, target="reconstruct")
    door_settled = until(lambda: bool(door._running()))
    assert door_settled
    (session,) = door._running()

    def broken(parts: object, seconds: float) -> int:
        raise OSError(errno.EPIPE, "gone")

    session._connection.send = broken  # type: ignore[method-assign]
    gadgetron.send(*(readout.message for readout in readouts()), spec.CLOSE)
    assert until(lambda: server.metrics.value("sessions_total", outcome="connection_broke") == 1)
    assert server.metrics.value("images_total") == 0
    gadgetron.close()
