"""An oblique, anisotropic, odd-sized and left-handed scan, as MRD headers and as images, for tests of volume files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kstream.mrd.header import build_header
from kstream.mrd.images import label_images, magnitude_images
from kstream.mrd.messages import IMAGE_HEADER, Image
from kstream.mrd.recording import ImageWriter
from kstream.types import FrameImage, Geometry, LabelMap, LabelTable, Scan

TABLE = LabelTable(
    ("background", "lesion", "fat; outer", "Drüse"), ((0, 0, 0), (230, 60, 20), (10, 250, 40), (1, 2, 249))
)


def oblique(matrix: tuple[int, int, int] = (11, 7, 5)) -> Geometry:
    """Odd, all different sizes; turned about two axes, and left-handed as scanners may send it."""
    a, b = np.deg2rad(23.0), np.deg2rad(-37.0)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    read, phase, slice_ = (about_z @ about_x).T
    return Geometry(matrix, (330.0, 217.0, 65.0), (12.5, -83.25, 41.0), tuple(read), tuple(phase), tuple(-slice_))


def slice_headers(geometry: Geometry) -> list[np.void]:
    """One MRD image header per slice of a volume, in order."""
    headers = np.zeros(geometry.matrix[2], IMAGE_HEADER)
    for z, header in enumerate(headers):
        header["matrix_size"] = (*geometry.matrix[:2], 1)
        header["field_of_view"] = (*geometry.field_of_view_mm[:2], geometry.voxel_size_mm[2])
        header["position"] = geometry.slice_position_mm(z)
        for name in ("read_dir", "phase_dir", "slice_dir"):
            header[name] = getattr(geometry, name)
    return list(headers)


def mrd_position_mm(header: Any, x: int, y: int) -> NDArray[np.float64]:
    """Centre of a voxel of one slice, LPS, from nothing but the MRD header: its position is the slice's centre."""
    size_x, size_y = (float(header["field_of_view"][i]) / int(header["matrix_size"][i]) for i in (0, 1))
    along_x = (x - (int(header["matrix_size"][0]) - 1) / 2) * size_x
    along_y = (y - (int(header["matrix_size"][1]) - 1) / 2) * size_y
    read, phase = (header[name].astype(np.float64) for name in ("read_dir", "phase_dir"))
    return header["position"].astype(np.float64) + along_x * read + along_y * phase


def labels_of(geometry: Geometry, seed: int = 5) -> NDArray[np.uint8]:
    """A label map ``(z, y, x)`` of classes 0, 1 and 3: class 2 of the table is not in it."""
    labels: NDArray[np.uint8] = np.random.default_rng(seed).choice([0, 0, 0, 1, 3], geometry.shape).astype(np.uint8)
    return labels


def scan_of(geometry: Geometry) -> Scan:
    """The header of a scan with sequence parameters."""
    return Scan(
        *(geometry.matrix, geometry.matrix, geometry.field_of_view_mm, geometry.field_of_view_mm, "radial"),
        tr_ms=4.7,
        te_ms=1.85,
        flip_angle_deg=12.5,
        field_strength_t=2.8936,
        protocol_name="oblique",
    )


def write_images(path: Path, geometry: Geometry, rescale_slope: float | None) -> list[Image]:
    """Two frames of magnitudes (0, 1), labels for both: those of frame 0 are empty. Gives the magnitudes of frame 1."""
    scan = scan_of(geometry)
    rng = np.random.default_rng(3)
    with ImageWriter(path) as writer:
        for frame in (0, 1):
            data = (rng.random(geometry.shape) * 900).astype(np.complex64)
            image = FrameImage(data, frame, 0, 0, geometry)
            magnitudes = magnitude_images(image, data, scan, 1, rescale_slope=rescale_slope)
            labels = labels_of(geometry) * np.uint8(frame)
            found = LabelMap(labels, TABLE, frame, 0, 0, geometry, {"model": "tiny", "sha256": "ab" * 32})
            for item in (*magnitudes, *label_images(found, scan, 2)):
                writer.append(item)
    return magnitudes


def header_with_patient(geometry: Geometry) -> bytes:
    """An MRD header that says who was measured."""
    xml = build_header(scan_of(geometry), patient_position="FFP").decode()
    head, _, rest = xml.partition("<encoding>")
    subject = (
        "<subjectInformation><patientName>Doe^Jörg</patientName><patientID>P-4711</patientID>"
        "<patientBirthdate>1957-03-09</patientBirthdate><patientGender>M</patientGender></subjectInformation>"
        "<studyInformation><studyDate>2031-10-24</studyDate><studyTime>13:05:59.25</studyTime><studyID>77</studyID>"
        "<studyInstanceUID>1.2.840.99.5</studyInstanceUID></studyInformation>"
    )
    measurement = head.index("<measurementInformation")
    return (head[:measurement] + subject + head[measurement:] + "<encoding>" + rest).encode()
