"""A process that Gadgetron launches for one scan (``<execute>``)."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Sequence

from ..errors import PeerError
from ..mrd.messages import Message
from .connection import Connection, connect
from .gadget_config import Target, own_models
from .gadget_session import LOOK_S, GadgetSession
from .logs import set_up as set_up_logs
from .settings import ServerSettings

log = logging.getLogger("kstream.gadgetron")

LOG_LEVEL = "GADGETRON_EXTERNAL_LOG_LEVEL"

CHILD = ServerSettings(handshake_s=30.0, message_s=120.0, idle_s=86_400.0, send_s=60.0)
"""Limits of a process that Gadgetron starts: a scan may pause for long; a Gadgetron that dies is seen otherwise."""


def dial(port: int) -> Connection:
    """Connect back to the Gadgetron that started this process.

    Raises
    ------
    PeerError : nobody listens.
    """
    return connect("localhost", port, seconds=CHILD.handshake_s)


def run_child(connection: Connection, target: Target, opening: Sequence[Message] = ()) -> int:
    """Serve one scan in a process of its own; gives the exit code.

    The process ends here if a step of the pipeline is still at work: nothing can interrupt it, and Python would wait.
    """
    from ..engines.memory import keep_large_blocks

    keep_large_blocks()
    set_up_logs("text", log_level())
    sys.setswitchinterval(5e-4)  # see kstream/cli/serve.py
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), name="kstream-parent", daemon=True).start()
    session = GadgetSession(connection, "gadget", CHILD, own_models, target=target, is_trusted=True, opening=opening)
    session.run()
    code = 0 if session.error is None else session.error.exit_code
    if session.is_computing:
        _leave(code)
    return code


def log_level() -> int:
    """The level that Gadgetron's environment asks for; DEBUG, as Gadgetron has it, if it asks for none that we know."""
    return logging.getLevelNamesMapping().get(os.environ.get(LOG_LEVEL, "").upper(), logging.DEBUG)


def _end_with_parent(parent: int) -> None:
    """End this process when its parent has ended, whatever it is doing.

    A parent that dies closes its socket, which the session sees; but while it computes what nobody waits for any more,
    only this tells a dead parent from one that has said CLOSE and waits.
    """
    while os.getppid() == parent:
        time.sleep(LOOK_S)
    log.error("Gadgetron has ended: so does its gadget")
    _leave(PeerError.exit_code)


def _leave(code: int) -> None:
    logging.shutdown()
    os._exit(code)
