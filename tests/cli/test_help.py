"""What every command says about itself, and how soon."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from kstream.cli import app, examples

KSTREAM = str(Path(sys.executable).parent / "kstream")
GROUP: Any = typer.main.get_command(app)


def leaves(command: Any, name: str = "") -> Iterator[str]:
    """Names of all commands that do something themselves."""
    inner = getattr(command, "commands", {})
    if not inner or command.invoke_without_command:
        yield name
    for word, child in inner.items():
        yield from leaves(child, f"{name} {word}".strip())


NAMES = list(leaves(GROUP))


def help_of(name: str) -> str:
    done = CliRunner().invoke(app, [*name.split(), "--help"], env={"COLUMNS": "100"})
    assert done.exit_code == 0
    return done.stdout


def cpu_s(*arguments: str) -> float:
    """Processor time of a fresh process: it does not grow with what else the machine does."""
    pid = os.posix_spawn(
        KSTREAM, [KSTREAM, *arguments], os.environ, file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    )
    _, status, usage = os.wait4(pid, 0)
    assert status == 0
    return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize("name", ["", *NAMES])
def test_help_comes_in_less_than_a_third_of_a_second(name: str) -> None:
    assert min(cpu_s(*name.split(), "--help") for _ in range(2)) < 0.3


@pytest.mark.parametrize("name", NAMES)
def test_help_ends_with_two_examples_whose_options_exist(name: str) -> None:
    text = help_of(name)
    lines = text[text.index("Examples:") :].splitlines()[1:]
    shown = [line.strip() for line in lines if line.strip()]
    assert shown == list(examples.EXAMPLES[name])
    assert len(shown) == 2
    for line in shown:
        part = next(part for part in re.split(r" \| ", line) if f"kstream {name}" in part).split(" > ")[0]
        words = shlex.split(part)[1 + len(name.split()) :]
        known = help_of("config show") if name == "config" else text
        for option in (word for word in words if word.startswith("--")):
            assert f"{option} " in known, (line, option)


@pytest.mark.parametrize("name", NAMES)
def test_options_with_a_default_say_it(name: str) -> None:
    command: Any = GROUP
    for word in name.split():
        command = command.commands[word]
    entries = re.split(r"^  (?=-)", help_of(name), flags=re.MULTILINE)
    for option in command.params:
        is_shown = option.param_type_name == "option" and not option.is_flag and not option.hidden
        if is_shown and option.default not in (None, "") and not isinstance(option.default, bool):
            entry = next(entry for entry in entries if f"{option.opts[0]} " in entry.split("<")[0])
            assert "[default:" in " ".join(entry.split()), option.opts


def test_every_command_has_one_whole_line_in_the_overview() -> None:
    text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80"}).stdout
    lines = text[text.index("Commands:") :].splitlines()[1:]
    assert [line.split()[0] for line in lines if line] == list(GROUP.commands)
    assert not any(line.endswith("...") for line in lines)


def test_a_misspelt_command_is_told_what_it_may_mean() -> None:
    done = CliRunner().invoke(app, ["sevre"])
    assert done.exit_code == 2
    assert "serve" in done.output


@pytest.mark.parametrize(
    ("typed", "completed"),
    [("kstream rec", ["recover"]), ("kstream config show recon-c", ["recon-cartesian", "recon-cg-sense"])],
)
def test_shells_complete_commands_and_presets(typed: str, completed: list[str]) -> None:
    word = str(len(typed.split()) - 1)
    environment = {**os.environ, "_KSTREAM_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": word}
    done = subprocess.run([KSTREAM], env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.split() == completed
