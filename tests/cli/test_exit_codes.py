"""docs/exit-codes.md against the error tree and the commands."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import kstream.pipeline  # loads every module that adds to the error tree
import kstream.serve.replay  # noqa: F401
from kstream.errors import KstreamError
from kstream.mrd.codec import encode
from kstream.mrd.messages import IMAGE_HEADER, Close, Image, Text
from kstream.mrd.recording import write_recording
from tests.scans import StackOfStars

DOCUMENT = Path(__file__).parents[2] / "docs" / "exit-codes.md"
STARS = StackOfStars()


def tree(root: type[KstreamError] = KstreamError) -> Iterator[type[KstreamError]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__.startswith("kstream."):
            yield from tree(child)


def documented() -> dict[int, tuple[str, str]]:
    rows = [line.strip("| \n").split(" | ") for line in DOCUMENT.read_text().splitlines() if line.startswith("| ")]
    return {int(code): (name.strip("`"), meaning) for code, name, meaning in rows[1:]}


def test_every_error_has_its_row_with_its_own_words() -> None:
    """An error without a code of its own ends with that of its parent."""
    own = {error.exit_code: error for error in tree() if "exit_code" in vars(error)}
    rows = {code: row for code, row in documented().items() if row[0].endswith("Error")}
    expected = {code: (e.__name__, (e.__doc__ or "").splitlines()[0]) for code, e in own.items()}
    assert rows == expected, "\n".join(f"| {c} | `{n}` | {m} |" for c, (n, m) in sorted(expected.items()))


def test_no_two_errors_share_a_code_unless_one_is_the_other() -> None:
    own = [error for error in tree() if "exit_code" in vars(error)]
    assert len({error.exit_code for error in own}) == len(own)


def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "kstream", *arguments], input=stdin, capture_output=True, check=False, timeout=120
    )


@pytest.fixture
def recording(tmp_path: Path) -> str:
    write_recording(tmp_path / "scan.h5", STARS.scan().xml, STARS.acquisitions(np.random.default_rng(0), noise=2))
    return str(tmp_path / "scan.h5")


def test_codes_of_commands_that_fail(recording: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ends = {
            0: run("config"),
            2: run("config", "no-such"),
            3: run("stream", stdin=b"GET / HTTP/1.1\r\n\r\n"),
            5: run("inspect", str(tmp_path / "missing.h5")),
            6: run("models", "show", "no-such"),
            7: run("serve", "--host", "127.0.0.1", "--port", port, "--warm-up", ""),
        }
    assert {code: end.returncode for code, end in ends.items()} == {code: code for code in ends}
    assert all(end.stderr.count(b"error: ") == 1 for code, end in ends.items() if code), ends
    assert run("config", "--no-such-option").returncode == 2


def test_an_error_of_the_server_ends_replay_with_the_code_of_a_peer(recording: str, port: int) -> None:
    refused = run("replay", recording, "--port", str(port), "--preset", "brest-dce", "--quiet")
    assert refused.returncode == 7
    assert b"did you mean breast-dce" in refused.stderr
    assert refused.stdout.count(b"images 0") == 1


def test_ctrl_c_ends_with_130(recording: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "-m", "kstream", "replay", recording, "--port", str(listener.getsockname()[1])]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)  # the replay is under way
                os.kill(process.pid, signal.SIGINT)
                assert process.wait(30) == 130
                assert process.stderr is not None
                assert b"Traceback" not in process.stderr.read()


def test_an_error_of_the_server_counts_although_images_came(recording: str, tmp_path: Path) -> None:
    header = np.zeros(1, IMAGE_HEADER)[0]
    header["image_series_index"] = 1
    answer = [Image(header, {}, np.ones((1, 1, 3, 5), np.float32)), Text("ERR error: frame 2 was lost"), Close()]

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"".join(encode(message) for message in answer))
            while connection.recv(1 << 16):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        serving = pool.submit(serve, listener)
        port = str(listener.getsockname()[1])
        end = run("replay", recording, "--port", port, "--quiet", "--json", "--output", str(tmp_path / "images.h5"))
        serving.result(30)
    assert end.returncode == 7
    assert b"frame 2 was lost" in end.stderr
    account = json.loads(end.stdout)
    assert (account["images"], account["errors"]) == (1, ["error: frame 2 was lost"])
    assert account["output"] == str(tmp_path / "images.h5")
