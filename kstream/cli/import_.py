"""``kstream import``: raw data of other shapes becomes a recording that replays."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

TRAJECTORIES = ("cartesian", "epi", "radial", "goldenangle", "spiral", "other")
UNITS = ("cycles_per_fov", "cycles_per_sample", "cycles_per_metre")
ANGLES = ("full-circle", "half-circle", "golden")


def command(
    source: Annotated[Path, typer.Argument(help=".mat, .npy, or an ISMRMRD file whose header needs mending")],
    output: Annotated[Path, typer.Argument(help="recording to write")],
    key: Annotated[str, typer.Option(help="variable with the samples (.mat)")] = "",
    axes: Annotated[str, typer.Option(help="stored axes in order, out of slices,lines,coils,samples")] = "",
    trajectory_key: Annotated[str, typer.Option(help="variable with kx + i ky in cycles per sample (.mat)")] = "",
    angles: Annotated[str, typer.Option(help="full-circle, half-circle or golden; empty: Cartesian lines")] = "",
    oversampling: Annotated[int, typer.Option(min=1, max=16, help="readout oversampling of an array source")] = 1,
    fov_mm: Annotated[float, typer.Option(help="field of view of an array source in mm, if known")] = 300.0,
    trajectory: Annotated[str, typer.Option(help="ISMRMRD: trajectory type to declare")] = "",
    trajectory_units: Annotated[
        str, typer.Option(help="ISMRMRD: cycles_per_fov, cycles_per_sample or cycles_per_metre")
    ] = "",
    fov_scale: Annotated[
        float, typer.Option(help="ISMRMRD: factor on the field of view; 1000 if it is in metres")
    ] = 1.0,
    json: Annotated[bool, typer.Option("--json", help="what was written, as JSON")] = False,
) -> None:
    """Import an array file (give --axes), or mend the header of an ISMRMRD file (limits, units, field of view).

    A source that ends in .mat or .npy is an array file. The output is never overwritten by a source that fails.
    """
    from ..errors import ConfigError, RecordingError
    from ..mrd.importing import ArraySource, import_arrays, mend_recording
    from ..mrd.recording import write_recording

    if output.exists() and source.exists() and output.samefile(source):
        raise ConfigError("the import would overwrite its source", where=str(output), hint="another output file")
    if not 1e-4 <= fov_scale <= 1e4:  # not true of NaN either
        raise ConfigError(f"--fov-scale {fov_scale:g} is not possible", hint="0.0001 to 10000; 1000 if in metres")
    _one_of("--trajectory", trajectory, TRAJECTORIES)
    _one_of("--trajectory-units", trajectory_units, UNITS)
    _one_of("--angles", angles, ANGLES)
    if not source.is_file():
        raise RecordingError("there is no such file", where=str(source))
    if source.suffix in (".mat", ".npy"):
        if not axes:
            raise ConfigError(
                "what are the axes of the array?", where="--axes", hint="--axes samples,lines,coils as they are stored"
            )
        described = ArraySource(
            key=key,
            axes=tuple(axis.strip() for axis in axes.split(",")),
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
    if not acquisitions:
        raise RecordingError("nothing to import: every line is zero", where=str(source))
    write_recording(output, scan.xml, acquisitions)
    if json:
        from .tables import print_json

        written = {"recording": str(output), "acquisitions": len(acquisitions), "coils": scan.n_coils}
        print_json(written | {"trajectory": scan.trajectory, "recon_matrix": scan.recon_matrix})
        return
    print(f"{output}: {len(acquisitions)} acquisitions of {scan.n_coils} coils, {scan.trajectory}")


def _one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    """Refuse a word that is none of those known; no word at all is one."""
    from ..errors import ConfigError, did_you_mean

    if value and value not in known:
        raise ConfigError(f"unknown {option} {value[:80]!r}", hint=did_you_mean(value, known))
