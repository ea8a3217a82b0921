"""``--watch``: where the page of a replay comes from."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kstream.cli.own_server import open_page, own_server, tunnel_hint, watched
from kstream.cli.serve import _run
from kstream.errors import PeerError
from kstream.serve.server import MrdServer
from kstream.serve.settings import PageSettings
from kstream.serve.tap import Tap
from kstream.serve.watch import LivePage
from kstream.serve.workers import ModelWorkers, WorkerSettings
from tests.serve.pages import events_of, get

KSTREAM = [sys.executable, "-m", "kstream"]
TINY = ("--matrix", "27", "--slices", "11", "--spokes", "8", "--coils", "3", "--lesions", "1")


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scan") / "scan.h5"
    subprocess.run([*KSTREAM, "simulate", str(path), "--seed", "5", *TINY], check=True, capture_output=True)
    return path


def replay(recording: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [*KSTREAM, "replay", str(recording), "--preset", "breast-dce-recon", "--quiet", "--watch", *options]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120, check=False)


def test_replay_says_that_a_server_has_no_page_before_it_sends_anything(recording: Path, port: int) -> None:
    done = replay(recording, "--port", str(port))
    assert done.returncode == 7
    assert "has no live page" in done.stderr
    assert "kstream serve --watch" in done.stderr
    assert not recording.with_suffix(".images.h5").exists()


def test_replay_without_a_server_starts_one_with_a_page(recording: Path, tmp_path: Path) -> None:
    done = replay(recording, "--port", "9", "--output", str(tmp_path / "images.h5"))
    assert done.returncode == 0, done.stderr
    assert "live page on http://127.0.0.1:" in done.stderr
    assert (tmp_path / "images.h5").exists()


def test_replay_shows_the_page_of_the_server_that_it_sends_to(recording: Path, tmp_path: Path) -> None:
    options = ("--watch", "--watch-port", "0", "--warm-up", "")
    with own_server(tmp_path / "log", *options) as (port, page), events_of(page) as events:
        done = replay(recording, "--port", str(port), "--output", str(tmp_path / "images.h5"))
        assert done.returncode == 0, done.stderr
        assert f"live page on {page}" in done.stderr
        assert events.until("session", state="ended")["outcome"] == "completed"
        assert get(page, "/image/2/0/0")[0] == 200  # session 1 was the question for the page


def test_a_replay_that_fails_beside_a_page_ends_as_a_peer_error(
    recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kstream.serve import probe

    monkeypatch.setattr(probe, "page_of", lambda *_: "http://127.0.0.1:1/")
    with pytest.raises(PeerError, match="gone"), watched("127.0.0.1", 9, None, tmp_path / "log"):
        raise PeerError("the server is gone", code="no_connection")


def test_the_page_of_another_machine_is_reached_through_a_tunnel() -> None:
    hint = tunnel_hint("scanner.example", "http://127.0.0.1:9003/")
    assert "ssh -L 9003:127.0.0.1:9003 scanner.example" in hint
    assert tunnel_hint("127.0.0.1", "http://127.0.0.1:9003/") == ""
    assert tunnel_hint("scanner.example", "http://10.0.0.7:9003/") == ""


def test_a_token_is_not_put_on_a_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("kstream.cli.own_server.open_page", opened.append)
    for has_token in (True, False):
        page = LivePage(Tap(), PageSettings(port=0, has_token=has_token))
        monkeypatch.setattr(page, "start", lambda: None)
        server = MrdServer(port=0, tap=page.tap)
        monkeypatch.setattr(server, "serve_forever", lambda: None)
        monkeypatch.setattr("signal.signal", lambda *_: None)
        _run(server, ModelWorkers(WorkerSettings()), None, 0.1, None, page)
        assert opened == ([] if has_token else [page.url])


def test_a_server_that_does_not_start_is_told_with_its_log(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match="did not start") as raised, own_server(tmp_path / "log", "--no-such-option"):
        pass
    assert str(tmp_path / "log") in str(raised.value)
    assert "--no-such-option" in (tmp_path / "log").read_text()


def test_no_browser_is_opened_off_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    import webbrowser

    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    monkeypatch.setitem(os.environ, "DISPLAY", ":0")
    open_page("http://127.0.0.1:1/")
    assert opened == []
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    open_page("http://127.0.0.1:1/")
    assert opened == ["http://127.0.0.1:1/"]
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    open_page("http://127.0.0.1:1/")
    assert len(opened) == 1 + (sys.platform == "darwin")
