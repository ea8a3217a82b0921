"""One connection, from CONFIG to CLOSE.

Three threads work for a session: this one receives, stamps and decodes; a second runs the pipeline behind a queue that
is bounded in bytes; a third sends what waits in the outbox. A full outbox holds up the pipeline, a full queue holds up
receiving, and TCP then holds up the sender: nothing is dropped and nothing grows.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..config import ResolvedConfig, preset_names
from ..errors import KstreamError, PeerError, ProtocolError
from ..mrd.codec import Decoder, encode_parts
from ..mrd.header import parse_header, patient_words
from ..mrd.messages import Close, ConfigFile, ConfigText, Header, Image, Message, Query, Response, Text, Waveform
from ..mrd.session import Session as SessionRules
from ..pipeline import Measurement, build_pipeline
from ..stream import StageError
from ..stream.runners import ThreadCrew, ThreadRunner
from ..stream.telemetry import Durations
from ..types import Acquisition, Delivered, Findings, FrameEnd, Notice, Scan
from . import parameters, queries
from .connection import Connection
from .journal import SessionJournal
from .logs import REDACTION, SESSION, SessionLog
from .metrics import ServerMetrics
from .outbox import Outbox
from .settings import ServerSettings
from .store import SegmentSource
from .summary import summary_text
from .texts import PREFIX, line

if TYPE_CHECKING:
    from .tap import Tap

log = logging.getLogger("kstream.serve")

LAST_WORDS_S = 1.0
"""For the client of a session that is ended by force to take what waits for it."""

BATCH_BYTES, BATCH_ITEMS = 1 << 20, 64
"""Most that is held back from the pipeline while more is there to read."""


QUIET = frozenset({"closed_before_configuration"})
"""Outcomes that are nobody's fault, such as a look whether somebody listens."""

ACQUISITION_OVERHEAD = 4096
"""Memory of a waiting acquisition beside its samples: 3.7 KiB measured, more than the samples of a small one."""

TEXT_OVERHEAD = 64
"""Counted for each text beside its characters, so that many empty ones are bounded too."""

SHOWN_TEXTS = 100
"""Texts of a client that are logged one by one."""


@dataclass
class _State:
    """What one session knows so far."""

    preset: str = ""
    resolved: ResolvedConfig | None = None
    scan: Scan | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    measurement: Measurement | None = None
    runner: ThreadRunner | None = None
    private: frozenset[str] = frozenset()
    n_texts: int = 0
    text_bytes: int = 0
    wants_summary: bool = False
    first_image_ns: int = 0
    first_byte_ms: dict[str, list[float]] = field(default_factory=dict)


class ServerSession:
    """One connection, from CONFIG to CLOSE.

    Parameters
    ----------
    number : names the session in logs.
    admit : called when a header has come; raises a PeerError if this measurement cannot be taken now.
    journal : keeps what comes in; None keeps nothing.
    release : called before the client hears CLOSE, for it may begin its next measurement at once.
    tap : shows the session to those who look on; None has no onlookers.
    """

    def __init__(
        self,
        connection: Connection,
        number: int,
        settings: ServerSettings,
        models: SegmentSource,
        metrics: ServerMetrics,
        admit: Callable[[], None],
        journal: SessionJournal | None = None,
        release: Callable[[], None] = lambda: None,
        tap: Tap | None = None,
    ) -> None:
        self._connection, self._number, self._settings = connection, number, settings
        self._models, self._metrics, self._admit = models, metrics, admit
        self._log = SessionLog(log, number)
        self._outbox = Outbox(connection, settings.send_s, int(settings.send_mib * 2**20), f"kstream-send-{number}")
        self._decoder = Decoder(settings.message)
        self._rules = SessionRules("server")
        self._state = _State()
        self._journal, self._release = journal, release
        self._batch: list[Acquisition] = []  # received, and not handed to the pipeline yet
        self._batch_bytes = self._n_bytes = self._n_acquisitions = 0
        self._pipeline: ThreadRunner | None = None
        self._has_told_error = False
        self.error: KstreamError | None = None
        self._has_close = False
        self._ordered: KstreamError | None = None
        self._begin = time.monotonic()
        self._partial = (-1, 0.0)  # number of the unfinished message, and since when its rest is awaited
        self._timeline: list[tuple[str, float]] = []
        self._readout_latency = Durations()
        self._page_url = tap.page_url if tap is not None else ""
        self._tap = tap.enter(str(number), "MRD", connection.peer, self) if tap is not None else None

    @property
    def is_measuring(self) -> bool:
        """True once a header was taken."""
        return self._state.scan is not None

    @property
    def is_computing(self) -> bool:
        """True while its pipeline works, also after the end of the session: a step cannot be interrupted."""
        return self._pipeline is not None and self._pipeline.is_alive

    @property
    def queued_bytes(self) -> int:
        """Acquisitions that wait for the pipeline."""
        runner = self._state.runner
        return runner.depth_bytes if runner is not None else 0

    @property
    def unsent_bytes(self) -> int:
        """Messages that wait for the client."""
        return self._outbox.depth_bytes

    def run(self) -> str:
        """Serve until CLOSE, end of stream or error; gives the outcome in one word."""
        token = SESSION.set(str(self._number))
        error: KstreamError | None = None
        try:
            self._receive_all()
            self._finish()
        except KstreamError as raised:
            error = raised
        except OSError as raised:
            code = "connection_broke" if self._state.preset else "closed_before_configuration"
            error = PeerError(f"the connection broke: {raised}", where=self._place(), code=code)
        except Exception as raised:  # noqa: BLE001 - no defect may end a session without a word
            error = StageError.of(raised, "the session")
        finally:
            self.error = error
            outcome = self._end(error)
            SESSION.reset(token)
        return outcome

    def interrupt(self, error: KstreamError) -> None:
        """End the session from outside: what is complete goes back, the client is told `error`, and CLOSE follows."""
        self._ordered = self._ordered or error
        self._connection.interrupt()

    def force(self, error: KstreamError) -> None:
        """End the session now: whoever waits in it is woken with an error."""
        self.interrupt(error)
        self._outbox.hurry(LAST_WORDS_S)
        if self._pipeline is not None:
            self._pipeline.abandon(error, seconds=0)

    # ---- receiving ----

    def _receive_all(self) -> None:
        while True:
            if self._ordered is not None:  # a sender that never lets us wait would not see the end of receiving
                raise self._ordered
            view = self._decoder.space()
            n_bytes = self._connection.receive_ready(view)
            if n_bytes is None:
                self._hand_over()
                n_bytes = self._receive_into(view)
            if not n_bytes:
                return self._end_of_stream()
            received_ns = time.monotonic_ns()
            if self._journal is not None:
                self._journal.write(view[:n_bytes], received_ns)
                self._tell_failed_recording()
            self._n_bytes += n_bytes
            for message in self._decoder.filled(n_bytes):
                self._rules.check(message)
                if isinstance(message, Close):
                    self._has_close = True
                    return
                self._take(message, received_ns)
            if self._decoder.error is not None:
                raise self._decoder.error

    def _receive_into(self, view: memoryview) -> int:
        """Wait for bytes within the limit that holds now: for the handshake, for the rest of a message, or in idle."""
        settings, now = self._settings, time.monotonic()
        if self._state.resolved is None:
            limit, until = "handshake", self._begin + settings.handshake_s
        elif self._decoder.pending:
            if self._partial[0] != self._decoder.n_messages:
                self._partial = (self._decoder.n_messages, now)
            limit, until = "message", self._partial[1] + settings.message_s
        else:
            limit, until = "idle", now + settings.idle_s
        try:
            if until <= now:
                raise TimeoutError
            return self._connection.receive_into(view, until - now)
        except TimeoutError:
            raise self._timed_out(limit) from None

    def _timed_out(self, limit: str) -> KstreamError:
        if limit == "handshake" and self.is_measuring:
            return self._unknown_preset()
        what, likely = {
            "handshake": ("no complete header came in time", "the client connected and does not send"),
            "message": ("a message did not become whole in time", "the connection is too slow, or the sender stopped"),
            "idle": ("nothing came for a long time", "the scan was stopped and nobody told us"),
        }[limit]
        seconds = getattr(self._settings, f"{limit}_s")
        return PeerError(
            f"{what}: waited {seconds:g} s",
            where=self._place(),
            likely=likely,
            hint=f"kstream serve --{limit}-s",
            code=f"{limit}_timeout",
        )

    def _unknown_preset(self) -> KstreamError:
        """What is wrong with a preset that nothing after the header replaced."""
        try:
            self._resolve({})
        except KstreamError as error:
            return error
        return PeerError("no acquisition came in time", where=self._place(), code="handshake_timeout")

    def _end_of_stream(self) -> None:
        """The client stopped sending without CLOSE: frames that are complete still go back, then the reason."""
        if self._ordered is not None:
            raise self._ordered
        self._decoder.end()
        if not self.is_measuring and not self._state.preset:
            raise PeerError(
                "the client closed the connection before it sent a configuration", code="closed_before_configuration"
            )
        raise ProtocolError(
            "the stream ended without CLOSE",
            where=self._place(),
            likely="the sender was stopped, or its connection broke",
            hint="what was complete has been sent back",
            code="ended_without_close",
        )

    # ---- messages ----

    def _take(self, message: Message, received_ns: int) -> None:
        match message:
            case Acquisition():
                message.received_ns = received_ns
                self._batch.append(message)
                self._batch_bytes += message.data.nbytes + message.trajectory.nbytes + ACQUISITION_OVERHEAD
                self._n_acquisitions += 1
                if self._batch_bytes >= BATCH_BYTES or len(self._batch) >= BATCH_ITEMS:
                    self._hand_over()
            case ConfigFile(name=name):
                self._configure(name, {})
            case ConfigText(text=text):
                self._configure(*parameters.parse_config_text(text))
            case Header(xml=xml):
                self._begin_measurement(xml)
            case Text(text=text):
                self._count_text(text)
                self._take_parameters(text)
            case Query(correlation=correlation, text=text):
                self._count_text(text)
                self._send(Response(correlation, queries.answer(text, self._page_url)))
            case Waveform() | Image():
                self._log.debug("%s ignored", type(message).__name__)

    def _hand_over(self) -> None:
        """Give the pipeline what came since the last time: at once if nothing more is there to read.

        While a sender is faster than we are, handing over each acquisition alone costs more than decoding it: the two
        threads would wake each other for every one.
        """
        if self._n_bytes:
            self._metrics.received_bytes.inc(self._n_bytes)
            self._n_bytes = 0
        if self._batch:
            batch, n_bytes = self._batch, self._batch_bytes
            self._batch, self._batch_bytes = [], 0
            self._metrics.acquisitions.inc(len(batch))
            self._runner().put_all(batch, n_bytes)

    def _configure(self, name: str, sent: Mapping[str, Any]) -> None:
        """Keep what is asked for; it is looked up when a header comes, for a probe needs no preset."""
        self._state.preset = name or self._settings.default_preset or "(none)"
        self._state.parameters.update(sent)
        self._mark("configuration")

    def _begin_measurement(self, xml: bytes) -> None:
        state = self._state
        state.private = frozenset(patient_words(xml))
        REDACTION.add(state.private)
        self._admit()
        if state.preset not in preset_names() and self._settings.default_preset:
            self._tell(Notice("warning", f"no preset has that name; {self._settings.default_preset} is used"))
            state.preset = self._settings.default_preset
        scan = self._parsed(xml)
        self._resolve_known()
        state.parameters = parameters.header_parameters(scan) | state.parameters
        state.scan = scan
        self._mark("header")
        if self._tap is not None:
            self._tap.header(state.preset, scan)
        self._log.info("preset %s", state.preset)

    def _parsed(self, xml: bytes) -> Scan:
        try:
            return parse_header(xml)
        except KstreamError as error:
            error.code = "header"
            raise

    def _resolve(self, sent: Mapping[str, Any]) -> ResolvedConfig:
        resolved = self._settings.resolve(self._state.preset, sent)
        self._state.resolved = resolved
        return resolved

    def _resolve_known(self) -> None:
        """A wrong setting is told before k-space comes; an unknown preset may still be replaced by JSON parameters."""
        if self._state.preset in preset_names():
            self._resolve({})

    def _count_text(self, text: str) -> None:
        self._state.n_texts += 1
        self._state.text_bytes += len(text) + TEXT_OVERHEAD
        if self._state.text_bytes > self._settings.text_mib * 2**20:
            raise ProtocolError(
                f"the client sent more than {self._settings.text_mib:g} MiB of text",
                where=self._place(),
                likely="its log was turned into messages",
                hint="kstream serve --text-mib",
                code="too_much_text",
            )

    def _take_parameters(self, text: str) -> None:
        """JSON parameters may follow the header (FIRE, OpenRecon); any other text is only logged."""
        state, sent = self._state, parameters.json_object(text)
        if sent is None or state.runner is not None:
            self._log_text(text)
            return
        state.wants_summary = state.wants_summary or sent.get("summary") is True
        chosen = parameters.preset_of(sent)
        if chosen and chosen != state.preset:
            state.preset = chosen
            self._resolve_known()
        found, strange = parameters.parameters_of(sent)
        state.parameters.update(found)
        if strange:
            self._tell(Notice("warning", f"parameters without meaning here: {', '.join(strange)[:200]}"))

    def _log_text(self, text: str) -> None:
        shown = text[:200] if self._settings.show_texts else "not shown: it may name a patient"
        level = logging.INFO if self._state.n_texts <= SHOWN_TEXTS else logging.DEBUG
        self._log.log(level, "client wrote a text of %d characters (%s)", len(text), shown)
        if self._state.n_texts == SHOWN_TEXTS:
            self._log.info("further texts of this client are only counted")

    # ---- the pipeline ----

    def _runner(self) -> ThreadRunner:
        """The running pipeline; built at the first acquisition, when configuration and parameters are complete."""
        state = self._state
        if state.runner is None:
            if state.scan is None:  # the session rules make sure of it
                raise ProtocolError("an acquisition came before the header", where=self._place())
            resolved = self._resolve(state.parameters)
            config = resolved.config
            if resolved.overruled:
                names = ", ".join(resolved.overruled)[:200]
                self._tell(Notice("warning", f"the server's own --set decides, not what was sent: {names}"))
            crew = ThreadCrew()
            network = self._models.segment_stage(config.segment)
            if network is not None and network.failure is not None:
                self._tell(Notice("error", f"there will be no labels: {network.failure}"))
            cine = self._models.cine_model(config.cine) if config.cine.model else None
            state.measurement = build_pipeline(state.scan, config, network, crew, cine)
            if self._tap is not None:
                self._tap.begin(resolved.preset, state.scan, state.measurement, self._readout_latency)
            state.runner = ThreadRunner(
                state.measurement.pipeline,
                self._deliver,
                self._settings.queue,
                capacity_bytes=int(self._settings.queue_mib * 2**20),
                done=self._count_latency,
                crew=crew,
                name=f"kstream-pipeline-{self._number}",
            )
            self._pipeline = state.runner
            self._mark("first acquisition")
        return state.runner

    def _deliver(self, item: Any) -> None:
        """Sink of the pipeline, in its thread."""
        measurement = self._state.measurement
        if measurement is None:
            return
        match item:
            case Image():
                self._send(item, lambda first_ns: self._count_image(first_ns, measurement))
            case Delivered():
                self._outbox.put([], lambda _: self._delivered(item, measurement))
            case Notice():
                self._tell(item)
            case Findings():
                self._send(line(json.dumps(dict(item.values))))
            case FrameEnd():
                self._metrics.frames.inc()
                self._mark(f"last readout of frame {item.frame}", item.received_ns)

    def _count_image(self, first_ns: int, measurement: Measurement) -> None:
        """An image has been sent; in the sending thread."""
        self._state.first_image_ns = self._state.first_image_ns or first_ns
        measurement.counters.images += 1
        self._metrics.images.inc()

    def _delivered(self, item: Delivered, measurement: Measurement) -> None:
        """All images of a frame and kind are sent; in the sending thread."""
        first_ns, self._state.first_image_ns = self._state.first_image_ns, 0
        first_ms = ((first_ns or time.monotonic_ns()) - item.received_ns) / 1e6
        latency_ms = (time.monotonic_ns() - item.received_ns) / 1e6
        self._state.first_byte_ms.setdefault(item.kind, []).append(first_ms)
        measurement.counters.latencies_ms.setdefault(item.kind, []).append(latency_ms)
        self._metrics.latency.labels(item.kind).observe(first_ms / 1e3)
        self._mark(f"{item.kind} of frame {item.frame}")
        if self._tap is not None:
            self._tap.delivered(item.kind, item.frame, item.slice, first_ms, latency_ms)
        text = f"frame {item.frame}: {item.kind} sent {latency_ms:.0f} ms after its last readout"
        self._log.info("%s (first byte after %.0f ms)", text, first_ms, extra={"frame": item.frame})
        with contextlib.suppress(KstreamError):
            self._send(line(text), wait=False)

    def _count_latency(self, acquisition: Acquisition) -> None:
        self._readout_latency.add(time.monotonic_ns() - acquisition.received_ns)

    # ---- the end ----

    def _finish(self) -> None:
        self._hand_over()
        state = self._state
        if state.runner is not None:
            runner, state.runner = state.runner, None
            runner.finish(self._settings.finish_s)
        elif state.scan is not None and state.resolved is None:
            raise self._unknown_preset()
        elif state.scan is not None:
            raise ProtocolError(
                "the scan has a header but no acquisitions",
                where=self._place(),
                likely="an empty recording, or a scanner that was stopped before the first readout",
                hint="kstream inspect FILE",
                code="no_acquisitions",
            )
        self._summarise()

    def _end(self, error: KstreamError | None) -> str:
        """Say the last words, close, and count; whatever fails on the way, the rest still happens."""
        outcome = "completed" if self._state.measurement is not None else "probe"
        with contextlib.ExitStack() as last:
            if self._tap is not None:
                last.callback(lambda tap: tap.ended(outcome), self._tap)
            last.callback(REDACTION.remove, self._state.private)
            last.callback(self._close_journal, error)
            last.callback(self._connection.close)
            if error is not None:
                outcome = error.code
                self._fail(error)
            if self._state.runner is not None:
                self._state.runner.abandon()
            self._release()
            failure = self._close_sending()
            if error is None and failure is not None:
                outcome = failure.code
                self._log.error("%s", failure, extra={"code": outcome})
            elif error is None and self._has_told_error:
                outcome = "with_errors"
            self._count(outcome)
        return outcome

    def _fail(self, error: KstreamError) -> None:
        """Finish what is complete, then tell client and log why the session ends."""
        with contextlib.suppress(KstreamError, OSError):
            self._hand_over()
        runner, self._state.runner = self._state.runner, None
        if runner is not None:
            with contextlib.suppress(KstreamError, OSError):
                runner.finish(self._settings.finish_s if self._ordered is None else self._settings.send_s)
        level = logging.INFO if error.code in QUIET else logging.ERROR
        self._log.log(level, "%s", error, extra={"code": error.code})
        with contextlib.suppress(OSError, KstreamError):
            self._send(line(PREFIX["error"] + str(error)))
            self._summarise(has_failed=True)

    def _summarise(self, has_failed: bool = False) -> None:
        measurement, resolved = self._state.measurement, self._state.resolved
        if measurement is None or resolved is None:
            return
        self._outbox.flush(self._settings.finish_s)
        counters = measurement.counters
        if not counters.images and not has_failed:
            reasons = ", ".join(f"{n} {reason}" for reason, n in counters.set_aside.items()) or "no frame was finished"
            self._tell(Notice("error", f"no image was sent: of {counters.received} acquisitions, {reasons}"))
        account = (
            f"received {counters.received}, frames {counters.frames}, images sent {counters.images}, "
            f"dropped {counters.dropped}"
        )
        self._tell(Notice("info", account))
        if self._state.wants_summary:
            latency, first = self._readout_latency, self._state.first_byte_ms
            self._send(line(summary_text(measurement, resolved, latency, first, list(self._timeline))))

    def _close_sending(self) -> KstreamError | None:
        """CLOSE after all that waits; gives what kept the client from getting it."""
        with contextlib.suppress(OSError, KstreamError):
            self._send(Close())
        self._outbox.finish(self._settings.finish_s)
        self._connection.end_sending()
        failure = self._outbox.error
        return failure if isinstance(failure, KstreamError) else None

    def _count(self, outcome: str) -> None:
        self._metrics.sessions.labels(outcome).inc()
        self._metrics.sent_bytes.inc(self._outbox.n_bytes)
        if self._state.measurement is not None:
            for reason, n in self._state.measurement.counters.set_aside.items():
                self._metrics.set_aside.labels(reason).inc(n)

    # ---- journal, texts, times ----

    def _tell_failed_recording(self) -> None:
        """Once: streaming goes on, the recording does not."""
        journal = self._journal
        if journal is not None and journal.failure is not None:
            self._journal = None
            journal.close(False, journal.failure)
            self._metrics.recording_failures.inc()
            self._tell(Notice("warning", f"the recording stopped, the scan goes on: {journal.failure}"))

    def _close_journal(self, error: KstreamError | None) -> None:
        """Complete means that the client said CLOSE, whatever became of the scan."""
        journal = self._journal
        if journal is None:
            return
        journal.close(self._has_close, "" if error is None else error.what)
        if journal.failure is not None:  # at the very end: there is no client left to tell
            self._metrics.recording_failures.inc()
            self._log.warning("%s", journal.failure)
        elif error is None and not self.is_measuring and journal.path is not None:
            with contextlib.suppress(OSError):  # a health check asks every 30 s: 2880 journals of nothing each day
                journal.path.unlink()

    def _tell(self, notice: Notice) -> None:
        self._metrics.note(notice)
        self._has_told_error |= notice.level == "error"
        level = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}[notice.level]
        self._log.log(level, "%s", notice.text)
        self._send(line(PREFIX[notice.level] + notice.text))

    def _send(self, message: Message, sent: Callable[[int], None] | None = None, wait: bool = True) -> None:
        self._outbox.put(encode_parts(message), sent, wait)

    def _mark(self, event: str, at_ns: int | None = None) -> None:
        now = at_ns / 1e9 if at_ns else time.monotonic()
        self._timeline.append((event, now - self._begin))

    def _place(self) -> str:
        return f"after {self._n_acquisitions} acquisitions"
