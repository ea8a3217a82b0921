"""Streams to start from: whole sessions of both roles, and every fault case that can be said in bytes.

The numbers are the rows of the table of fault cases in the tests of the server: 1 to 41, but for those that are about
time, load, disks, models and processes (28, 30 to 38).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kstream.mrd.codec import DEPRECATED_IDS, encode
from kstream.mrd.messages import (
    IMAGE_HEADER,
    WAVEFORM_HEADER,
    Close,
    ConfigFile,
    ConfigText,
    Error,
    Header,
    Image,
    Message,
    Query,
    Response,
    Text,
    Waveform,
    new_acquisition,
)
from kstream.mrd.session import Role
from kstream.types import Acquisition, AcquisitionFlag
from tests.fuzz.mutate import Stream
from tests.scans import StackOfStars


@dataclass(frozen=True)
class Seed:
    """A stream and who receives it; `case` is the row of the table of fault cases, 0 for a good session."""

    case: int
    stream: Stream
    role: Role = "server"


XML = StackOfStars().scan().xml
CONFIG, HEADER, CLOSE = ConfigFile("recon-radial"), Header(XML), Close()
OPENING: tuple[Message, ...] = (CONFIG, HEADER)


def acquisition(n_coils: int = 3, n_samples: int = 7, n_dims: int = 2, **fields: Any) -> Acquisition:
    """Random samples and trajectory, always the same for the same header."""
    rng = np.random.default_rng([n_coils, n_samples, n_dims, *str(fields).encode()])
    parts = rng.standard_normal((n_coils, n_samples, 2)).astype("f4")
    trajectory = rng.standard_normal((n_samples, n_dims)).astype("f4")
    return new_acquisition(parts.view("c8")[..., 0], trajectory, **fields)


def image(dtype: str = "f4", shape: tuple[int, ...] = (2, 3, 5, 7), series: int = 1) -> Image:
    """A ramp with attributes."""
    header = np.zeros(1, IMAGE_HEADER)[0]
    header["version"], header["image_series_index"], header["image_type"] = 1, series, 1
    meta: dict[str, str | list[str]] = {"DataRole": "Image", "ImageRowDir": ["1.0", "0.0", "0.0"]}
    return Image(header, meta, np.arange(np.prod(shape)).reshape(shape).astype(dtype))


def waveform(waveform_id: int = 1, n_channels: int = 3, n_samples: int = 5) -> Waveform:
    """A ramp."""
    header = np.zeros(1, WAVEFORM_HEADER)[0]
    header["version"], header["waveform_id"], header["sample_time_us"] = 1, waveform_id, 1000.0
    header["channels"], header["number_of_samples"] = n_channels, n_samples
    return Waveform(header, np.arange(n_channels * n_samples, dtype="u4").reshape(n_channels, n_samples))


def patched(message: Message, offset: int, value: bytes) -> bytes:
    """The bytes of a message with `value` at `offset`, counted after the id."""
    data = bytearray(encode(message))
    data[2 + offset : 2 + offset + len(value)] = value
    return bytes(data)


def seeds() -> list[Seed]:
    """All streams to start from."""
    return [*_good(), *_order(), *_texts(), *_xml(), *_acquisitions(), *_others(), *_from_servers()]


def _say(*parts: Message | bytes) -> Stream:
    return [part if isinstance(part, bytes) else encode(part) for part in parts]


def _server(case: int, *streams: Sequence[Any]) -> list[Seed]:
    return [Seed(case, _say(*stream)) for stream in streams]


def _good() -> list[Seed]:
    noise = acquisition(3, 11, 0, flags=AcquisitionFlag.IS_NOISE_MEASUREMENT)
    lines = [acquisition(counters={"kspace_encode_step_1": i}, scan_counter=i) for i in range(4)]
    parameters = Text('{"parameters": {"frames.n_frames": 2}}')
    large = [acquisition(5, n, 3, scan_counter=i) for i, n in enumerate((1024, 1024, 1025))]  # in buffers of their own
    small = [acquisition(2, 8, 0, scan_counter=i) for i in range(40)]
    return _server(
        0,
        [*OPENING, parameters, noise, *lines, waveform(), CLOSE],
        [ConfigText('{"preset": "recon-radial", "parameters": {"frames.n_frames": 2}}'), HEADER, *lines, CLOSE],
        [Query(7, "gadgetron::info"), CONFIG, Query(8, "presets"), HEADER, image(), Query(9, "x"), CLOSE],
        [*OPENING, *large, waveform(0), *large, CLOSE],
        [*OPENING, *small, CLOSE],
    )


def _order() -> list[Seed]:
    line = acquisition()
    unknown = [struct.pack("<H", n) for n in (0, 9, 999, 65535)]
    return [
        *_server(1, []),
        *_server(3, [b"\x01"]),
        *_server(4, [CONFIG, CLOSE], [ConfigFile("isalive.xml"), CLOSE]),
        *_server(5, [CLOSE]),
        *_server(6, [HEADER, CONFIG], [CONFIG, line], [line]),
        *_server(7, [CONFIG, CONFIG], [*OPENING, HEADER], [*OPENING, line, ConfigText("x")]),
        *_server(8, *([n, line] for n in unknown), *([*OPENING, line, n, line] for n in unknown)),
        *_server(9, *([*OPENING, struct.pack("<H", n), line] for n in sorted(DEPRECATED_IDS))),
        *_server(27, [*OPENING, line], [*OPENING, line, encode(line)[:400]]),
        *_server(29, [*OPENING, line, line, CLOSE]),
        *_server(40, [ConfigText("<configuration/>"), HEADER, line, encode(line)[:30]], [ConfigText("<c/>")]),
    ]


def _texts() -> list[Seed]:
    names = (b"x" * 1024, b"a\0" + b"\xff" * 1022, b"\xff" * 1024, b"../../x", b"/etc/passwd", b"", b"os")
    lengths = [struct.pack("<HI", kind, n) for kind in (2, 3, 5) for n in (0, 2**32 - 1, 2**24 + 1)]
    long_lengths = [
        struct.pack("<HQQQ", 6, 0, 1, 2**63),
        struct.pack("<HQQ", 7, 1, 2**63),
        struct.pack("<HQ", 8, 2**63),
    ]
    return [
        *_server(10, *([b"\x01\0" + name.ljust(1024, b"\0"), HEADER] for name in names)),
        *_server(11, *([CONFIG, length] for length in (*lengths, *long_lengths))),
        *_server(26, [*OPENING, *[Text("x" * 2**16)] * 5, CLOSE]),
    ]


def _xml() -> list[Seed]:
    encoding = XML[XML.index(b"<encoding>") : XML.index(b"</encoding>") + len(b"</encoding>")]
    hostile = (
        b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><ismrmrdHeader>&x;</ismrmrdHeader>',
        b'<!DOCTYPE a [<!ENTITY x "' + b"y" * 99 + b'"><!ENTITY z "' + b"&x;" * 99 + b'">]><a>' + b"&z;" * 99 + b"</a>",
        b"<a>" * 100 + b"</a>" * 100,
    )
    odd = (
        b"not XML",
        XML.replace(b"http://www.ismrm.org/ISMRMRD", b"http://example.org"),
        XML.replace(encoding, b""),
        XML.replace(encoding, encoding + b"<unknown>1</unknown>"),
        XML.replace(b"goldenangle", b"zigzag"),
        XML.replace(encoding, encoding * 50),
        XML + b"\0\0",
    )
    persons = (
        XML.replace(b"<encoding>", b"<measurementInformation><protocolName>" + name + b"</protocolName>"
                    b"</measurementInformation><encoding>", 1)
        for name in (b"a/../b", b"\xc2\x9b31m", b"&#9;&#10;", b"p" * 2**16)
    )  # fmt: skip
    return [
        *_server(12, *([CONFIG, Header(xml), CLOSE] for xml in odd)),
        *_server(13, *([CONFIG, Header(xml), CLOSE] for xml in hostile)),
        *_server(41, *([CONFIG, Header(xml), CLOSE] for xml in persons)),
    ]


def _acquisitions() -> list[Seed]:
    line, u16 = acquisition(), "<H"
    impossible = [
        patched(line, offset, struct.pack(u16, n)) for offset in (34, 38, 176) for n in (0, 1, 4, 65534, 65535)
    ]
    dims = [acquisition(3, 7, n) for n in (0, 1, 3)]
    bad_paths, bad_samples = [], []
    for value in (np.nan, np.inf, -np.inf, 1e-45, 1e38):
        path, samples = acquisition(), acquisition()
        path.trajectory[3] = value
        samples.data[1, 2] = value
        bad_paths.append(path)
        bad_samples.append(samples)
    beyond = [
        acquisition(counters={name: 65535}) for name in ("kspace_encode_step_1", "repetition", "slice", "segment")
    ]
    flags = [acquisition(flags=1 << bit, scan_counter=bit // 2) for bit in range(31)]
    last = acquisition(flags=AcquisitionFlag.LAST_IN_MEASUREMENT | AcquisitionFlag.LAST_IN_REPETITION)
    cuts = [encode(line)[:n] for n in (2, 3, 36, 341, 342, 343, 397, 398, 399, len(encode(line)) - 1)]
    return [
        *_server(14, *([*OPENING, line, cut] for cut in cuts[:5])),
        *_server(15, *([*OPENING, line, cut] for cut in cuts[5:])),
        *_server(16, *([*OPENING, line, bad, line] for bad in impossible)),
        *_server(17, [*OPENING, line, acquisition(4), acquisition(3, 9), *dims, line, CLOSE]),
        *_server(18, [*OPENING, *bad_paths, CLOSE]),
        *_server(19, [*OPENING, *bad_samples, CLOSE]),
        *_server(20, [*OPENING, *beyond, CLOSE]),
        *_server(21, [*OPENING, *flags, CLOSE]),
        *_server(22, [*OPENING, line, last, last, line, CLOSE], [*OPENING, line, CLOSE]),
        *_server(23, *([*OPENING, line, patched(line, 2, struct.pack("<Q", 1 << n)), line] for n in range(52, 56))),
    ]


def _others() -> list[Seed]:
    pixels = image()
    bad_images = [
        *(patched(pixels, 2, struct.pack("<H", n)) for n in (0, 2, 9, 99)),
        *(patched(pixels, 16, struct.pack("<HHH", n, n, n)) for n in (0, 1, 65535)),
        *(patched(pixels, 34, struct.pack("<H", n)) for n in (0, 65535)),
        *(patched(pixels, 198, struct.pack("<Q", n)) for n in (0, 1, 2**20, 2**63, 2**64 - 1)),
        patched(pixels, 194, struct.pack("<I", 2**32 - 1)),
        patched(pixels, 206, b"<ismrmrdMeta>\xff&"),
    ]
    waves = [waveform(i, 1, 1) for i in range(6)] + [waveform(2**15, 0, 0)]
    huge = patched(waveform(), 28, b"\xff\xff\xff\xff")
    return [
        *_server(24, *([*OPENING, bad, acquisition()] for bad in bad_images), [*OPENING, pixels, image("c8"), CLOSE]),
        *_server(25, [*OPENING, *waves, acquisition(), *waves, CLOSE], [*OPENING, huge]),
    ]


def _from_servers() -> list[Seed]:
    series = [image("u2"), image("f4"), image("u2", (1, 2, 3, 4)), image("c8", series=2)]
    streams: list[tuple[int, list[Message | bytes]]] = [
        (0, [Text("ready"), Response(7, "1"), image("u2"), Text('kstream summary {"images": 1}'), CLOSE]),
        (0, [HEADER, acquisition(), waveform(), CLOSE]),
        (39, [*series, CLOSE]),
        (40, [Error("the gadget broke"), CLOSE]),
        (2, []),
    ]
    return [Seed(case, _say(*stream), "client") for case, stream in streams]
