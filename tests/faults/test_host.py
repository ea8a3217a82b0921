"""Rows 37, 38 and 40: addresses and ports, recordings that cannot be replayed, and the pipe."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil
import pytest

from kstream.mrd.codec import Decoder, encode
from kstream.mrd.messages import Close, Header, Image
from kstream.mrd.recording import ImageWriter, write_recording
from kstream.serve.settings import LOOPBACK
from tests.faults.harness import (
    N_IMAGES,
    PRESET,
    STARS,
    Server,
    acquisitions,
    good_session,
    judged,
    reference,
    running,
    wire,
)
from tests.faults.test_traffic import image

SCAN = acquisitions()


def kstream(*arguments: str, **how: Any) -> subprocess.CompletedProcess[str]:
    command = [*how.pop("before", ()), sys.executable, "-m", "kstream", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **how)


def test_row_37_listens_on_both_families_and_on_loopback_only(server: Server) -> None:
    assert LOOPBACK == ("127.0.0.1", "::1")
    for host in LOOPBACK:
        assert good_session(server, host=host).pixels == reference(server)
    listening = {c.laddr.ip for c in psutil.Process(server.pid).net_connections() if c.status == "LISTEN"}
    assert listening == {"127.0.0.1", "::1"}


def test_row_37_port_in_use_is_named_and_has_its_exit_code(server: Server) -> None:
    done = kstream("serve", "--port", str(server.port))
    assert done.returncode == 7
    assert f"cannot listen on 127.0.0.1 port {server.port}: Address already in use" in done.stderr
    assert "--port 0 takes a free port" in done.stderr
    assert "Traceback" not in done.stderr


def test_row_37_port_of_the_metrics_in_use_is_named(server: Server) -> None:
    done = kstream("serve", "--port", "0", "--metrics-port", str(server.metrics_port))
    assert done.returncode == 7
    assert f"cannot serve metrics on 127.0.0.1 port {server.metrics_port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_row_37_privileged_port_is_named() -> None:
    before: tuple[str, ...] = ()
    if os.geteuid() == 0:
        before = ("setpriv", "--bounding-set", "-net_bind_service", "--inh-caps", "-net_bind_service")
        if subprocess.run([*before, "true"], capture_output=True).returncode:
            pytest.skip("privileges cannot be dropped here")
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 23:
        pytest.skip("low ports are free for all here")
    done = kstream("serve", "--port", "23", before=before)
    assert done.returncode == 7
    assert "port 23: Permission denied" in done.stderr
    assert "privileges" in done.stderr


@pytest.mark.parametrize(
    ("change", "address"),
    [("sysctl -qw net.ipv6.conf.all.disable_ipv6=1", "127.0.0.1"), ("ip addr del 127.0.0.1/8 dev lo", "::1")],
    ids=["IPv4 only", "IPv6 only"],
)
def test_row_37_host_with_one_family_is_served_on_that(tmp_path: Path, change: str, address: str) -> None:
    """In a network of its own, whose loopback lacks the other family (metrics need IPv4: they are left out)."""
    script = f'ip link set lo up && {change} && exec "$@"'
    before = ("unshare", "--net", "sh", "-c", script, "sh")
    if subprocess.run([*before, "true"], capture_output=True).returncode:
        pytest.skip("networks cannot be made here")
    command = [*before, sys.executable, "-m", "kstream", "serve", "--port", "0", "--warm-up", ""]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    first = process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=20)
    assert first.startswith(f"kstream listens on {address} port")
    assert "listens" not in rest
    assert process.returncode == 0


def test_row_37_address_that_this_host_does_not_have_is_named() -> None:
    done = kstream("serve", "--port", "0", "--host", "203.0.113.7")
    assert done.returncode == 7
    assert "cannot listen on 203.0.113.7" in done.stderr
    done = kstream("serve", "--port", "0", "--host", "no-such-host.invalid")
    assert done.returncode == 7


def test_listens_within_a_second_of_its_start_before_torch_loads(tmp_path: Path) -> None:
    seconds = []
    for i in range(3):
        with running(tmp_path / str(i), warm_up="breast-dce") as own:
            seconds.append(own.listening_s)
            assert not own.maps("libtorch")
    assert statistics.median(seconds) < 1.0


def recording_without(tmp_path: Path, what: str) -> Path:
    """A recording that lacks something."""
    path = tmp_path / "scan.h5"
    write_recording(path, STARS.scan().xml, SCAN)
    with h5py.File(path, "r+") as file:
        match what:
            case "xml":
                del file["dataset/xml"]
            case "acquisitions":
                del file["dataset/data"]
            case "rows":
                data = file["dataset/data"]
                data.resize((0,))
            case "ragged":
                row = file["dataset/data"][7]
                row["data"] = row["data"][:-5]
                file["dataset/data"][7] = row
    if what == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    if what == "images only":
        path.unlink()
        with ImageWriter(path) as writer:
            writer.append(image())
    return path


@pytest.mark.parametrize("what", ["xml", "acquisitions", "rows", "half", "images only"])
def test_row_38_recording_that_cannot_be_replayed_is_told_and_nothing_is_sent(
    tmp_path: Path, server: Server, what: str
) -> None:
    with judged(server):
        done = kstream("replay", str(recording_without(tmp_path, what)), "--port", str(server.port), "--quiet")
        assert done.returncode == 5
        assert done.stderr.startswith("error: ")
        assert "Traceback" not in done.stderr


def test_row_38_ragged_row_ends_the_replay_and_the_server_counts_half_a_scan(tmp_path: Path, server: Server) -> None:
    with judged(server) as oracle:
        path = recording_without(tmp_path, "ragged")
        done = kstream("replay", str(path), "--preset", PRESET, "--port", str(server.port), "--quiet")
        assert done.returncode == 5
        assert "Traceback" not in done.stderr
        oracle.expect("ended_without_close")


def test_row_38_other_group_is_found_or_named(tmp_path: Path, server: Server) -> None:
    path = tmp_path / "scan.h5"
    write_recording(path, STARS.scan().xml, SCAN)
    with h5py.File(path, "r+") as file:
        file.move("dataset", "other")
    done = kstream("replay", str(path), "--preset", PRESET, "--port", str(server.port), "--quiet", "--group", "dataset")
    assert done.returncode == 5
    assert "other" in done.stderr
    done = kstream("replay", str(path), "--preset", PRESET, "--port", str(server.port), "--quiet", "--group", "other")
    assert done.returncode == 0, done.stderr
    assert f"images {N_IMAGES}" in done.stdout


def start_pipe() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "kstream", "stream", "--preset", PRESET]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


OPENING = Header(STARS.scan().xml)
ENDS = {
    "before the header": (b"", "closed"),
    "inside an id": (b"\x03", "truncated id"),
    "inside the header": (encode(OPENING)[:77], "inside HEADER"),
    "before an acquisition": (encode(OPENING), "without CLOSE"),
    "inside an acquisition": (wire(OPENING, *SCAN[:3], encode(SCAN[3])[:400]), "inside ACQUISITION"),
}


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[pytest.mark.slow] * case.startswith(("inside an id", "inside the"))) for case in ENDS],
)
def test_row_40_pipe_whose_parent_goes_away_ends_within_two_seconds(case: str) -> None:
    sent, words = ENDS[case]
    process = start_pipe()
    assert process.stdin is not None
    process.stdin.write(sent)
    process.stdin.flush()
    wait_until_reading(process)
    begin = time.monotonic()
    out, log = process.communicate(timeout=20)
    assert time.monotonic() - begin < 2
    assert process.returncode != 0
    assert words in log.decode()
    assert b"Traceback" not in log
    got = Decoder().receive(out)
    assert [type(m) for m in got].count(Close) == 1
    assert isinstance(got[-1], Close)


def wait_until_reading(process: subprocess.Popen[bytes]) -> None:
    """Until the process has started and waits for more: it does not spin."""
    state = psutil.Process(process.pid)
    quiet, last = 0, -1.0
    deadline = time.monotonic() + 30
    while quiet < 3:
        used = sum(state.cpu_times()[:2])
        quiet = quiet + 1 if used == last and used > 0.2 else 0
        last = used
        assert time.monotonic() < deadline, "the process spins"
        time.sleep(0.1)


def test_row_40_pipe_whose_reader_goes_away_ends_within_two_seconds() -> None:
    process = start_pipe()
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(wire(OPENING, *SCAN[:5]))
    process.stdin.flush()
    wait_until_reading(process)
    process.stdout.close()
    begin = time.monotonic()
    process.stdin.write(wire(*SCAN[5:], Close()))
    process.stdin.close()
    assert process.wait(20) != 0
    assert time.monotonic() - begin < 2
    assert process.stderr is not None
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()


def test_row_40_pipe_gives_what_a_server_gives(server: Server) -> None:
    process = start_pipe()
    out, _ = process.communicate(wire(OPENING, *SCAN, Close()), timeout=30)
    assert process.returncode == 0
    images = [m for m in Decoder().receive(out) if isinstance(m, Image)]
    assert [i.data.tobytes() for i in images] == [i.data.tobytes() for i in good_session(server).images]
    assert np.isfinite(images[0].data).all()


def test_row_40_pipe_that_is_told_to_end_says_so(server: Server) -> None:
    process = start_pipe()
    assert process.stdin is not None
    process.stdin.write(wire(OPENING, *SCAN[:5]))
    process.stdin.flush()
    wait_until_reading(process)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
    assert isinstance(Decoder().receive(out)[-1], Close)


def test_only_the_ports_that_were_asked_for_are_open(server: Server) -> None:
    listening = [c.laddr for c in psutil.Process(server.pid).net_connections() if c.status == "LISTEN"]
    assert {address.port for address in listening} == {server.port, server.metrics_port}
