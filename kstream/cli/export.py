"""``kstream export``: volumes and label maps for other programs."""

from __future__ import annotations

import json as json_
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..output.dicom import Study
    from ..output.runinfo import RunInfo
    from ..types import Scan
    from .stacks import Volume


class Format(StrEnum):
    """What other programs read."""

    NIFTI = "nifti"
    NRRD = "nrrd"
    DICOM = "dicom"


def command(
    run: Annotated[
        Path, typer.Argument(help="folder of a run, or a file of returned images; or an experiment (.toml)")
    ],
    output: Annotated[Path, typer.Option(help="folder for what is written")],
    format: Annotated[
        Format, typer.Option(help="nifti: .nii.gz; nrrd: .nrrd and 3D Slicer's .seg.nrrd; dicom: MR series and SEG")
    ] = Format.NIFTI,
    recording: Annotated[
        Path | None,
        typer.Option(
            help="raw data, for DICOM's sequence parameters [default: by its name, in the folder or beside it]"
        ),
    ] = None,
    patient: Annotated[
        bool, typer.Option("--patient", help="DICOM with patient and study fields of the recording; else anonymous")
    ] = False,
    frame: Annotated[int | None, typer.Option(min=0, help="this frame only, from 0 [default: all]")] = None,
    magnitude_series: Annotated[int, typer.Option(min=0, help="series of the magnitude")] = 1,
    label_series: Annotated[int, typer.Option(min=0, help="series of the labels")] = 2,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace files of an earlier export")] = False,
    json: Annotated[bool, typer.Option("--json", help="what was written as JSON")] = False,
    trained: Annotated[
        Path | None, typer.Option(help="of an experiment: folder of its training [default: runs/NAME]")
    ] = None,
    cache: Annotated[Path, typer.Option(help="of an experiment: exams that it is evaluated on")] = Path("cache"),
) -> None:
    """Write returned images as NIfTI, NRRD or DICOM with their place in the patient (mm). For research use only.

    One file for each frame (DICOM: for each slice). Existing files are kept unless --overwrite is given. The training
    of an experiment (.toml) is written as a model bundle, with card and evaluation; the output's name is the model's.
    """
    if run.suffix == ".toml":
        from ..training.commands import export as export_bundle

        export_bundle(run, output, cache, trained)
        return
    info = _account(run if run.is_dir() else run.parent)
    magnitude, labels = _read(_images(run, info), magnitude_series, label_series, frame)
    if format is Format.DICOM:
        if recording is None and info is not None and run.is_dir():
            recording = _first(run / info.recording, run.parent / info.recording)
        scan, study = _about(recording, patient, info.recording_sha256 if info else "", magnitude)
        written, notes = _dicom(output, magnitude, labels, study, scan, overwrite)
    else:
        written, notes = _files(output, format, magnitude, labels, overwrite), []
    if not labels:
        notes.append(f"no label maps: no images in series {label_series}")
    if json:
        print(json_.dumps({"written": [str(path) for path in written], "notes": notes}, indent=2))
        return
    for note in notes:
        print(note)
    print(f"{len(written)} files in {output}")


def _account(folder: Path) -> RunInfo | None:
    """``run.json`` of the folder, if there is one."""
    from ..output.runinfo import RunInfo

    path = folder / "run.json"
    return RunInfo.from_json(path.read_bytes()) if path.is_file() else None


def _images(run: Path, info: RunInfo | None) -> Path:
    """The returned images of a run: where `kstream demo` and `kstream replay` leave them."""
    from ..errors import RecordingError

    if not run.is_dir():
        return run
    candidates = [run / "images.h5"]
    if info is not None:
        name = f"{Path(info.recording).stem}.images.h5"
        candidates += [run / name, run.parent / name]
    found = _first(*candidates)
    if found is None:
        raise RecordingError(
            "the images of this run were not found",
            where=str(run),
            likely="`kstream replay` leaves them beside the recording",
            hint="kstream export RECORDING.images.h5",
        )
    return found


def _first(*paths: Path) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


def _read(
    path: Path, magnitude_series: int, label_series: int, frame: int | None
) -> tuple[dict[int, Volume], dict[int, Volume]]:
    """Volumes of both series by frame."""
    from ..errors import ScanError
    from ..mrd.recording import read_images
    from .stacks import volumes

    series = read_images(path)
    if magnitude_series not in series:
        raise ScanError(
            f"there are no images in series {magnitude_series}",
            where=str(path),
            hint=f"--magnitude-series with one of: {', '.join(str(number) for number in sorted(series))}",
        )
    magnitude, labels = volumes(series[magnitude_series]), volumes(series.get(label_series, []))
    if frame is None:
        return magnitude, labels
    if frame not in magnitude:
        raise ScanError(f"there is no frame {frame}", where=str(path), hint=f"frames: {', '.join(map(str, magnitude))}")
    return {frame: magnitude[frame]}, {number: volume for number, volume in labels.items() if number == frame}


def _files(
    output: Path, format: Format, magnitude: dict[int, Volume], labels: dict[int, Volume], overwrite: bool
) -> list[Path]:
    """One NIfTI or NRRD file for each frame of each kind."""
    from ..output.nifti import write_nifti
    from ..output.nrrd import write_nrrd, write_seg_nrrd

    written = []
    for number, volume in magnitude.items():
        stem = output / f"magnitude_frame{number:03d}"
        if format is Format.NIFTI:
            path = write_nifti(f"{stem}.nii.gz", volume.magnitude, volume.geometry, overwrite=overwrite)
        else:
            path = write_nrrd(f"{stem}.nrrd", volume.magnitude, volume.geometry, overwrite=overwrite)
        written.append(path)
    for number, volume in labels.items():
        stem = output / f"labels_frame{number:03d}"
        if format is Format.NIFTI:
            path = write_nifti(f"{stem}.nii.gz", volume.data, volume.geometry, table=volume.table, overwrite=overwrite)
        else:
            path = write_seg_nrrd(
                f"{stem}.seg.nrrd",
                volume.data,
                volume.geometry,
                volume.named_table,
                provenance=volume.provenance,
                overwrite=overwrite,
            )
        written.append(path)
    return written


def _dicom(
    output: Path,
    magnitude: dict[int, Volume],
    labels: dict[int, Volume],
    study: Study,
    scan: Scan | None,
    overwrite: bool,
) -> tuple[list[Path], list[str]]:
    """The magnitude series in ``magnitude/``, one SEG for each frame with labels in ``labels/``; and notes."""
    import numpy as np

    from ..errors import ScanError
    from ..output.dicom import new_uid, write_dicom_seg, write_dicom_series

    first = next(iter(magnitude.values()))
    for number, volume in magnitude.items():
        if not np.allclose(volume.geometry.affine_lps, first.geometry.affine_lps, atol=1e-3):
            raise ScanError(
                f"frame {number} lies elsewhere than the first", likely="the table moved", hint=f"--frame {number}"
            )
    keeps_pixels = all(
        volume.data.dtype.kind in "biu"
        and volume.rescale_intercept == 0
        and volume.rescale_slope == first.rescale_slope
        for volume in magnitude.values()
    )
    paths = write_dicom_series(
        output / "magnitude",
        {number: volume.data if keeps_pixels else volume.magnitude for number, volume in magnitude.items()},
        first.geometry,
        study=study,
        scan=scan,
        rescale_slope=first.rescale_slope if keeps_pixels else 1.0,
        slice_thickness_mm=first.slice_thickness_mm,
        overwrite=overwrite,
    )
    written, notes = [path for slices in paths.values() for path in slices], []
    series_uid = new_uid()
    for number, volume in labels.items():
        if number not in paths:
            raise ScanError(f"frame {number} has labels but no magnitude, which a DICOM SEG refers to")
        if not volume.data.any():
            notes.append(f"frame {number}: no SEG, for the label map is empty and a SEG without a segment is invalid")
            continue
        written.append(
            write_dicom_seg(
                output / "labels" / f"frame{number:03d}.dcm",
                volume.data,
                volume.geometry,
                volume.named_table,
                paths[number],
                provenance=volume.provenance,
                series_uid=series_uid,
                instance_number=number + 1,
                overwrite=overwrite,
            )
        )
    return written, notes


def _about(
    recording: Path | None, patient: bool, sha256: str, magnitude: dict[int, Volume]
) -> tuple[Scan | None, Study]:
    """The scan, if its recording is there, and the study that DICOM shall name."""
    from ..errors import ConfigError
    from ..mrd.recovering import open_recording
    from ..mrd.study import study_fields
    from ..output.dicom import Study
    from ..output.runinfo import file_sha256

    if recording is None:
        if patient:
            raise ConfigError("--patient needs the header of the scan", hint="--recording scan.h5")
        return None, Study.anonymous(sha256 or _checksum(magnitude))
    with open_recording(recording) as source:
        scan = source.scan
    fields, identity = study_fields(scan.xml), file_sha256(recording)
    return scan, Study.identified(identity, fields) if patient else Study.anonymous(identity, fields)


def _checksum(magnitude: dict[int, Volume]) -> str:
    """What tells this measurement from others if nobody knows its recording: its first frame."""
    import hashlib

    first = next(iter(magnitude.values()))
    return hashlib.sha256(first.data.tobytes() + first.geometry.affine_lps.tobytes()).hexdigest()
