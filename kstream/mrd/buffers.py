"""Gadgetron's composite messages: acquisition buckets (1050), sorted buffers (1023) and image arrays (1024).

Sources: ``AcquisitionBucketReader.cpp``, ``AcquisitionBucketWriter.cpp``, ``BufferReader.cpp``,
``IsmrmrdImageArrayReader.cpp``, ``io/primitives.hpp`` and ``mri_core_data.h`` of gadgetron/gadgetron. All counts are
u64, a flag is one byte, and arrays are written as their number of dimensions, the dimensions and the items, the first
index fastest. Here the axes are reversed, so that the last index is the fastest and nothing is reordered.

``GADGET_FORMATS`` is what a `Decoder` reads at Gadgetron's external interface: acquisitions as such, and everything
else as `Opaque`, so that it can be passed on to the byte. Sizes are judged as they come in: no byte of an array is
waited for before its size is known to be within ``Limits.buffer_bytes``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ProtocolError
from ..types import Acquisition, Complex, Float
from .codec import FORMATS, MAX_TRAJECTORY_DIMENSIONS, Bytes, Format, Limits
from .messages import (
    ACQUISITION_HEADER,
    IMAGE_HEADER,
    WAVEFORM_HEADER,
    Message,
    MessageId,
    Opaque,
    Waveform,
    acquisition_fault,
)

SAMPLING = np.dtype(
    {
        "names": ["encoded_fov_mm", "recon_fov_mm", "encoded_matrix", "recon_matrix", "limits"],
        "formats": ["(3,)<f4", "(3,)<f4", "(3,)<u2", "(3,)<u2", "(3,3)<u2"],
        "offsets": [0, 12, 24, 30, 36],
        "itemsize": 56,
    }
)
"""``SamplingDescription``: extents along x, y, z; limits are (minimum, centre, maximum) of E0, E1, E2."""

STATS = (
    "kspace_encode_step_1",
    "kspace_encode_step_2",
    "slice",
    "phase",
    "contrast",
    "repetition",
    "set",
    "segment",
    "average",
)
"""Counters whose values a bucket lists, in the order of the wire."""

Stats = dict[str, tuple[int, ...]]
"""Values of each counter in ``STATS`` that occur in a bucket, for one encoding space."""

_U16, _U64 = np.dtype("<u2"), struct.Struct("<Q")
_U32, _F32, _C64 = np.dtype("<u4"), np.dtype("<f4"), np.dtype("<c8")
_BUCKET = struct.Struct("<13Q")
_WAVEFORM = struct.Struct("<28xHH8x")  # samples, channels
_LEAST_BIT = 75
"""Bytes of a buffer that is empty, without calibration."""


@dataclass(slots=True, eq=False)
class Bucket:
    """Acquisitions that were collected until something triggered.

    Parameters
    ----------
    data, reference : acquisitions; one for calibration and imaging is in both.
    data_stats, reference_stats : counter values, one entry per encoding space.
    waveforms : that came meanwhile.
    """

    data: list[Acquisition]
    reference: list[Acquisition] = field(default_factory=list)
    data_stats: list[Stats] = field(default_factory=list)
    reference_stats: list[Stats] = field(default_factory=list)
    waveforms: list[Waveform] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class ReconBuffer:
    """Readouts sorted into an array; a place that was not sampled has a header of 0 samples.

    Parameters
    ----------
    data : complex64 ``(loc, s, n, coils, e2, e1, e0)``.
    headers : of dtype ``ACQUISITION_HEADER``, ``(loc, s, n, e2, e1)``.
    sampling : structured scalar of dtype ``SAMPLING``.
    trajectory : float32 ``(loc, s, n, e2, e1, e0, dims)``, or None.
    density : float32 ``(loc, s, n, e2, e1, e0)``, or None.
    """

    data: Complex
    headers: NDArray[Any]
    sampling: Any
    trajectory: Float | None = None
    density: Float | None = None


@dataclass(slots=True, eq=False)
class ReconBit:
    """The buffer of one encoding space, and its calibration."""

    buffer: ReconBuffer
    reference: ReconBuffer | None = None


@dataclass(slots=True, eq=False)
class ReconData:
    """What feeds one reconstruction: one bit for each encoding space."""

    bits: list[ReconBit]


@dataclass(slots=True, eq=False)
class ImageArray:
    """Reconstructed images in an array.

    Parameters
    ----------
    data : complex64 ``(loc, s, n, coils, z, y, x)``.
    headers : of dtype ``IMAGE_HEADER``, ``(loc, s, n)``.
    meta : attribute XML, one text for each image, or none at all.
    waveforms : or None.
    acquisition_headers : of dtype ``ACQUISITION_HEADER``, ``(loc, s, n, z, y)``, or None.
    received_ns : monotonic time at which it arrived; not on the wire.
    """

    data: Complex
    headers: NDArray[Any]
    meta: list[bytes] = field(default_factory=list)
    waveforms: list[Waveform] | None = None
    acquisition_headers: NDArray[Any] | None = None
    received_ns: int = 0


# ---- how long a message is -------------------------------------------------------------------------------------------


class _MoreError(Exception):
    """The walk needs this many bytes."""

    def __init__(self, n_bytes: int) -> None:
        super().__init__(n_bytes)
        self.n_bytes = n_bytes


class _Walk:
    """Follows the layout of a payload, by the lengths in it.

    Parameters
    ----------
    seen : the payload as far as it has come.
    cap : bytes that the whole may take.
    """

    def __init__(self, seen: memoryview, cap: int) -> None:
        self.seen, self.at, self._cap = seen, 0, cap

    def count(self, what: str, item_bytes: int = 1) -> int:
        """A u64 that counts items of at least `item_bytes`, which must fit under the cap."""
        start = self._through(_U64.size)
        (n,) = _U64.unpack_from(self.seen, start)
        self._check(self.at + n * item_bytes, f"{n} {what}")
        return int(n)

    def flag(self) -> bool:
        start = self._through(1)
        if self.seen[start] > 1:
            raise ProtocolError(f"a flag has the value {self.seen[start]}, expected 0 or 1", code="bad_size")
        return bool(self.seen[start])

    def dimensions(self, n_dims: int, what: str) -> tuple[int, ...]:
        """Dimensions of an array, the last of the wire first; those left out are 1, an array without any is empty."""
        given = self.count(f"dimensions of {what}", 8)
        if given > n_dims:
            raise ProtocolError(f"{what} have {given} dimensions, expected {n_dims}", code="bad_size")
        start = self._through(8 * given)
        found = tuple(int(n) for n in struct.unpack_from(f"<{given}Q", self.seen, start)[::-1])
        return (1,) * (n_dims - given) + found if given else (0,) * n_dims

    def struct(self, layout: struct.Struct) -> tuple[Any, ...]:
        return layout.unpack_from(self.seen, self._through(layout.size))

    def skip(self, n_bytes: int, what: str) -> int:
        """Pass over bytes that need not have come; gives where they begin."""
        start = self.at
        self._check(start + n_bytes, what)
        self.at += n_bytes
        return start

    def _through(self, n_bytes: int) -> int:
        start = self.at
        if start + n_bytes > len(self.seen):
            raise _MoreError(start + n_bytes)
        self.at += n_bytes
        return start

    def _check(self, n_bytes: int, what: str) -> None:
        if n_bytes > self._cap:
            raise ProtocolError(
                f"{what} make a message of {n_bytes} bytes, more than the limit of {self._cap}",
                likely="the scan is larger than the limit, or the sender's layout is another one",
                code="too_large",
            )


class _Reader(_Walk):
    """Walks over a whole payload and views its arrays."""

    def __init__(self, payload: memoryview) -> None:
        super().__init__(payload, len(payload))

    def items(self, dtype: np.dtype[Any], shape: Sequence[int], what: str) -> NDArray[Any]:
        n_bytes = prod(shape) * dtype.itemsize
        view = np.ndarray(tuple(shape), dtype, self.seen, self.skip(n_bytes, what))
        return view if view.flags.aligned else view.copy()  # flags of one byte lie before some arrays

    def array(self, dtype: np.dtype[Any], n_dims: int, what: str) -> NDArray[Any]:
        return self.items(dtype, self.dimensions(n_dims, what), what)

    def end(self) -> None:
        if self.at != len(self.seen):
            raise ProtocolError(f"{len(self.seen) - self.at} bytes are left over at its end", code="bad_size")


def _walk_array(walk: _Walk, item_bytes: int, n_dims: int, what: str) -> None:
    walk.skip(prod(walk.dimensions(n_dims, what)) * item_bytes, what)


def _walk_recon_buffer(walk: _Walk) -> None:
    _walk_array(walk, 8, 7, "samples")
    if walk.flag():
        _walk_array(walk, 4, 7, "trajectories")
    if walk.flag():
        _walk_array(walk, 4, 6, "density weights")
    _walk_array(walk, ACQUISITION_HEADER.itemsize, 5, "acquisition headers")
    walk.skip(SAMPLING.itemsize, "the sampling description")


def _walk_recon_data(walk: _Walk) -> None:
    for _ in range(walk.count("encoding spaces", _LEAST_BIT)):
        _walk_recon_buffer(walk)
        if walk.flag():
            _walk_recon_buffer(walk)


def _walk_image_array(walk: _Walk) -> None:
    _walk_array(walk, 8, 7, "pixels")
    _walk_array(walk, IMAGE_HEADER.itemsize, 3, "image headers")
    for _ in range(walk.count("attribute texts", 8)):
        walk.skip(walk.count("characters of attributes"), "attributes")
    if walk.flag():
        for _ in range(walk.count("waveforms", WAVEFORM_HEADER.itemsize)):
            n_samples, n_channels = walk.struct(_WAVEFORM)
            walk.skip(4 * n_samples * n_channels, "waveform samples")
    if walk.flag():
        _walk_array(walk, ACQUISITION_HEADER.itemsize, 5, "acquisition headers")


def _walk_bucket(walk: _Walk) -> None:
    sizes = walk.struct(_BUCKET)
    for name, (n, headers, *_), item_bytes in (
        ("data", sizes[0:4], ACQUISITION_HEADER.itemsize),
        ("reference", sizes[4:8], ACQUISITION_HEADER.itemsize),
        ("waveforms", sizes[10:13], WAVEFORM_HEADER.itemsize),
    ):
        if headers != n * item_bytes:
            raise ProtocolError(
                f"the bucket's {n} {name} have headers of {headers} bytes, expected {n * item_bytes}", code="bad_size"
            )
    for n_bytes in (*sizes[1:4], *sizes[5:8], *sizes[8:10], *sizes[11:13]):
        walk.skip(n_bytes, "the parts of the bucket")


def _measure(walk_over: Callable[[_Walk], None], seen: memoryview, limits: Limits) -> int:
    """Bytes of the payload, or those that must have come before more can be said."""
    walk = _Walk(seen, limits.buffer_bytes)
    try:
        walk_over(walk)
    except _MoreError as more:
        return more.n_bytes
    return walk.at


def _opaque(message_id: int, payload: memoryview) -> Message:
    return Opaque(message_id, payload)


def _composite(message_id: MessageId, prefix: int, walk_over: Callable[[_Walk], None]) -> Format:
    return Format(prefix, partial(_measure, walk_over), partial(_opaque, message_id), is_nested=True)


GADGET_FORMATS: dict[int, Format] = {
    **{
        message_id: FORMATS[message_id]
        for message_id in (
            MessageId.CONFIG_TEXT,
            MessageId.HEADER,
            MessageId.CLOSE,
            MessageId.TEXT,
            MessageId.ACQUISITION,
        )
    },
    **{
        message_id: replace(FORMATS[message_id], build=partial(_opaque, message_id))
        for message_id in (MessageId.IMAGE, MessageId.WAVEFORM)
    },
    MessageId.RECON_DATA: _composite(MessageId.RECON_DATA, 8, _walk_recon_data),
    MessageId.IMAGE_ARRAY: _composite(MessageId.IMAGE_ARRAY, 64, _walk_image_array),
    MessageId.BUCKET: _composite(MessageId.BUCKET, _BUCKET.size, _walk_bucket),
}
"""Messages that Gadgetron sends to an external process."""


# ---- bytes -> objects ------------------------------------------------------------------------------------------------


def read_bucket(payload: memoryview) -> Bucket:
    """Read message 1050.

    Raises
    ------
    ProtocolError : headers, samples and statistics contradict each other or the sizes before them.
    """
    reader = _Reader(payload)
    sizes = reader.struct(_BUCKET)
    data, data_stats = _read_acquisitions(reader, sizes[0:4], sizes[8], "data")
    reference, reference_stats = _read_acquisitions(reader, sizes[4:8], sizes[9], "reference")
    headers = reader.items(WAVEFORM_HEADER, (sizes[10],), "waveform headers")
    waveforms = [Waveform(header, _read_waveform_samples(reader, header)) for header in headers]
    reader.end()
    return Bucket(data, reference, data_stats, reference_stats, waveforms)


def _read_acquisitions(
    reader: _Reader, sizes: Sequence[int], n_stats_bytes: int, what: str
) -> tuple[list[Acquisition], list[Stats]]:
    n, _, n_data_bytes, n_trajectory_bytes = sizes
    headers = reader.items(ACQUISITION_HEADER, (n,), f"headers of the bucket's {what}")
    n_samples = headers["number_of_samples"].astype(int)
    n_coils, n_dims = headers["active_channels"].astype(int), headers["trajectory_dimensions"].astype(int)
    expected = (int((4 * n_samples * n_dims).sum()), int((8 * n_samples * n_coils).sum()))
    if (n_trajectory_bytes, n_data_bytes) != expected or (n and n_dims.max() > MAX_TRAJECTORY_DIMENSIONS):
        raise ProtocolError(
            f"the bucket's {what} have {n_trajectory_bytes} bytes of trajectories and {n_data_bytes} of samples; their "
            f"headers promise {expected[0]} and {expected[1]}",
            code="bad_size",
        )
    shapes = list(zip(n_coils.tolist(), n_samples.tolist(), n_dims.tolist(), strict=True))
    trajectories = [reader.items(_F32, (samples, dims), "trajectories") for _, samples, dims in shapes]
    samples = [reader.items(_C64, (coils, samples), "samples") for coils, samples, _ in shapes]
    found = [Acquisition(*parts) for parts in zip(headers, samples, trajectories, strict=True)]
    begin = reader.at
    stats = [_read_stats(reader) for _ in range(reader.count("encoding spaces", 8 * len(STATS)))]
    if reader.at - begin != n_stats_bytes:
        raise ProtocolError(
            f"the statistics of the bucket's {what} take {reader.at - begin} bytes, announced were {n_stats_bytes}",
            code="bad_size",
        )
    return found, stats


def _read_stats(reader: _Reader) -> Stats:
    found: Stats = {}
    for name in STATS:
        n = reader.count(f"values of {name}", _U16.itemsize)
        found[name] = tuple(reader.items(_U16, (n,), name).tolist())
    return found


def _read_waveform_samples(reader: _Reader, header: Any) -> NDArray[np.uint32]:
    return reader.items(_U32, (int(header["channels"]), int(header["number_of_samples"])), "waveform samples")


def read_recon_data(payload: memoryview) -> ReconData:
    """Read message 1023.

    Raises
    ------
    ProtocolError : arrays of one buffer have shapes that do not fit each other.
    """
    reader = _Reader(payload)
    bits = []
    for _ in range(reader.count("encoding spaces")):
        buffer = _read_recon_buffer(reader)
        bits.append(ReconBit(buffer, _read_recon_buffer(reader) if reader.flag() else None))
    reader.end()
    return ReconData(bits)


def _read_recon_buffer(reader: _Reader) -> ReconBuffer:
    data = reader.array(_C64, 7, "samples")
    trajectory = reader.array(_F32, 7, "trajectories") if reader.flag() else None
    density = reader.array(_F32, 6, "density weights") if reader.flag() else None
    headers = reader.array(ACQUISITION_HEADER, 5, "acquisition headers")
    (sampling,) = reader.items(SAMPLING, (1,), "the sampling description")
    buffer = ReconBuffer(data, headers, sampling, trajectory, density)
    _check_buffer(buffer)
    return buffer


def _check_buffer(buffer: ReconBuffer) -> None:
    *outer, _, e2, e1, e0 = buffer.data.shape
    places = (*outer, e2, e1)
    shapes = [("headers", buffer.headers.shape, places)]
    if buffer.trajectory is not None:
        shapes.append(("trajectories", buffer.trajectory.shape[:-1], (*places, e0)))
    if buffer.density is not None:
        shapes.append(("density weights", buffer.density.shape, (*places, e0)))
    for what, shape, expected in shapes:
        if shape != expected and buffer.data.size:
            raise ProtocolError(
                f"the {what} of a buffer are {shape}; its samples {buffer.data.shape} ask for {expected}",
                code="bad_size",
            )


def read_image_array(payload: memoryview) -> ImageArray:
    """Read message 1024.

    Raises
    ------
    ProtocolError : there is not one header for each image, or attributes for some images only.
    """
    reader = _Reader(payload)
    data = reader.array(_C64, 7, "pixels")
    headers = reader.array(IMAGE_HEADER, 3, "image headers")
    meta = []
    for _ in range(reader.count("attribute texts")):
        n_bytes = reader.count("characters of attributes")
        start = reader.skip(n_bytes, "attributes")
        meta.append(bytes(payload[start : start + n_bytes]))
    waveforms = [_read_waveform(reader) for _ in range(reader.count("waveforms"))] if reader.flag() else None
    acquisitions = reader.array(ACQUISITION_HEADER, 5, "acquisition headers") if reader.flag() else None
    reader.end()
    if headers.shape != data.shape[:3] or len(meta) not in (0, headers.size):
        raise ProtocolError(
            f"the image array {data.shape} has headers {headers.shape} and {len(meta)} attribute texts; expected "
            f"{data.shape[:3]}, and as many texts or none",
            code="bad_size",
        )
    return ImageArray(data, headers, meta, waveforms, acquisitions)


def _read_waveform(reader: _Reader) -> Waveform:
    (header,) = reader.items(WAVEFORM_HEADER, (1,), "waveform headers")
    return Waveform(header, _read_waveform_samples(reader, header))


# ---- objects -> bytes ------------------------------------------------------------------------------------------------


def encode_bucket(bucket: Bucket) -> list[Bytes]:
    """Write message 1050.

    Raises
    ------
    ProtocolError : an acquisition contradicts its header.
    """
    data, data_sizes = _acquisition_parts(bucket.data)
    reference, reference_sizes = _acquisition_parts(bucket.reference)
    stats, reference_stats = _stats(bucket.data_stats), _stats(bucket.reference_stats)
    waveforms = [waveform_parts(waveform) for waveform in bucket.waveforms]
    sizes = (len(waveforms), *(sum(len(parts[i]) for parts in waveforms) for i in (0, 1)))
    meta = _BUCKET.pack(*data_sizes, *reference_sizes, len(stats), len(reference_stats), *sizes)
    return [
        struct.pack("<H", MessageId.BUCKET) + meta,
        *data,
        stats,
        *reference,
        reference_stats,
        *(parts[0] for parts in waveforms),
        *(parts[1] for parts in waveforms),
    ]


def _acquisition_parts(acquisitions: Sequence[Acquisition]) -> tuple[list[Bytes], tuple[int, ...]]:
    """Headers, trajectories and samples; with their number and the bytes of headers, samples and trajectories."""
    for acquisition in acquisitions:
        if fault := acquisition_fault(acquisition):
            raise ProtocolError(f"cannot send a bucket: {fault}", where=acquisition.place)
    headers = [acquisition.header.tobytes() for acquisition in acquisitions]
    trajectories = [acquisition.trajectory.tobytes() for acquisition in acquisitions]
    samples = [acquisition.data.tobytes() for acquisition in acquisitions]
    sizes = (len(headers), *(sum(len(part) for part in parts) for parts in (headers, samples, trajectories)))
    return [*headers, *trajectories, *samples], sizes


def _stats(stats: Sequence[Stats]) -> bytes:
    out = _U64.pack(len(stats))
    for entry in stats:
        for name in STATS:
            values = entry.get(name, ())
            out += _U64.pack(len(values)) + np.array(values, _U16).tobytes()
    return out


def waveform_parts(waveform: Waveform) -> tuple[bytes, bytes]:
    """Header, with sizes as the samples have them and padding of zero, and samples."""
    data = np.asarray(waveform.data, _U32)
    header = np.zeros((), WAVEFORM_HEADER)
    for name in WAVEFORM_HEADER.names or ():
        header[name] = waveform.header[name]
    header["channels"], header["number_of_samples"] = data.shape
    return header.tobytes(), data.tobytes()


def encode_recon_data(recon: ReconData) -> list[Bytes]:
    """Write message 1023.

    Raises
    ------
    ProtocolError : arrays of one buffer have shapes that do not fit each other.
    """
    parts: list[Bytes] = [struct.pack("<HQ", MessageId.RECON_DATA, len(recon.bits))]
    for bit in recon.bits:
        parts += _recon_buffer_parts(bit.buffer)
        parts += _optional(bit.reference, _recon_buffer_parts)
    return parts


def _recon_buffer_parts(buffer: ReconBuffer) -> list[Bytes]:
    _check_buffer(buffer)
    sampling = np.zeros((), SAMPLING)  # field by field, so that the padding is zero
    for name in SAMPLING.names or ():
        sampling[name] = buffer.sampling[name]
    return [
        *_array_parts(buffer.data, _C64),
        *_optional(buffer.trajectory, lambda array: _array_parts(array, _F32)),
        *_optional(buffer.density, lambda array: _array_parts(array, _F32)),
        *_array_parts(buffer.headers, ACQUISITION_HEADER),
        sampling.tobytes(),
    ]


def encode_image_array(images: ImageArray) -> list[Bytes]:
    """Write message 1024."""
    parts: list[Bytes] = [struct.pack("<H", MessageId.IMAGE_ARRAY), *_array_parts(images.data, _C64)]
    parts += _array_parts(images.headers, IMAGE_HEADER)
    parts.append(_U64.pack(len(images.meta)))
    for text in images.meta:
        parts += [_U64.pack(len(text)), text]
    parts += _optional(images.waveforms, _waveforms)
    parts += _optional(images.acquisition_headers, lambda array: _array_parts(array, ACQUISITION_HEADER))
    return parts


def _waveforms(waveforms: Sequence[Waveform]) -> list[Bytes]:
    return [_U64.pack(len(waveforms)), *(part for waveform in waveforms for part in waveform_parts(waveform))]


def _optional(value: Any, parts: Callable[[Any], list[Bytes]]) -> list[Bytes]:
    return [b"\0"] if value is None else [b"\1", *parts(value)]


def _array_parts(array: NDArray[Any], dtype: np.dtype[Any]) -> list[Bytes]:
    head = struct.pack(f"<{array.ndim + 1}Q", array.ndim, *array.shape[::-1])
    return [head, np.ascontiguousarray(array, dtype).tobytes()]
