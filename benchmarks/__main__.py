"""``python -m kstream.benchmarks``: look at one run, compare two, write the README's table."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kstream.benchmarks.results import Run, compared, markdown, shown, write_between
from kstream.errors import KstreamError


def main() -> int:
    """Exit code 0, or 2 with a word about the file that cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m kstream.benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", help="every row of a run with its peers")
    show.add_argument("run", type=Path)
    compare = commands.add_parser("compare", help="two runs side by side, with their noise")
    compare.add_argument("before", type=Path)
    compare.add_argument("after", type=Path)
    table = commands.add_parser("table", help="the README's rows as Markdown")
    table.add_argument("run", type=Path)
    table.add_argument("--write", type=Path, help="file whose table between the markers is replaced")
    arguments = parser.parse_args()
    try:
        if arguments.command == "compare":
            print(compared(Run.load(arguments.before), Run.load(arguments.after)))
            return 0
        run = Run.load(arguments.run)
        if arguments.command == "show":
            print(shown(run))
        elif arguments.write is None:
            print(markdown(run))
        else:
            write_between(arguments.write, markdown(run))
        return 0
    except (KstreamError, OSError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
