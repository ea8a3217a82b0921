"""MRD v1 messages and their fixed-size headers as NumPy dtypes (packed, little-endian).

Source: ``ismrmrd.h`` of ismrmrd/ismrmrd (ISMRMRD_AcquisitionHeader, ISMRMRD_ImageHeader, ISMRMRD_WaveformHeader).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..types import Acquisition

ENCODING_COUNTERS = np.dtype(
    [
        ("kspace_encode_step_1", "<u2"),
        ("kspace_encode_step_2", "<u2"),
        ("average", "<u2"),
        ("slice", "<u2"),
        ("contrast", "<u2"),
        ("phase", "<u2"),
        ("repetition", "<u2"),
        ("set", "<u2"),
        ("segment", "<u2"),
        ("user", "<u2", (8,)),
    ]
)

ACQUISITION_HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("flags", "<u8"),
        ("measurement_uid", "<u4"),
        ("scan_counter", "<u4"),
        ("acquisition_time_stamp", "<u4"),
        ("physiology_time_stamp", "<u4", (3,)),
        ("number_of_samples", "<u2"),
        ("available_channels", "<u2"),
        ("active_channels", "<u2"),
        ("channel_mask", "<u8", (16,)),
        ("discard_pre", "<u2"),
        ("discard_post", "<u2"),
        ("center_sample", "<u2"),
        ("encoding_space_ref", "<u2"),
        ("trajectory_dimensions", "<u2"),
        ("sample_time_us", "<f4"),
        ("position", "<f4", (3,)),
        ("read_dir", "<f4", (3,)),
        ("phase_dir", "<f4", (3,)),
        ("slice_dir", "<f4", (3,)),
        ("patient_table_position", "<f4", (3,)),
        ("idx", ENCODING_COUNTERS),
        ("user_int", "<i4", (8,)),
        ("user_float", "<f4", (8,)),
    ]
)

IMAGE_HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("data_type", "<u2"),
        ("flags", "<u8"),
        ("measurement_uid", "<u4"),
        ("matrix_size", "<u2", (3,)),
        ("field_of_view", "<f4", (3,)),
        ("channels", "<u2"),
        ("position", "<f4", (3,)),
        ("read_dir", "<f4", (3,)),
        ("phase_dir", "<f4", (3,)),
        ("slice_dir", "<f4", (3,)),
        ("patient_table_position", "<f4", (3,)),
        ("average", "<u2"),
        ("slice", "<u2"),
        ("contrast", "<u2"),
        ("phase", "<u2"),
        ("repetition", "<u2"),
        ("set", "<u2"),
        ("acquisition_time_stamp", "<u4"),
        ("physiology_time_stamp", "<u4", (3,)),
        ("image_type", "<u2"),
        ("image_index", "<u2"),
        ("image_series_index", "<u2"),
        ("user_int", "<i4", (8,)),
        ("user_float", "<f4", (8,)),
        ("attribute_string_len", "<u4"),
    ]
)

WAVEFORM_HEADER = np.dtype(
    {
        "names": [
            "version",
            "flags",
            "measurement_uid",
            "scan_counter",
            "time_stamp",
            "number_of_samples",
            "channels",
            "sample_time_us",
            "waveform_id",
        ],
        "formats": ["<u2", "<u8", "<u4", "<u4", "<u4", "<u2", "<u2", "<f4", "<u2"],
        "offsets": [0, 8, 16, 20, 24, 28, 30, 32, 36],
        "itemsize": 40,
    }
)

IMAGE_DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype("<u2"),
    2: np.dtype("<i2"),
    3: np.dtype("<u4"),
    4: np.dtype("<i4"),
    5: np.dtype("<f4"),
    6: np.dtype("<f8"),
    7: np.dtype("<c8"),
    8: np.dtype("<c16"),
}
"""Pixel types by the ``data_type`` of an image header. All are read; kstream writes 1, 5 and 7 only."""

IMAGE_TYPES = {"magnitude": 1, "phase": 2, "real": 3, "imag": 4, "complex": 5, "rgb": 6}
"""``image_type`` of an image header by name."""

Meta = dict[str, str | list[str]]
"""Attributes of an image by name; an attribute with several values is a list."""


class MessageId(IntEnum):
    """Ids of the messages that kstream reads and writes."""

    CONFIG_FILE = 1
    CONFIG_TEXT = 2
    HEADER = 3
    CLOSE = 4
    TEXT = 5
    QUERY = 6
    RESPONSE = 7
    ERROR = 8
    ACQUISITION = 1008
    IMAGE = 1022
    RECON_DATA = 1023
    IMAGE_ARRAY = 1024
    WAVEFORM = 1026
    BUCKET = 1050


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """Names the configuration that the sender wants (at most 1023 bytes of UTF-8)."""

    name: str


@dataclass(frozen=True, slots=True)
class ConfigText:
    """The configuration itself: XML for Gadgetron, JSON or a bare name elsewhere."""

    text: str


@dataclass(frozen=True, slots=True)
class Header:
    """The ISMRMRD XML header of the measurement, without trailing NULs."""

    xml: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """The sender sends nothing more."""


@dataclass(frozen=True, slots=True)
class Text:
    """Log text from a server, or JSON parameters from a scanner."""

    text: str


@dataclass(frozen=True, slots=True)
class Query:
    """Asks a server for a value by key, such as ``gadgetron::info``."""

    correlation: int
    text: str


@dataclass(frozen=True, slots=True)
class Response:
    """Answers the query of the same correlation number."""

    correlation: int
    text: str


@dataclass(frozen=True, slots=True)
class Error:
    """A Gadgetron child's last words; unknown to MRD clients, so never sent to one."""

    text: str


@dataclass(slots=True, eq=False)
class Image:
    """One image with its attributes.

    Parameters
    ----------
    header : structured scalar of dtype ``IMAGE_HEADER`` (198 bytes).
    meta : attributes by name.
    data : ``(channels, z, y, x)`` of a type in ``IMAGE_DTYPES``.
    """

    header: Any
    meta: Meta
    data: NDArray[Any]


@dataclass(slots=True, eq=False)
class Waveform:
    """A physiological signal.

    Parameters
    ----------
    header : structured scalar of dtype ``WAVEFORM_HEADER`` (40 bytes).
    data : uint32 ``(channels, samples)``.
    """

    header: Any
    data: NDArray[np.uint32] = field(default_factory=lambda: np.zeros((0, 0), np.uint32))


@dataclass(frozen=True, slots=True, eq=False)
class Opaque:
    """A message that is passed on as it came; `buffers` reads some of them.

    Parameters
    ----------
    message_id : of the wire.
    payload : all bytes after the id.
    """

    message_id: int
    payload: memoryview


Message = (
    ConfigFile | ConfigText | Header | Close | Text | Query | Response | Error | Acquisition | Image | Waveform | Opaque
)
"""Everything that crosses the wire."""


def new_acquisition(
    data: NDArray[Any],
    trajectory: NDArray[Any] | None = None,
    *,
    counters: Mapping[str, int] | None = None,
    **fields: Any,
) -> Acquisition:
    """Wrap samples in an acquisition whose header agrees with them.

    Parameters
    ----------
    data : complex ``(coils, samples)``.
    trajectory : ``(samples, dims)``, or None for no trajectory.
    counters : encoding counters by MRD name, such as ``kspace_encode_step_1``.
    fields : any other header field by name; ``center_sample`` is half the samples unless given.
    """
    samples = np.ascontiguousarray(data, "<c8")
    n_coils, n_samples = samples.shape
    path = np.zeros((n_samples, 0), "<f4") if trajectory is None else np.ascontiguousarray(trajectory, "<f4")
    header = np.zeros(1, ACQUISITION_HEADER)[0]
    sizes = {
        "version": 1,
        "number_of_samples": n_samples,
        "available_channels": n_coils,
        "active_channels": n_coils,
        "trajectory_dimensions": path.shape[1],
        "center_sample": n_samples // 2,
    }
    for name, value in (sizes | fields).items():
        header[name] = value
    for name, value in (counters or {}).items():
        header["idx"][name] = value
    return Acquisition(header, samples, path)


def acquisition_fault(acquisition: Acquisition) -> str:
    """Say how the arrays of an acquisition contradict its header; empty if they agree."""
    header, data, trajectory = acquisition.header, acquisition.data, acquisition.trajectory
    if header.dtype != ACQUISITION_HEADER:
        return f"the header is not the packed {ACQUISITION_HEADER.itemsize}-byte structure of MRD"
    n_coils, n_samples = int(header["active_channels"]), int(header["number_of_samples"])
    n_dims = int(header["trajectory_dimensions"])
    if data.shape != (n_coils, n_samples):
        return f"the data are {data.shape}, but the header promises (coils, samples) = {(n_coils, n_samples)}"
    if trajectory.shape != (n_samples, n_dims):
        return f"the trajectory is {trajectory.shape}, but the header promises (samples, dims) = {(n_samples, n_dims)}"
    if data.dtype != np.complex64 or trajectory.dtype != np.float32:
        return f"the data are {data.dtype} and the trajectory {trajectory.dtype}, not complex64 and float32"
    return ""
