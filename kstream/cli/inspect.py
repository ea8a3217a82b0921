"""``kstream inspect``: what is in a recording."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..types import Scan


def command(
    recording: Annotated[Path, typer.Argument(help="ISMRMRD HDF5 recording, or a journal")],
    group: Annotated[str | None, typer.Option(help="HDF5 group, if the file has several")] = None,
    json: Annotated[bool, typer.Option("--json", help="machine-readable")] = False,
) -> None:
    """Show header, counters, flags and anything that would surprise the pipeline; lengths in mm, times in ms.

    Patient fields are never shown.
    """
    import numpy as np

    from ..mrd.recovering import open_recording
    from ..types import AcquisitionFlag
    from .tables import print_json, print_rows

    flags: Counter[str] = Counter()
    shapes: Counter[tuple[int, int, int]] = Counter()
    ranges: dict[str, tuple[int, int]] = {}
    n_bad = 0
    with open_recording(recording, group) as source:
        scan = source.scan
        for acquisition in source.acquisitions():
            flags.update(flag.name or "" for flag in AcquisitionFlag if acquisition.has(flag))
            shapes[(*acquisition.data.shape, acquisition.trajectory.shape[1])] += 1
            n_bad += not np.isfinite(acquisition.data).all()
            for name in acquisition.header["idx"].dtype.names[:9]:
                value = acquisition.counter(name)
                low, high = ranges.get(name, (value, value))
                ranges[name] = (min(low, value), max(high, value))
        n_acquisitions, incomplete = source.n_acquisitions, source.incomplete
    if json:
        print_json(
            {
                "acquisitions": n_acquisitions,
                "incomplete": incomplete,
                "trajectory": scan.trajectory,
                "trajectory_units": scan.user_parameters.get("trajectory_units"),
                "encoded_matrix": scan.encoded_matrix,
                "encoded_fov_mm": scan.encoded_fov_mm,
                "recon_matrix": scan.recon_matrix,
                "recon_fov_mm": scan.recon_fov_mm,
                "coils": scan.n_coils or None,
                "tr_ms": scan.tr_ms,
                "te_ms": scan.te_ms,
                "flip_angle_deg": scan.flip_angle_deg,
                "readouts": [
                    {"n": n, "coils": c, "samples": s, "trajectory_dimensions": d} for (c, s, d), n in shapes.items()
                ],
                "counters": {name: {"found": found, "header": _promised(scan, name)} for name, found in ranges.items()},
                "flags": dict(flags),
                "not_finite": n_bad,
            }
        )
        return
    rows = [("acquisitions", str(n_acquisitions))]
    if incomplete:
        rows.append(("incomplete", incomplete))
    units = scan.user_parameters.get("trajectory_units", "undeclared")
    rows.append(("trajectory", f"{scan.trajectory}, units {units}"))
    rows.append(("encoded", f"{scan.encoded_matrix} voxels, {scan.encoded_fov_mm} mm"))
    rows.append(("recon", f"{scan.recon_matrix} voxels, {scan.recon_fov_mm} mm"))
    rows.append(("coils", str(scan.n_coils or "not in the header")))
    for (n_coils, n_samples, n_dims), n in shapes.items():
        rows.append(("readouts", f"{n} of {n_coils} coils x {n_samples} samples, trajectory of {n_dims} dimensions"))
    for name, (low, high) in ranges.items():
        limit = _promised(scan, name)
        rows.append((name, f"{low}..{high} ({f'header {limit[0]}..{limit[1]}' if limit else 'not in the header'})"))
    rows += [("flag", f"{name} on {n}") for name, n in flags.items()]
    if n_bad:
        rows.append(("warning", f"{n_bad} readouts with NaN or Inf"))
    print_rows([tuple(row) for row in rows])


def _promised(scan: Scan, counter: str) -> tuple[int, int] | None:
    """Range of a counter in the header, if it is there."""
    limit = scan.limits.get(counter)
    return (limit.minimum, limit.maximum) if limit else None
