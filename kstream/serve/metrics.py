"""What a running server tells Prometheus; every name is listed in ``docs/server.md``."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    start_http_server,
)

from ..errors import PeerError
from ..types import Notice

LATENCY_EDGES_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class ServerMetrics:
    """Counters of one server, in a registry of their own so that two servers in one process do not mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"kstream_{name}", text, labels, registry=self.registry)

        self.connections = counter("connections", "connections accepted")
        self.sessions = counter("sessions", "sessions that ended, by outcome", "outcome")
        self.received_bytes = counter("received_bytes", "bytes received")
        self.sent_bytes = counter("sent_bytes", "bytes sent")
        self.acquisitions = counter("acquisitions", "acquisitions received")
        self.set_aside = counter("acquisitions_set_aside", "acquisitions that entered no frame, by reason", "reason")
        self.bad_input = counter("bad_input", "what else was wrong with scans, and was told, by kind", "kind")
        self.frames = counter("frames", "frames that ended")
        self.images = counter("images", "images sent")
        self.recording_failures = counter("recording_failures", "journals given up because of their disk")
        self.latency = Histogram(
            "kstream_latency_seconds",
            "from the last sample of a frame received to the first byte of its first image sent",
            ("kind",),
            buckets=LATENCY_EDGES_S,
            registry=self.registry,
        )

    def note(self, notice: Notice) -> None:
        """Count what a notice says of the data, if it says something."""
        if notice.kind:
            self.bad_input.labels(notice.kind).inc(notice.amount)

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Add a gauge whose value is asked for at each scrape."""
        Gauge(f"kstream_{name}", text, registry=self.registry).set_function(value)

    def value(self, name: str, **labels: str) -> float:
        """A sample as Prometheus would read it; 0 if it never happened."""
        return self.registry.get_sample_value(f"kstream_{name}", labels) or 0.0

    def serve(self, host: str, port: int) -> tuple[int, Callable[[], None]]:
        """Answer scrapes on a port of its own; gives that port and how to stop.

        Raises
        ------
        PeerError : the port is taken.
        """
        try:
            server, thread = start_http_server(port, addr=host, registry=self.registry)
        except OSError as error:
            raise PeerError(
                f"cannot serve metrics on {host} port {port}: {error.strerror}", hint="another --metrics-port"
            ) from error

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join(5)

        return int(server.server_address[1]), stop
