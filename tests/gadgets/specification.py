"""Gadgetron's side of the wire, written from the layouts in its sources with ``struct`` alone: none of our codec.

``ISMRMRD_AcquisitionHeader`` (340 bytes, packed), ``ISMRMRD_ImageHeader`` (198), ``ISMRMRD_WaveformHeader`` (40), and
``hoNDArray`` as ``IO::write`` has it (number of dimensions, dimensions, items, first index fastest).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

ACQUISITION = "<HQIII3IHHH16QHHHHHf15f17H8i8f"
IMAGE = "<HHQI3H3fH15f6HI3IHHH8i8fI"
WAVEFORM = "<H6xQIIIHHfH2x"
ILLEGAL = {1, 2, 3, 5, 6, 7}
"""Ids that Gadgetron takes from no gadget (``Serialization.cpp``)."""


def config(text: str) -> bytes:
    return struct.pack("<HI", 2, len(text)) + text.encode()


def header(xml: bytes) -> bytes:
    return struct.pack("<HI", 3, len(xml)) + xml


CLOSE = struct.pack("<H", 4)


def properties(**values: str) -> str:
    inner = "".join(f'<property name="{name.replace("__", ".")}" value="{value}"/>' for name, value in values.items())
    return f'<?xml version="1.0"?>\n<configuration>\n{inner}</configuration>\n'


def acquisition_header(
    n_samples: int = 0,
    n_coils: int = 0,
    n_dims: int = 0,
    *,
    flags: int = 0,
    scan_counter: int = 0,
    counters: Sequence[int] = (),
    discard: tuple[int, int] = (0, 0),
    centre: int | None = None,
) -> bytes:
    """340 bytes; `counters` begin with kspace_encode_step_1."""
    idx = [*counters, *[0] * (17 - len(counters))]
    middle = n_samples // 2 if centre is None else centre
    return struct.pack(
        ACQUISITION,
        *(1, flags, 77, scan_counter, 1234, 5, 6, 7, n_samples, n_coils, n_coils, *[0] * 16),
        *(*discard, middle, 0, n_dims, 2.5),
        *(0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0),
        *(*idx, *range(8), *[0.0] * 8),
    )


@dataclass
class Readout:
    """One acquisition: header, trajectory and samples as they lie on the wire."""

    header: bytes
    trajectory: bytes
    samples: bytes

    @property
    def message(self) -> bytes:
        return struct.pack("<H", 1008) + self.header + self.trajectory + self.samples


def readout_of(acquisition: Any, scan_counter: int) -> Readout:
    """One of our acquisitions, spelled by the specification."""
    counters = [int(acquisition.header["idx"][name]) for name in ("kspace_encode_step_1", "kspace_encode_step_2")]
    n_coils, n_samples = acquisition.data.shape
    head = acquisition_header(
        n_samples,
        n_coils,
        acquisition.trajectory.shape[1],
        flags=int(acquisition.header["flags"]),
        scan_counter=scan_counter,
        counters=counters,
    )
    points = [float(v) for v in acquisition.trajectory.ravel()]
    samples = [float(part) for v in acquisition.data.ravel() for part in (v.real, v.imag)]
    return Readout(head, struct.pack(f"<{len(points)}f", *points), struct.pack(f"<{len(samples)}f", *samples))


def image_header(
    matrix: tuple[int, int, int],
    *,
    channels: int = 1,
    data_type: int = 7,
    n_meta: int = 0,
    slice_: int = 0,
    repetition: int = 0,
    series: int = 9,
) -> bytes:
    """198 bytes."""
    fov = (220.0, 140.0, 50.0)
    directions = (0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0)
    return struct.pack(
        IMAGE,
        *(1, data_type, 0, 77, *matrix, *fov, channels, *directions),
        *(0, slice_, 0, 0, repetition, 0, 1234, 5, 6, 7, 5, 1, series, *[0] * 8, *[0.0] * 8, n_meta),
    )


def image(matrix: tuple[int, int, int], pixels: bytes, meta: bytes = b"", data_type: int = 7) -> bytes:
    """Message 1022; Gadgetron ends attributes with a NUL, and counts it."""
    counted = meta + b"\0" if meta else b""
    head = image_header(matrix, data_type=data_type, n_meta=len(counted))
    return struct.pack("<H", 1022) + head + struct.pack("<Q", len(counted)) + counted + pixels


def waveform_header(n_channels: int, n_samples: int, waveform_id: int = 1) -> bytes:
    return struct.pack(WAVEFORM, 1, 3, 77, 8, 1234, n_samples, n_channels, 2.5, waveform_id)


def waveform_samples(n_channels: int, n_samples: int) -> bytes:
    return struct.pack(f"<{n_channels * n_samples}I", *range(1000, 1000 + n_channels * n_samples))


def waveform(n_channels: int, n_samples: int) -> bytes:
    return struct.pack("<H", 1026) + waveform_header(n_channels, n_samples) + waveform_samples(n_channels, n_samples)


def array(dimensions: Sequence[int], items: bytes) -> bytes:
    return struct.pack(f"<{len(dimensions) + 1}Q", len(dimensions), *dimensions) + items


def stats(*sets: Sequence[int]) -> bytes:
    """One encoding space: nine sets, in the order e1, e2, slice, phase, contrast, repetition, set, segment, average."""
    return b"".join(struct.pack(f"<Q{len(values)}H", len(values), *values) for values in sets)


def bucket(
    data: Sequence[Readout],
    reference: Sequence[Readout] = (),
    waveforms: Sequence[tuple[int, int]] = (),
    data_stats: Sequence[bytes] = (),
    reference_stats: Sequence[bytes] = (),
) -> bytes:
    """Message 1050."""

    def part(readouts: Sequence[Readout], spaces: Sequence[bytes]) -> tuple[bytes, list[int], int]:
        heads = b"".join(r.header for r in readouts)
        trajectories = b"".join(r.trajectory for r in readouts)
        samples = b"".join(r.samples for r in readouts)
        listed = struct.pack("<Q", len(spaces)) + b"".join(spaces)
        sizes = [len(readouts), len(heads), len(samples), len(trajectories)]
        return heads + trajectories + samples + listed, sizes, len(listed)

    data_bytes, data_sizes, data_listed = part(data, data_stats)
    reference_bytes, reference_sizes, reference_listed = part(reference, reference_stats)
    heads = b"".join(waveform_header(*shape) for shape in waveforms)
    samples = b"".join(waveform_samples(*shape) for shape in waveforms)
    sizes = [*data_sizes, *reference_sizes, data_listed, reference_listed, len(waveforms), len(heads), len(samples)]
    return struct.pack("<H13Q", 1050, *sizes) + data_bytes + reference_bytes + heads + samples


def sampling(matrix: tuple[int, int, int], limits: Sequence[int] = (0, 0, 0) * 3) -> bytes:
    """56 bytes: 54 and the padding of the compiler."""
    fov = (220.0, 140.0, 50.0)
    return struct.pack("<6f15H2x", *fov, *fov, *matrix, *matrix, *limits)


@dataclass
class Incoming:
    """A message from the gadget: its id and everything after it."""

    id: int
    body: bytes

    @property
    def raw(self) -> bytes:
        return struct.pack("<H", self.id) + self.body

    @property
    def text(self) -> str:
        assert self.id == 8
        return self.body[8:].decode()


def read_messages(stream: BinaryIO) -> list[Incoming]:
    """Everything that the gadget sends until CLOSE, as ``Serialization::read`` takes it apart.

    Raises
    ------
    AssertionError : an id that Gadgetron refuses, or the stream ends before CLOSE.
    """
    found = [read_message(stream)]
    while found[-1].id != 4:
        found.append(read_message(stream))
    return found


def read_message(stream: BinaryIO) -> Incoming:
    """The next message that the gadget sends; raises as `read_messages`."""
    (message_id,) = struct.unpack("<H", _exactly(stream, 2))
    assert message_id not in ILLEGAL, f"Received illegal message id from external peer: {message_id}"
    return Incoming(message_id, _read_body(stream, message_id))


def _read_body(stream: BinaryIO, message_id: int) -> bytes:
    match message_id:
        case 4:
            return b""
        case 8:
            return _counted(stream)
        case 1022:
            head = _exactly(stream, 198)
            data_type, (x, y, z) = struct.unpack_from("<H", head, 2)[0], struct.unpack_from("<3H", head, 16)
            (channels,) = struct.unpack_from("<H", head, 34)
            meta = _counted(stream)
            item_bytes = {1: 2, 2: 2, 3: 4, 4: 4, 5: 4, 6: 8, 7: 8, 8: 16}[data_type]
            return head + meta + _exactly(stream, x * y * z * channels * item_bytes)
        case 1026:
            head = _exactly(stream, 40)
            n_samples, n_channels = struct.unpack_from("<HH", head, 28)
            return head + _exactly(stream, 4 * n_samples * n_channels)
        case 1024:
            out = _array(stream, 8) + _array(stream, 198)
            count = _exactly(stream, 8)
            out += count + b"".join(_counted(stream) for _ in range(struct.unpack("<Q", count)[0]))
            flag = _exactly(stream, 1)
            out += flag
            if flag == b"\1":
                count = _exactly(stream, 8)
                waves = [_read_body(stream, 1026) for _ in range(struct.unpack("<Q", count)[0])]
                out += count + b"".join(waves)
            flag = _exactly(stream, 1)
            return out + flag + (_array(stream, 340) if flag == b"\1" else b"")
        case 1050:
            meta = _exactly(stream, 104)
            sizes = struct.unpack("<13Q", meta)
            return meta + _exactly(stream, sum((*sizes[1:4], *sizes[5:8], *sizes[8:10], *sizes[11:13])))
        case 1008:
            head = _exactly(stream, 340)
            (n_samples,), (n_coils,), (n_dims,) = (struct.unpack_from("<H", head, at) for at in (34, 38, 176))
            return head + _exactly(stream, n_samples * (4 * n_dims + 8 * n_coils))
    raise AssertionError(f"Received illegal message id from external peer: {message_id}")


def _counted(stream: BinaryIO) -> bytes:
    count = _exactly(stream, 8)
    return count + _exactly(stream, struct.unpack("<Q", count)[0])


def _array(stream: BinaryIO, item_bytes: int) -> bytes:
    n_dims = _exactly(stream, 8)
    dimensions = _exactly(stream, 8 * struct.unpack("<Q", n_dims)[0])
    n_items = 1
    for n in struct.unpack(f"<{len(dimensions) // 8}Q", dimensions):
        n_items *= n
    return n_dims + dimensions + _exactly(stream, n_items * item_bytes)


def _exactly(stream: BinaryIO, n_bytes: int) -> bytes:
    found = stream.read(n_bytes)
    assert len(found) == n_bytes, f"the stream ended: {len(found)} of {n_bytes} bytes"
    return found
