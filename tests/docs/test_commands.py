"""What the pages tell people to type works: every option exists, and blocks of commands do what the page says."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from kstream.cli import app
from kstream.training.__main__ import app as training_app
from tests.docs.pages import Block, Command, Page, pages

PAGES = pages()
BIN = Path(sys.executable).parent
PROGRAMS: dict[str, Any] = {
    "kstream": typer.main.get_command(app),
    "kstream.training": typer.main.get_command(training_app),
}
NO_OPTIONS = ("kstream.gadgets",)


def fault(typed: str) -> str:
    """What is wrong with a call as it is written: an unknown command or option; empty if nothing is."""
    words = shlex.split(typed)
    words = words[2:] if words[:2] == ["python", "-m"] else words
    program, words = words[0], words[1:]
    if program in NO_OPTIONS:
        return ""
    command = PROGRAMS[program]
    while inner := getattr(command, "commands", {}):
        if not words or words[0].startswith("-") or words[0].isupper():
            break
        if words[0] not in inner:
            if program == "kstream" and command.name == "config":  # `kstream config PRESET`
                command = inner["show"]
                break
            return f"there is no command {words[0]!r}"
        command, words = inner[words[0]], words[1:]
    known = {"--help", "--version"} | {o for p in command.params for o in [*p.opts, *p.secondary_opts]}
    unknown = [word for word in words if re.match(r"--?[a-z]", word) and word.partition("=")[0] not in known]
    return f"no option {', '.join(unknown)}" if unknown else ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_on_the_page_exist(page: Page) -> None:
    faults = {typed: fault(typed) for typed in page.said()}
    assert not {typed: why for typed, why in faults.items() if why}


def test_a_wrong_command_or_option_is_found() -> None:
    block = "```console\n$ kstream replay scan.h5 --prest x | kstream stream\n```"
    text = f"`kstream replai x`\n\n{block}\n\n    kstream serve --prot 1\n"
    said = list(Page(Path(__file__), text).said())
    assert [bool(fault(typed)) for typed in said] == [True, False, True, True]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_runs_or_says_why_not(page: Page) -> None:
    for block in page.blocks():
        assert block.commands or block.file, "a console block has lines that begin with '$ '"
        assert len(block.not_run) > 8 or not block.not_run


class Shell:
    """A folder in which the commands of a page are typed; servers run until the page ends or starts another one.

    Port 9002 of a page is a free port here, and so is any other port that a server is given.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._server, self._port = folder, None, "9002"  # type: tuple[Path, Any, str]
        self._environment = {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "COLUMNS": "110",
            "TERM": "dumb",
        }

    def run(self, command: Command, exit_code: int) -> None:
        """Type a command; hold its exit code and its output to what the page says."""
        if command.typed.startswith("kstream serve"):
            said = self._serve(command.typed)
        else:
            typed = command.typed.replace("9002", self._port)
            done = subprocess.run(
                ["bash", "-c", typed], cwd=self._folder, env=self._environment, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True, timeout=800, check=False,
            )  # fmt: skip
            assert done.returncode == exit_code, f"$ {command.typed}\n{done.stdout}{self.log()}"
            said = done.stdout
        missing = missing_line(command.printed, said.replace(self._port, "9002"))
        assert missing is None, f"$ {command.typed}\nshould print: {missing}\nprinted:\n{said}"

    def write(self, name: str, text: str) -> None:
        """A file that the reader writes."""
        (self._folder / name).write_text(text, "utf-8")

    def _serve(self, typed: str) -> str:
        self.end()
        typed = re.sub(r"(--\S*port) \d+", r"\1 0", typed)
        with (self._folder / "server.err").open("w") as log:
            self._server = subprocess.Popen(
                ["bash", "-c", f"exec {typed}"], cwd=self._folder, env=self._environment, stdout=subprocess.PIPE,
                stderr=log, text=True,
            )  # fmt: skip
        line = self._server.stdout.readline()
        found = re.search(r"listens on \S+ port (\d+)", line)
        assert found, f"$ {typed}\n{line}{self.log()}"
        self._port = found[1]
        return str(line)

    def log(self) -> str:
        """What the server said."""
        path = self._folder / "server.err"
        return f"\nserver:\n{path.read_text()}" if path.exists() else ""

    def end(self) -> None:
        """Stop the server, if one runs; it ends in order."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.send_signal(signal.SIGTERM)
        try:
            assert server.wait(40) == 0, self.log()
        finally:
            server.kill()
            server.wait()
            server.stdout.close()


def missing_line(expected: tuple[str, ...], printed: str) -> str | None:
    """The first expected line that does not come, in order; dots are anything."""
    lines = iter(printed.splitlines())
    for line in expected:
        form = re.compile(".*".join(re.escape(part) for part in line.strip().split("...")))
        if line.strip() != "..." and not any(form.fullmatch(came.strip()) for came in lines):
            return line
    return None


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    made = Shell(tmp_path)
    yield made
    made.end()


def run_page(page: Page, shell: Shell, with_slow: bool) -> None:
    for block in page.blocks():
        if block.not_run or (block.is_slow and not with_slow):
            continue
        if block.file:
            shell.write(block.file, block.text)
        for typed in block.prepare:
            shell.run(Command(typed), 0)
        for command in block.commands:
            shell.run(command, block.exit_code if command is block.commands[-1] else 0)


def runs(block: Block, slow: bool) -> bool:
    return not block.not_run and block.is_slow == slow


@pytest.mark.parametrize(
    "page", [p for p in PAGES if any(runs(b, slow=False) for b in p.blocks())], ids=lambda p: p.name
)
def test_commands_do_what_the_page_says(page: Page, shell: Shell) -> None:
    run_page(page, shell, with_slow=False)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "page", [p for p in PAGES if any(runs(b, slow=True) for b in p.blocks())], ids=lambda p: p.name
)
def test_commands_that_take_long_do_what_the_page_says(page: Page, shell: Shell) -> None:
    run_page(page, shell, with_slow=True)


def test_a_command_that_fails_or_prints_something_else_is_found(shell: Shell) -> None:
    shell.run(Command("kstream config --json", ("...", '"preset": "breast-dce",')), 0)
    with pytest.raises(AssertionError, match="there is no preset"):
        shell.run(Command("kstream config show brest-dce"), 0)
    with pytest.raises(AssertionError, match="should print: preset  for"):
        shell.run(Command("kstream config", ("breast-dce ...", "preset  for")), 0)
