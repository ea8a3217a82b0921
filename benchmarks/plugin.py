"""The pytest plugin behind ``pytest --benchmark``: an entry point, so that it works in any folder.

Without the option it does nothing but declare it: this module imports nothing of kstream.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import pytest

SUITE = Path(__file__).parent
RESULT = "kstream-benchmark.json"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare ``--benchmark`` and ``--benchmark-quick``; pytest takes no abbreviations, so others may begin so too."""
    group = parser.getgroup("kstream")
    group.addoption(
        "--benchmark",
        action="store_true",
        dest="kstream_benchmark",
        help=f"run the benchmarks of kstream and write {RESULT} (or --benchmark-json)",
    )
    group.addoption(
        "--benchmark-quick",
        action="store_true",
        dest="kstream_quick",
        help="with --benchmark: each once and tiny, to see that the suite runs",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """With the option, this run is about the suite and nothing else, whatever the folder's own settings are.

    Raises
    ------
    pytest.UsageError : tests were named as well, pytest-benchmark is missing, or xdist would disturb the times.
    """
    if not config.getoption("kstream_benchmark"):
        return
    if config.args_source is pytest.Config.ArgsSource.ARGS:
        raise pytest.UsageError("--benchmark runs kstream's own benchmarks: choose among them with -k")
    if not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError("--benchmark needs pytest-benchmark: pip install 'kstream[test]'")
    if config.getoption("numprocesses", None):
        raise pytest.UsageError("--benchmark measures one thing at a time: leave out -n")
    # Threads inside BLAS only wait for each other on small matrices; must be said before numpy is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    option = config.option
    option.benchmark_skip = option.benchmark_disable = False
    option.benchmark_quiet = True  # the tables of pytest-benchmark know nothing of peers; ours is printed instead
    if not option.collectonly:
        option.benchmark_json = option.benchmark_json or Path(RESULT)
    config.args[:] = [str(SUITE)]
    config.pluginmanager.register(importlib.import_module("kstream.benchmarks.turns"), "kstream-turns")
