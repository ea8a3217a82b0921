import os
import tempfile
import threading
from collections.abc import Iterator

import pytest

# Small matrices everywhere: threads inside BLAS only wait for each other (see kstream/cli/__init__.py).
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
# Calibrations and compiled engines of tests stay out of the user's cache; the processes of one run share them.
os.environ.setdefault("KSTREAM_CACHE", tempfile.mkdtemp(prefix="kstream-tests-"))


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Port of a server with default settings that lives as long as the module's tests."""
    from kstream.serve.server import MrdServer

    server = MrdServer(port=0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.port
    server.stop()
    thread.join(10)
