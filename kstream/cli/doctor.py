"""``kstream doctor``: is this installation able to serve a scan?"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer


def command(
    port: Annotated[int, typer.Option(min=1, max=65535, help="port that the server shall have, or has")] = 9002,
    folder: Annotated[Path, typer.Option(help="where recordings shall go")] = Path(),
    json: Annotated[bool, typer.Option("--json", help="machine-readable")] = False,
) -> None:
    """Check the machine, packages, port, models, workers, and a scan through a socket; each failure names its fix.

    Exit code 0 if all is well, 1 otherwise.
    """
    import logging
    from dataclasses import asdict

    from ..serve.checkup import all_checks, run_checks, still_running

    logging.getLogger("kstream").addHandler(logging.NullHandler())  # findings say it
    findings = []
    for finding in run_checks(all_checks(port, folder)):
        findings.append(finding)
        if not json:
            print(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.check:<14} {finding.detail}", flush=True)
            if finding.fix:
                print(f"      {'':<14} {'advice' if finding.ok else 'fix'}: {finding.fix}", flush=True)
    is_well = all(finding.ok for finding in findings)
    if json:
        import json as json_

        print(json_.dumps({"ok": is_well, "checks": [asdict(finding) for finding in findings]}, indent=2))
    if still_running():  # a library in the middle of its work would abort the interpreter's orderly end
        sys.stdout.flush()
        os._exit(1)
    raise typer.Exit(0 if is_well else 1)
