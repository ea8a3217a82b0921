"""``kstream recover``: journals of a server become ISMRMRD files."""

from __future__ import annotations

import json as json_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..mrd.recovering import Recovered


def command(
    paths: Annotated[list[Path], typer.Argument(help="journals of `kstream serve --record`, or folders of them")],
    output: Annotated[
        Path | None, typer.Option(help="folder for the ISMRMRD files; default: beside each journal")
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="remove a journal once all of it is in its file")] = False,
    json: Annotated[bool, typer.Option("--json", help="machine-readable")] = False,
) -> None:
    """Turn journals into ISMRMRD files, also those that a crash or a full disk left behind.

    Every acquisition that was fully received is kept; a file that is not the whole measurement says so, here and
    inside. Nothing is overwritten. Exit code 5 if a journal could not be read or its file not be written.
    """
    from ..mrd.recovering import find_journals, recover_journal

    journals = [journal for path in paths for journal in find_journals(path)]
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
    rows = []
    for journal in journals:
        found = recover_journal(journal, output)
        is_removed = remove and found.is_removable
        if is_removed:
            journal.unlink()
        rows.append(_row(found, is_removed))
        if not json:
            print(_line(found, is_removed, remove), flush=True)
    if json:
        print(json_.dumps(rows, indent=2))
    raise typer.Exit(5 if any(row["status"] == "failed" for row in rows) else 0)


def _row(found: Recovered, is_removed: bool) -> dict[str, Any]:
    from dataclasses import asdict

    paths = {"journal": str(found.journal), "output": str(found.output) if found.output else None}
    return asdict(found) | paths | {"is_removed": is_removed}


def _line(found: Recovered, is_removed: bool, remove: bool) -> str:
    """One journal in one to three lines of text."""
    lines = [f"{found.journal.name}: {found.status}" + (f": {found.reason}" if found.reason else "")]
    if found.status in ("complete", "incomplete"):
        waveforms = f", {found.n_waveforms} waveforms" if found.n_waveforms else ""
        lines.append(f"  {found.n_acquisitions} acquisitions{waveforms} in {found.output}")
    if found.bytes_lost:
        lines.append(f"  {found.bytes_lost} bytes lost: they belong to no whole message")
    if found.n_other:
        lines.append(
            f"  {found.n_other} other messages stay in the journal: a recording has no place for images and texts"
        )
    if remove:
        lines.append("  journal removed" if is_removed else "  journal kept")
    return "\n".join(lines)
