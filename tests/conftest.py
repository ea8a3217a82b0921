import os
import threading
from collections.abc import Iterator

import pytest

# Small matrices everywhere: threads inside BLAS only wait for each other (see kstream/cli/__init__.py).
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")


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
