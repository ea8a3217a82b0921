"""Rows 24 to 32: what comes beside acquisitions, and peers that are slow, many, or gone."""

from __future__ import annotations

import socket
import struct
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from kstream.mrd.codec import encode
from kstream.mrd.messages import IMAGE_HEADER, WAVEFORM_HEADER, Close, Image, Query, Response, Text, Waveform
from kstream.serve.settings import ServerSettings
from tests.faults.harness import (
    PER_FRAME,
    STARS,
    Client,
    Oracle,
    Server,
    acquisitions,
    good_session,
    judged,
    opening,
    reference,
    running,
    scan_messages,
    wait_until,
    wire,
)
from tests.scans import StackOfStars

SCAN = acquisitions()


def image(dtype: str = "f4", meta: str = "plain") -> Image:
    header = np.zeros(1, IMAGE_HEADER)[0]
    header["version"], header["image_series_index"], header["image_type"] = 1, 1, 1
    return Image(header, {"DataRole": "Image", "ImageComments": meta}, np.ones((1, 3, 5, 7), dtype))


def patched_image(*changes: tuple[int, bytes]) -> bytes:
    """An image with other bytes at offsets that are counted after the id."""
    data = bytearray(encode(image()))
    for offset, value in changes:
        data[2 + offset : 2 + offset + len(value)] = value
    return bytes(data)


N_META = len(encode(image())) - 2 - IMAGE_HEADER.itemsize - 8 - 4 * 3 * 5 * 7
BAD_IMAGES = {
    "data type 0": (patched_image((2, b"\0\0")), "bad_image"),
    "data type 9": (patched_image((2, b"\x09\0")), "bad_image"),
    "data type 99": (patched_image((2, b"\x63\0")), "bad_image"),
    "matrix 0": (patched_image((16, b"\0\0\0\0\0\0")), "bad_size"),
    "65535 in all four dimensions": (patched_image((16, b"\xff" * 6), (34, b"\xff\xff")), "too_large"),
    "attributes of 2**63 bytes": (patched_image((198, struct.pack("<Q", 2**63))), "too_large"),
    "attributes of 2**64 - 1 bytes": (patched_image((198, struct.pack("<Q", 2**64 - 1))), "too_large"),
    "attributes that are not XML": (patched_image((206, b"<ismrmrdMeta>\xff&")), "protocol"),
    "attributes with a DTD": (patched_image((206, b"<!DOCTYPE a [<!ENTITY b 'c'>]><a/>".ljust(N_META))), "protocol"),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_row_24_bad_image_is_an_error_and_allocates_nothing(oracle: Oracle, case: str) -> None:
    data, outcome = BAD_IMAGES[case]
    before = oracle.server.rss_bytes
    oracle.refused(*opening(), *SCAN[:3], data, *SCAN[3:], outcome=outcome)
    assert oracle.server.rss_bytes - before < 2**24


def test_row_24_images_that_are_images_pass_by_and_the_scan_goes_on(oracle: Oracle) -> None:
    header_says_other_length = patched_image((194, struct.pack("<I", 7)))
    others = [image(), image("u2"), image("c8", "µ° 脑"), header_says_other_length]
    client = oracle.accepted(*opening(), *SCAN[:3], *others, *SCAN[3:], Close())
    assert client.pixels == reference(oracle.server)


def waveform(waveform_id: int = 1, n_channels: int = 3, n_samples: int = 5) -> Waveform:
    header = np.zeros(1, WAVEFORM_HEADER)[0]
    header["version"], header["waveform_id"], header["sample_time_us"] = 1, waveform_id, 1000.0
    header["channels"], header["number_of_samples"] = n_channels, n_samples
    return Waveform(header, np.zeros((n_channels, n_samples), "u4"))


def test_row_25_waveforms_between_readouts_change_nothing(oracle: Oracle) -> None:
    """A thousand a second would be 4 a readout; these are 24, of every kind, known or not."""
    waves = [waveform(i) for i in (0, 1, 2, 3, 4, 1024, 32768, 65535)] * 3
    mixed = [m for a in SCAN for m in (a, *waves)]
    client = oracle.accepted(*opening(), *mixed, Close())
    assert client.pixels == reference(oracle.server)


def test_row_25_empty_waveform_is_tolerated_and_a_huge_one_is_refused_before_allocation(oracle: Oracle) -> None:
    assert oracle.accepted(*opening(), waveform(0, 0, 0), *SCAN, Close()).images
    huge = bytearray(encode(waveform()))
    huge[2 + 28 : 2 + 32] = b"\xff" * 4
    before = oracle.server.rss_bytes
    assert "the waveform takes" in oracle.refused(*opening(), bytes(huge), outcome="too_large")
    assert oracle.server.rss_bytes - before < 2**23


def test_row_26_flood_of_texts_ends_at_the_cap(oracle: Oracle) -> None:
    """100 000 texts of 64 KiB are 6.5 GB; the default cap is 16 MiB."""
    before, log_before = oracle.server.rss_bytes, len(oracle.server.log)
    flood = wire(Text("x" * 2**16)) * 300
    text = oracle.refused(*opening(), SCAN[0], flood, outcome="too_much_text")
    assert "more than 16 MiB of text" in text
    assert ServerSettings().text_mib == 16
    assert oracle.server.rss_bytes - before < 2**26
    assert len(oracle.server.log) - log_before < 2**15


def test_row_26_flood_of_tiny_texts_neither_fills_the_log_nor_goes_on_for_ever(oracle: Oracle) -> None:
    log_before = len(oracle.server.log)
    oracle.refused(*opening(), SCAN[0], wire(Text("x")) * 300_000, outcome="too_much_text")
    assert len(oracle.server.log) - log_before < 2**15


def test_row_26_flood_of_queries_ends_at_the_cap(oracle: Oracle) -> None:
    oracle.expect("too_much_text")
    client = Client(oracle.server.port)
    flood = threading.Thread(target=client.send, args=(wire(Query(1, "kstream::" + "x" * 2**16)) * 300,))
    flood.start()
    assert "of text" in client.reason()
    flood.join()


def test_row_27_end_of_stream_without_close_keeps_whole_frames_and_tells(oracle: Oracle) -> None:
    oracle.expect("ended_without_close")
    client = Client(oracle.server.port).send(*opening(), *SCAN[: 2 * PER_FRAME + 3]).half_close()
    text = client.reason()
    assert "the stream ended without CLOSE" in text
    assert f"after {2 * PER_FRAME + 3} acquisitions" in text
    assert client.pixels[: 2 * STARS.nz] == reference(oracle.server)[: 2 * STARS.nz]


def test_row_27_half_close_after_close_still_gets_all_images(oracle: Oracle) -> None:
    oracle.expect("completed")
    client = Client(oracle.server.port).send(*scan_messages()).half_close().success()
    assert client.pixels == reference(oracle.server)


@pytest.mark.parametrize("n_bytes", [1, 200, 700])
def test_row_27_reset_in_mid_message_ends_one_session_only(oracle: Oracle, n_bytes: int) -> None:
    client = Client(oracle.server.port).send(*opening(), *SCAN[:5], Query(1, "kstream::version"))
    client.receive_until(lambda got: any(isinstance(m, Response) for m in got))
    client.send(encode(SCAN[5])[:n_bytes]).reset()
    wait_until(lambda: sum(oracle.counted().values()) == 1)
    (outcome,) = oracle.counted()
    assert outcome in ("connection_broke", "truncated")
    oracle.expect(outcome)


BIG = StackOfStars(nx=63, ny=63, nz=9, n_partitions=2, n_coils=2, spokes_per_frame=7, n_frames=60)


def test_row_28_client_that_never_reads_ends_within_the_send_time_and_slows_nobody(
    tmp_path: Path, server: Server
) -> None:
    """Each frame is 140 KiB of images; the system takes some megabytes, the server keeps one, and then it waits."""
    messages = [*opening("recon-radial", BIG.scan().xml), *BIG.acquisitions(np.random.default_rng(0)), Close()]
    with running(tmp_path, "--send-s", "1", "--send-mib", "1") as own, judged(own) as oracle:
        deaf = Client(own.port, receive_buffer=4096)
        sender = threading.Thread(target=deaf.send, args=(wire(*messages),))
        sender.start()
        begin = time.monotonic()
        while not oracle.counted().get("send_timeout"):
            assert good_session(own).images
            oracle.expect("completed")
            assert own.metric("kstream_unsent_bytes") < 2**21
            assert time.monotonic() - begin < 25
        oracle.expect("send_timeout")
        deaf.reset()
        sender.join(10)


@pytest.mark.parametrize("part", ["acquisition", "id"])
def test_row_29_bytes_that_dribble_in_do_not_extend_the_time_of_a_message(oracle: Oracle, part: str) -> None:
    client = Client(oracle.server.port).send(*opening(), *SCAN[:2])
    oracle.expect("message_timeout")
    stop = threading.Event()
    data = encode(SCAN[2]) if part == "acquisition" else b"\xf0"

    def dribble() -> None:
        for byte in data:
            client.send(bytes([byte]))
            if stop.wait(0.2):
                return

    sender = threading.Thread(target=dribble)
    begin = time.monotonic()
    sender.start()
    assert "a message did not become whole in time: waited 1 s" in client.reason()
    assert time.monotonic() - begin < 5
    stop.set()
    sender.join()
    assert ServerSettings().message_s == 30


def test_row_29_dribbling_opening_ends_with_the_handshake_time(oracle: Oracle) -> None:
    client = Client(oracle.server.port)
    oracle.expect("handshake_timeout")
    stop = threading.Event()

    def dribble() -> None:
        for byte in wire(*opening()):
            client.send(bytes([byte]))
            if stop.wait(0.2):
                return

    sender = threading.Thread(target=dribble)
    sender.start()
    assert "no complete header" in client.reason()
    stop.set()
    sender.join()


def test_row_30_paused_scan_goes_on_where_it_stopped(oracle: Oracle) -> None:
    """The pause is longer than a message or an opening may take; the server asks for keepalive meanwhile."""
    client = Client(oracle.server.port).send(*opening(), *SCAN[:20])
    oracle.expect("completed")
    wait_until(lambda: has_keepalive(client.socket), 2)
    threading.Event().wait(2.5)
    client.send(*SCAN[20:], Close()).success()
    assert client.pixels == reference(oracle.server)
    assert ServerSettings().idle_s >= 600


def has_keepalive(client: socket.socket) -> bool:
    """True if the server's end of a connection has its keepalive timer running (kind 02 in /proc/net/tcp)."""
    port = client.getsockname()[1]
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(int(row[2].split(":")[1], 16) == port and row[5].startswith("02:") for row in rows)


def test_row_30_silence_over_the_idle_time_ends_the_session_and_keeps_whole_frames(
    tmp_path: Path, server: Server
) -> None:
    with running(tmp_path, "--idle-s", "0.7") as own:
        client = Client(own.port).send(*opening(), *SCAN[:PER_FRAME])
        assert "nothing came for a long time: waited 0.7 s" in client.reason()
        assert len(client.images) == STARS.nz


def test_row_31_one_session_too_many_is_refused_with_text_within_a_second(tmp_path: Path, server: Server) -> None:
    with running(tmp_path, "--max-sessions", "2") as own:
        first, second = (Client(own.port).send(*opening(), Query(7, "kstream::version")) for _ in range(2))
        for client in (first, second):
            client.receive_until(lambda got: any(isinstance(m, Response) for m in got))
        begin = time.monotonic()
        for sent in ([], [*opening()], scan_messages()):
            text = Client(own.port).send(*sent).reason()
            assert "busy: 2 measurements run already" in text
            assert "--max-sessions" in text
        assert time.monotonic() - begin < 3  # three times a second
        for client in (first, second):
            assert client.send(*SCAN, Close()).success().pixels == reference(server)
        wait_until(lambda: own.metric("kstream_open_sessions") == 0)
        assert good_session(own).pixels == reference(server)
        wait_until(lambda: own.outcomes() == {"busy": 3, "completed": 3})


def test_row_31_silent_connections_do_not_keep_scans_out_until_there_are_too_many(
    tmp_path: Path, server: Server
) -> None:
    with running(tmp_path, "--max-connections", "5", "--max-sessions", "1") as own:
        silent = [Client(own.port) for _ in range(4)]
        assert good_session(own).pixels == reference(server)
        wait_until(lambda: own.metric("kstream_open_sessions") == 4)
        fifth = Client(own.port)
        wait_until(lambda: own.metric("kstream_open_sessions") == 5)
        assert "busy: 5 connections are open already" in Client(own.port).reason()
        for client in (*silent, fifth):
            client.socket.close()
        wait_until(lambda: own.metric("kstream_open_sessions") == 0)
        assert good_session(own).images


def churn(server: Server, n: int) -> None:
    """Sessions of every length: nothing, a probe, a broken scan, a whole one."""
    for i in range(n):
        client = Client(server.port)
        match i % 5:
            case 0:
                client.socket.close()
            case 1:
                client.send(*opening()[:1], Close()).success()
            case 2:
                client.send(*opening(), *SCAN[:5], encode(SCAN[5])[:99]).half_close().reason()
            case 3:
                client.send(*opening(), *SCAN[:PER_FRAME]).reset()
            case 4:
                client.send(*scan_messages()).success()


def resources(server: Server) -> tuple[int, int, int]:
    """Descriptors, threads and children, when all sessions have ended."""
    wait_until(lambda: server.metric("kstream_open_sessions") == 0)
    counts = (0, 0, 0)

    def is_steady() -> bool:
        nonlocal counts
        before, counts = counts, (server.n_descriptors, server.n_threads, len(server.children))
        return counts == before

    wait_until(is_steady)
    return counts


def assert_no_growth(server: Server, n_first: int, n_then: int, mib: float) -> None:
    churn(server, n_first)
    before, rss_before = resources(server), server.rss_bytes
    churn(server, n_then)
    assert resources(server) == before
    assert server.rss_bytes - rss_before < mib * 2**20
    assert not [c for c in server.children if c.status() == psutil.STATUS_ZOMBIE]


def test_row_32_a_hundred_sessions_leave_nothing_behind(tmp_path: Path, server: Server) -> None:
    with running(tmp_path, "--record", str(tmp_path)) as own:
        assert_no_growth(own, 40, 100, mib=8)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_row_32_a_thousand_sessions_leave_nothing_behind(tmp_path: Path, server: Server) -> None:
    with running(tmp_path, "--record", str(tmp_path)) as own:
        assert_no_growth(own, 500, 1000, mib=32)  # objects of Python are flat; the rest is the allocator's


LONG = StackOfStars(nx=4, ny=4, nz=1, n_partitions=1, n_coils=1, spokes_per_frame=5, n_frames=1)


def long_session(server: Server, n: int) -> tuple[int, int]:
    """One session of `n` small acquisitions that repeat; resident bytes after a third of them, and most after that."""
    scan = LONG.acquisitions(np.random.default_rng(0))
    block = wire(*scan) * 100
    good_session(server)
    resources(server)  # what is compiled at the start is compiled
    client = Client(server.port).send(*opening("recon-radial", LONG.scan().xml))
    n_blocks = n // (100 * len(scan))
    early, most = 0, 0
    for i in range(n_blocks):
        client.send(block)
        if i == n_blocks // 3:
            early = server.rss_bytes
        if i > n_blocks // 3 and i % 10 == 0:
            most = max(most, server.rss_bytes)
    client.send(Close()).success()
    return early, most


def test_row_32_long_session_of_small_acquisitions_does_not_grow(tmp_path: Path, server: Server) -> None:
    with running(tmp_path, "--queue-mib", "4") as own:
        early, most = long_session(own, 15_000)
        assert most - early < 4 * 2**20


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_row_32_session_of_a_million_acquisitions_does_not_grow(tmp_path: Path, server: Server) -> None:
    with running(tmp_path) as own:
        early, most = long_session(own, 1_000_000)
        assert most - early < 8 * 2**20
        assert own.metric("kstream_acquisitions_total") == 1_000_000 + len(SCAN)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_row_32_ten_minutes_of_everything_at_once_leave_nothing_behind(tmp_path: Path, server: Server) -> None:
    """The soak of a day, shortened: several clients churn side by side and the resources are the same at the end."""
    with running(tmp_path, "--max-sessions", "24") as own:  # a client that hung up leaves a session that still ends
        churn(own, 50)
        before, begin = resources(own), time.monotonic()
        warm, end = begin + 60, begin + 600  # the allocator's pools first grow to what five clients need
        rss_warm: list[int] = []
        problems: list[str] = []

        def work() -> None:
            while time.monotonic() < end and not problems:
                try:
                    churn(own, 5)
                except AssertionError as error:
                    problems.append(str(error))
                if not rss_warm and time.monotonic() > warm:
                    rss_warm.append(own.rss_bytes)

        workers = [threading.Thread(target=work) for _ in range(5)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert not problems
        assert resources(own) == before
        assert own.rss_bytes - rss_warm[0] < 16 * 2**20
        assert good_session(own).pixels == reference(server)


def test_memory_cap_ends_the_youngest_session_and_the_older_one_goes_on(tmp_path: Path, server: Server) -> None:
    """The first scan pauses; the grids of a second one take the server over its cap."""
    with running(tmp_path, "--memory-gib", "0.35") as own:
        reference(own)
        older = Client(own.port).send(*opening(), *SCAN[:20], Query(7, "kstream::version"))
        older.receive_until(lambda got: any(isinstance(m, Response) for m in got))
        large = StackOfStars(nx=255, ny=255, nz=15, n_partitions=14, n_coils=7, spokes_per_frame=3, n_frames=1)
        younger = Client(own.port)
        sender = threading.Thread(target=younger.send, args=(eager(large),))
        sender.start()
        assert "the server's memory is used up" in younger.reason()
        sender.join(10)
        assert older.send(*SCAN[20:], Close()).success().pixels == reference(server)
        wait_until(lambda: own.outcomes().get("memory") == 1)
        wait_until(lambda: own.metric("kstream_resident_bytes") < 0.35 * 2**30)
        assert good_session(own).pixels == reference(server)


def eager(stars: StackOfStars) -> bytes:
    """A scan whose header asks for much, cut short."""
    data = np.ones((stars.n_coils, stars.n_samples), np.complex64)
    lines = [stars.acquisition(data, stars.spoke(s), s, p) for s in range(2) for p in range(stars.n_partitions)]
    return wire(*opening("recon-radial", stars.scan().xml), *lines, Close())


def test_no_measurement_begins_above_the_memory_cap(tmp_path: Path, server: Server) -> None:
    with running(tmp_path, "--memory-gib", "0.01") as own:
        assert "more than 0.01 GiB" in Client(own.port).send(*opening()).reason()
        wait_until(lambda: own.outcomes() == {"memory": 1})
