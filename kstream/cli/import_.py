"""``kstream import``: raw data of other shapes becomes a recording that replays."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    source: Annotated[Path, typer.Argument(help=".mat, .npy, or an ISMRMRD file whose header needs mending")],
    output: Annotated[Path, typer.Argument(help="recording to write")],
    key: Annotated[str, typer.Option(help="variable with the samples (.mat)")] = "",
    axes: Annotated[str, typer.Option(help="stored axes in order, out of slices,lines,coils,samples")] = "",
    trajectory_key: Annotated[str, typer.Option(help="variable with kx + i ky in cycles per sample (.mat)")] = "",
    angles: Annotated[str, typer.Option(help="full-circle, half-circle or golden; empty: Cartesian lines")] = "",
    oversampling: Annotated[int, typer.Option(help="readout oversampling of an array source")] = 1,
    fov_mm: Annotated[float, typer.Option(help="field of view of an array source, if known")] = 300.0,
    trajectory: Annotated[str, typer.Option(help="ISMRMRD: trajectory type to declare")] = "",
    trajectory_units: Annotated[
        str, typer.Option(help="ISMRMRD: cycles_per_fov, cycles_per_sample or cycles_per_metre")
    ] = "",
    fov_scale: Annotated[float, typer.Option(help="ISMRMRD: factor on the field of view; 1000 if in metres")] = 1.0,
) -> None:
    """Import an array file (give --axes), or mend the header of an ISMRMRD file (limits, units, field of view)."""
    from ..errors import ConfigError
    from ..mrd.importing import ArraySource, import_arrays, mend_recording
    from ..mrd.recording import write_recording

    if output.exists() and source.exists() and output.samefile(source):
        raise ConfigError("the import would overwrite its source", where=str(output), hint="another output file")
    if source.suffix in (".mat", ".npy"):
        if angles not in ("", "full-circle", "half-circle", "golden"):
            raise ConfigError(f"unknown --angles {angles!r}", hint="full-circle, half-circle, golden, or nothing")
        described = ArraySource(
            key=key,
            axes=tuple(axes.split(",")),
            trajectory_key=trajectory_key,
            angles=angles,  # type: ignore[arg-type]
            oversampling=oversampling,
            field_of_view_mm=fov_mm,
        )
        scan, acquisitions = import_arrays(source, described)
    else:
        scan, acquisitions = mend_recording(
            source, trajectory=trajectory, trajectory_units=trajectory_units, fov_scale=fov_scale
        )
    write_recording(output, scan.xml, acquisitions)
    print(f"{output}: {len(acquisitions)} acquisitions of {scan.n_coils} coils, {scan.trajectory}")
