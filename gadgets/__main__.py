"""``python -m kstream.gadgets``: what Gadgetron launches, and what installs it.

::

    python -m kstream.gadgets PORT kstream.gadgets [TARGET]    one scan; the arguments are Gadgetron's
    python -m kstream.gadgets install GADGETRON_HOME           copy configurations and launcher there
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from ..errors import ConfigError, KstreamError
from ..serve.gadget_child import dial, run_child
from .targets import target_of

MODULE = "kstream.gadgets"
FOLDERS = {"config": "share/gadgetron/config", "launcher": "share/gadgetron/python"}
"""What is copied where below Gadgetron's home."""


def main(arguments: Sequence[str]) -> int:
    """Serve one scan, or install; gives the exit code."""
    match list(arguments):
        case []:
            print(f"{MODULE}: {', '.join(('segment', 'reconstruct', 'segment_images'))}")
            return 0  # Gadgetron asks whether Python is there
        case ["install", home]:
            for path in install(Path(home)):
                print(path)
            return 0
        case [port, module, *rest] if port.isdecimal() and int(port) < 2**16 and len(rest) < 2:
            if module != MODULE:
                raise ConfigError(f"{module[:80]!r} is no module of ours", where="<execute>", hint=f'name="{MODULE}"')
            return run_child(dial(int(port)), target_of(rest[0] if rest else "segment"))
        case _:
            raise ConfigError("cannot understand these arguments", hint=f"python -m {MODULE} PORT {MODULE} [TARGET]")


def install(home: Path) -> list[Path]:
    """Copy configurations and the launcher to Gadgetron's home; gives what was written.

    Raises
    ------
    ConfigError : there is no Gadgetron, or another ``gadgetron.py`` is in the way.
    """
    share = home / "share" / "gadgetron"
    if not share.is_dir():
        raise ConfigError(f"{share} is no folder", where=str(home), likely="Gadgetron is installed elsewhere")
    written = []
    for source, target in FOLDERS.items():
        folder = home / target
        folder.mkdir(parents=True, exist_ok=True)
        for entry in sorted(resources.files(MODULE).joinpath(source).iterdir(), key=lambda e: e.name):
            if not entry.name.endswith((".xml", ".py")):
                continue
            path, text = folder / entry.name, entry.read_text("utf-8")
            if path.exists() and "kstream" not in path.read_text("utf-8", "replace"):
                raise ConfigError(f"{path} is there already and is not ours", hint="move it away first")
            path.write_text(text, "utf-8")
            written.append(path)
    return written


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KstreamError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
