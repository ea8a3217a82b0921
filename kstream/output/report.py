"""One HTML file that shows a whole run: nothing is loaded from elsewhere, so it can be mailed and kept."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from io import StringIO
from pathlib import Path

import numpy as np

from ..types import Notice
from .runinfo import Histogram, Lesion, Phenotype, RunInfo, TimelineEvent

# The chart is drawn in these three colours, which are then replaced by the page's own for light and dark.
_CHART_COLOURS = {"#010203": "var(--ink)", "#040506": "var(--muted)", "#070809": "var(--accent)"}
_NICE_STEPS_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)
_N_LANE_COLOURS = 6
_MAX_LESIONS = 8
_STEADY_PERCENT = 10.0  # ACR BI-RADS, MRI lexicon: delayed phase within 10 % of the initial one is a plateau


@dataclass(frozen=True)
class _Tile:
    """One headline figure; `tone` is empty, ``good`` or ``warning``."""

    label: str
    value: str
    unit: str = ""
    note: str = ""
    tone: str = ""


@dataclass(frozen=True)
class _Bar:
    left_percent: float
    width_percent: float
    tooltip: str


@dataclass(frozen=True)
class _Lane:
    name: str
    colour: int
    bars: tuple[_Bar, ...]
    busy_s: float


@dataclass(frozen=True)
class _LesionCard:
    """A lesion as the report shows it."""

    lesion: Lesion
    svg: str
    rise: str
    delayed: str


def write_report(path: str | Path, run: RunInfo, images: Sequence[tuple[str, bytes]]) -> Path:
    """Write the report of a run.

    Parameters
    ----------
    path : HTML file to write; missing folders are made.
    run : what to report; every text in it is escaped.
    images : caption and content (PNG or GIF) of each picture; the first is shown over the whole width.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["ms"] = format_ms
    template = environment.from_string(files(__package__).joinpath("report.html.j2").read_text("utf-8"))
    last_s = max((event.end_s for event in run.timeline), default=0.0)
    html = template.render(
        run=run,
        urgent=_urgent(run),
        log=[notice for notice in run.notices if notice.level == "info"],
        tiles=_tiles(run),
        lesions=_lesion_cards(run),
        whiskers=[_whisker_svg(phenotype) for phenotype in run.phenotypes],
        slice_latency_svg=_slice_latency_svg(run),
        rest=run.lesions[_MAX_LESIONS:],
        pictures=[(caption, _data_uri(content)) for caption, content in images],
        histogram_svg=_histogram_svg(run.readout_latency) if run.readout_latency.n_samples else "",
        lanes=_lanes(run.timeline),
        ticks=_ticks(last_s),
        settings_set=[setting for setting in run.settings if setting.origin != "default"],
        settings_default=[setting for setting in run.settings if setting.origin == "default"],
        stage_total_ms=sum(stage.total_ms for stage in run.stages),
    )
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(html, encoding="utf-8")
    return target


def format_ms(value_ms: float) -> str:
    """Milliseconds with three significant figures, without unit."""
    if value_ms >= 99.95 or value_ms == 0:
        return f"{value_ms:.0f}"
    return f"{value_ms:.1f}" if value_ms >= 9.995 else f"{value_ms:.2f}" if value_ms >= 0.995 else f"{value_ms:.3f}"


def _urgent(run: RunInfo) -> list[Notice]:
    """Errors, then warnings; a run without images is an error of its own."""
    notices = [notice for notice in run.notices if notice.level != "info"]
    if not run.images_sent:
        notices.append(Notice("error", f"No image was sent: {run.no_image_reason or 'reason unknown'}"))
    return sorted(notices, key=lambda notice: ("error", "warning").index(notice.level))


def _tiles(run: RunInfo) -> list[_Tile]:
    """The headline figures, what was not measured left out."""
    tiles = []
    if run.dice is not None and run.classes:
        tiles.append(_Tile("Mean Dice", f"{run.dice:.3f}", note="of the classes, all voxels against ground truth"))
    elif run.dice is not None:
        tiles.append(_Tile("Lesion Dice", f"{run.dice:.3f}", note="all voxels of the volume against ground truth"))
    if run.lesions:
        total_ml = sum(lesion.volume_ml for lesion in run.lesions)
        regions = "region" if len(run.lesions) == 1 else "regions"
        tiles.append(_Tile("Labelled", f"{total_ml:.2f}", "ml", f"in {len(run.lesions)} {regions}"))
    if run.is_slice_by_slice:
        middle, worst = (float(f(run.label_latencies_ms)) for f in (np.median, max))
        note = f"a slice's last line to its labels; median, longest {format_ms(worst)} ms"
        tiles.append(_Tile("Latency", format_ms(middle), "ms", note))
    elif run.label_latency_ms is not None:
        tiles.append(_Tile("Latency", format_ms(run.label_latency_ms), "ms", "last readout to label"))
    if run.false_positive_ml is not None:
        tiles.append(_Tile("False positives", f"{run.false_positive_ml:.2f}", "ml", "labelled where no lesion is"))
    tiles += [
        _Tile("Received", f"{run.received}", note=f"acquisitions, {run.readouts} became image data"),
        _Tile("Frames", f"{run.frames}"),
        _Tile("Images sent", f"{run.images_sent}", tone="" if run.images_sent else "warning"),
        _Tile("Dropped", f"{run.dropped}", note="acquisitions", tone="warning" if run.dropped else ""),
    ]
    return tiles


def _lesion_cards(run: RunInfo) -> list[_LesionCard]:
    """The largest lesions, with curves on one common scale, so that they can be compared at a glance."""
    shown = run.lesions[:_MAX_LESIONS]
    values = [v for lesion in shown for v in (*lesion.high_percent, *lesion.low_percent, *lesion.enhancement_percent)]
    scale = (min([0.0, *values]), max([1.0, *values]))
    return [_LesionCard(lesion, _curve_svg(lesion, run.frame_times_s, scale), *_kinetics(lesion)) for lesion in shown]


def _kinetics(lesion: Lesion) -> tuple[str, str]:
    """Rise from the first to the second frame, and change from the second to the last, in words."""
    curve = lesion.enhancement_percent
    if len(curve) < 2:
        return "", ""
    rise = f"{curve[1]:+.0f} %"
    if len(curve) < 3 or curve[1] <= -100:
        return rise, ""
    change = 100 * ((100 + curve[-1]) / (100 + curve[1]) - 1)
    kind = "persistent" if change > _STEADY_PERCENT else "washout" if change < -_STEADY_PERCENT else "plateau"
    return rise, f"{change:+.0f} % ({kind})"


def _curve_svg(lesion: Lesion, times_s: Sequence[float], scale: tuple[float, float]) -> str:
    """Enhancement over time: a line through the means, a band of the middle half of the voxels, axes with units."""
    curve = lesion.enhancement_percent
    if len(curve) < 2:
        return ""
    has_times = len(times_s) == len(curve)
    at = np.asarray(times_s if has_times else np.arange(len(curve)), np.float64)
    left, right, top, bottom = 46.0, 308.0, 24.0, 128.0
    step = next((s for s in (5, 10, 20, 50, 100, 200, 500, 1000) if (scale[1] - scale[0]) / s <= 4), 5000)
    low, high = scale[0], step * np.ceil(scale[1] / step)

    def place(values: Sequence[float]) -> list[str]:
        x = left + (right - left) * (at - at[0]) / (at[-1] - at[0])
        y = bottom - (bottom - top) * (np.asarray(values) - low) / (high - low)
        return [f"{px:.1f},{py:.1f}" for px, py in zip(x, y, strict=True)]

    parts = ['<svg viewBox="0 0 320 168" role="img" aria-label="Enhancement curve">']
    for tick in range(step * int(np.ceil(low / step)), int(high) + 1, step):
        y = bottom - (bottom - top) * (tick - low) / (high - low)
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick}</text>')
    band = [*place(lesion.high_percent), *reversed(place(lesion.low_percent))]
    parts.append(f'<polygon class="band" points="{" ".join(band)}"/>')
    parts.append(f'<polyline class="line" points="{" ".join(place(curve))}"/>')
    last_label = -100.0
    for point, time, value in zip(place(curve), at, curve, strict=True):
        x, y = point.split(",")
        title = f"{f'{time:.0f} s' if has_times else f'frame {time:.0f}'}: {value:+.0f} %"
        parts.append(f'<circle class="dot" cx="{x}" cy="{y}" r="3.5"><title>{title}</title></circle>')
        if float(x) - last_label >= 28:
            parts.append(f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{time:.0f}</text>')
            last_label = float(x)
    axis = "seconds after the first frame" if has_times else "frame"
    parts.append(f'<text x="{(left + right) / 2}" y="{bottom + 34}" text-anchor="middle">{axis}</text>')
    parts.append('<text x="4" y="12">enhancement (%)</text></svg>')
    return "".join(parts)


_WHISKER_PERCENT = 60.0
"""Half the width of the axis on which phenotypes are compared with their truth."""


def _whisker_svg(row: Phenotype) -> str:
    """How far a value is from its truth, in percent of it, with the test error as a bar; empty without truth."""
    if not row.truth:
        return ""
    middle, half = 100.0, 94.0

    def place(value: float) -> float:
        percent = 100 * (value / float(row.truth or 1) - 1)
        return middle + half * float(np.clip(percent / _WHISKER_PERCENT, -1, 1))

    parts = ['<svg viewBox="0 0 200 30" preserveAspectRatio="xMinYMid" role="img" aria-label="Against the truth">']
    parts.append(f'<line class="grid" x1="{middle - half}" x2="{middle + half}" y1="15" y2="15"/>')
    parts.append(f'<line class="axis" x1="{middle}" x2="{middle}" y1="3" y2="27"/>')
    both = row.from_labels is not None and row.from_network is not None
    pairs = ((row.from_labels, row.labels_error, "labels"), (row.from_network, row.network_error, "network"))
    for number, (value, error, name) in enumerate(pairs):
        if value is None:
            continue
        x, y = place(value), 15.0 + (0 if not both else 6 if number else -6)
        if error:
            low, high = place(value - error), place(value + error)
            parts.append(f'<line class="{name}" x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}"/>')
            ends = (f'x1="{end:.1f}" x2="{end:.1f}" y1="{y - 3}" y2="{y + 3}"' for end in (low, high))
            parts += [f'<line class="{name}" {end}/>' for end in ends]
        title = f"{name}: {100 * (value / row.truth - 1):+.0f} % of the truth"
        parts.append(f'<circle class="{name}" cx="{x:.1f}" cy="{y}" r="3.5"><title>{title}</title></circle>')
    return "".join((*parts, "</svg>"))


def _slice_latency_svg(run: RunInfo) -> str:
    """One bar for each label map of a scan that is segmented slice by slice."""
    values = run.label_latencies_ms
    if not run.is_slice_by_slice:
        return ""
    width, height, top = 640.0, 150.0, max(values)
    step = (width - 60) / len(values)
    parts = [f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="Latency of each slice">']
    for part in (0.0, 0.5, 1.0):
        y = 120 - 100 * part
        parts.append(f'<line class="grid" x1="56" x2="{width:.0f}" y1="{y:.0f}" y2="{y:.0f}"/>')
        parts.append(f'<text x="50" y="{y + 4:.0f}" text-anchor="end">{format_ms(top * part)}</text>')
    for number, value in enumerate(values):
        x, high = 60 + number * step, 100 * value / top
        title = f"label map {number + 1}: {format_ms(value)} ms"
        parts.append(
            f'<rect class="bar" x="{x:.1f}" y="{120 - high:.1f}" width="{0.75 * step:.1f}" height="{high:.1f}">'
            f"<title>{title}</title></rect>"
        )
    parts.append('<text x="4" y="14">ms</text>')
    axis = "slices, as they were finished"
    parts.append(f'<text x="{(width + 60) / 2}" y="144" text-anchor="middle">{axis}</text></svg>')
    return "".join(parts)


def _data_uri(content: bytes) -> str:
    kind = "gif" if content.startswith(b"GIF8") else "png"
    return f"data:image/{kind};base64,{b64encode(content).decode('ascii')}"


def _lanes(events: Sequence[TimelineEvent]) -> list[_Lane]:
    """Events by name, in order of first appearance, scaled to the whole run."""
    whole_s = max((event.end_s for event in events), default=0.0) or 1.0
    lanes = []
    for number, name in enumerate(dict.fromkeys(event.name for event in events)):
        own = [event for event in events if event.name == name]
        bars = tuple(
            _Bar(
                100 * event.start_s / whole_s,
                100 * (event.end_s - event.start_s) / whole_s,
                f"{event.detail or name}: {event.start_s:.2f} to {event.end_s:.2f} s",
            )
            for event in own
        )
        lanes.append(_Lane(name, number % _N_LANE_COLOURS, bars, _covered_s(own)))
    return lanes


def _covered_s(events: Sequence[TimelineEvent]) -> float:
    """Time during which at least one of the events lasted: frames may be worked on at the same time."""
    covered_s, until_s = 0.0, 0.0
    for event in sorted(events, key=lambda event: event.start_s):
        covered_s += max(0.0, event.end_s - max(until_s, event.start_s))
        until_s = max(until_s, event.end_s)
    return covered_s


def _ticks(last_s: float) -> list[tuple[float, str]]:
    """Position in percent and text of four to ten round times."""
    if last_s <= 0:
        return []
    step_s = next((step for step in _NICE_STEPS_S if last_s / step <= 7), last_s / 5)
    times = np.arange(0, last_s + 1e-9, step_s)
    return [(float(100 * time / last_s), f"{time:g} s") for time in times]


def _histogram_svg(histogram: Histogram) -> str:
    """Counts over latency, both logarithmic: the few readouts that close a frame are the ones of interest."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

    ink, muted, accent = _CHART_COLOURS
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "kstream", "font.family": "sans-serif", "font.size": 8}):
        figure = Figure(figsize=(4.8, 2.5), layout="constrained")
        axes = figure.add_subplot()
        edges = np.array(histogram.edges_ms)
        axes.stairs(np.maximum(histogram.counts, 0.5), edges, baseline=0.5, fill=True, color=accent)
        axes.set(xscale="log", yscale="log", xlabel="readout latency (ms)", ylabel="readouts")
        axes.set_ylim(0.7, max(histogram.counts) * 20)
        for name, value_ms in _marks(histogram):
            axes.axvline(value_ms, color=ink, linewidth=0.8, linestyle=(0, (3, 2)))
            axes.annotate(
                name,
                (value_ms, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(-3, -3),
                textcoords="offset points",
                color=ink,
                ha="right",
                va="top",
                rotation=90,
            )
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_minor_locator(NullLocator())
        axes.tick_params(which="both", colors=muted, labelcolor=ink)
        axes.xaxis.label.set_color(ink)
        axes.yaxis.label.set_color(ink)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(muted)
        text = StringIO()
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=no_metadata)
    return _inlined(text.getvalue())


def _marks(histogram: Histogram) -> list[tuple[str, float]]:
    """Names and places of the quantiles; those too near each other to be told apart share a line."""
    nearness = (histogram.edges_ms[-1] / histogram.edges_ms[0]) ** 0.06
    marks: list[tuple[str, float]] = []
    for name, value_ms in (("median", histogram.p50_ms), ("95 %", histogram.p95_ms), ("max", histogram.max_ms)):
        if marks and value_ms < marks[-1][1] * nearness:
            name = f"{marks.pop()[0]}, {name}"
        marks.append((name, value_ms))
    return marks


def _inlined(svg: str) -> str:
    """The chart as a part of the page: without prolog, fixed size and name spaces, in the colours of the page."""
    svg = svg[svg.index("<svg") :]
    head, rest = svg.split(">", 1)
    view_box = re.search(r'viewBox="[^"]+"', head)
    head = f'<svg {view_box.group(0) if view_box else ""} role="img" aria-label="Histogram of readout latency">'
    for drawn, shown in _CHART_COLOURS.items():
        rest = rest.replace(drawn, shown)
    return head + rest
