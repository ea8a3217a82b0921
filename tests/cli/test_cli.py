import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from kstream.mrd.recording import write_recording
from tests.scans import StackOfStars

KSTREAM = str(Path(sys.executable).parent / "kstream")


def kstream(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([KSTREAM, *arguments], capture_output=True, text=True, cwd=cwd, check=False, timeout=200)


def test_help_is_fast() -> None:
    """0.3 s is the promise; the best of three on a machine that is shared."""
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        assert kstream("--help").returncode == 0
        times.append(time.perf_counter() - begin)
    assert min(times) < 0.6


def test_config_lists_presets_and_shows_origins() -> None:
    assert "recon-radial" in kstream("config").stdout
    shown = kstream("config", "breast-dce", "--set", "coils.kernel=5").stdout
    assert "coils.kernel" in shown
    assert "--set" in shown


def test_wrong_preset_ends_with_the_error_form_and_its_exit_code() -> None:
    found = kstream("config", "no-such")
    assert found.returncode == 2
    assert found.stderr.startswith("error: there is no preset 'no-such'")
    assert "  try" in found.stderr


def test_models_are_listed_and_counted() -> None:
    listed = json.loads(kstream("models", "list", "--json").stdout)
    assert {"breast-magnitude", "breast-hybrid"} <= {row["name"] for row in listed}
    shown = json.loads(kstream("models", "show", "breast-magnitude", "--json").stdout)
    assert shown["parameters"] == 2_669_228
    assert shown["macs"] == pytest.approx(32.005e9, rel=1e-3)


def test_replay_keeps_the_recorded_timing_and_tells_how_well(tmp_path: Path, port: int) -> None:
    stars = StackOfStars()
    acquisitions = stars.acquisitions(np.random.default_rng(0), noise=2)
    for number, acquisition in enumerate(acquisitions):
        acquisition.header["acquisition_time_stamp"] = number
    write_recording(tmp_path / "scan.h5", stars.scan().xml, acquisitions)
    options = ("--port", str(port), "--preset", "breast-dce-recon", "--quiet", "--speed", "4")
    account = json.loads(kstream("replay", str(tmp_path / "scan.h5"), *options, "--json").stdout)
    assert account["sent"] == account["received"] == 158
    assert set(account["jitter_ms"]) == {"p50", "p99", "max"}
    assert account["sent_per_s"] < 4 / 2.5e-3 * 1.01
    assert "jitter p50" in kstream("replay", str(tmp_path / "scan.h5"), *options).stdout


def test_inspect_shows_a_recording_and_refuses_what_is_none(tmp_path: Path) -> None:
    stars = StackOfStars()
    write_recording(tmp_path / "scan.h5", stars.scan().xml, stars.acquisitions(np.random.default_rng(0), noise=2))
    shown = kstream("inspect", str(tmp_path / "scan.h5")).stdout
    assert "158" in shown
    assert "IS_NOISE_MEASUREMENT on 2" in shown
    (tmp_path / "broken.h5").write_bytes(b"not HDF5")
    refused = kstream("inspect", str(tmp_path / "broken.h5"))
    assert refused.returncode == 5
    assert refused.stderr.startswith("error:")


def test_replay_without_a_server_fails_with_a_hint(tmp_path: Path) -> None:
    stars = StackOfStars()
    write_recording(tmp_path / "scan.h5", stars.scan().xml, stars.acquisitions(np.random.default_rng(0)))
    found = kstream("replay", str(tmp_path / "scan.h5"), "--port", "1", "--quiet")
    assert found.returncode == 7
    assert "kstream serve" in found.stderr


def test_serve_replay_and_sigterm(tmp_path: Path) -> None:
    """A server process of its own: it says its port, serves a scan, and ends on SIGTERM."""
    stars = StackOfStars()
    write_recording(tmp_path / "scan.h5", stars.scan().xml, stars.acquisitions(np.random.default_rng(0), noise=2))
    command = [KSTREAM, "serve", "--port", "0", "--warm-up", ""]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = server.stdout.readline().split()[-1]
        good = kstream("replay", str(tmp_path / "scan.h5"), "--port", port, "--preset", "breast-dce-recon", "--quiet")
        bad = kstream("replay", str(tmp_path / "scan.h5"), "--port", port, "--preset", "nonsense", "--quiet")
        os.kill(server.pid, signal.SIGTERM)
        _, log = server.communicate(timeout=20)
    assert good.returncode == 0, good.stderr
    assert "received 158, frames 3, images 15, dropped 0" in good.stdout
    assert bad.returncode != 0
    assert bad.stderr.startswith("error: there is no preset 'nonsense'")
    assert "there is no preset 'nonsense'" in log
    assert server.returncode == 0


def test_empty_recording_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    write_recording(tmp_path / "empty.h5", StackOfStars().scan().xml, [])
    found = kstream("replay", str(tmp_path / "empty.h5"), "--port", "1", "--quiet")
    assert found.returncode == 5
    assert found.stderr.startswith("error:")


def test_results_of_a_replay_are_volumes_pictures_and_a_report(tmp_path: Path, port: int) -> None:
    stars = StackOfStars()
    write_recording(tmp_path / "scan.h5", stars.scan().xml, stars.acquisitions(np.random.default_rng(0), noise=2))
    found = kstream(
        *("replay", "scan.h5", "--port", str(port), "--preset", "breast-dce-recon", "--quiet"),
        *("--results", "out", "--set", "images.magnitude_type=uint16"),
        cwd=tmp_path,
    )
    assert found.returncode == 0, found.stderr
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "magnitude.nii.gz",
        "overview.png",
        "volume.gif",
        "run.json",
        "report.html",
    }
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["received"] == 158
    assert run["dropped"] == 0
    assert {"key": "images.magnitude_type", "value": '"uint16"', "origin": "client"} in run["settings"]
    assert "Research use only" in (tmp_path / "out" / "report.html").read_text()
