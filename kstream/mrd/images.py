"""Images and label maps -> IMAGE messages: one two-dimensional message for each slice.

The attributes follow what scanner hosts and working OpenRecon applications use: ``DataRole``, ``ImageType``,
``Keep_image_geometry`` (without it derived images are flipped), ``ImageRowDir`` and ``ImageColumnDir`` with 18
decimals, integer windows, and a series of its own for every kind of image. No UID and nothing of the host's own
(``IceMiniHead``) is sent: the host makes new ones for a new series.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import ScanError, ShapeError
from ..types import Complex, FrameImage, Geometry, KSpace, LabelMap, LabelTable, Scan, Vector
from .messages import IMAGE_DTYPES, IMAGE_HEADER, IMAGE_TYPES, Image, Meta
from .overlays import coloured, contours

DISCLAIMER = "research use only"

_MAX_INDEX = 65535
_DATA_TYPES = {dtype: number for number, dtype in IMAGE_DTYPES.items()}

OverlayStyle = Literal["rgb", "contours"]
"""How labels are shown on the magnitude."""

Counter = Literal["repetition", "contrast", "phase", "set"]
"""Counters of an image header that can carry the frame."""


def magnitude_images(
    frame: KSpace | FrameImage,
    image: Complex,
    scan: Scan,
    series: int,
    *,
    rescale_slope: float | None = None,
    description: str = "",
    frame_counter: Counter = "repetition",
    meta: Mapping[str, str | list[str]] | None = None,
) -> list[Image]:
    """Make one magnitude image message for each slice of a frame.

    Parameters
    ----------
    frame : where the image came from: its frame, slice and geometry.
    image : complex64 ``(z, y, x)``, the image of `frame`, transformed by the caller.
    scan : tells how many slices a frame has.
    series : ``image_series_index``; use another one for every kind of image.
    rescale_slope : None sends float32; a number sends uint16 with pixel = magnitude / slope, declared as
        ``RescaleSlope``; pixels beyond 65535 are clipped and counted in ``ClippedPixels``.
    description : ``SeriesDescription``.
    frame_counter : the header counter that carries the frame.
    meta : further attributes.

    Raises
    ------
    ShapeError
        If `image` has not the shape of the geometry.
    """
    _check_shape(image.shape, frame.geometry)
    magnitude = np.abs(image)
    is_finite = np.isfinite(magnitude)
    attributes: Meta = {"DataRole": "Image", "ImageType": "DERIVED\\PRIMARY\\M", "ImageProcessingHistory": "KSTREAM"}
    attributes |= _common_meta(frame.geometry, frame.frame, description or f"{scan.protocol_name} magnitude".strip())
    if scan.te_ms > 0:
        attributes["EchoTime"] = f"{scan.te_ms:g}"
    if not is_finite.all():
        magnitude = np.where(is_finite, magnitude, 0)
        attributes["NonFinitePixels"] = str(int(np.count_nonzero(~is_finite)))
    pixels: NDArray[Any] = magnitude.astype("<f4")
    if rescale_slope is not None:
        pixels, scaling = _rescaled(magnitude, rescale_slope)
        attributes |= scaling
    attributes |= _window(float(magnitude.max()))
    attributes |= dict(meta or {})
    return _slices(pixels, attributes, frame, scan, series, frame_counter)


def label_images(
    labels: LabelMap,
    scan: Scan,
    series: int,
    *,
    description: str = "",
    lut: str = "",
    frame_counter: Counter = "repetition",
    meta: Mapping[str, str | list[str]] | None = None,
) -> list[Image]:
    """Make one uint16 label image message for each slice of a label map.

    The attribute ``LabelTable`` lists the classes as ``index;name;red,green,blue`` (`label_table` reads it back), and
    what made the labels is in attributes that begin with ``kstream_``.

    Parameters
    ----------
    labels : the label map with its table, geometry and provenance.
    lut : ``LUTFileName``, a palette of the host that it shows the labels with; empty: grey.
    scan, series, description, frame_counter, meta : as in `magnitude_images`.

    Raises
    ------
    ShapeError
        If the labels have not the shape of the geometry.
    ScanError
        If a label has no entry in the table.
    """
    _check_shape(labels.labels.shape, labels.geometry)
    n_classes = len(labels.table.names)
    if labels.labels.size and int(labels.labels.max()) >= n_classes:
        raise ScanError(f"the label map has class {int(labels.labels.max())}, but its table has {n_classes} classes")
    attributes: Meta = {
        "DataRole": ["Image", "Quantitative"],
        "ImageType": "DERIVED\\SECONDARY\\SEGMENTATION",
        "ImageProcessingHistory": ["KSTREAM", "SEGMENTATION"],
        "LabelTable": _label_table_entries(labels.table),
    }
    attributes |= _common_meta(labels.geometry, labels.frame, description or f"{scan.protocol_name} labels".strip())
    attributes |= {"WindowCenter": str(max(1, n_classes // 2)), "WindowWidth": str(max(2, n_classes))}
    attributes |= {"LUTFileName": _ascii(lut)} if lut else {}
    attributes |= _provenance(labels)
    attributes |= dict(meta or {})
    return _slices(labels.labels.astype("<u2"), attributes, labels, scan, series, frame_counter)


def overlay_images(
    frame: FrameImage,
    labels: LabelMap,
    scan: Scan,
    series: int,
    style: OverlayStyle = "rgb",
    *,
    contour_axes: Literal["xy", "yx"] = "xy",
    frame_counter: Counter = "repetition",
) -> list[Image]:
    """Make one image message for each slice of a frame that shows its labels to people at the host's display.

    Parameters
    ----------
    frame, labels : of the same frame and slice.
    style : ``rgb`` sends three channels of 0 to 255 (uint16, ``image_type`` 6) with the labels in their colours and
        outlined; ``contours`` sends the magnitude with a closed polygon around each region, as ``ROI_*`` attributes.
    contour_axes : order of a polygon's coordinates; the host's documentation has row before column (``yx``), servers
        that are known to work send column before row.
    scan, series, frame_counter : as in `magnitude_images`.

    Raises
    ------
    ShapeError
        If image and labels have not the shape of one geometry.
    """
    _check_shape(frame.data.shape, frame.geometry)
    _check_shape(labels.labels.shape, frame.geometry)
    description = f"{scan.protocol_name} labels on magnitude".strip()
    if style == "contours":
        images = magnitude_images(frame, frame.data, scan, series, description=description, frame_counter=frame_counter)
        for image, plane in zip(images, labels.labels, strict=True):
            image.meta |= contours(plane, labels.table, contour_axes) | _provenance(labels)
        return images
    attributes: Meta = {
        "DataRole": "Image",
        "ImageType": "DERIVED\\SECONDARY\\SEGMENTATION",
        "ImageProcessingHistory": ["KSTREAM", "SEGMENTATION"],
    }
    attributes |= _common_meta(frame.geometry, frame.frame, description) | _provenance(labels)
    return _slices(coloured(np.abs(frame.data), labels), attributes, frame, scan, series, frame_counter)


def label_table(image: Image) -> LabelTable | None:
    """Read the classes of a label image back; None if it carries no label table."""
    entries = image.meta.get("LabelTable")
    if entries is None:
        return None
    names, colours = [], []
    for entry in [entries] if isinstance(entries, str) else entries:
        _, name, colour = entry.split(";")
        red, green, blue = (int(part) for part in colour.split(","))
        names.append(name)
        colours.append((red, green, blue))
    return LabelTable(tuple(names), tuple(colours))


def frame_of(image: Image) -> int:
    """The frame that an image of ours shows, whichever counter carries it; the repetition of anybody else's."""
    frame = image.meta.get("Frame", "")
    return int(frame) if isinstance(frame, str) and frame.isdecimal() else int(image.header["repetition"])


class SeriesSplitter:
    """Gives images of one series that differ in shape or pixel type a series each.

    Peers allow one shape and one type in a series: the C++ client aborts on another shape and silently casts another
    type. The first kind of image keeps its series; every further kind gets the first free of series + 1000, + 2000 ...
    """

    def __init__(self) -> None:
        self._numbers: dict[tuple[int, tuple[int, ...], str], int] = {}

    def split(self, image: Image) -> Image:
        """Give `image` itself, or a copy with another ``image_series_index``."""
        series = int(image.header["image_series_index"])
        kind = (series, image.data.shape, image.data.dtype.str)
        number = self._numbers.get(kind)
        if number is None:
            number = self._numbers[kind] = self._free_number(series)
        if number == series:
            return image
        header = np.array([image.header], IMAGE_HEADER)[0]
        header["image_series_index"] = number
        return Image(header, image.meta, image.data)

    def _free_number(self, series: int) -> int:
        taken = set(self._numbers.values())
        candidates: list[int] = [*range(series, _MAX_INDEX + 1, 1000), *range(_MAX_INDEX + 1)]
        return next(number for number in candidates if number not in taken)


def _slices(
    pixels: NDArray[Any],
    meta: Meta,
    item: KSpace | FrameImage | LabelMap,
    scan: Scan,
    series: int,
    frame_counter: Counter,
) -> list[Image]:
    """Cut ``(z, y, x)`` into messages of ``(1, 1, y, x)``, colours ``(z, 3, y, x)`` into those of ``(3, 1, y, x)``."""
    n_z = pixels.shape[0]
    # A volume numbers its slices by z; two-dimensional slices come one by one and know their own number.
    n_slices = n_z if n_z > 1 else max(scan.limit("slice").size, item.slice + 1)
    first = 0 if n_z > 1 else item.slice
    images = []
    for z in range(n_z):
        header = _header(pixels[z], item.geometry, z, series)
        header[frame_counter] = item.frame % (_MAX_INDEX + 1)
        header["slice"] = first + z
        header["image_index"] = (item.frame * n_slices + first + z) % _MAX_INDEX + 1
        n_y, n_x = pixels.shape[-2:]
        images.append(Image(header, dict(meta), np.ascontiguousarray(pixels[z]).reshape(-1, 1, n_y, n_x)))
    return images


def _header(pixels: NDArray[Any], geometry: Geometry, z: int, series: int) -> Any:
    header = np.zeros(1, IMAGE_HEADER)[0]
    fov_x, fov_y, _ = geometry.field_of_view_mm
    header["version"] = 1
    header["data_type"] = _DATA_TYPES[pixels.dtype]
    header["matrix_size"] = (pixels.shape[-1], pixels.shape[-2], 1)
    header["field_of_view"] = (fov_x, fov_y, geometry.voxel_size_mm[2])
    header["channels"] = len(pixels) if pixels.ndim == 3 else 1
    header["position"] = geometry.slice_position_mm(z)
    header["read_dir"], header["phase_dir"], header["slice_dir"] = _directions(geometry)
    header["patient_table_position"] = geometry.origin.patient_table_position_mm
    header["measurement_uid"] = geometry.origin.measurement_uid
    header["acquisition_time_stamp"] = geometry.origin.acquisition_time_stamp
    header["physiology_time_stamp"] = geometry.origin.physiology_time_stamp
    header["image_type"] = IMAGE_TYPES["rgb" if pixels.ndim == 3 else "magnitude"]
    header["image_series_index"] = series
    return header


def _directions(geometry: Geometry) -> tuple[Vector, Vector, Vector]:
    """Unit vectors of x, y and z; the patient axes if the scan's are zero or not finite, as an image's may not be."""
    given = (geometry.read_dir, geometry.phase_dir, geometry.slice_dir)
    lengths = [float(np.linalg.norm(direction)) for direction in given]
    if not all(0 < length < np.inf for length in lengths):
        return (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
    read, phase, normal = (
        (x / length, y / length, z / length) for (x, y, z), length in zip(given, lengths, strict=True)
    )
    return read, phase, normal


def _common_meta(geometry: Geometry, frame: int, description: str) -> Meta:
    read, phase, normal = _directions(geometry)
    return {
        "SeriesDescription": _ascii(description),
        "ImageComments": DISCLAIMER,
        "ImageComment": DISCLAIMER,  # the name that older hosts read
        "Keep_image_geometry": "1",
        "ImageRowDir": [f"{component:.18f}" for component in read],
        "ImageColumnDir": [f"{component:.18f}" for component in phase],
        "ImageSliceNormDir": [f"{component:.18f}" for component in normal],
        "Frame": str(frame),
    }


def _rescaled(magnitude: NDArray[Any], slope: float) -> tuple[NDArray[Any], Meta]:
    if not slope > 0:
        raise ScanError(f"the rescale slope is {slope}, expected more than 0")
    declared = f"{slope:.10g}"  # DICOM's decimal strings have 16 characters; pixels are scaled by what is declared
    scaled = np.rint(magnitude / float(declared))
    meta: Meta = {"RescaleSlope": declared, "RescaleIntercept": "0"}
    n_clipped = int(np.count_nonzero(scaled > _MAX_INDEX))
    if n_clipped:
        meta["ClippedPixels"] = str(n_clipped)
    return np.clip(scaled, 0, _MAX_INDEX).astype("<u2"), meta


def _window(maximum: float) -> Meta:
    """Show 0 to `maximum`; windows are integers, so images of less than 2 units get none."""
    if maximum < 2:
        return {}
    return {"WindowCenter": str(round(maximum / 2)), "WindowWidth": str(round(maximum))}


def _label_table_entries(table: LabelTable) -> list[str]:
    return [
        f"{index};{_ascii(name).replace(';', ' ')};{red},{green},{blue}"
        for index, (name, (red, green, blue)) in enumerate(zip(table.names, table.colours, strict=True))
    ]


def _ascii(text: str) -> str:
    """Spell a text in printable ASCII: readers of MRD images decode attributes as strict ASCII."""
    return "".join(c if c.isprintable() else "?" for c in text.encode("ascii", "replace").decode("ascii"))


def _provenance(labels: LabelMap) -> Meta:
    """What made the labels."""
    return {f"kstream_{_ascii(key)}": _ascii(value) for key, value in labels.provenance.items()}


def _check_shape(shape: tuple[int, ...], geometry: Geometry) -> None:
    if shape != geometry.shape:
        raise ShapeError(f"the image is {shape}, but its geometry promises (z, y, x) = {geometry.shape}")
