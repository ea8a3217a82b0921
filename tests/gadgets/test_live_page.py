"""A scan that comes through the door for Gadgetron is shown like any other."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from kstream.serve.gadget_door import GadgetDoor
from kstream.serve.server import MrdServer
from kstream.serve.settings import LOOPBACK
from kstream.serve.tap import Tap
from tests.gadgets.gadgetron_double import STARS, Gadgetron, readouts


def test_a_scan_of_gadgetron_leaves_frames_and_its_end_in_the_tap(doors: Callable[..., GadgetDoor]) -> None:
    tap = Tap()
    server = MrdServer(LOOPBACK[:1], 0, tap=tap)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with contextlib.closing(Gadgetron.dial(doors(server=server).port)) as gadgetron:
            gadgetron.open(preset="breast-dce-recon", target="reconstruct")
            gadgetron.whole_scan(*(readout.message for readout in readouts()))
    finally:
        server.stop(5.0)
        thread.join(10)
    events = [event for _ in range(STARS.n_frames + 2) for event in tap.gather()]
    tap.close()
    newest_first = [event.fields["frame"] for event in events if event.kind == "image"]
    assert newest_first == list(range(STARS.n_frames))[::-1]
    assert sum(event.kind == "delivered" for event in events) == STARS.n_frames
    [ended] = [event.fields for event in events if event.kind == "session" and event.fields["state"] == "ended"]
    assert (ended["door"], ended["outcome"], ended["counters"]["frames"]) == ("Gadgetron", "completed", STARS.n_frames)
