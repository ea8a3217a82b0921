"""A gadget as Gadgetron launches it: a process of its own, with our launcher and with the package's runner."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from kstream.recon.fourier import to_image
from kstream.serve.server import ServerSettings
from tests.gadgets import specification as spec
from tests.gadgets.gadgetron_double import STARS, Gadgetron, Launch, ids, images, readouts
from tests.serve import odd_worker as odd
from tests.serve.odd_worker import Ask

Run = Callable[..., Gadgetron]
PRESET = "breast-dce-recon"
N_IMAGES = STARS.n_frames * STARS.nz
RUNNERS = pytest.mark.parametrize("with_launcher", [True, False], ids=["our launcher", "the package's runner"])
START_S = 60.0
END_S = 2.0


def messages() -> list[bytes]:
    return [readout.message for readout in readouts()]


def ended_within(child: subprocess.Popen[bytes], seconds: float) -> float:
    """Wait for the process to end by itself; gives the time it took."""
    begin = time.monotonic()
    child.wait(seconds)
    return time.monotonic() - begin


def stderr(child: subprocess.Popen[bytes]) -> str:
    assert child.stderr is not None
    return child.stderr.read().decode()


def test_images_are_those_of_a_connected_gadget_to_the_byte(launched: Run, dialled: Run) -> None:
    """The door's images are those of the MRD server (test_session): so all three give the same bytes."""
    found = {}
    for name, gadgetron, properties in (
        ("door", dialled(), {"target": "reconstruct"}),
        ("launcher", launched("reconstruct"), {}),
        ("package", launched("reconstruct", with_launcher=False), {}),
    ):
        gadgetron.open(preset=PRESET, **properties)
        got = gadgetron.whole_scan(*messages())
        assert ids(got) == [1022] * N_IMAGES + [4], name
        found[name] = images(got)
        if gadgetron.child is not None:
            gadgetron.socket.close()
            assert gadgetron.child.wait(10) == 0
    assert found["door"] == found["launcher"] == found["package"]


def test_labels_are_those_of_a_connected_gadget_to_the_byte(launched: Run, dialled: Run, toy: Path) -> None:
    door = dialled(ServerSettings(settings=(f"segment.model={toy}",)))
    door.open(preset="breast-dce", target="segment")
    child = launched("segment")
    child.open(preset="breast-dce", segment__model=str(toy))  # our own Gadgetron may name a folder
    theirs, ours = door.whole_scan(*messages()), child.whole_scan(*messages())
    assert len(images(ours)) == N_IMAGES + STARS.nz
    assert images(theirs) == images(ours)


# ---- row 40 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "reset"])
def test_row_40_parent_that_closes_before_the_header(launched: Run, how: str) -> None:
    gadgetron = launched()
    gadgetron.send(spec.config("<configuration/>"))
    getattr(gadgetron.socket if how == "close" else gadgetron, how)()
    assert gadgetron.child is not None
    ended_within(gadgetron.child, START_S)
    assert gadgetron.child.returncode != 0


def test_row_40_parent_that_closes_before_the_configuration(launched: Run) -> None:
    gadgetron = launched()
    gadgetron.socket.close()
    assert gadgetron.child is not None
    ended_within(gadgetron.child, START_S)
    assert gadgetron.child.returncode != 0
    assert "Traceback" not in stderr(gadgetron.child)


def running(gadgetron: Gadgetron) -> psutil.Process:
    """Wait until the child works: it has given an image back."""
    gadgetron.open(preset=PRESET)
    pixels = spec.image((3, 5, 1), bytes(8 * 15))
    gadgetron.send(pixels)
    with gadgetron.socket.makefile("rb") as stream:
        assert stream.read(len(pixels)) == pixels
    assert gadgetron.child is not None
    return psutil.Process(gadgetron.child.pid)


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@RUNNERS
@pytest.mark.parametrize("how", ["close", "reset"])
def test_row_40_parent_that_dies_in_the_middle_of_a_message(launched: Run, with_launcher: bool, how: str) -> None:
    gadgetron = launched("reconstruct", with_launcher=with_launcher)
    child = running(gadgetron)
    gadgetron.send(messages()[9][:700])
    before = cpu_s(child)
    threading.Event().wait(0.5)  # of silence, which must cost next to nothing
    assert cpu_s(child) - before < 0.1
    getattr(gadgetron.socket if how == "close" else gadgetron, how)()
    assert gadgetron.child is not None
    assert ended_within(gadgetron.child, 30) < END_S
    assert gadgetron.child.returncode not in (0, -signal.SIGKILL)


@RUNNERS
def test_row_40_failure_is_error_then_close_and_the_child_ends(launched: Run, with_launcher: bool) -> None:
    gadgetron = launched("reconstruct", with_launcher=with_launcher)
    running(gadgetron)
    head = spec.acquisition_header(31, STARS.n_coils, 0, counters=(7, 1))
    gadgetron.send(struct.pack("<H", 1008) + head + bytes(8 * 31 * STARS.n_coils))
    found = gadgetron.receive()  # nothing else is sent: the failure does not wait for the next message
    begin = time.monotonic()
    assert ids(found) == [8, 4]
    assert "31 samples" in found[0].text
    gadgetron.send(spec.CLOSE)  # what Gadgetron does when it reads ERROR
    gadgetron.socket.close()
    assert gadgetron.child is not None
    gadgetron.child.wait(30)
    assert time.monotonic() - begin < END_S
    assert gadgetron.child.returncode == 4
    assert "Traceback" not in stderr(gadgetron.child)


def is_gone(process: psutil.Process) -> bool:
    """Ended, even if whoever inherited it has not taken note."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def test_row_40_child_ends_with_its_parent_even_if_the_connection_stays() -> None:
    """What a parent that dies after CLOSE looks like: only that it is no longer the parent."""
    module = "kstream.gadgets"
    with socket.create_server(("localhost", 0)) as listener:
        listener.settimeout(60)
        command = [sys.executable, "-m", module, str(listener.getsockname()[1]), module, "reconstruct"]
        code = f"import subprocess; p = subprocess.Popen({command!r}); print(p.pid, flush=True); p.wait()"
        parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        gadgetron = Gadgetron(listener.accept()[0], parent)
    try:
        running(gadgetron)
        parent.kill()
        begin = time.monotonic()
        while not is_gone(child) and time.monotonic() - begin < 30:
            threading.Event().wait(0.02)
        assert time.monotonic() - begin < END_S
    finally:
        parent.stdout.close()
        gadgetron.close()


# ---- logs, launcher --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("level", "shown"), [("ERROR", False), ("INFO", True)])
def test_log_goes_to_standard_error_at_the_level_of_the_environment(launched: Run, level: str, shown: bool) -> None:
    gadgetron = launched("reconstruct", log_level=level)
    gadgetron.open(preset=PRESET)
    gadgetron.whole_scan(*messages())
    gadgetron.socket.close()
    assert gadgetron.child is not None
    gadgetron.child.wait(10)
    assert ("images sent" in stderr(gadgetron.child)) == shown


@pytest.mark.skipif(find_spec("gadgetron") is None, reason="the gadgetron package is not installed")
def test_launcher_steps_aside_for_other_modules(tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text(
        "import gadgetron\n"
        "def run(connection):\n"
        "    assert gadgetron.external\n"
        "    for item in connection:\n"
        "        connection.send(item)\n"
    )
    launch = Launch.__new__(Launch)
    launch.listener = socket.create_server(("localhost", 0))
    launch.listener.settimeout(60)
    launcher = Path(odd.__file__).parents[2] / "gadgets" / "launcher"
    environment = {**os.environ, "PYTHONPATH": f"{launcher}:{tmp_path}"}
    command = [sys.executable, "-W", "ignore", "-m", "gadgetron", launch.port, "other", "run"]
    launch.child = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    gadgetron = launch.accept()
    xml = STARS.scan().xml
    gadgetron.send(spec.config("<configuration/>"), spec.header(xml))
    sent = [spec.waveform(2, 3), messages()[0]]
    assert [m.raw for m in gadgetron.whole_scan(*sent)] == [*sent, spec.CLOSE]
    gadgetron.close()


def test_gadgetron_finds_python_and_the_package() -> None:
    """``python_available``: no arguments, exit code 0."""
    launcher = Path(odd.__file__).parents[2] / "gadgets" / "launcher"
    found = subprocess.run(
        [sys.executable, "-m", "gadgetron"], env={**os.environ, "PYTHONPATH": str(launcher)}, check=False, timeout=60
    )
    assert found.returncode == 0


# ---- resident workers ------------------------------------------------------------------------------------------------


@pytest.fixture
def odd_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    monkeypatch.setenv("ODD_MARK", str(tmp_path / "mark"))
    processes: list[subprocess.Popen[bytes]] = []

    def start() -> str:
        address = f"ipc://{tmp_path}/w{len(processes)}"
        command = [sys.executable, odd.__file__, "--address", address, "--model", "toy"]
        processes.append(subprocess.Popen(command))
        return address

    yield start
    for process in processes:
        process.kill()
        process.wait()


def image_array(orders: list[tuple[int, float]]) -> bytes:
    """Frames whose contrast difference has an order for an odd worker in its first voxel, and bright voxels."""
    rng = np.random.default_rng(4)
    pre = np.exp(2j * np.pi * rng.random((5, 7, 11)))  # rms 1
    frames = [pre]
    for ask, seconds in orders:
        difference = np.zeros((5, 7, 11), complex)
        difference[2, 3, 4:9] = 200
        difference[0, 0, 0] = ask + 0.3 + 1j * seconds
        frames.append(pre + difference)
    pixels = b"".join(to_image(frame.astype("<c8")).tobytes() for frame in frames)
    n = len(frames)
    heads = b"".join(spec.image_header((11, 7, 5), repetition=i) for i in range(n))
    out = struct.pack("<H", 1024) + spec.array((11, 7, 5, 1, n, 1, 1), pixels)
    return out + spec.array((n, 1, 1), heads) + struct.pack("<Q", 0) + b"\0\0"


def labels(found: list[Any]) -> dict[int, list[int]]:
    """Voxels that are labelled, by frame, from images of 11 x 7 uint16."""
    out: dict[int, list[int]] = {}
    for raw in images(found):
        (frame,) = struct.unpack_from("<H", raw, 2 + 104)
        out.setdefault(frame, []).append(sum(struct.unpack("<77H", raw[-154:])))
    return out


BRIGHT = [0, 0, 5, 0, 0]


def test_two_workers_share_frames_and_one_that_dies_loses_none(launched: Run, odd_workers: Callable[[], str]) -> None:
    gadgetron = launched("segment_images")
    addresses = f"{odd_workers()} {odd_workers()}"
    gadgetron.open(preset="breast-dce", worker=addresses, segment__model="toy", segment__frames="[]", worker_s="20")
    orders = [(Ask.THRESHOLD, 0.0), (Ask.DIE_ONCE, 0.0), (Ask.THRESHOLD, 0.0), (Ask.THRESHOLD, 0.0)]
    found = gadgetron.whole_scan(image_array([(int(ask), s) for ask, s in orders]))
    assert ids(found) == [1024, *[1022] * 20, 4]
    assert labels(found) == dict.fromkeys(range(1, 5), BRIGHT)


def test_parent_that_dies_while_a_worker_segments_ends_the_child(
    launched: Run, odd_workers: Callable[[], str], tmp_path: Path
) -> None:
    gadgetron = launched("segment_images")
    gadgetron.open(preset="breast-dce", worker=odd_workers(), segment__model="toy", segment__frames="[]")
    gadgetron.send(image_array([(Ask.SLOW, 30.0)]))
    deadline = time.monotonic() + 30
    while not (tmp_path / "mark").exists() and time.monotonic() < deadline:
        threading.Event().wait(0.02)
    gadgetron.socket.close()
    assert gadgetron.child is not None
    assert ended_within(gadgetron.child, 30) < END_S


def test_absent_worker_fails_the_scan_or_is_replaced_by_this_process(launched: Run, tmp_path: Path, toy: Path) -> None:
    nobody = f"ipc://{tmp_path}/nobody"
    failing, local = launched("segment"), launched("segment")
    settings = {"preset": "breast-dce", "segment__model": str(toy), "segment__on_failure": "stop", "worker": nobody}
    failing.open(**settings)
    found = failing.whole_scan(*messages())
    assert ids(found) == [8, 4]
    assert "no model worker can be had" in found[0].text
    local.open(**settings, worker_absent="local")
    assert ids(local.whole_scan(*messages())) == [1022] * (N_IMAGES + STARS.nz) + [4]
