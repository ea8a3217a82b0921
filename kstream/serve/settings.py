"""Limits of the server, all with safe defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..mrd.codec import Limits

LOOPBACK = ("127.0.0.1", "::1")


@dataclass(frozen=True)
class ServerSettings:
    """Limits of the server.

    Parameters
    ----------
    handshake_s : from connection to the end of the header.
    message_s : from the first byte of a message to its last; bytes that dribble in do not extend it.
    idle_s : between two messages; a paused scan is normal, a dead one is not.
    send_s : for a client to take one message of ours.
    finish_s : for the pipeline to end after the last acquisition, and then for all that waits to be sent.
    queue : acquisitions that may wait for the pipeline.
    queue_mib : memory of acquisitions that may wait for the pipeline.
    send_mib : memory of messages that may wait for the client.
    text_mib : all texts and queries that a client may send in one session.
    max_sessions : measurements at a time; one more is refused with a reason.
    max_connections : connections at a time, those included that have not sent a header yet.
    memory_gib : resident memory of this process above which no measurement is begun, and the youngest is ended.
    default_preset : for clients that name a preset which we do not have; empty refuses them.
    settings : ``section.key=value`` applied to every measurement.
    show_texts : log what clients write; it may hold names of patients.
    record : folder for journals of everything that comes in; None keeps nothing.
    message : largest message of each kind.
    """

    handshake_s: float = 10.0
    message_s: float = 30.0
    idle_s: float = 600.0
    send_s: float = 60.0
    finish_s: float = 600.0
    queue: int = 4096
    queue_mib: float = 64.0
    send_mib: float = 256.0
    text_mib: float = 16.0
    max_sessions: int = 8
    max_connections: int = 64
    memory_gib: float = 16.0
    default_preset: str = ""
    settings: tuple[str, ...] = ()
    show_texts: bool = False
    record: Path | None = None
    message: Limits = field(default_factory=Limits)
