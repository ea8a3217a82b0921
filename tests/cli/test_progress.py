"""Progress where nobody looks: plain lines, few of them, none of them wrapped."""

import pytest

from kstream.cli.progress import ReplayProgress, working


def test_off_a_terminal_progress_is_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with working("drawing"), ReplayProgress(1000) as bar:
        for n_sent in range(0, 1001, 10):
            bar.sent(n_sent)
        bar.text("frame 2: labels sent 1243 ms after its last readout")
        bar.text("WRN " + "streaks " * 30)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:4] == [f"replay: {n} of 1000 readouts sent" for n in (250, 500, 750, 1000)]
    assert lines[4] == "replay: frame 2: labels came 1243 ms after its last readout"
    assert lines[5].strip() == ("streaks " * 30).strip()
    assert len(lines) == 7
    assert lines[6].startswith("drawing: ")


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with working("drawing", quiet=True), ReplayProgress(10, quiet=True) as bar:
        bar.sent(10)
        bar.text("ERR lost")
    assert capsys.readouterr().err == ""
