"""Limits of the server, all with safe defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import ResolvedConfig, resolve
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
    config : TOML file of settings below those of the client, read for every measurement; None: none.
    settings : ``section.key=value`` applied to every measurement, above those of the client.
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
    config: Path | None = None
    settings: tuple[str, ...] = ()
    show_texts: bool = False
    record: Path | None = None
    message: Limits = field(default_factory=Limits)

    def resolve(self, preset: str, parameters: Mapping[str, Any]) -> ResolvedConfig:
        """The configuration of a measurement whose client asks for `parameters`.

        Raises
        ------
        ConfigError : as `kstream.config.resolve`.
        """
        return resolve(preset, file=self.config, settings=self.settings, parameters=dict(parameters))


@dataclass(frozen=True)
class PageSettings:
    """Where the live page is (see `watch.LivePage`).

    Parameters
    ----------
    host : address to listen on; a name or address of this machine.
    port : 0 takes a free one.
    has_token : only who knows the token in the page's address sees it; always so beyond loopback.
    """

    host: str = LOOPBACK[0]
    port: int = 9003
    has_token: bool = False
