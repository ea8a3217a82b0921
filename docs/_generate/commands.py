"""Every command with its options, read from the command line's own definition."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer

from kstream.cli import app as kstream_app
from kstream.cli.examples import EXAMPLES
from kstream.training.__main__ import app as training_app

from .markdown import code, fence, from_rst, table

PROGRAMS = {
    "kstream": kstream_app,
    "python -m kstream.training": training_app,
}


def commands() -> dict[str, Any]:
    """Every command that does something itself, by what is typed."""
    return {
        name: command
        for program, app in PROGRAMS.items()
        for name, command in _leaves(typer.main.get_command(app), program)
    }


def _leaves(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    inner = getattr(command, "commands", {})
    if not inner or command.invoke_without_command:
        yield name, command
    for word, child in inner.items():
        yield from _leaves(child, f"{name} {word}")


def page() -> str:
    parts = []
    for name, command in commands().items():
        parts.append(f"({anchor(name)})=\n## {name}\n\n{from_rst(command.help or '')}\n")
        parts.append(fence(usage(name, command), "text"))
        given = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
        for kind in ("argument", "option"):
            rows = [_row(parameter) for parameter in given if parameter.param_type_name == kind]
            if rows:
                parts.append(table((kind, "default", "meaning"), rows))
        if examples := EXAMPLES.get(name.removeprefix("kstream ")):
            parts.append("Examples:\n\n" + fence("\n".join(f"$ {line}" for line in examples), "console"))
    return "\n".join(parts)


def anchor(name: str) -> str:
    """The place of a command on the page."""
    return "command-" + name.replace("python -m ", "").replace(".", "-").replace(" ", "-")


def usage(name: str, command: Any) -> str:
    """How the words of a command follow each other."""
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    words = [_metavar(p) if p.required else f"[{_metavar(p)}]" for p in arguments]
    return " ".join([name, "[OPTIONS]", *words])


def _row(parameter: Any) -> tuple[str, str, str]:
    if parameter.param_type_name == "argument":
        name = code(_metavar(parameter))
    else:
        name = ", ".join(code(option) for option in [*parameter.opts, *parameter.secondary_opts])
    allowed = _allowed(parameter)
    meaning = re.sub(r" \[default: (.*)\]$", r"; by default \1", parameter.help or "")
    return ", ".join([name, allowed] if allowed else [name]), _default(parameter), meaning


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _allowed(parameter: Any) -> str:
    """What may follow an option: words, a range, or a kind."""
    if getattr(parameter, "is_flag", False):
        return ""
    annotation = parameter.type_descriptor.annotation
    several = ", may be repeated" if get_origin(annotation) is list else ""
    kind = get_args(annotation)[0] if several else annotation
    if get_origin(kind) is Literal:
        return " or ".join(code(str(word)) for word in get_args(kind)) + several
    if isinstance(kind, type) and issubclass(kind, Enum):
        return " or ".join(code(str(word.value)) for word in kind) + several
    word = {int: "whole number", float: "number", str: "text", Path: "path"}[kind]
    bounds = [f"{sign} {bound:g}" for sign, bound in (("≥", parameter.min), ("≤", parameter.max)) if bound is not None]
    return " ".join([word, ", ".join(bounds)]).strip() + several


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    if value in (None, "", (), []) or callable(value):
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    return code(str(getattr(value, "value", value)))
