"""Damage to a stream of MRD messages by somebody who knows where the fields of every message lie."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from kstream.mrd.codec import DEPRECATED_IDS, UNSUPPORTED_IDS
from kstream.mrd.messages import ACQUISITION_HEADER, IMAGE_HEADER, WAVEFORM_HEADER

Stream = list[bytes]
"""Messages, one after another: bytes of each with its id."""


@dataclass(frozen=True)
class Field:
    """Where a field lies in a message, counted from its id, and its type as a struct format."""

    name: str
    offset: int
    format: str

    @property
    def n_bytes(self) -> int:
        return struct.calcsize("<" + self.format)


def _fields_of(dtype: np.dtype[Any], offset: int, prefix: str = "") -> list[Field]:
    """Every number of a structure, also those in arrays and in structures inside."""
    if dtype.names is None:
        base, shape = dtype.subdtype or (dtype, ())
        count = int(np.prod(shape))
        return [Field(prefix, offset + i * base.itemsize, base.char) for i in range(count)]
    inner: Mapping[str, Any] = dtype.fields or {}
    return [
        field
        for name in dtype.names
        for field in _fields_of(inner[name][0], offset + inner[name][1], f"{prefix}{name}.")
    ]


_ID = Field("id", 0, "H")
_LAYOUTS: dict[int, list[Field]] = {
    2: [_ID, Field("length", 2, "I")],
    3: [_ID, Field("length", 2, "I")],
    5: [_ID, Field("length", 2, "I")],
    6: [_ID, Field("reserved", 2, "Q"), Field("correlation", 10, "Q"), Field("length", 18, "Q")],
    7: [_ID, Field("correlation", 2, "Q"), Field("length", 10, "Q")],
    8: [_ID, Field("length", 2, "Q")],
    1008: [_ID, *_fields_of(ACQUISITION_HEADER, 2)],
    1022: [_ID, *_fields_of(IMAGE_HEADER, 2), Field("meta length", 200, "Q")],
    1026: [_ID, *_fields_of(WAVEFORM_HEADER, 2)],
}
_BODIES = {1: 2, 2: 6, 3: 6, 5: 6, 6: 26, 7: 18, 8: 10, 1008: 342, 1022: 208, 1026: 42}
_SIZES = frozenset(
    [
        "id",
        "length",
        "meta length",
        "flags.",
        "number_of_samples.",
        "active_channels.",
        "trajectory_dimensions.",
        "channels.",
        "data_type.",
        "matrix_size.",
        "attribute_string_len.",
    ]
)

IDS = (*_BODIES, 4, 0, 9, 999, 65535, *DEPRECATED_IDS, *UNSUPPORTED_IDS)
"""Ids that a stream may be made to show: all that are known in some way, and some that are not."""

FLOATS = tuple(
    struct.pack("<I", bits)
    for bits in (0x7FC00000, 0x7F800001, 0x7F800000, 0xFF800000, 0x00000001, 0x80000000, 0x7E967699, 0xFF7FFFFF)
)
"""Quiet and signalling NaN, the infinities, the smallest denormal, minus zero, 1e38, the most negative float32."""

WORDS = (
    *(
        b"",
        b"\0",
        b"\0\0\0",
        b"\xff\xfe",
        b"\xc3",
        b"\xed\xa0\x80",
        b"\xf0\x9f\xa7\xa0",
        b"<",
        b">",
        b"&",
        b'"',
        b"]]>",
    ),
    *(b"<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]>", b"&b;", b"&#0;", b"&#xD800;", b"&#65535;"),
    *(b"<?xml version='1.0' encoding='utf-16'?>", b"<?xml version='1.0' encoding='nonsense'?>", b"<![CDATA[", b"<!--"),
    *(b"0", b"-1", b"65535", b"65536", b"4294967296", b"1e400", b"nan", b"-inf", b"1_000", b"\xd9\xa3", b"9" * 4301),
    *(
        b"../../x",
        b"/etc/passwd",
        b"os",
        b"%s%n",
        b"\x1b[2J",
        b"\r\n",
        b"{",
        b"[" * 300,
        b'{"a":' * 300,
        b"null",
        b"1e999",
    ),
    *(b'{"parameters": ', b'{"preset": "recon-radial", "parameters": {"frames.n_frames": ', b"}}", b"]" * 300),
    *(b"<a>" * 70, b"<encoding/>" * 20, b"</encoding>", b"<trajectory>", b"<name>x</name>", b"<value></value>"),
)
"""What a text may be made to contain."""


def fields(message: bytes) -> list[Field]:
    """The fields that lie in a message, whole."""
    layout = _LAYOUTS.get(_id(message), [_ID])
    return [field for field in layout if field.offset + field.n_bytes <= len(message)]


def mutate(stream: Stream, rng: Random, n_damages: int = 1) -> tuple[Stream, int]:
    """Damage a stream `n_damages` times; also says how many messages at its front are as they were."""
    damaged = list(stream)
    for _ in range(n_damages):
        damage = rng.choice(_DAMAGES)
        damaged = damage(damaged, rng) if damaged else [_noise(rng)]
    intact = 0
    for before, after in zip(stream, damaged, strict=False):
        if before != after:
            break
        intact += 1
    return damaged, intact


# ---- one message -----------------------------------------------------------------------------------------------------


def _of_one(change: Callable[[bytearray, Random], bytes | bytearray]) -> Callable[[Stream, Random], Stream]:
    def damage(stream: Stream, rng: Random) -> Stream:
        at = rng.randrange(len(stream))
        return [*stream[:at], bytes(change(bytearray(stream[at]), rng)), *stream[at + 1 :]]

    return damage


def _id(message: bytes | bytearray) -> int:
    return int.from_bytes(message[:2], "little")


def _flip(message: bytearray, rng: Random) -> bytearray:
    """Flip a few bits, half of the time in the fixed part."""
    end = len(message) if rng.random() < 0.5 else min(len(message), _BODIES.get(_id(message), 2))
    for _ in range(rng.randint(1, 4) if end else 0):
        message[rng.randrange(end)] ^= 1 << rng.randrange(8)
    return message


def _boundary(message: bytearray, rng: Random) -> bytearray:
    """Put a number at the edge of its type, of a limit, or of what was there into a field, most often into a size."""
    known = fields(bytes(message))
    sizes = [field for field in known if field.name in _SIZES]
    if not known:
        return message
    field = rng.choice(sizes if sizes and rng.random() < 0.7 else known)
    if field.format == "f":
        message[field.offset : field.offset + 4] = rng.choice(FLOATS)
        return message
    bits = 8 * field.n_bytes
    (old,) = struct.unpack_from("<" + field.format.upper(), message, field.offset)
    near = [old - 1, old + 1, old * 2, len(message), len(message) - 2]
    edges = [0, 1, 2, 3, 4, 2 ** (bits - 1), 2**bits - 1, 2 ** rng.randrange(bits), 2 ** rng.randrange(bits) - 1]
    value = rng.choice(near + edges) % 2**bits
    struct.pack_into("<" + field.format.upper(), message, field.offset, value)
    return message


def _cut(message: bytearray, rng: Random) -> bytearray:
    """Leave off the end: at the edge of a field, one byte beside it, or anywhere. What follows comes too early."""
    edges = [field.offset + field.n_bytes for field in fields(bytes(message))] + [_BODIES.get(_id(message), 2)]
    at = rng.choice(edges) + rng.randint(-1, 1) if rng.random() < 0.6 else rng.randint(0, len(message))
    return message[: max(at, 0)]


def _rename(message: bytearray, rng: Random) -> bytearray:
    message[:2] = struct.pack("<H", rng.choice(IDS))
    return message


def _stretch(message: bytearray, rng: Random) -> bytearray:
    """Insert bytes that the length does not count."""
    at = rng.randint(0, len(message))
    message[at:at] = _noise(rng)
    return message


def _special_floats(message: bytearray, rng: Random) -> bytearray:
    """Put NaN, infinity and their like among samples and trajectory."""
    body = _BODIES.get(_id(message), 2)
    for _ in range(rng.randint(1, 8)):
        if len(message) >= body + 4:
            at = body + 4 * rng.randrange((len(message) - body) // 4)
            message[at : at + 4] = rng.choice(FLOATS)
    return message


def _reword(message: bytearray, rng: Random) -> bytearray:
    """Change the words of a text, mostly between two tags, and keep its length field right."""
    kind = _id(message)
    body = _BODIES.get(kind, 2)
    if kind not in (1, 2, 3, 5, 6, 7, 8, 1022) or len(message) < body:
        return _flip(message, rng)
    end = len(message)
    if kind == 1022:
        end = min(end, body + struct.unpack_from("<Q", message, 200)[0])
    text = _reworded(bytes(message[body:end]), rng)
    if kind == 1:
        return message[:body] + text[:1024].ljust(1024, b"\0")
    message[body:end] = text
    if kind == 1022:
        struct.pack_into("<Q", message, 200, len(text))
    else:
        length = _LAYOUTS[kind][-1]
        struct.pack_into("<" + length.format, message, length.offset, len(text))
    return message


def _reworded(text: bytes, rng: Random) -> bytes:
    tags = [i for i, byte in enumerate(text) if byte in b"<>"]
    places = tags if tags and rng.random() < 0.8 else list(range(len(text) + 1))
    begin = rng.choice(places) + rng.randint(0, 1)
    end = begin if rng.random() < 0.3 else min((i for i in tags if i >= begin), default=begin + rng.randint(0, 20))
    action = rng.random()
    if action < 0.6:
        return text[:begin] + rng.choice(WORDS) + text[end:]
    other = rng.choice(places)
    low, high = min(begin, other), max(begin, other)
    if action < 0.75:
        return text[:low] + text[high:]
    return text[:high] + text[low:high] * rng.randint(1, 3) + text[high:]


def _noise(rng: Random) -> bytes:
    return rng.randbytes(rng.choice((1, 2, 3, 4, 7, 64, 400)))


# ---- whole messages --------------------------------------------------------------------------------------------------


def _repeat(stream: Stream, rng: Random) -> Stream:
    at = rng.randrange(len(stream))
    return [*stream[:at], *[stream[at]] * rng.randint(2, 5), *stream[at + 1 :]]


def _drop(stream: Stream, rng: Random) -> Stream:
    at = rng.randrange(len(stream))
    return stream[:at] + stream[at + 1 :]


def _reorder(stream: Stream, rng: Random) -> Stream:
    shuffled = list(stream)
    if rng.random() < 0.5:
        rng.shuffle(shuffled)
        return shuffled
    i, j = rng.randrange(len(stream)), rng.randrange(len(stream))
    shuffled[i], shuffled[j] = shuffled[j], shuffled[i]
    return shuffled


def _splice(stream: Stream, rng: Random) -> Stream:
    """Go on with the end of one message in the middle of another."""
    at, other = rng.randrange(len(stream)), rng.choice(stream)
    head = stream[at][: rng.randint(0, len(stream[at]))]
    return [*stream[:at], head + other[rng.randint(0, len(other)) :], *stream[at + 1 :]]


def _insert(stream: Stream, rng: Random) -> Stream:
    at = rng.randint(0, len(stream))
    kind = rng.choice(IDS)
    return [*stream[:at], struct.pack("<H", kind) + (_noise(rng) if rng.random() < 0.5 else b""), *stream[at:]]


def _end_early(stream: Stream, rng: Random) -> Stream:
    at = rng.randrange(len(stream))
    return [*stream[:at], bytes(_cut(bytearray(stream[at]), rng))]


_DAMAGES: tuple[Callable[[Stream, Random], Stream], ...] = (
    _of_one(_flip),
    _of_one(_boundary),
    _of_one(_boundary),
    _of_one(_boundary),
    _of_one(_cut),
    _of_one(_rename),
    _of_one(_stretch),
    _of_one(_special_floats),
    _of_one(_reword),
    _of_one(_reword),
    _repeat,
    _drop,
    _reorder,
    _splice,
    _insert,
    _end_early,
)
