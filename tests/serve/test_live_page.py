"""The live page as a process of its own: who may see it, what it gives, and what happens to the server if it dies."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest

from kstream.errors import PeerError
from kstream.mrd.codec import encode
from kstream.mrd.messages import Close, ConfigFile, Header, Query, Response
from kstream.serve import watch
from kstream.serve.probe import page_of
from kstream.serve.server import MrdServer, ServerSettings
from kstream.serve.settings import PageSettings
from kstream.serve.tap import Tap
from kstream.serve.watch import LivePage, is_loopback
from kstream.serve.watcher import is_ours
from tests.faults.harness import wait_until
from tests.scans import StackOfStars
from tests.serve.conftest import Client
from tests.serve.pages import events_of, get

STARS = StackOfStars(nx=15, ny=15, nz=3, n_partitions=4, n_coils=3, spokes_per_frame=7, n_frames=3)
FREE = PageSettings(port=0)


@pytest.fixture
def page() -> Iterator[LivePage]:
    with_page = started(FREE)
    yield with_page
    stopped(with_page)


@pytest.fixture
def watched(page: LivePage) -> Iterator[MrdServer]:
    """A server in this process, its page in another."""
    server = MrdServer(port=0, settings=ServerSettings(handshake_s=20.0), tap=page.tap)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.stop()
    thread.join(10)


def started(settings: PageSettings) -> LivePage:
    page = LivePage(Tap(), settings)
    page.start()
    return page


def stopped(page: LivePage) -> None:
    """Stop it; nothing of it may be left."""
    process = page._process
    page.stop()
    assert not page._thread.is_alive()
    assert process is None or not process.is_alive
    assert not Path(page._folder.name).exists()


def scan(seed: int = 0) -> list[object]:
    acquisitions = STARS.acquisitions(np.random.default_rng(seed))
    return [ConfigFile("breast-dce-recon"), Header(STARS.scan().xml), *acquisitions, Close()]


def replayed(server: MrdServer, seed: int = 0) -> Client:
    client = Client(server.port)
    client.send(*scan(seed))
    client.receive_all()
    return client


# ---- what it gives ----


def test_a_scan_reaches_the_page_with_its_pixels(page: LivePage, watched: MrdServer) -> None:
    with events_of(page.url) as events:
        events.until("everything")
        client = replayed(watched)
        spokes = events.until("spokes", session="1")
        shapes: dict[int, list[int]] = {}
        while len(shapes) < 3:
            frame = events.until("frame", session="1", has_image=True)
            shapes[frame["frame"]] = frame["shape"]
        told = events.until("session", session="1", state="ended")
    assert len(spokes["spokes"][0]["path"]) == 4
    assert told["outcome"] == "completed"
    assert told["counters"]["received"] == len(scan()) - 3
    assert shapes == {number: [3, 15, 15] for number in range(3)}
    for z in range(3):
        status, body, headers = get(page.url, f"/image/1/2/{z}")
        assert (status, headers["x-shape"]) == (200, "15,15")
        shown = np.abs(np.frombuffer(body, np.complex64).reshape(15, 15))
        sent = client.images[2 * 3 + z].data.reshape(15, 15)
        np.testing.assert_allclose(shown, sent, rtol=1e-6)
    status, body, _ = get(page.url, "/curve/1/1/7/7")
    assert status == 200
    assert b'"frames":[0,1,2]' in body


def test_a_page_that_is_opened_after_the_scan_shows_it_whole(page: LivePage, watched: MrdServer) -> None:
    with events_of(page.url) as events:
        replayed(watched)
        events.until("session", state="ended")
    with events_of(page.url) as events:
        everything = events.until("everything")
    [session] = everything["sessions"]
    assert [frame["has_image"] for frame in session["frames"]] == [True] * 3
    assert len(session["spokes"]) == STARS.spokes_per_frame
    assert {delivery["of"] for delivery in session["deliveries"]} == {"magnitude"}


def test_log_lines_reach_the_page(page: LivePage) -> None:
    with events_of(page.url) as events:
        events.until("everything")
        logging.getLogger("kstream.serve").error("seven things")
        assert events.until("line")["text"] == "seven things"


def test_a_client_may_ask_for_the_page_but_not_for_its_token() -> None:
    page = LivePage(Tap(), PageSettings(port=0, has_token=True))
    server = MrdServer(port=0, tap=page.tap)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        client = Client(server.port)
        client.send(Query(5, "kstream::page"), Close())
        [answer] = [m for m in client.receive_all() if isinstance(m, Response)]
        assert answer.text == page.public_url == page_of("127.0.0.1", server.port)
        assert page.token
        assert page.token not in answer.text
    finally:
        server.stop()
        thread.join(10)
        page.stop()


def test_a_server_without_a_page_says_so(server: MrdServer) -> None:
    with pytest.raises(PeerError, match="has no live page"):
        page_of("127.0.0.1", server.port)


# ---- who may see it ----


def test_every_answer_forbids_foreign_content_and_caches(page: LivePage) -> None:
    for path, kind in (
        ("/", "text/html"),
        ("/page.js", "text/javascript"),
        ("/page.css", "text/css"),
        ("/icon.svg", "image/svg+xml"),
        ("/image/1/0/0", "text/plain"),
        ("/nowhere", "text/plain"),
    ):
        status, body, headers = get(page.url, path)
        assert status == (404 if kind == "text/plain" else 200)
        assert headers["content-type"].startswith(kind)
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "'unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert body


def test_the_page_fetches_nothing_from_elsewhere() -> None:
    folder = Path(watch.__file__).parent / "page"
    for file in folder.iterdir():
        found = re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", file.read_text())
        assert [url for url in found if "www.w3.org" not in url] == []
    assert "style=" not in (folder / "index.html").read_text()  # the policy would drop it


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_can_be_written(page: LivePage, method: str) -> None:
    for path in ("/", "/events", "/image/1/0/0", "/curve/1/0/0/0"):
        assert get(page.url, path, method)[0] == 405


def test_another_name_in_the_host_header_is_refused(page: LivePage) -> None:
    strangers = ("evil.example", f"evil.example:{page.port}", "127.0.0.1.evil.example", "", "localhost.evil.example:80")
    for host in strangers:
        for path in ("/", "/events", "/page.js"):
            assert get(page.url, path, headers={"Host": host})[0] == 421
    for host in ("localhost", f"127.0.0.1:{page.port}", f"localhost:{page.port}", "[::1]:80", "10.1.2.3"):
        assert get(page.url, headers={"Host": host})[0] == 200


@pytest.mark.parametrize(
    ("host", "is_let_in"),
    [("SERVER:9003", True), ("server", True), ("[fe80::1]", True), ("server.evil", False), ("a@server", False)],
)
def test_host_headers_name_addresses_or_this_machine(host: str, is_let_in: bool) -> None:
    assert is_ours(host, frozenset({"localhost", "server"})) is is_let_in


def test_a_token_is_needed_for_every_answer_and_its_first_use_sets_a_cookie() -> None:
    page = started(PageSettings(port=0, has_token=True))
    try:
        paths = ("/", "/page.js", "/events", "/image/1/0/0", "/curve/1/0/0/0")
        wrong = page.token[:-1] + ("a" if page.token[-1] != "a" else "b")
        for path in paths:
            assert get(page.url, path)[0] == 401
            assert get(page.url, f"{path}?token={wrong}")[0] == 401
            assert get(page.url, path, headers={"Cookie": f"kstream_page_{page.port}={wrong}"})[0] == 401
        parts = urlsplit(page.url)
        status, _, headers = get(page.url, f"{parts.path}?{parts.query}")
        assert (status, headers["location"]) == (303, "/")
        assert "httponly" in headers["set-cookie"].lower()
        assert "samesite=strict" in headers["set-cookie"].lower()
        cookie = headers["set-cookie"].split(";")[0]
        assert get(page.url, "/", headers={"Cookie": cookie})[0] == 200
        assert get(page.url, "/", headers={"Cookie": cookie, "Host": "evil.example"})[0] == 421
        with events_of(page.url) as events:
            events.until("everything")
    finally:
        stopped(page)


def test_beyond_loopback_there_is_always_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [is_loopback(a) for a in ("127.0.0.1", "127.9.9.9", "::1")] == [True] * 3
    assert [is_loopback(a) for a in ("0.0.0.0", "::", "10.0.0.5", "fe80::1%eth0")] == [False] * 4
    monkeypatch.setattr(watch, "is_loopback", lambda address: False)
    pages = [LivePage(Tap(), FREE) for _ in range(2)]
    for page in pages:
        page.stop()
    assert len(pages[0].token) >= 32
    assert pages[0].token != pages[1].token
    assert pages[0].url.endswith(f"?token={pages[0].token}")


@pytest.mark.parametrize(
    "page", ["file:///etc/passwd", "http://a b", "http://\x1b[2J", "javascript:1", "http://\u202e"]
)
def test_only_printable_http_addresses_are_taken_for_a_page(page: str) -> None:
    tap = Tap()
    tap.page_url = page
    server = MrdServer(port=0, tap=tap)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with pytest.raises(PeerError, match="no http address"):
            page_of("127.0.0.1", server.port)
    finally:
        server.stop()
        thread.join(10)


# ---- what it costs and what happens when it goes ----


def test_a_taken_port_is_told_before_anything_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PeerError) as raised:
            LivePage(Tap(), PageSettings(port=port))
        assert raised.value.code == "cannot_listen"
        assert "--watch-port" in str(raised.value)
        command = [sys.executable, "-m", "kstream", "serve", "--port", "0", "--watch-port", str(port), "--warm-up", ""]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 7
    assert "kstream listens" not in done.stdout
    assert f"cannot show the live page on 127.0.0.1 port {port}" in done.stderr


def test_a_reader_that_never_reads_costs_little_and_holds_up_nobody(page: LivePage) -> None:
    with events_of(page.url) as events:
        events.until("everything")
        process = page._process
        assert process is not None
        address = urlsplit(page.url)
        with socket.create_connection((address.hostname, page.port)) as lazy:
            lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            lazy.sendall(f"GET /events HTTP/1.1\r\nHost: 127.0.0.1:{page.port}\r\n\r\n".encode())
            before = psutil.Process(process.pid).memory_info().rss
            for number in range(120):  # 36 MB of events
                for _ in range(20):
                    page.tap.moment("delivered", session="1", of="x" * 15000, number=number)
                events.until("delivered", number=number)
            grown = psutil.Process(process.pid).memory_info().rss - before
        assert grown < 20 << 20


def test_a_killed_watcher_is_told_once_and_scans_go_on(
    page: LivePage, watched: MrdServer, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("kstream").propagate = True
    client = Client(watched.port)
    messages = scan()
    with events_of(page.url) as events:
        client.raw(b"".join(encode(m) for m in messages[:30]))  # type: ignore[arg-type]
        events.until("spokes")
    process = page._process
    assert process is not None
    with caplog.at_level(logging.ERROR, "kstream.serve"):
        os.kill(process.pid, signal.SIGKILL)
        page._thread.join(20)
        client.raw(b"".join(encode(m) for m in messages[30:]))  # type: ignore[arg-type]
        client.receive_all()
        replayed(watched, seed=1)
    assert client.ended_with_one_close()
    assert len(client.images) == 9
    said = [record.getMessage() for record in caplog.records if "live page" in record.getMessage()]
    assert len(said) == 1
    assert "signal SIGKILL" in said[0]
    assert not page.tap.is_open
    assert not page.tap._sessions


def test_a_watcher_that_never_answers_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("kstream").propagate = True
    monkeypatch.setattr(watch, "START_S", 0.1)
    page = LivePage(Tap(), FREE, (sys.executable, "-c", "import sys; sys.stdin.read()"))
    with caplog.at_level(logging.ERROR, "kstream.serve"):
        page.start()
        page._thread.join(20)
    stopped(page)
    assert "did not answer within 0.1 s" in caplog.text
    assert not page.tap.is_open


def test_the_watcher_ends_with_its_server() -> None:
    code = (
        "import sys, threading\n"
        "from kstream.serve.settings import PageSettings\n"
        "from kstream.serve.tap import Tap\n"
        "from kstream.serve.watch import LivePage\n"
        "page = LivePage(Tap(), PageSettings(port=0))\n"
        "page.start()\n"
        "print(page.url, flush=True)\n"
        "threading.Event().wait()\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    url = owner.stdout.readline().strip()
    with events_of(url) as events:
        events.until("everything")
    children = psutil.Process(owner.pid).children()
    owner.kill()
    owner.wait(10)
    owner.stdout.close()
    _, left = psutil.wait_procs(children, 20)
    assert len(children) == 1
    assert not left


def test_stopping_twice_and_stopping_unstarted_is_fine() -> None:
    page = LivePage(Tap(), FREE)
    page.stop()
    page.stop()


def test_what_happens_while_no_page_is_open_is_kept_for_the_next_one(page: LivePage) -> None:
    for number in range(50):
        page.tap.moment("delivered", session="1", of="labels", number=number)
    wait_until(lambda: not page.tap._moments, what="an empty tap")
    with events_of(page.url) as events:
        [session] = events.until("everything")["sessions"]
    assert [delivery["number"] for delivery in session["deliveries"]] == list(range(50))
