"""One session as a gadget.

Gadgetron sends CONFIG_TEXT (the ``<configuration>`` of the gadget), HEADER, items and CLOSE; a gadget answers with
items and CLOSE. Texts, queries and configurations (ids 1, 2, 3, 5, 6, 7) from a gadget end the stream, so progress goes
to the log only, and a failure is ERROR (8) before CLOSE, which Gadgetron turns into a failed scan.

Items that are not taken go back as they came, to the byte and in their order. What is bounded and which threads work is
as in `session`. When Gadgetron goes away, the session ends at once: nobody is left to send images to.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config import Config, resolve
from ..errors import ConfigError, KstreamError, PeerError, ProtocolError, ScanError
from ..mrd.buffers import GADGET_FORMATS, ImageArray
from ..mrd.codec import Decoder, encode_parts
from ..mrd.header import parse_header, patient_words
from ..mrd.messages import Close, ConfigText, Error, Header, Image, Message, Opaque, Text
from ..mrd.session import Session as SessionRules
from ..pipeline import build_pipeline
from ..segment import Segment
from ..stream import Pipeline, StageError
from ..stream.runners import ThreadCrew, ThreadRunner
from ..stream.telemetry import Counters, Durations
from ..types import Acquisition, Delivered, FrameEnd, Notice, Scan
from . import parameters
from .connection import Connection
from .gadget_config import HOUSE, PRESETS, Equip, GadgetConfig, Target, parse_config, target_of
from .gadget_items import Expand, build_tail, expand_images, readouts_expander
from .logs import REDACTION, SESSION, SessionLog
from .outbox import Outbox
from .settings import ServerSettings

if TYPE_CHECKING:
    from .journal import SessionJournal
    from .metrics import ServerMetrics
    from .tap import Tap

log = logging.getLogger("kstream.gadgetron")

BATCH_BYTES, BATCH_ITEMS = 1 << 20, 64
"""Most that is held back from the pipeline while more is there to read."""

OVERHEAD_BYTES = 4096
"""Memory of a waiting item beside its samples."""

LOOK_S = 0.2
"""How often whoever waits for messages looks whether the pipeline has failed."""

LAST_WORDS_S = 0.5
"""For the last words to a peer that may be gone."""

DRAIN_S = 1.0
"""After ERROR: Gadgetron must get rid of the message that it is sending before it can read why."""

GONE = frozenset(
    {"ended_without_close", "truncated", "connection_broke", "closed_before_configuration", "send_timeout"}
)
"""Errors after which nobody waits for images."""


@dataclass(frozen=True)
class Place:
    """What a session has from the server that it belongs to; a process of its own has nothing of it.

    Parameters
    ----------
    admit : called when a header has come; raises a PeerError if this measurement cannot be taken now.
    release : called before Gadgetron hears CLOSE, for it may begin its next measurement at once.
    journal : keeps what comes in.
    metrics : counts.
    tap : shows the session to those who look on.
    """

    admit: Callable[[], None] = lambda: None
    release: Callable[[], None] = lambda: None
    journal: SessionJournal | None = None
    metrics: ServerMetrics | None = None
    tap: Tap | None = None


class GadgetSession:
    """One connection with Gadgetron, from CONFIG_TEXT to CLOSE.

    Parameters
    ----------
    name : of the session, in logs.
    settings : limits.
    equip : gives the models, once the configuration is known.
    target : what to do; None lets the configuration say it.
    is_trusted : the configuration is of this machine's own Gadgetron: it may name folders, workers and devices.
    opening : messages that somebody else has read from the connection already.
    place : in a server.
    """

    def __init__(
        self,
        connection: Connection,
        name: str,
        settings: ServerSettings,
        equip: Equip,
        *,
        target: Target | None = None,
        is_trusted: bool = False,
        opening: Sequence[Message] = (),
        place: Place = Place(),
    ) -> None:
        self._connection, self._settings, self._equip = connection, settings, equip
        self._admit, self._release = place.admit, place.release
        self._journal, self._metrics = place.journal, place.metrics
        self._target, self._is_trusted, self._opening = target, is_trusted, opening
        self._log, self._name = SessionLog(log, name), name
        self._outbox = Outbox(connection, settings.send_s, int(settings.send_mib * 2**20), f"kstream-send-{name}")
        self._decoder = Decoder(settings.message, GADGET_FORMATS)
        self._rules = SessionRules("gadget")
        self._equipment = contextlib.ExitStack()
        self._config: GadgetConfig | None = None
        self._expand: Expand = lambda message, _: [message]
        self._takes: type = Acquisition
        self._runner: ThreadRunner | None = None
        self._counters = Counters()
        self._batch: list[Any] = []
        self._batch_bytes = 0
        self._n_bytes = 0  # received, and not counted yet
        self._n_taken = 0
        self._n_made = 0
        self._n_passed = 0
        self._failures: list[str] = []
        self._private: frozenset[str] = frozenset()
        self._ordered: KstreamError | None = None
        self._begin = time.monotonic()
        self._partial = (-1, 0.0)
        self.error: KstreamError | None = None
        tap = place.tap
        self._tap = tap.enter(name, "Gadgetron", connection.peer, self) if tap is not None else None

    @property
    def is_computing(self) -> bool:
        """True while its pipeline works, also after the end of the session: a step cannot be interrupted."""
        return self._runner is not None and self._runner.is_alive

    @property
    def is_measuring(self) -> bool:
        """True once a header was taken."""
        return self._runner is not None

    @property
    def queued_bytes(self) -> int:
        """Items that wait for the pipeline."""
        return self._runner.depth_bytes if self._runner is not None else 0

    @property
    def unsent_bytes(self) -> int:
        """Messages that wait for Gadgetron."""
        return self._outbox.depth_bytes

    def run(self) -> str:
        """Work until CLOSE, end of stream or error; gives the outcome in one word."""
        token = SESSION.set(self._name)
        try:
            self._receive_all()
            self._finish()
        except KstreamError as raised:
            self.error = raised
        except OSError as raised:
            self.error = PeerError(f"the connection broke: {raised}", where=self._place(), code="connection_broke")
        except Exception as raised:  # noqa: BLE001 - no defect may end a scan without a word
            self.error = StageError.of(raised, "the gadget")
        try:
            self._end(self.error)
        finally:
            SESSION.reset(token)
        if self.error is not None:
            return self.error.code
        return "completed" if self.is_measuring else "probe"

    def interrupt(self, error: KstreamError) -> None:
        """End the session from another thread, with `error` as the reason."""
        self._ordered = self._ordered or error
        self._connection.interrupt()
        if self._runner is not None:
            self._runner.abandon(error, seconds=0)

    def force(self, error: KstreamError) -> None:
        """As `interrupt`, and without waiting for a Gadgetron that reads slowly."""
        self.interrupt(error)
        self._outbox.hurry(LAST_WORDS_S)

    # ---- receiving ----

    def _receive_all(self) -> None:
        for message in self._opening:
            self._check_and_take(message, time.monotonic_ns())
        while not self._rules.is_closed:
            if self._ordered is not None:  # a sender that never lets us wait would not see the end of receiving
                raise self._ordered
            view = self._decoder.space()
            n_bytes = self._connection.receive_ready(view)
            if n_bytes is None:
                self._hand_over()
                n_bytes = self._wait(view)
            if not n_bytes:
                raise self._end_of_stream()
            received_ns = time.monotonic_ns()
            self._n_bytes += n_bytes
            self._record(view[:n_bytes], received_ns)
            for message in self._decoder.filled(n_bytes):
                self._check_and_take(message, received_ns)
            if self._decoder.error is not None:
                raise self._decoder.error

    def _record(self, view: memoryview, received_ns: int) -> None:
        """Into the journal, before anything is done with it; streaming goes on if that fails."""
        journal = self._journal
        if journal is None:
            return
        journal.write(view, received_ns)
        if journal.failure is not None:
            self._journal = None
            journal.close(False, journal.failure)
            self._tell_not_recorded(journal.failure)

    def _tell_not_recorded(self, why: str) -> None:
        self._log.warning("the recording stopped, the scan goes on: %s", why)
        if self._metrics is not None:
            self._metrics.recording_failures.inc()

    def _wait(self, view: memoryview) -> int:
        """Wait for bytes within the limit that holds now, and look after the pipeline meanwhile."""
        limit, until = self._deadline()
        while True:
            if self._runner is not None and self._runner.error is not None:
                raise self._runner.error
            left_s = until - time.monotonic()
            if left_s <= 0:
                raise PeerError(
                    f"Gadgetron sent nothing for too long, waiting for the {limit}",
                    where=self._place(),
                    likely="it hangs, or it speaks another protocol",
                    code=f"{limit}_timeout",
                )
            with contextlib.suppress(TimeoutError):
                return self._connection.receive_into(view, min(LOOK_S, left_s))

    def _deadline(self) -> tuple[str, float]:
        settings, now = self._settings, time.monotonic()
        if self._runner is None:
            return "handshake", self._begin + settings.handshake_s
        if not self._decoder.pending:
            return "idle", now + settings.idle_s
        if self._partial[0] != self._decoder.n_messages:
            self._partial = (self._decoder.n_messages, now)
        return "message", self._partial[1] + settings.message_s

    def _end_of_stream(self) -> KstreamError:
        if self._ordered is not None:
            return self._ordered
        self._decoder.end()
        if self._config is None:
            return PeerError(
                "Gadgetron closed the connection before it sent a configuration", code="closed_before_configuration"
            )
        return ProtocolError(
            "the stream ended without CLOSE",
            where=self._place(),
            likely="Gadgetron was stopped or died",
            code="ended_without_close",
        )

    def _check_and_take(self, message: Message, received_ns: int) -> None:
        self._rules.check(message)
        match message:
            case Acquisition():
                message.received_ns = received_ns
                self._gather([message], message.data.nbytes + message.trajectory.nbytes)
            case Opaque():
                self._gather(self._expand(message, received_ns), len(message.payload))
            case ConfigText(text=text):
                self._configure(text)
            case Header(xml=xml):
                self._begin_measurement(xml)
            case Text():
                self._log.debug("Gadgetron wrote a text, which is not shown: it may name a patient")

    def _gather(self, items: list[Any], n_bytes: int) -> None:
        """Keep items for the pipeline, which takes them in batches."""
        self._batch += items
        self._batch_bytes += n_bytes + OVERHEAD_BYTES * len(items)
        self._n_taken += sum(isinstance(item, self._takes) for item in items)
        if self._batch_bytes >= BATCH_BYTES or len(self._batch) >= BATCH_ITEMS:
            self._hand_over()

    def _hand_over(self) -> None:
        if self._metrics is not None:
            self._metrics.received_bytes.inc(self._n_bytes)
            self._metrics.acquisitions.inc(sum(isinstance(item, Acquisition) for item in self._batch))
            self._n_bytes = 0
        if self._batch and self._runner is not None:
            batch, n_bytes = self._batch, self._batch_bytes
            self._batch, self._batch_bytes = [], 0
            self._runner.put_all(batch, n_bytes)

    # ---- configuration and pipeline ----

    def _configure(self, text: str) -> None:
        config = parse_config(text)
        if not self._is_trusted:
            given = [name for name in HOUSE if getattr(config, name) != getattr(GadgetConfig, name)]
            if given:
                raise ConfigError(
                    f"{' and '.join(given)} cannot be chosen by whoever connects",
                    where="<configuration> of the gadget",
                    hint="they are options of kstream serve",
                )
        else:
            limit = int(config.buffer_gib * 2**30)
            self._decoder.limits = dataclasses.replace(self._decoder.limits, buffer_bytes=limit)
        self._config = config

    def _begin_measurement(self, xml: bytes) -> None:
        self._private = frozenset(patient_words(xml))
        REDACTION.add(self._private)
        self._admit()
        config = self._config or GadgetConfig()
        target: Target = self._target or target_of(config)
        scan = parse_header(xml)
        resolved = self._resolve(config, target, scan)
        if target == "reconstruct":
            resolved = resolved.model_copy(update={"segment": resolved.segment.model_copy(update={"model": ""})})
        models = self._equipment.enter_context(self._equip(config)) if resolved.segment.model else None
        network = models.segment_stage(resolved.segment) if models is not None else None
        self._tell_missing(network)
        crew = ThreadCrew()
        pipeline: Pipeline
        if target == "segment_images":
            pipeline, self._expand = build_tail(scan, resolved, network), expand_images
            self._takes = ImageArray
        else:
            measurement = build_pipeline(scan, resolved, network, crew)
            pipeline, self._counters = measurement.pipeline, measurement.counters
            if self._tap is not None:
                self._tap.header(config.preset or PRESETS[target], scan)
                self._tap.begin(config.preset or PRESETS[target], scan, measurement, Durations())
            self._expand = readouts_expander(scan)
        self._runner = ThreadRunner(
            pipeline,
            self._deliver,
            self._settings.queue,
            capacity_bytes=int(self._settings.queue_mib * 2**20),
            crew=crew,
            name=f"kstream-pipeline-{self._name}",
        )
        self._log.info("%s with preset %s", target, config.preset or PRESETS[target])

    def _resolve(self, config: GadgetConfig, target: Target, scan: Scan) -> Config:
        """The configuration: what the gadget's says wins over user parameters of the header."""
        preset = config.preset or PRESETS[target]
        from_header = parameters.header_parameters(scan)
        if self._is_trusted:
            settings = tuple(f"{name}={value}" for name, value in config.settings.items())
            resolved = resolve(preset, settings=settings, parameters=from_header)
        else:
            asked = from_header | dict(config.settings)
            resolved = self._settings.resolve(preset, asked)
        if resolved.overruled:
            self._log.warning("decided otherwise here: %s", ", ".join(resolved.overruled)[:200])
        return resolved.config

    def _tell_missing(self, network: Segment | None) -> None:
        if network is not None and network.failure is not None:
            self._deliver(Notice("error", f"there will be no labels: {network.failure}"))

    def _deliver(self, item: Any) -> None:
        """Sink of the pipeline, in its thread."""
        if self._metrics is not None and isinstance(item, Notice):
            self._metrics.note(item)
        match item:
            case Image():
                self._n_made += 1
                self._outbox.put(encode_parts(item), self._count_image)
            case Opaque() | Acquisition():
                self._outbox.put(encode_parts(item))
                self._n_passed += 1
            case Delivered():
                self._outbox.put([], lambda _: self._tell_sent(item))
            case FrameEnd():
                if self._metrics is not None:
                    self._metrics.frames.inc()
            case Notice(level="error"):
                self._failures.append(item.text)
                self._log.error("%s", item.text)
            case Notice():
                self._log.log(logging.WARNING if item.level == "warning" else logging.INFO, "%s", item.text)

    def _count_image(self, _: int) -> None:
        """An image has been sent; in the sending thread."""
        self._counters.images += 1
        if self._metrics is not None:
            self._metrics.images.inc()

    def _tell_sent(self, item: Delivered) -> None:
        """All images of a frame and kind are sent; in the sending thread."""
        latency_ms = (time.monotonic_ns() - item.received_ns) / 1e6
        if self._tap is not None:
            self._tap.delivered(item.kind, item.frame, item.slice, latency_ms, latency_ms)
        text = "frame %d: %s sent %.0f ms after its last readout"
        self._log.info(text, item.frame, item.kind, latency_ms, extra={"frame": item.frame})

    # ---- the end ----

    def _finish(self) -> None:
        """After CLOSE: what was taken becomes images, and a scan that lacks some fails."""
        self._hand_over()
        if self._runner is None:
            return
        self._runner.finish(self._settings.finish_s)
        if not self._outbox.flush(self._settings.finish_s):
            raise self._unsent()
        counters = self._counters
        self._log.info(
            "received %d, frames %d, images sent %d, passed on %d, dropped %d",
            self._n_taken,
            counters.frames,
            counters.images,
            self._n_passed,
            counters.dropped,
        )
        if self._failures:
            raise ScanError("\n".join(self._failures), where="see the images that were sent", code="with_errors")
        if self._n_taken and not self._n_made:
            reasons = ", ".join(f"{n} {reason}" for reason, n in counters.set_aside.items()) or "no frame was finished"
            raise ScanError(f"no image was made of {self._n_taken} items: {reasons}", code="no_images")

    def _unsent(self) -> KstreamError:
        """Why Gadgetron did not get what was made for it."""
        error = self._ordered or self._outbox.error
        if isinstance(error, KstreamError):
            return error
        return PeerError("Gadgetron did not take what was sent in time", where=self._place(), code="send_timeout")

    def _end(self, error: KstreamError | None) -> None:
        """Say the last words, close and count; whatever fails on the way, the rest still happens."""
        with contextlib.ExitStack() as last:
            if self._tap is not None:
                last.callback(self._tap.ended, "completed" if error is None else error.code)
            last.callback(REDACTION.remove, self._private)
            last.callback(self._close_journal, error)
            last.callback(self._equipment.close)
            last.callback(self._connection.close)
            self._say_last_words(error)
            self._count()

    def _say_last_words(self, error: KstreamError | None) -> None:
        is_gone = error is not None and error.code in GONE
        if error is not None:
            if self._runner is not None:  # a step cannot be interrupted; what it still makes is thrown away
                self._runner.abandon(error, LAST_WORDS_S)
            self._log.log(logging.INFO if self._config is None and is_gone else logging.ERROR, "%s", error)
        last = [encode_parts(Error(str(error)))] if error is not None else []
        last.append(encode_parts(Close()))
        with contextlib.suppress(OSError, PeerError):
            self._outbox.put([part for parts in last for part in parts], wait=False)
        self._release()
        self._outbox.finish(LAST_WORDS_S if is_gone else self._settings.finish_s)
        self._connection.end_sending(LAST_WORDS_S if error is None or is_gone else DRAIN_S)

    def _count(self) -> None:
        metrics = self._metrics
        if metrics is None:
            return
        metrics.received_bytes.inc(self._n_bytes)
        metrics.sent_bytes.inc(self._outbox.n_bytes)
        for reason, n in self._counters.set_aside.items():
            metrics.set_aside.labels(reason).inc(n)

    def _close_journal(self, error: KstreamError | None) -> None:
        """Complete means that Gadgetron said CLOSE, whatever became of the scan."""
        journal = self._journal
        if journal is None:
            return
        journal.close(self._rules.is_closed, "" if error is None else error.what)
        if journal.failure is not None:
            self._tell_not_recorded(journal.failure)
        elif error is None and not self.is_measuring and journal.path is not None:
            with contextlib.suppress(OSError):  # nothing was measured
                journal.path.unlink()

    def _place(self) -> str:
        return f"after {self._n_taken} items"
