"""``kstream inspect``: what is in a recording."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer


def command(
    recording: Annotated[Path, typer.Argument(help="ISMRMRD HDF5 recording")],
    group: Annotated[str | None, typer.Option(help="HDF5 group, if the file has several")] = None,
) -> None:
    """Show header, counters, flags and anything that would surprise the pipeline. Patient fields are never shown."""
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from ..mrd.recording import Recording
    from ..types import AcquisitionFlag

    flags: Counter[str] = Counter()
    shapes: Counter[tuple[int, int, int]] = Counter()
    ranges: dict[str, tuple[int, int]] = {}
    n_bad = 0
    with Recording(recording, group) as source:
        scan = source.scan
        for acquisition in source.acquisitions():
            flags.update(flag.name or "" for flag in AcquisitionFlag if acquisition.has(flag))
            shapes[(*acquisition.data.shape, acquisition.trajectory.shape[1])] += 1
            n_bad += not np.isfinite(acquisition.data).all()
            for name in acquisition.header["idx"].dtype.names[:9]:
                value = acquisition.counter(name)
                low, high = ranges.get(name, (value, value))
                ranges[name] = (min(low, value), max(high, value))
        n_acquisitions = source.n_acquisitions
    table = Table(box=None, show_header=False)
    table.add_row("acquisitions", str(n_acquisitions))
    table.add_row(
        "trajectory", f"{scan.trajectory}, units {scan.user_parameters.get('trajectory_units', 'undeclared')}"
    )
    table.add_row("encoded", f"{scan.encoded_matrix} voxels, {scan.encoded_fov_mm} mm")
    table.add_row("recon", f"{scan.recon_matrix} voxels, {scan.recon_fov_mm} mm")
    table.add_row("coils", str(scan.n_coils or "not in the header"))
    for (n_coils, n_samples, n_dims), n in shapes.items():
        table.add_row("readouts", f"{n} of {n_coils} coils x {n_samples} samples, trajectory of {n_dims} dimensions")
    for name, (low, high) in ranges.items():
        limit = scan.limits.get(name)
        promised = f"header {limit.minimum}..{limit.maximum}" if limit else "not in the header"
        table.add_row(name, f"{low}..{high} ({promised})")
    for name, n in flags.items():
        table.add_row("flag", f"{name} on {n}")
    if n_bad:
        table.add_row("warning", f"{n_bad} readouts with NaN or Inf")
    Console(highlight=False).print(table)
