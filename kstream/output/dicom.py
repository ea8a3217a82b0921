"""Volumes as DICOM: a magnitude series (MR Image Storage, one file per slice) and segmentations that refer to it.

DICOM's patient axes are MRD's (LPS), and ``Geometry`` needs no change but one: MRD gives the centre of a slice, DICOM
the centre of its first voxel.

**Identity.** Without asking, nothing of the patient is written: the name is "Anonymous", the identifier a pseudonym.
`Study` decides. Study and frame of reference have UIDs derived from ``Study.identity`` (UUIDs of version 5 under 2.25),
so that whatever is exported from one measurement, now or later, lies in one study and in one space. Series and
instances get new UIDs with every export: each export is a new object with its own time of creation, and no archive
ever sees two contents under one UID.

**Research.** Series descriptions say "research use only", and ``ContentQualification`` is RESEARCH.

pydicom and highdicom come with the extra ``kstream[dicom]``.
"""

from __future__ import annotations

import datetime
import hashlib
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, RecordingError, ScanError
from ..types import Geometry, LabelTable, Scan
from .volumes import PRODUCT, RESEARCH_ONLY, as_labels, check_shape, new_file, one_line

if TYPE_CHECKING:
    from pydicom import Dataset

_NAMESPACE = uuid.UUID("7c0cf8f4-5c1d-5b5f-9a55-0d1c5a3b8e21")  # any fixed number: ours
_MAX_PIXEL = 65535
_POSITION_TOLERANCE_MM = 1e-3
_DIRECTION_TOLERANCE = 1e-4
_FILE = "frame{frame:03d}_slice{z:03d}.dcm"
_OWN_FILE = re.compile(r"frame\d{3,}_slice\d{3,}\.dcm")
_SEXES = {"M": "M", "F": "F", "O": "O"}


@dataclass(frozen=True)
class Study:
    """Which study a series belongs to, in DICOM's spelling; an empty text is unknown.

    Parameters
    ----------
    identity : what tells this measurement from others, such as the checksum of its recording; never written, but the
        UIDs that are not given are derived from it.
    patient_birth_date, study_date : ``YYYYMMDD``. study_time : ``HHMMSS.ffffff``.
    patient_position : such as ``HFS``; tells nothing of the person.
    is_anonymous : True if patient and study fields were left out on purpose.
    """

    identity: str
    patient_name: str = "Anonymous"
    patient_id: str = ""
    patient_birth_date: str = ""
    patient_sex: str = ""
    study_instance_uid: str = ""
    study_id: str = ""
    study_date: str = ""
    study_time: str = ""
    study_description: str = ""
    accession_number: str = ""
    referring_physician: str = ""
    frame_of_reference_uid: str = ""
    patient_position: str = ""
    is_anonymous: bool = True

    @classmethod
    def anonymous(cls, identity: str, fields: Mapping[str, str] | None = None) -> Study:
        """A study that names nobody. Of the header's `fields` only ``patientPosition`` is used."""
        return cls(
            identity,
            patient_id="KS-" + hashlib.sha256(identity.encode()).hexdigest()[:12].upper(),
            study_description=RESEARCH_ONLY,
            patient_position=(fields or {}).get("patientPosition", ""),
        )

    @classmethod
    def identified(cls, identity: str, fields: Mapping[str, str]) -> Study:
        """A study with the person, study and frame of reference of an MRD header.

        Parameters
        ----------
        fields : texts of the header by element name, as ``kstream.mrd.study.study_fields`` reads them.

        Raises
        ------
        ScanError : the header names no patient, or holds a date, time or UID that is none.
        """
        if not {"patientName", "patientID"} & set(fields):
            raise ScanError(
                "the header names no patient, but patient fields were asked for",
                likely="the recording was anonymised",
                hint="export without --patient",
            )
        return cls(
            identity,
            patient_name=fields.get("patientName", ""),
            patient_id=fields.get("patientID", ""),
            patient_birth_date=_date(fields, "patientBirthdate"),
            patient_sex=_SEXES.get(fields.get("patientGender", "").upper(), ""),
            study_instance_uid=_uid(fields, "studyInstanceUID"),
            study_id=fields.get("studyID", ""),
            study_date=_date(fields, "studyDate"),
            study_time=_time(fields, "studyTime"),
            study_description=fields.get("studyDescription", ""),
            accession_number=fields.get("accessionNumber", ""),
            referring_physician=fields.get("referringPhysicianName", ""),
            frame_of_reference_uid=_uid(fields, "frameOfReferenceUID"),
            patient_position=fields.get("patientPosition", ""),
            is_anonymous=False,
        )

    def with_uids(self) -> Study:
        """This study with both UIDs: the given ones, or those derived from its identity."""
        return replace(
            self,
            study_instance_uid=self.study_instance_uid or _derived_uid("study", self.identity),
            frame_of_reference_uid=self.frame_of_reference_uid or _derived_uid("frame of reference", self.identity),
        )


def new_uid() -> str:
    """A UID that nothing else has (UUID of version 4 under 2.25)."""
    return f"2.25.{uuid.uuid4().int}"


def write_dicom_series(
    folder: str | Path,
    frames: Mapping[int, NDArray[Any]],
    geometry: Geometry,
    *,
    study: Study,
    scan: Scan | None = None,
    rescale_slope: float = 1.0,
    slice_thickness_mm: float | None = None,
    description: str = "magnitude",
    series_number: int = 1,
    overwrite: bool = False,
) -> dict[int, list[Path]]:
    """Write the frames of one magnitude series as MR images, one file per slice: ``frame000_slice000.dcm`` ...

    Pixels are uint16. Whole numbers in 0..65535 are written as they are. Other volumes are scaled by one slope for the
    whole series, so that frames stay comparable: pixel = round(value / slope), wrong by half a slope at most. The slope
    is rounded to what DICOM's decimal text holds before it is used, so ``RescaleSlope`` is exact.

    Several frames are time points of the series: ``TemporalPositionIdentifier`` and ``AcquisitionNumber`` count from 1.

    Parameters
    ----------
    frames : volumes ``(z, y, x)`` by frame number.
    geometry : of every frame.
    study : whose study; says also whether the patient is named.
    scan : sequence parameters, if known.
    rescale_slope : value of one pixel unit, for volumes that are whole numbers already.
    slice_thickness_mm : if slices have gaps; None is the slice distance.

    Returns
    -------
    Paths by frame, in order of z.

    Raises
    ------
    ConfigError : pydicom is not installed.
    ShapeError, ScanError : a volume that does not fit its geometry, is complex, negative or not finite; directions that
        are not orthonormal.
    RecordingError : `folder` holds a series already and `overwrite` is False.
    """
    _require("pydicom")
    target = Path(folder)
    for volume in frames.values():
        check_shape(volume, geometry, target)
    pixels, slope = _as_pixels(frames, rescale_slope, target)
    _unit_directions(geometry)
    _empty_folder(target, overwrite)
    common = _series(geometry, study.with_uids(), scan, description, series_number)
    common.update(_scaling(pixels, slope))
    common.SliceThickness = _decimal(slice_thickness_mm or geometry.voxel_size_mm[2])
    paths = {frame: [target / _FILE.format(frame=frame, z=z) for z in range(len(pixels[frame]))] for frame in pixels}
    try:
        for point, frame in enumerate(sorted(pixels), start=1):
            common.AcquisitionNumber = common.TemporalPositionIdentifier = point
            common.NumberOfTemporalPositions = len(pixels)
            for z, path in enumerate(paths[frame]):
                image = _mr_image(common, geometry, z)
                image.InstanceNumber = (point - 1) * len(paths[frame]) + z + 1
                image.PixelData = pixels[frame][z].astype("<u2").tobytes()
                _save(image, path)
    except BaseException:
        for path in (path for written in paths.values() for path in written):
            path.unlink(missing_ok=True)  # half a series looks like a whole one
        raise
    return paths


def write_dicom_seg(
    path: str | Path,
    labels: NDArray[Any],
    geometry: Geometry,
    table: LabelTable,
    sources: Sequence[str | Path],
    *,
    provenance: Mapping[str, str] | None = None,
    description: str = "labels",
    series_uid: str = "",
    series_number: int = 2,
    instance_number: int = 1,
    overwrite: bool = False,
) -> Path:
    """Write a label map as a DICOM segmentation (binary) of a magnitude series.

    The segment with number n is class n of the table, with its name and its colour (as CIELab, of which viewers make
    the same RGB within one step of 255). Every class but the background is described, also one without voxels.

    Parameters
    ----------
    labels : ``(z, y, x)``.
    sources : the magnitude images of this frame, one per slice in any order; the segmentation joins their study and
        frame of reference. They may also be the scanner's own, if the geometry is the same.
    provenance : what made the labels: ``model`` and ``sha256`` name the algorithm.
    series_uid : of a series that several segmentations share; empty is a new one.

    Raises
    ------
    ConfigError : pydicom or highdicom is not installed.
    ShapeError, ScanError : labels that do not fit their geometry or the table, or are all background (a DICOM
        segmentation without any voxel is invalid); sources that lie elsewhere.
    RecordingError : the file exists and `overwrite` is False, or a source cannot be read.
    """
    highdicom = _require("highdicom")
    check_shape(labels, geometry, path)
    checked = as_labels(labels, path, table)
    if not checked.any():
        raise ScanError(
            "the label map is empty, and a DICOM segmentation without a segment is invalid",
            where=str(path),
            likely="nothing was found in this frame",
            hint="NIfTI and .seg.nrrd can hold an empty label map",
            code="empty-labels",
        )
    images = _sources(sources, geometry, path)
    target = new_file(path, overwrite=overwrite)
    said = dict(provenance or {})
    segmentation = highdicom.seg.Segmentation(
        source_images=images,
        pixel_array=checked,
        segmentation_type="BINARY",
        segment_descriptions=[_segment(highdicom, n, table, said) for n in range(1, len(table.names))],
        series_instance_uid=series_uid or new_uid(),
        series_number=series_number,
        sop_instance_uid=new_uid(),
        instance_number=instance_number,
        manufacturer=PRODUCT,
        manufacturer_model_name=_text(said.get("model", PRODUCT)),
        software_versions=version(PRODUCT),
        device_serial_number=said.get("sha256", "")[:16] or "0",
        content_label="LABELS",
        content_description=RESEARCH_ONLY,
        series_description=_described(description),
    )
    segmentation.ContentQualification = "RESEARCH"
    _save(segmentation, target)
    return target


def _segment(highdicom: ModuleType, number: int, table: LabelTable, said: Mapping[str, str]) -> Any:
    """One class of the table in DICOM's words."""
    from pydicom.sr.codedict import codes

    name = table.names[number]
    category, kind = (
        codes.SCT.Tissue,
        codes.SCT.Tissue,
    )  # what 3D Slicer gives a segment of which it knows the name only
    if "lesion" in name.lower():
        category, kind = codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Lesion
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=_text(said.get("model", PRODUCT)),
        family=codes.DCM.ArtificialIntelligence,
        version=said.get("sha256", "")[:16] or version(PRODUCT),
    )
    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=_text(name) or f"class {number}",
        segmented_property_category=category,
        segmented_property_type=kind,
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
        display_color=highdicom.color.CIELabColor.from_rgb(*table.colours[number]),
    )


def _sources(paths: Sequence[str | Path], geometry: Geometry, target: str | Path) -> list[Dataset]:
    """The magnitude images in order of z, each of which lies where its slice lies."""
    pydicom = _require("pydicom")
    if len(paths) != geometry.matrix[2]:
        raise ScanError(
            f"the label map has {geometry.matrix[2]} slices, its magnitude {len(paths)}",
            where=str(target),
            likely="images of several frames, or of another series",
        )
    images = []
    for path in paths:
        try:
            images.append(pydicom.dcmread(path))
        except (OSError, pydicom.errors.InvalidDicomError) as error:
            raise RecordingError(f"cannot read a magnitude image: {error}", where=str(path)) from error
    normal = np.array(geometry.slice_dir)
    images.sort(key=lambda image: float(np.dot(normal, image.ImagePositionPatient)))
    for z, image in enumerate(images):
        _check_place(image, geometry, z, target)
    return images


def _check_place(image: Dataset, geometry: Geometry, z: int, target: str | Path) -> None:
    """Raise unless all four corners of the image lie where those of slice z do."""
    _, n_y, n_x = geometry.shape
    size = (int(image.Rows), int(image.Columns))
    apart_mm = np.inf
    if size == (n_y, n_x):
        corners = np.array([(x, y, z, 1) for x in (0, n_x - 1) for y in (0, n_y - 1)]).T
        ours = (geometry.affine_lps @ corners)[:3]
        row_mm, column_mm = (float(spacing) for spacing in image.PixelSpacing)
        orientation = np.array(image.ImageOrientationPatient, dtype=np.float64)
        axes = np.stack([orientation[:3] * column_mm, orientation[3:] * row_mm], axis=1)
        theirs = np.array(image.ImagePositionPatient, dtype=np.float64)[:, None] + axes @ corners[:2]
        apart_mm = float(np.linalg.norm(ours - theirs, axis=0).max())
    if not apart_mm <= _POSITION_TOLERANCE_MM:
        place = f"{apart_mm:.3f} mm apart" if np.isfinite(apart_mm) else f"{size} and {(n_y, n_x)} voxels"
        raise ScanError(
            f"labels and magnitude do not lie in one place: {place}",
            where=f"{target}, slice {z}",
            likely="they belong to different series or were reconstructed with different fields of view",
        )


def _series(geometry: Geometry, study: Study, scan: Scan | None, description: str, series_number: int) -> Dataset:
    """What all images of the series share."""
    from pydicom import Dataset
    from pydicom.uid import MRImageStorage

    series = Dataset()
    series.SpecificCharacterSet = "ISO_IR 192"
    series.SOPClassUID = MRImageStorage
    series.update(_who(study))
    now = datetime.datetime.now()
    series.SeriesDate = series.ContentDate = series.InstanceCreationDate = now.strftime("%Y%m%d")
    series.SeriesTime = series.ContentTime = series.InstanceCreationTime = now.strftime("%H%M%S.%f")
    series.Modality = "MR"
    series.SeriesInstanceUID = new_uid()
    series.SeriesNumber = series_number
    series.SeriesDescription = _described(description)
    series.PatientPosition = study.patient_position
    series.Laterality = ""  # of the body part, which is not known; empty is how DICOM says so
    series.FrameOfReferenceUID = study.frame_of_reference_uid
    series.PositionReferenceIndicator = ""
    series.Manufacturer = series.ManufacturerModelName = PRODUCT
    series.SoftwareVersions = version(PRODUCT)
    series.ImageType = ["DERIVED", "PRIMARY", "OTHER", "M"]
    series.DerivationDescription = f"reconstructed from raw data by {PRODUCT} {version(PRODUCT)}; {RESEARCH_ONLY}"
    series.ContentQualification = "RESEARCH"
    series.BurnedInAnnotation = "NO"
    series.LossyImageCompression = "00"
    series.update(_sequence(scan))
    read, phase, _ = _unit_directions(geometry)
    column_mm, row_mm, slice_mm = np.linalg.norm(geometry.affine_lps[:3, :3], axis=0)
    series.ImageOrientationPatient = [_decimal(part) for part in (*read, *phase)]
    series.PixelSpacing = [_decimal(row_mm), _decimal(column_mm)]  # between rows first: that is y
    if geometry.matrix[2] > 1:
        series.SpacingBetweenSlices = _decimal(slice_mm)
    series.Rows, series.Columns = geometry.matrix[1], geometry.matrix[0]
    series.SamplesPerPixel = 1
    series.PhotometricInterpretation = "MONOCHROME2"
    series.BitsAllocated = series.BitsStored = 16
    series.HighBit = 15
    series.PixelRepresentation = 0
    return series


def _who(study: Study) -> Dataset:
    from pydicom import Dataset

    who = Dataset()
    who.PatientName = _name(study.patient_name)
    who.PatientID = _text(study.patient_id)
    who.PatientBirthDate = study.patient_birth_date
    who.PatientSex = study.patient_sex
    if study.is_anonymous:
        who.PatientIdentityRemoved = "YES"
        who.DeidentificationMethod = f"{PRODUCT}: fields of the raw data header not written"
    who.StudyInstanceUID = study.study_instance_uid
    who.StudyID = _text(study.study_id, 16)
    who.StudyDate = study.study_date
    who.StudyTime = study.study_time
    who.StudyDescription = _text(study.study_description)
    who.AccessionNumber = _text(study.accession_number, 16)
    who.ReferringPhysicianName = _name(study.referring_physician)
    return who


def _sequence(scan: Scan | None) -> Dataset:
    """Sequence parameters; MRD does not say in DICOM's words what kind of sequence it was: "research mode"."""
    from pydicom import Dataset

    sequence = Dataset()
    sequence.ScanningSequence = "RM"
    sequence.SequenceVariant = "NONE"
    sequence.ScanOptions = ""
    sequence.EchoTrainLength = ""
    sequence.MRAcquisitionType = ("3D" if scan.encoded_matrix[2] > 1 else "2D") if scan else ""
    sequence.RepetitionTime = _decimal(scan.tr_ms) if scan and scan.tr_ms > 0 else ""
    sequence.EchoTime = _decimal(scan.te_ms) if scan and scan.te_ms > 0 else ""
    if scan is None:
        return sequence
    if scan.flip_angle_deg > 0:
        sequence.FlipAngle = _decimal(scan.flip_angle_deg)
    if scan.field_strength_t > 0:
        sequence.MagneticFieldStrength = _decimal(scan.field_strength_t)
    if scan.h1_frequency_hz > 0:
        sequence.ImagingFrequency = _decimal(scan.h1_frequency_hz / 1e6)
    if scan.protocol_name:
        sequence.ProtocolName = _text(scan.protocol_name)
    return sequence


def _mr_image(common: Dataset, geometry: Geometry, z: int) -> Dataset:
    """The image of one slice, without what depends on the frame."""
    from pydicom import Dataset

    image = Dataset()
    image.update(common)
    image.SOPInstanceUID = new_uid()
    first_voxel = geometry.affine_lps @ (0, 0, z, 1)
    image.ImagePositionPatient = [_decimal(part) for part in first_voxel[:3]]
    return image


def _as_pixels(
    frames: Mapping[int, NDArray[Any]], slope: float, where: Path
) -> tuple[dict[int, NDArray[np.uint16]], float]:
    """All frames as uint16, and the value of one pixel unit: the same for all of them."""
    if not frames:
        raise ScanError("no frame to write", where=str(where), likely="the server sent no image of this series")
    if not 0 < slope < np.inf:
        raise ScanError(f"the rescale slope is {slope}, expected more than 0", where=str(where))
    for frame, volume in frames.items():
        if volume.dtype.kind not in "biuf" or not np.isfinite(volume).all() or (volume.size and volume.min() < 0):
            raise ScanError(
                f"frame {frame} is no magnitude: {volume.dtype}, with negative or non-finite values",
                where=str(where),
                likely="a complex, real or phase image was passed",
                hint="np.abs",
            )
    highest = max(float(volume.max()) for volume in frames.values())
    if highest <= _MAX_PIXEL and all(volume.dtype.kind in "biu" for volume in frames.values()):
        declared = float(_decimal(slope))
        return {frame: volume.astype(np.uint16) for frame, volume in frames.items()}, declared
    declared = float(_decimal(highest * slope / _MAX_PIXEL)) or 1.0
    scaled = {frame: np.rint(volume * (np.float64(slope) / declared)) for frame, volume in frames.items()}
    return {frame: volume.astype(np.uint16) for frame, volume in scaled.items()}, declared


def _scaling(pixels: Mapping[int, NDArray[np.uint16]], slope: float) -> Dataset:
    """How pixels become values, and a window that fits all frames."""
    from pydicom import Dataset

    scaling = Dataset()
    scaling.RescaleSlope = _decimal(slope)
    scaling.RescaleIntercept = "0"
    scaling.RescaleType = "US"
    bright = max(float(np.percentile(volume, 99.8)) for volume in pixels.values()) * slope or slope
    scaling.WindowCenter = _decimal(bright / 2)
    scaling.WindowWidth = _decimal(bright)
    if bright < 1:
        scaling.VOILUTFunction = "LINEAR_EXACT"  # the plain linear function allows no window narrower than 1
    return scaling


def _unit_directions(geometry: Geometry) -> tuple[NDArray[np.float64], ...]:
    """Directions of x, y, z.

    Raises
    ------
    ScanError : one has no length, or rows and columns are not perpendicular.
    """
    lengths = np.linalg.norm(geometry.affine_lps[:3, :3], axis=0)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise ScanError(
            "a direction or the field of view of the scan has no length",
            where=f"read_dir {geometry.read_dir}, phase_dir {geometry.phase_dir}, slice_dir {geometry.slice_dir}",
            likely="the sender left the directions of its acquisitions empty",
        )
    units = geometry.affine_lps[:3, :3] / lengths
    skew = abs(float(units[:, 0] @ units[:, 1]))
    if skew > _DIRECTION_TOLERANCE:
        raise ScanError(
            f"rows and columns are not perpendicular: read_dir x phase_dir = {skew:.2g}, expected 0",
            likely="the sender's directions are wrong; DICOM cannot say such a grid",
        )
    return tuple(units.T)


def _empty_folder(folder: Path, overwrite: bool) -> None:
    """Make room for a series: files of an earlier export would be read as part of it."""
    folder.mkdir(parents=True, exist_ok=True)
    earlier = [path for path in folder.iterdir() if _OWN_FILE.fullmatch(path.name)]
    if earlier and not overwrite:
        raise RecordingError(
            f"{folder.name} holds a series of {len(earlier)} images already",
            where=str(folder),
            hint="another folder, or --overwrite",
        )
    for path in earlier:
        path.unlink()


def _save(dataset: Dataset, path: Path) -> None:
    from pydicom.filewriter import dcmwrite
    from pydicom.uid import ExplicitVRLittleEndian

    if not hasattr(dataset, "file_meta"):
        from pydicom.dataset import FileMetaDataset

        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dcmwrite(path, dataset, enforce_file_format=True)


def _require(name: str) -> ModuleType:
    """An optional package, or the error that says how to get it."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"DICOM needs {name}, which is not installed",
            hint="pip install 'kstream[dicom]'",
            code="missing-extra",
        ) from error


def _derived_uid(kind: str, identity: str) -> str:
    return f"2.25.{uuid.uuid5(_NAMESPACE, f'{kind} of {identity}').int}"


def _decimal(value: float) -> str:
    """A number in DICOM's decimal text of at most 16 characters."""
    from pydicom.valuerep import format_number_as_ds

    return format_number_as_ds(float(value))


def _described(description: str) -> str:
    return _text(description, 64 - len(RESEARCH_ONLY) - 2) + f", {RESEARCH_ONLY}"


def _text(text: str, length: int = 64) -> str:
    """A text that fits one value of DICOM: one line, no backslash (it separates values), not too long."""
    return one_line(text.replace("\\", " "))[:length].strip()


def _name(text: str) -> str:
    """A person's name; one of a single component ends in a caret, so that readers take it for the family name."""
    name = _text(text, 63)
    return name if "^" in name or not name else f"{name}^"


def _date(fields: Mapping[str, str], name: str) -> str:
    """``2020-02-29`` (XML date, with or without time zone) as ``20200229``; empty if the header has none."""
    return _converted(fields, name, r"(\d{4})-(\d\d)-(\d\d)(?:Z|[+-]\d\d:\d\d)?", "date")


def _time(fields: Mapping[str, str], name: str) -> str:
    """``13:05:59.25`` as ``130559.25``."""
    return _converted(fields, name, r"(\d\d):(\d\d):(\d\d(?:\.\d{1,6})?)\d*(?:Z|[+-]\d\d:\d\d)?", "time")


def _converted(fields: Mapping[str, str], name: str, pattern: str, kind: str) -> str:
    text = fields.get(name, "")
    found = re.fullmatch(pattern, text)
    if text and not found:
        raise ScanError(f"{name} of the header is no {kind}", hint="export without --patient")
    return "".join(found.groups()) if found else ""


def _uid(fields: Mapping[str, str], name: str) -> str:
    text = fields.get(name, "")
    if text and not (re.fullmatch(r"(0|[1-9]\d*)(\.(0|[1-9]\d*))+", text) and len(text) <= 64):
        raise ScanError(f"{name} of the header is no UID", hint="export without --patient")
    return text
