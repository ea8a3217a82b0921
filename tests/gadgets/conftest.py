from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kstream.serve.gadget_door import GadgetDoor
from kstream.serve.server import MrdServer
from kstream.serve.settings import LOOPBACK, ServerSettings
from kstream.serve.store import ModelStore
from tests.gadgets.gadgetron_double import Gadgetron, Launch
from tests.serve.test_store import bundle
from tests.threads import assert_none_left

MakeDoor = Callable[..., GadgetDoor]


@pytest.fixture
def doors() -> Iterator[MakeDoor]:
    """Makes doors for ``<connect>``; afterwards nothing of them is left."""
    made: list[GadgetDoor] = []
    servers: list[MrdServer] = []

    def make(settings: ServerSettings | None = None, server: MrdServer | None = None) -> GadgetDoor:
        servers.append(server or MrdServer(LOOPBACK[:1], 0, settings))
        door = GadgetDoor(LOOPBACK[:1], 0, servers[-1], ModelStore())
        door.start()
        made.append(door)
        return door

    yield make
    for door in made:
        door.stop(5.0)
    for server in servers:
        server.stop(0.0)
    assert_none_left()


@pytest.fixture
def dialled(doors: MakeDoor) -> Iterator[Callable[..., Gadgetron]]:
    """Gadgetrons that have dialled a door."""
    made: list[Gadgetron] = []

    def dial(settings: ServerSettings | None = None) -> Gadgetron:
        made.append(Gadgetron.dial(doors(settings).port))
        return made[-1]

    yield dial
    for gadgetron in made:
        gadgetron.close()


@pytest.fixture
def launched() -> Iterator[Callable[..., Gadgetron]]:
    """Gadgetrons that have started a child."""
    made: list[Gadgetron] = []
    started: list[Launch] = []

    def launch(target: str = "segment", **options: object) -> Gadgetron:
        started.append(Launch(target, **options))  # type: ignore[arg-type]
        made.append(started[-1].accept())
        return made[-1]

    yield launch
    for gadgetron in made:
        gadgetron.close()
    for launch_ in started:
        with contextlib.suppress(OSError):
            launch_.child.kill()
        launch_.child.wait(10)
        launch_.listener.close()


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny model."""
    return bundle(tmp_path_factory.mktemp("bundles") / "toy", 1.0)
