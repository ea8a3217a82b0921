"""Volumes of the patient as NIfTI-1 files, for the viewers that segmentation users already have.

MRD says where a voxel lies in LPS (x to the patient's left, y to the back); NIfTI says it in RAS. This is the only
module of kstream that knows RAS: ``affine_ras = diag(-1, -1, 1, 1) @ Geometry.affine_lps``.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

import numpy as np
from numpy.typing import NDArray

from ..errors import RecordingError, ScanError, ShapeError
from ..types import Geometry, LabelTable, Vector
from .volumes import PRODUCT, RESEARCH_ONLY, as_labels, check_shape, new_file, one_line

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SCANNER_ANATOMICAL = 1  # NIFTI_XFORM_SCANNER_ANAT of nifti1.h
_CARET_EXTENSION = 30  # NIFTI_ECODE_CARET of nifti1_io.h: XML of Caret and Connectome Workbench
_POSITION_TOLERANCE = 0.02  # of the slice distance; headers carry positions as float32 that were rounded to 1e-3 mm


def write_nifti(
    path: str | Path,
    volume: NDArray[Any],
    geometry: Geometry,
    *,
    table: LabelTable | None = None,
    overwrite: bool = False,
) -> Path:
    """Write one volume with its place in the patient; ``.nii`` or ``.nii.gz`` by the name.

    Parameters
    ----------
    path : where to; missing folders are made.
    volume : ``(z, y, x)``. Integers and booleans are a label map and become uint8; real numbers are a magnitude and
        become float32. The file stores the array as ``(x, y, z)``, as NIfTI readers expect.
    geometry : where the voxels lie, LPS.
    table : names and colours of a label map; kept in the header extension that Connectome Workbench reads.
    overwrite : replace a file that exists.

    Raises
    ------
    ShapeError : the volume has another shape than the geometry, is complex, or has labels outside 0..255.
    ScanError : a label beyond the table.
    RecordingError : the file exists and `overwrite` is False.
    """
    import nibabel

    check_shape(volume, geometry, path)
    affine = LPS_TO_RAS @ geometry.affine_lps
    data = _storable(volume, path, table)
    image = nibabel.nifti1.Nifti1Image(np.ascontiguousarray(data.transpose(2, 1, 0)), affine)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = f"{PRODUCT}, LPS from MRD; {RESEARCH_ONLY}".encode()
    if data.dtype == np.uint8:
        image.header.set_intent("label")
    if table is not None:
        extension = nibabel.nifti1.Nifti1Extension(_CARET_EXTENSION, _label_xml(table))
        image.header.extensions.append(extension)
    image.set_qform(affine, code=_SCANNER_ANATOMICAL)
    image.set_sform(affine, code=_SCANNER_ANATOMICAL)
    target = new_file(path, overwrite=overwrite)
    nibabel.save(image, target)
    return target


def _label_xml(table: LabelTable) -> bytes:
    """The label table in the form of Connectome Workbench: keys, RGBA in 0..1, names."""
    root = Element("CaretExtension")
    information = SubElement(root, "VolumeInformation", Index="0")
    labels = SubElement(information, "LabelTable")
    for key, (name, colour) in enumerate(zip(table.names, table.colours, strict=True)):
        red, green, blue = (f"{part / 255:.6f}" for part in colour)
        alpha = "0" if key == 0 else "1"
        SubElement(labels, "Label", Key=str(key), Red=red, Green=green, Blue=blue, Alpha=alpha).text = one_line(name)
    SubElement(information, "VolumeType").text = "Label"
    return b'<?xml version="1.0" encoding="UTF-8"?>' + tostring(root)


def read_nifti(path: str | Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Read a volume as ``(z, y, x)`` in its stored type, and the 4x4 matrix from ``(x, y, z, 1)`` to RAS millimetres.

    Raises
    ------
    RecordingError : the file is missing, damaged, or no NIfTI volume of three axes.
    """
    import nibabel

    # What nibabel raises on damaged headers and data was found by flipping bytes; it has no common base.
    damaged = (
        OSError,
        EOFError,
        ValueError,
        OverflowError,
        zlib.error,
        nibabel.filebasedimages.ImageFileError,
        nibabel.spatialimages.HeaderDataError,
        nibabel.wrapstruct.WrapStructError,
    )
    try:
        image = nibabel.nifti1.Nifti1Image.from_filename(path)
        data = np.asanyarray(image.dataobj)
    except damaged as error:
        raise RecordingError(f"cannot read a NIfTI volume: {error}", where=str(path)) from error
    if data.ndim != 3:
        raise RecordingError(f"a volume has the axes (x, y, z), but this file has shape {data.shape}", where=str(path))
    return data.transpose(2, 1, 0), np.asarray(image.affine, dtype=np.float64)


def geometry_from_images(headers: Sequence[Any]) -> tuple[Geometry, list[int]]:
    """Geometry of a stack of 2-D images, and the order in which they stack.

    1. All images must agree in matrix, in-plane field of view and directions.
    2. They are sorted by their position along ``slice_dir``.
    3. The slice distance is the distance between neighbours (a gap between slices belongs to it); a single image
       has its own thickness, ``field_of_view[2]``.

    Parameters
    ----------
    headers : structured scalars with the fields of MRD's image header (``matrix_size``, ``field_of_view``,
        ``position``, ``read_dir``, ``phase_dir``, ``slice_dir``), one per slice of one volume, in any order. One
        header alone may also be a 3-D image.

    Returns
    -------
    geometry, order : ``np.stack([slices[i] for i in order])`` is the ``(z, y, x)`` volume of `geometry`.

    Raises
    ------
    ScanError : no image, images that do not stack (other matrix or direction, two at one position, uneven distances),
        or a header without directions.
    """
    if not len(headers):
        raise ScanError("no image to take the geometry from", likely="the server sent none of this series")
    first = headers[0]
    _check_stackable(headers)
    read_dir, phase_dir, slice_dir = (_vector(first[name]) for name in ("read_dir", "phase_dir", "slice_dir"))
    fov = _vector(first["field_of_view"])
    nx, ny, nz = (int(n) for n in first["matrix_size"])
    positions = np.array([header["position"] for header in headers], dtype=np.float64)
    if len(headers) == 1:
        return Geometry((nx, ny, nz), fov, _vector(positions[0]), read_dir, phase_dir, slice_dir), [0]

    along = positions @ np.array(slice_dir)
    order = np.argsort(along, kind="stable")
    gaps = np.diff(along[order])
    spacing = float(gaps.mean())
    if gaps.min() <= 0 or np.abs(gaps - spacing).max() > _POSITION_TOLERANCE * spacing:
        raise ScanError(
            f"slice distances run from {gaps.min():.3f} to {gaps.max():.3f} mm, expected all alike",
            where=f"{len(headers)} images between {along.min():.1f} and {along.max():.1f} mm along slice_dir",
            likely="two images at one position (several frames in one stack), or a slice is missing",
            hint="stack the images of one series and one repetition only",
        )
    centre = (positions[order[0]] + positions[order[-1]]) / 2
    geometry = Geometry(
        matrix=(nx, ny, len(headers)),
        field_of_view_mm=(fov[0], fov[1], spacing * len(headers)),
        position_mm=_vector(centre),
        read_dir=read_dir,
        phase_dir=phase_dir,
        slice_dir=slice_dir,
    )
    return geometry, [int(i) for i in order]


def _storable(volume: NDArray[Any], path: str | Path, table: LabelTable | None) -> NDArray[Any]:
    """The volume as uint8 labels or float32 magnitude."""
    if table is not None or volume.dtype.kind in "biu":
        return as_labels(volume, path, table)
    if volume.dtype.kind != "f":
        raise ShapeError(f"a volume of {volume.dtype} has no place in a NIfTI file", where=str(path), hint="np.abs")
    return volume.astype(np.float32)


def _check_stackable(headers: Sequence[Any]) -> None:
    """Raise unless all headers describe 2-D images of one orientation and grid."""
    first = headers[0]
    for name in ("read_dir", "phase_dir", "slice_dir"):
        length = float(np.linalg.norm(first[name]))
        if abs(length - 1) > 1e-2:
            raise ScanError(
                f"{name} of the image header has length {length:.3f}, expected 1",
                likely="the sender left the directions of its acquisitions empty",
            )
    if len(headers) > 1 and int(first["matrix_size"][2]) != 1:
        raise ScanError(f"expected 2-D images to stack, got {len(headers)} images of {first['matrix_size'][2]} slices")
    for number, header in enumerate(headers):
        for name in ("matrix_size", "field_of_view", "read_dir", "phase_dir", "slice_dir"):
            if not np.allclose(header[name], first[name], rtol=1e-4, atol=1e-4):
                raise ScanError(
                    f"images differ in {name}: {_listed(first[name])} and {_listed(header[name])}",
                    where=f"image {number} of {len(headers)}",
                    likely="images of several series or orientations in one stack",
                )


def _vector(values: Any) -> Vector:
    x, y, z = (float(value) for value in values)
    return x, y, z


def _listed(values: Any) -> str:
    return ", ".join(f"{float(value):g}" for value in values)
