"""Numbers that kstream gives: of a running server, of one run, and of a segmentation."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

from pydantic import BaseModel

from kstream.cli.serve import _watch_workers
from kstream.output import runinfo
from kstream.segment import metrics as segmentation
from kstream.serve.metrics import LATENCY_EDGES_S
from kstream.serve.server import MrdServer
from kstream.serve.settings import ServerSettings
from kstream.serve.workers import ModelWorkers, WorkerSettings

from .markdown import code, from_rst, table


def page() -> str:
    edges = ", ".join(f"{edge:g}" for edge in LATENCY_EDGES_S)
    return "\n".join(
        [
            "## Of a running server\n\n`kstream serve --metrics-port N` serves them for Prometheus.\n",
            table(("metric", "kind", "labels", "meaning"), server_metrics()),
            f"The edges of `kstream_latency_seconds` are {edges} s. The usual `process_...` metrics are there too.\n",
            "## Of one run (`run.json`)\n\n" + from_rst(inspect.getdoc(runinfo) or "") + "\n",
            *_run_info(),
            "## Of a segmentation\n",
            *_functions(),
        ]
    )


def server_metrics() -> Iterator[tuple[str, str, str, str]]:
    """Name, kind, labels and meaning of each metric of a server that has workers of its own."""
    models = ModelWorkers(WorkerSettings(n_processes=1))
    server = MrdServer(("127.0.0.1",), 0, ServerSettings(), models)
    try:
        _watch_workers(server, models)
        for metric in server.metrics.registry.collect():
            if metric.name.startswith("kstream_"):
                name = metric.name + "_total" * (metric.type == "counter")
                collector = server.metrics.registry._names_to_collectors[metric.name]
                labels = ", ".join(code(label) for label in getattr(collector, "_labelnames", ()))
                yield code(name), metric.type, labels, metric.documentation
    finally:
        server.stop(0)
        models.stop(0)


def _run_info() -> Iterator[str]:
    """The records of ``run.json``, the whole first."""
    records = [runinfo.RunInfo, *(c for c in vars(runinfo).values() if _is_record(c) and c is not runinfo.RunInfo)]
    for record in records:
        doc = inspect.getdoc(record) or ""
        summary, _, parameters = doc.partition("Parameters\n----------\n")
        meaning = dict(_entries(parameters))
        rows = [
            (code(name), code(_type(field.annotation)), meaning.get(name, ""))
            for name, field in record.model_fields.items()
        ]
        yield f"### {record.__name__}\n\n{from_rst(summary)}\n"
        yield table(("field", "type", "meaning"), rows)


def _is_record(thing: object) -> bool:
    return (
        isinstance(thing, type)
        and issubclass(thing, BaseModel)
        and thing.__module__ == runinfo.__name__
        and not thing.__name__.startswith("_")
    )


def _entries(text: str) -> Iterator[tuple[str, str]]:
    """Name and meaning of the entries of a docstring's section; names may share one."""
    for entry in re.split(r"\n(?=\S)", text.strip()):
        names, _, meaning = entry.partition(" : ")
        for name in names.split(", "):
            yield name, from_rst(meaning)


def _type(annotation: object) -> str:
    text = (
        annotation.__name__ if isinstance(annotation, type) and not hasattr(annotation, "__args__") else str(annotation)
    )
    return re.sub(r"\b(?:\w+\.)+(?=\w)", "", text)


def _functions() -> Iterator[str]:
    for name, function in inspect.getmembers(segmentation, inspect.isfunction):
        if function.__module__ == segmentation.__name__ and not name.startswith("_"):
            text = from_rst((inspect.getdoc(function) or "").partition("\n\nRaises\n")[0])
            yield f"`kstream.segment.metrics.{name}`\n: {text.splitlines()[0]}\n"
