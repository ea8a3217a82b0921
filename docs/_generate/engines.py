"""Engines: what runs a network, where, and in which precision."""

from __future__ import annotations

import inspect

from kstream.engines import backends, torch_engine
from kstream.engines.engine import ENGINES, PRECISIONS
from kstream.engines.gate import DICE_LOSS, LIMITS

from .markdown import code, from_rst, table


def page() -> str:
    rows = [_row("torch", torch_engine, ("cpu", "cuda"), PRECISIONS)]
    for name in ENGINES:
        if name != "torch":
            library = backends.backend(name)
            rows.append(_row(name, library, library.DEVICES, library.PRECISIONS))
    limits = ", ".join(f"{limit:g} for {precision}" for precision, limit in LIMITS.items() if precision in PRECISIONS)
    gate = (
        f"Of the float64 reference an engine may differ by a relative rms of {limits}, and its Dice by {DICE_LOSS:g}.\n"
    )
    return table(("engine", "on", "precisions", "what it is"), rows) + "\n" + gate


def _row(name: str, module: object, devices: tuple[str, ...], precisions: tuple[str, ...]) -> tuple[str, ...]:
    about = from_rst(inspect.getdoc(module) or "").split("\n\n")[0]
    return code(name), ", ".join(devices), ", ".join(precisions), about
