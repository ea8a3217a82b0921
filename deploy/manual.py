"""The manual of an OpenRecon package: a real PDF, short, with what an operator must know."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

from ..config import preset_description
from .openrecon import PORT, RESEARCH, Application
from .ui import UiParameter

A4_INCH = (8.27, 11.69)
MARGIN_INCH = 0.9
LINE_INCH = 0.19
N_COLUMNS = 88
"""Characters of 8.5 points in a line of the monospaced font."""

_Line = tuple[str, float, bool]
"""Text, size in points, bold."""


def write_manual(path: Path, application: Application) -> None:
    """Write the manual; the same application gives the same bytes.

    Raises
    ------
    OSError : the file cannot be written.
    """
    per_page = int((A4_INCH[1] - 2 * MARGIN_INCH) / LINE_INCH)
    lines = list(_lines(application))
    about = {"Title": f"{application.name} {application.version}", "Author": application.vendor, "CreationDate": None}
    # Type 42 fonts keep the text searchable; by default the glyphs would only be drawings.
    with (
        mpl.rc_context({"pdf.fonttype": 42, "font.monospace": ["DejaVu Sans Mono"], "font.family": "monospace"}),
        PdfPages(path, metadata=about) as pages,
    ):
        for begin in range(0, len(lines), per_page):
            pages.savefig(_page(lines[begin : begin + per_page]))


def _page(lines: list[_Line]) -> Figure:
    figure = Figure(figsize=A4_INCH)
    x = MARGIN_INCH / A4_INCH[0]
    for row, (text, points, is_bold) in enumerate(lines):
        y = 1 - (MARGIN_INCH + row * LINE_INCH) / A4_INCH[1]
        weight = "bold" if is_bold else "normal"
        figure.text(x, y, text, fontsize=points, fontweight=weight, va="top", parse_math=False)
    return figure


def _lines(application: Application) -> Iterator[_Line]:
    yield application.name, 16, True
    yield "", 8.5, False
    yield f"Version {application.version}, {application.vendor}, {application.manufactured:%Y-%m-%d}", 8.5, False
    yield "", 8.5, False
    yield from _paragraph(RESEARCH, is_bold=True)
    yield from _paragraph(
        "Images and label maps come from raw data while the scan runs. Label maps are the output of a network that may "
        "be wrong: compare them with the images beside them. Nothing may be decided on them alone."
    )
    yield "Requirements", 11, True
    gpu = "a GPU is used if there is one" if application.uses_gpu else "no GPU is used"
    yield from _paragraph(
        f"At least {application.memory_mib} MiB of memory and {application.n_cores} cores for the container; {gpu}. It "
        f"listens on port {PORT} for ISMRMRD raw data and sends images and texts back; it opens no other connection."
    )
    yield "Presets", 11, True
    for name in application.presets:
        yield from _paragraph(f"{name}: {preset_description(name)}")
    yield "Parameters", 11, True
    yield f"{'id':<26}{'type':<9}{'default':<16}{'values'}", 8.5, True
    for parameter in application.parameters:
        yield from _row(parameter)
    yield "When no images come", 11, True
    yield from _paragraph(
        "The container says why: a text that begins with ERR, in the scanner's log of reconstruction messages, names "
        "what is wrong, where, what is likely and what to try."
    )


def _row(parameter: UiParameter) -> Iterator[_Line]:
    first = f"{parameter.id:<26}{parameter.kind:<9}{parameter.default!s:<16}"
    values = textwrap.wrap(_values(parameter), N_COLUMNS - len(first), break_long_words=False) or [""]
    yield first + values[0], 8.5, False
    for more in values[1:]:
        yield " " * len(first) + more, 8.5, False
    for text in textwrap.wrap(parameter.information, N_COLUMNS - 4):
        yield "    " + text, 8.5, False


def _values(parameter: UiParameter) -> str:
    if parameter.choices:
        return ", ".join(value for value, _ in parameter.choices)
    if parameter.minimum is None or parameter.maximum is None:
        return {"boolean": "on, off", "string": "text"}.get(parameter.kind, "")
    return f"{parameter.minimum:.10g} to {parameter.maximum:.10g} {parameter.unit}".rstrip()


def _paragraph(text: str, is_bold: bool = False) -> Iterator[_Line]:
    for line in textwrap.wrap(text, N_COLUMNS - 8 if is_bold else N_COLUMNS):
        yield line, 8.5, is_bold
    yield "", 8.5, False
