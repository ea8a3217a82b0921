"""Stands before the `gadgetron` package when Gadgetron runs ``python -m gadgetron PORT MODULE [TARGET]``.

kstream's gadgets do their handshake themselves, for the package never ends when Gadgetron dies during its own. All
other modules, and whoever imports `gadgetron`, get the package, as without this file.
"""

import importlib
import runpy
import sys
from pathlib import Path

OURS = "kstream.gadgets"


def _step_aside() -> None:
    """From now on the name stands for the package."""
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != here]
    sys.modules.pop("gadgetron", None)


_step_aside()
if __name__ == "__main__":
    is_ours = len(sys.argv) == 1 or sys.argv[2:3] == [OURS]
    runpy.run_module(OURS if is_ours else "gadgetron", run_name="__main__", alter_sys=True)
else:
    importlib.import_module("gadgetron")
