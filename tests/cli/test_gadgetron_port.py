"""``kstream serve --gadgetron-port``: both doors of one process."""

from __future__ import annotations

import re
import signal
import subprocess
import sys

from tests.gadgets.gadgetron_double import STARS, Gadgetron, ids, readouts


def test_server_has_a_door_for_gadgetron_beside_its_own() -> None:
    command = [sys.executable, "-m", "kstream", "serve", "--port", "0", "--gadgetron-port", "0", "--warm-up", ""]
    server = subprocess.Popen([*command, "--host", "127.0.0.1"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        mine, theirs = (int(re.findall(r"port (\d+)", server.stdout.readline())[0]) for _ in range(2))
        assert mine != theirs
        gadgetron = Gadgetron.dial(theirs)
        gadgetron.open(preset="breast-dce-recon", target="reconstruct")
        found = gadgetron.whole_scan(*(readout.message for readout in readouts()))
        assert ids(found) == [1022] * (STARS.n_frames * STARS.nz) + [4]
        gadgetron.close()
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
        server.stdout.close()
