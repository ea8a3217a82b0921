"""``kstream doctor``: is this installation able to serve a scan?"""

from __future__ import annotations

import json as json_
from collections.abc import Callable
from typing import Annotated

import typer


def command(json: Annotated[bool, typer.Option("--json", help="machine-readable")] = False) -> None:
    """Check versions, presets, model bundles and a two-second self test; each failure names its fix."""
    checks: dict[str, Callable[[], str]] = {
        "python": _python,
        "packages": _packages,
        "presets": _presets,
        "model bundles": _bundles,
        "loopback socket": _socket,
        "reconstruction": _reconstruction,
    }
    rows = [_run(name, check) for name, check in checks.items()]
    if json:
        print(json_.dumps(rows, indent=2))
    else:
        for row in rows:
            print(f"{'ok  ' if row['ok'] else 'FAIL'}  {row['check']:<16} {row['detail']}")
    raise typer.Exit(0 if all(row["ok"] for row in rows) else 1)


def _run(name: str, check: Callable[[], str]) -> dict[str, object]:
    from ..errors import KstreamError

    try:
        return {"check": name, "ok": True, "detail": check()}
    except (KstreamError, ImportError, OSError, ValueError) as error:
        return {"check": name, "ok": False, "detail": str(error)}


def _python() -> str:
    import platform

    return f"{platform.python_version()} on {platform.machine()}"


def _packages() -> str:
    from importlib.metadata import version

    return ", ".join(f"{name} {version(name)}" for name in ("kstream", "numpy", "scipy", "torch", "h5py", "ismrmrd"))


def _presets() -> str:
    from ..config import preset_names, resolve

    return ", ".join(resolve(name).preset for name in preset_names())


def _bundles() -> str:
    from ..engines import load_engine
    from ..models.bundle import Bundle, shipped

    loaded = []
    for name in shipped():
        bundle = Bundle.load(name)
        load_engine(bundle)
        loaded.append(f"{name} (sha256 {bundle.info.sha256[:12]})")
    return ", ".join(loaded) or "none shipped"


def _socket() -> str:
    from ..serve.server import MrdServer

    server = MrdServer(port=0)
    port = server.port
    server.stop()
    return f"listened on port {port}"


def _reconstruction() -> str:
    """A point object on a small radial scan must come back as a point."""
    import numpy as np

    from ..errors import ScanError
    from ..recon.density import polar_weights
    from ..recon.gridding import FrameGrid, PlaneGridder

    n, n_spokes = 32, 55
    radius = np.arange(2 * n) / 2 - n / 2
    grid = FrameGrid(PlaneGridder((n, n)), 1, 1)
    for spoke in range(n_spokes):
        angle = np.pi * spoke / n_spokes
        k = np.stack([radius * np.cos(angle), radius * np.sin(angle), 0 * radius], axis=1).astype(np.float32)
        data = np.exp(-2j * np.pi * (3 * k[:, 0] - 5 * k[:, 1]) / n)[None].astype(np.complex64)
        grid.add(data, k, polar_weights(k, np.pi / n_spokes), 0)
    image = np.abs(grid.to_images(np.ones((1, 1), np.complex64)))[0, 0]
    peak = np.unravel_index(image.argmax(), image.shape)
    if peak != (n // 2 - 5, n // 2 + 3):
        raise ScanError(f"a point object came back at {peak}", hint="report this with your CPU and scipy version")
    return "a simulated point came back where it was"
