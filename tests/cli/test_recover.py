"""``kstream recover`` from the command line, and journals as a source of other commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kstream.mrd.codec import encode
from kstream.mrd.journal import JournalFile
from kstream.mrd.messages import Close, ConfigFile, Header
from kstream.mrd.recording import Recording
from tests.scans import StackOfStars

KSTREAM = str(Path(sys.executable).parent / "kstream")
STARS = StackOfStars()


LIMITED = (
    "import os, resource, sys; n = int(sys.argv[1])\n"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (n, n)); os.execv(sys.argv[2], sys.argv[2:])"
)


def kstream(*arguments: object, file_bytes: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command, with a limit on the size of the files that it may write."""
    limit = [] if file_bytes is None else [sys.executable, "-c", LIMITED, str(file_bytes)]
    command = [*limit, KSTREAM, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)


def messages(n_acquisitions: int = 158) -> list[bytes]:
    acquisitions = STARS.acquisitions(np.random.default_rng(0), noise=2)[:n_acquisitions]
    return [encode(m) for m in (ConfigFile("breast-dce-recon"), Header(STARS.scan().xml), *acquisitions)]


def journal(folder: Path, chunks: list[bytes], session: int) -> JournalFile:
    file = JournalFile.create(folder, session, "127.0.0.1:50000")
    for i, chunk in enumerate(chunks):
        file.append(memoryview(chunk), 1000 * i)
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole session, one whose server was killed in the middle of an acquisition, and one that only said hello."""
    whole = messages()
    journal(tmp_path, [*whole, encode(Close())], 1).seal(True)
    left = journal(tmp_path, [*whole[:42], whole[42][:-5]], 2)
    left.close()
    journal(tmp_path, [whole[0], encode(Close())], 3).seal(True)
    return tmp_path


def test_folder_is_recovered_with_one_plain_answer_for_each_journal(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = kstream("recover", folder, "--output", out)
    assert found.returncode == 0, found.stderr
    text = found.stdout
    assert "-000001.journal: complete\n  158 acquisitions in" in text
    assert "-000002.journal.part: incomplete: at byte" in text
    assert "  40 acquisitions in" in text
    lost = len(messages()[42]) - 5
    assert f"  {lost} bytes lost: they belong to no whole message" in text
    assert "-000003.journal: empty: the session ended after the handshake: nothing was measured" in text
    first, second = sorted(out.iterdir())
    with Recording(first) as whole, Recording(second) as part:
        assert (whole.n_acquisitions, whole.incomplete) == (158, "")
        assert part.n_acquisitions == 40
        assert "its writer was killed" in part.incomplete
    assert "incomplete" in kstream("inspect", second).stdout
    assert len(list(folder.glob("*.journal*"))) == 3


def test_json_form_and_removal_of_what_is_wholly_recovered(folder: Path) -> None:
    found = kstream("recover", folder, "--json", "--remove")
    rows = json.loads(found.stdout)
    assert [row["status"] for row in rows] == ["complete", "incomplete", "empty"]
    assert [row["n_acquisitions"] for row in rows] == [158, 40, 0]
    assert [row["session"] for row in rows] == [1, 2, 3]
    assert all(row["is_removed"] for row in rows)
    assert sorted(p.suffix for p in folder.iterdir()) == [".h5", ".h5"]


def test_second_run_touches_nothing(folder: Path) -> None:
    kstream("recover", folder)
    before = {p: p.stat().st_mtime_ns for p in folder.glob("*.h5")}
    again = kstream("recover", folder, "--remove")
    assert again.returncode == 0
    assert again.stdout.count("is there already and was not touched") == 2
    assert {p: p.stat().st_mtime_ns for p in folder.glob("*.h5")} == before
    assert len(list(folder.glob("*00[12].journal*"))) == 2


def test_what_is_no_journal_fails_with_exit_code_5(tmp_path: Path) -> None:
    (tmp_path / "a.journal").write_bytes(b"nothing of the kind")
    found = kstream("recover", tmp_path)
    assert found.returncode == 5
    assert "a.journal: failed: a.journal is not a journal of kstream" in found.stdout
    missing = kstream("recover", tmp_path / "gone.journal")
    assert missing.returncode == 5
    assert missing.stderr.startswith("error: there is no file gone.journal")


def test_35_disk_that_is_too_full_for_the_output_keeps_the_journal(folder: Path) -> None:
    found = kstream("recover", folder, "--remove", file_bytes=100_000)
    assert found.returncode == 5
    assert found.stdout.count(".h5 cannot be written: File too large") == 1
    assert sorted(p.name.split("-")[1] for p in folder.iterdir()) == ["000001.journal", "000002.h5"]


def test_35_replay_whose_images_do_not_fit_ends_with_exit_code_5_and_no_file(tmp_path: Path, port: int) -> None:
    """This was a crash inside HDF5 (SIGSEGV) that left a temporary file."""
    path = journal(tmp_path, [*messages(), encode(Close())], 1).seal(True)
    images = tmp_path / "images.h5"
    arguments = ("replay", path, "--port", port, "--preset", "breast-dce-recon", "--quiet", "--output", images)
    found = kstream(*arguments, file_bytes=9000)
    assert found.returncode == 5
    assert found.stderr.startswith("error: images.h5 cannot be written: File too large")
    assert "Traceback" not in found.stderr
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert kstream(*arguments).returncode == 0
    assert sorted(os.listdir(tmp_path)) == sorted([path.name, "images.h5"])


def test_journal_is_inspected_like_a_recording(folder: Path) -> None:
    (left,) = folder.glob("*.part")
    found = kstream("inspect", left)
    assert found.returncode == 0, found.stderr
    assert "40" in found.stdout
    assert "IS_NOISE_MEASUREMENT on 2" in found.stdout
