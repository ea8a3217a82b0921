"""The codec against bytes built by hand, against itself, and against the codec of the `ismrmrd` package."""

from __future__ import annotations

import io
import resource
import struct
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kstream.errors import ProtocolError
from kstream.mrd.codec import FORMATS, Decoder, Format, Limits, encode, encode_parts
from kstream.mrd.messages import (
    ACQUISITION_HEADER,
    IMAGE_HEADER,
    WAVEFORM_HEADER,
    Close,
    ConfigFile,
    ConfigText,
    Error,
    Header,
    Image,
    Message,
    MessageId,
    Query,
    Response,
    Text,
    Waveform,
    new_acquisition,
)
from kstream.types import Acquisition, AcquisitionFlag
from tests.mrd.strategies import damaged_streams, messages

with warnings.catch_warnings():
    import ismrmrd

N_COILS, N_SAMPLES, N_DIMS = 3, 7, 2


def an_acquisition(**fields: Any) -> Acquisition:
    rng = np.random.default_rng(1)
    data = rng.standard_normal((N_COILS, N_SAMPLES, 2)).astype("f4").view("c8")[..., 0]
    trajectory = rng.standard_normal((N_SAMPLES, N_DIMS)).astype("f4")
    return new_acquisition(data, trajectory, counters={"kspace_encode_step_1": 5, "repetition": 2}, **fields)


def an_image(dtype: str = "f4", **meta: Any) -> Image:
    header = np.zeros(1, IMAGE_HEADER)[0]
    header["version"], header["image_series_index"], header["image_index"], header["image_type"] = 1, 4, 9, 1
    header["field_of_view"] = (110.0, 70.0, 5.0)
    data = np.arange(2 * 5 * 7 * 11).reshape(2, 5, 7, 11).astype(dtype)
    return Image(header, {"Frame": "3", "Dir": ["1.0", "0.0"], **meta}, data)


def a_waveform() -> Waveform:
    header = np.zeros(1, WAVEFORM_HEADER)[0]
    header["version"], header["flags"], header["waveform_id"], header["sample_time_us"] = 1, 2**40, 1, 2500.0
    header["channels"], header["number_of_samples"] = 3, 5
    return Waveform(header, np.arange(15, dtype="u4").reshape(3, 5))


ONE_OF_EACH: tuple[Message, ...] = (
    ConfigFile("breast.xml"),
    ConfigText('{"preset": "breast"}'),
    Header(b"<ismrmrdHeader/>"),
    Text("spoke 57 \N{GREEK SMALL LETTER MU}s"),
    Query(2**40 + 7, "gadgetron::info"),
    Response(2**40 + 7, "Unknown query"),
    Error("it broke"),
    an_acquisition(),
    an_image(),
    an_image("u2"),
    an_image("c8"),
    a_waveform(),
    Close(),
)


def decoded(data: bytes, limits: Limits | None = None) -> list[Message]:
    decoder = Decoder(limits)
    messages = decoder.receive(data)
    decoder.end()
    return messages


def poured(decoder: Decoder, stream: bytes, sizes: Sequence[int], got: list[Message] | None = None) -> list[Message]:
    """Write the stream where the decoder wants it, in pieces of at most the given sizes, again and again."""
    got = [] if got is None else got
    at, turn = 0, 0
    while at < len(stream):
        space = decoder.space()
        piece = stream[at : at + min(sizes[turn % len(sizes)], len(space))]
        space[: len(piece)] = piece
        at, turn = at + len(piece), turn + 1
        got += decoder.filled(len(piece))
    decoder.end()
    return got


def assert_same(got: Sequence[Message], expected: Sequence[Message]) -> None:
    assert [type(m) for m in got] == [type(m) for m in expected]
    for one, other in zip(got, expected, strict=True):
        if isinstance(one, Acquisition | Image | Waveform):
            assert isinstance(other, Acquisition | Image | Waveform)
            assert one.data.dtype == other.data.dtype
            assert one.data.shape == other.data.shape
            assert encode(one) == encode(other)
        else:
            assert one == other


# ---- exact bytes -----------------------------------------------------------------------------------------------------


def acquisition_bytes() -> bytes:
    sent = an_acquisition()
    header = struct.pack(
        "<HQIII3I3H16Q5Hf3f3f3f3f3f9H8H8i8f",
        *(1, 0, 0, 0, 0, 0, 0, 0),
        *(N_SAMPLES, N_COILS, N_COILS),
        *[0] * 16,
        *(0, 0, N_SAMPLES // 2, 0, N_DIMS),
        *[0.0] * 16,
        *(5, 0, 0, 0, 0, 0, 2, 0, 0),
        *[0] * 8,
        *[0] * 8,
        *[0.0] * 8,
    )
    assert len(header) == 340
    path = b"".join(struct.pack("<2f", *map(float, point)) for point in sent.trajectory)
    samples = b"".join(struct.pack("<2f", float(s.real), float(s.imag)) for coil in sent.data for s in coil)
    return struct.pack("<H", 1008) + header + path + samples


def image_bytes() -> bytes:
    meta = (
        b'<?xml version="1.0" encoding="UTF-8"?>\n<ismrmrdMeta>'
        b"<meta><name>Frame</name><value>3</value></meta>"
        b"<meta><name>Dir</name><value>1.0</value><value>0.0</value></meta></ismrmrdMeta>"
    )
    header = struct.pack(
        "<HHQI3H3fH3f3f3f3f3f6HI3I3H8i8fI",
        *(1, 1, 0, 0),
        *(11, 7, 5),
        *(110.0, 70.0, 5.0),
        2,
        *[0.0] * 15,
        *[0] * 6,
        *(0, 0, 0, 0),
        *(1, 9, 4),
        *[0] * 8,
        *[0.0] * 8,
        len(meta),
    )
    assert len(header) == 198
    return struct.pack("<H", 1022) + header + struct.pack("<Q", len(meta)) + meta + struct.pack("<770H", *range(770))


def waveform_bytes() -> bytes:
    header = struct.pack("<HxxxxxxQIIIHHfHxx", 1, 2**40, 0, 0, 0, 5, 3, 2500.0, 1)
    return struct.pack("<H", 1026) + header + struct.pack("<15I", *range(15))


EXACT: list[tuple[Message, bytes]] = [
    (ConfigFile("breast.xml"), b"\x01\x00breast.xml" + bytes(1014)),
    (ConfigText("{}"), b"\x02\x00\x02\x00\x00\x00{}"),
    (Header(b"<a/>"), b"\x03\x00\x04\x00\x00\x00<a/>"),
    (Close(), b"\x04\x00"),
    (Text("ERR no"), b"\x05\x00\x06\x00\x00\x00ERR no"),
    (Query(258, "k"), b"\x06\x00" + bytes(8) + b"\x02\x01" + bytes(6) + b"\x01" + bytes(7) + b"k"),
    (Response(258, "v"), b"\x07\x00\x02\x01" + bytes(6) + b"\x01" + bytes(7) + b"v"),
    (Error("no"), b"\x08\x00\x02" + bytes(7) + b"no"),
    (an_acquisition(), acquisition_bytes()),
    (an_image("u2"), image_bytes()),
    (a_waveform(), waveform_bytes()),
]


@pytest.mark.parametrize(("message", "expected"), EXACT, ids=lambda value: type(value).__name__)
def test_message_has_exactly_the_bytes_of_the_specification(message: Message, expected: bytes) -> None:
    assert encode(message) == expected
    assert_same(decoded(expected), [message])


def test_header_fields_lie_where_the_specification_says() -> None:
    fields = ACQUISITION_HEADER.fields
    assert fields is not None
    assert ACQUISITION_HEADER.itemsize == 340
    expected = {"flags": 2, "scan_counter": 14, "number_of_samples": 34, "channel_mask": 40, "center_sample": 172}
    expected |= {"sample_time_us": 178, "position": 182, "slice_dir": 218, "idx": 242, "user_float": 308}
    assert {name: fields[name][1] for name in expected} == expected
    assert (IMAGE_HEADER.itemsize, WAVEFORM_HEADER.itemsize) == (198, 40)


# ---- any cut of the bytes gives the same messages --------------------------------------------------------------------


def test_one_byte_at_a_time_gives_the_same_messages() -> None:
    decoder = Decoder()
    messages = [m for byte in b"".join(map(encode, ONE_OF_EACH)) for m in decoder.receive(bytes([byte]))]
    decoder.end()
    assert_same(messages, ONE_OF_EACH)
    assert decoder.n_messages == len(ONE_OF_EACH)


def test_a_memoryview_of_several_messages_is_read() -> None:
    assert_same(Decoder().receive(memoryview(b"".join(map(encode, ONE_OF_EACH)))), ONE_OF_EACH)


def test_arrays_can_be_written_and_outlive_the_decoder() -> None:
    (got,) = decoded(encode(an_acquisition()))
    assert isinstance(got, Acquisition)
    got.data *= 2
    got.header["scan_counter"] = 5
    assert got.data.flags.aligned
    assert got.header["scan_counter"] == 5


@pytest.mark.parametrize("message", ONE_OF_EACH, ids=lambda m: type(m).__name__)
def test_stream_cut_anywhere_inside_a_message_is_an_error_at_the_end(message: Message) -> None:
    whole = encode(Text("before"))
    last = encode(message)
    for cut in range(1, len(last)):
        decoder = Decoder()
        assert_same(decoder.receive(whole + last[:cut]), [Text("before")])
        with pytest.raises(ProtocolError) as caught:
            decoder.end()
        assert "message 2" in caught.value.where
        assert f"byte offset {len(whole)}" in caught.value.where
        assert f"got {cut} of" in caught.value.what


def test_end_at_a_message_boundary_is_no_error() -> None:
    decoder = Decoder()
    decoder.end()
    decoder.receive(encode(Close()))
    decoder.end()


def test_one_byte_then_end_says_truncated_id() -> None:
    decoder = Decoder()
    decoder.receive(b"\x01")
    with pytest.raises(ProtocolError, match="truncated id"):
        decoder.end()


def test_truncated_acquisition_says_how_many_bytes_were_expected() -> None:
    decoder = Decoder()
    decoder.receive(acquisition_bytes()[:400])
    with pytest.raises(ProtocolError, match=r"inside ACQUISITION: got 400 of 566 bytes"):
        decoder.end()


# ---- without copies --------------------------------------------------------------------------------------------------


def a_large_acquisition(number: int, n_samples: int = 1021) -> Acquisition:
    data = np.full((5, n_samples), number + 1j, "c8")
    return new_acquisition(data, np.full((n_samples, 2), -number, "f4"), scan_counter=number)


@pytest.mark.parametrize("size", [1, 1000, 40_000, 2**20])
def test_large_acquisitions_stay_as_they_are_while_others_come(size: int) -> None:
    """Of one size, of others, and with small messages in between: nobody's buffer is used again."""
    lengths = (1021, 1021, 1023, 1021, 4097, 1021)
    sent: list[Message] = []
    for number, n_samples in enumerate(lengths):
        sent += [a_large_acquisition(number, n_samples), a_waveform(), a_large_acquisition(number, n_samples)]
    stream = b"".join(map(encode, sent))
    assert_same(poured(Decoder(), stream, [size]), sent)


def test_an_acquisition_of_the_size_of_the_last_one_is_read_where_the_socket_wrote_it() -> None:
    decoder, data = Decoder(), encode(a_large_acquisition(1))
    decoder.receive(data)
    space = decoder.space()
    space[: len(data)] = data
    (got,) = decoder.filled(len(data))
    assert isinstance(got, Acquisition)
    for array in (got.data, got.trajectory):
        assert np.shares_memory(np.frombuffer(space, "u1"), array)
        assert array.flags.aligned
        assert array.flags.writeable


def test_a_small_acquisition_does_not_keep_the_buffer_of_many() -> None:
    decoder, data = Decoder(), encode(an_acquisition())
    space = decoder.space()
    space[: len(data)] = data
    (got,) = decoder.filled(len(data))
    assert isinstance(got, Acquisition)
    assert not np.shares_memory(np.frombuffer(space, "u1"), got.data)


def test_small_messages_are_read_after_a_large_one() -> None:
    sent: list[Message] = [a_large_acquisition(1), *[Text("x" * 9000)] * 30, an_image(), Close()]
    for size in (3, 999, 10**6):
        assert_same(poured(Decoder(), b"".join(map(encode, sent)), [size]), sent)


def test_a_header_that_announces_64_mib_costs_almost_no_memory() -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    header = new_acquisition(np.zeros((1, 1), "c8"))
    header.header["number_of_samples"], header.header["active_channels"] = 8191, 1024
    start = struct.pack("<H", 1008) + header.header.tobytes()
    before = resident_bytes()
    decoders = [Decoder() for _ in range(16)]
    for decoder in decoders:
        decoder.receive(start + bytes(5000))
        assert len(decoder.space()) == 8191 * 1024 * 8 - 5000
    assert resident_bytes() - before < 64 * 2**20


def test_more_bytes_than_there_is_space_for_are_refused() -> None:
    decoder = Decoder()
    with pytest.raises(ValueError, match="do not fit"):
        decoder.filled(len(decoder.space()) + 1)


def test_space_after_an_error_raises_it() -> None:
    decoder = Decoder()
    decoder.receive(encode(Close()) + struct.pack("<H", 999))
    with pytest.raises(ProtocolError, match="999"):
        decoder.space()
    with pytest.raises(ProtocolError, match="999"):
        decoder.filled(0)


@pytest.mark.parametrize("message", ONE_OF_EACH, ids=lambda m: type(m).__name__)
def test_parts_are_the_bytes_of_the_message(message: Message) -> None:
    parts = encode_parts(message)
    assert b"".join(parts) == encode(message)
    assert all(memoryview(part).itemsize == 1 and len(part) > 0 for part in parts)


def test_parts_view_the_samples() -> None:
    message = an_acquisition()
    _, trajectory, data = encode_parts(message)
    assert np.shares_memory(np.frombuffer(data, "u1"), message.data)
    assert np.shares_memory(np.frombuffer(trajectory, "u1"), message.trajectory)


def test_parts_of_arrays_that_are_not_contiguous_are_in_the_order_of_the_wire() -> None:
    message = an_acquisition()
    other = Acquisition(message.header, np.asfortranarray(message.data), np.asfortranarray(message.trajectory))
    assert b"".join(encode_parts(other)) == encode(message)


# ---- round trips over everything -------------------------------------------------------------------------------------

QUICK = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@QUICK
@given(st.lists(messages, max_size=6), st.lists(st.integers(1, 500), min_size=1))
def test_space_and_filled_read_what_receive_reads(sent: list[Message], sizes: list[int]) -> None:
    stream = b"".join(map(encode, sent))
    assert_same(poured(Decoder(), stream, sizes), sent)


@QUICK
@given(damaged_streams(), st.lists(st.integers(1, 90), min_size=1))
def test_what_came_before_the_damage_is_read_for_any_chunk_sizes(
    damaged: tuple[list[Message], bytes, int], sizes: list[int]
) -> None:
    sent, stream, n_intact = damaged
    decoder = Decoder(Limits(image_bytes=2**16, acquisition_bytes=2**16))
    got: list[Message] = []
    with suppress(ProtocolError):
        poured(decoder, stream, sizes, got)
    assert_same(got[:n_intact], sent[:n_intact])
    assert decoder.error is None or "byte offset" in decoder.error.where


@QUICK
@given(st.lists(messages, max_size=6), st.lists(st.integers(1, 500), min_size=1))
def test_round_trip_keeps_every_message_for_any_chunk_sizes(sent: list[Message], sizes: list[int]) -> None:
    stream = b"".join(map(encode, sent))
    decoder, got, at, n = Decoder(), [], 0, 0
    while at < len(stream):
        size = sizes[n % len(sizes)]
        got += decoder.receive(stream[at : at + size])
        at, n = at + size, n + 1
    decoder.end()
    assert_same(got, sent)
    for one, other in zip(got, sent, strict=True):
        if isinstance(one, Image):
            assert isinstance(other, Image)
            assert one.meta == other.meta


def read_or_refuse(decoder: Decoder, stream: bytes | bytearray) -> None:
    """Anything but messages or a ProtocolError with a place fails the test."""
    with suppress(ProtocolError):
        decoder.receive(stream)
        decoder.end()
    assert decoder.error is None or "byte offset" in decoder.error.where


@QUICK
@given(st.binary(max_size=600), st.lists(st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 1008, 1022, 1026]), max_size=3))
def test_random_bytes_give_messages_or_a_protocol_error(noise: bytes, ids: list[int]) -> None:
    stream = b"".join(struct.pack("<H", i) + noise for i in ids) or noise
    read_or_refuse(Decoder(Limits(image_bytes=2**16, acquisition_bytes=2**16)), stream)


@QUICK
@given(st.data())
def test_a_flipped_byte_gives_messages_or_a_protocol_error(data: st.DataObject) -> None:
    stream = bytearray(b"".join(encode(m) for m in ONE_OF_EACH if not isinstance(m, ConfigFile)))
    for _ in range(3):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    read_or_refuse(Decoder(), stream)


# ---- NULs and empty texts --------------------------------------------------------------------------------------------


def test_configuration_name_is_cut_at_the_first_nul_whatever_follows() -> None:
    assert decoded(b"\x01\x00" + b"a.xml\0" + b"\xff" * 1018) == [ConfigFile("a.xml")]


def test_configuration_name_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(ProtocolError, match="configuration name is not UTF-8"):
        decoded(b"\x01\x00" + b"\xff" * 1024)


def test_configuration_name_of_1024_bytes_without_nul_is_read() -> None:
    assert decoded(b"\x01\x00" + b"x" * 1024) == [ConfigFile("x" * 1024)]


@pytest.mark.parametrize("nuls", [0, 1, 5])
def test_trailing_nuls_are_dropped(nuls: int) -> None:
    body = b"abc" + bytes(nuls)
    sized = struct.pack("<I", len(body)) + body
    assert decoded(b"\x02\x00" + sized + b"\x03\x00" + sized + b"\x05\x00" + sized) == [
        ConfigText("abc"),
        Header(b"abc"),
        Text("abc"),
    ]


def test_text_that_is_not_utf8_is_still_shown() -> None:
    assert decoded(b"\x05\x00\x03\x00\x00\x005\xb5s") == [Text("5\ufffds")]


@pytest.mark.parametrize("message", [Text(""), Text("\0"), ConfigText(""), Header(b"\0\0")])
def test_empty_text_is_never_sent(message: Message) -> None:
    with pytest.raises(ProtocolError, match="empty"):
        encode(message)


@pytest.mark.parametrize("name", ["x" * 1024, "a\0b"])
def test_configuration_name_that_would_be_cut_is_never_sent(name: str) -> None:
    with pytest.raises(ProtocolError, match="1023 bytes"):
        encode(ConfigFile(name))


# ---- what is refused -------------------------------------------------------------------------------------------------


def refused(data: bytes, limits: Limits | None = None) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        Decoder(limits).receive(data)
    return caught.value


@pytest.mark.parametrize("message_id", [*range(1001, 1008), *range(1009, 1018), 1020, 1021])
def test_deprecated_id_is_named(message_id: int) -> None:
    error = refused(struct.pack("<H", message_id))
    assert f"message id {message_id} is deprecated" in error.what


@pytest.mark.parametrize(("message_id", "name"), [(1018, "DICOM_WITHNAME"), (1023, "RECONDATA"), (1030, "NDARRAY")])
def test_unsupported_id_is_named(message_id: int, name: str) -> None:
    assert name in refused(struct.pack("<H", message_id)).what


@pytest.mark.parametrize("message_id", [0, 9, 999, 1025, 65535])
def test_unknown_id_is_refused(message_id: int) -> None:
    assert f"message id {message_id} is unknown" in refused(struct.pack("<H", message_id)).what


@pytest.mark.parametrize("bit", [52, 53, 54, 55])
def test_compressed_acquisition_is_refused_from_its_header_alone(bit: int) -> None:
    error = refused(encode(an_acquisition(flags=1 << bit))[:342])
    assert "compressed" in error.what
    assert "CompressionPrecision" in error.hint


def test_other_flags_are_not_taken_for_compression() -> None:
    flags = (2**64 - 1) & ~(0b1111 << 52)
    (got,) = decoded(encode(an_acquisition(flags=flags)))
    assert isinstance(got, Acquisition)
    assert got.has(AcquisitionFlag.LAST_IN_MEASUREMENT)


def patched(message: Message, offset: int, value: bytes) -> bytes:
    """The message with `value` put at `offset` (counted after the id), cut after its fixed part."""
    data = bytearray(encode(message))
    data[2 + offset : 2 + offset + len(value)] = value
    return bytes(data)


@pytest.mark.parametrize("offset", [34, 38], ids=["samples", "channels"])
def test_acquisition_without_samples_or_channels_is_refused(offset: int) -> None:
    assert "must be at least 1" in refused(patched(an_acquisition(), offset, b"\0\0")[:342]).what


def test_acquisition_with_four_trajectory_dimensions_is_refused() -> None:
    assert "expected 0 to 3" in refused(patched(an_acquisition(), 176, b"\x04\0")[:342]).what


def test_acquisition_of_34_gigabytes_is_refused_from_its_header() -> None:
    huge = patched(an_acquisition(), 34, b"\xff\xff\xff\xff\xff\xff")
    assert "more than the limit" in refused(huge[:342]).what


@pytest.mark.parametrize(
    ("offset", "value", "what"),
    [
        (2, b"\x00\x00", "data type 0"),
        (2, b"\x09\x00", "data type 9"),
        (16, b"\x00\x00", "at least 1"),
        (34, b"\x00\x00", "at least 1"),
        (16, b"\xff" * 6, "more than the limit"),
        (198, struct.pack("<Q", 2**63), "meta of the image takes 9223372036854775808 bytes"),
    ],
)
def test_impossible_image_is_refused_from_its_header(offset: int, value: bytes, what: str) -> None:
    assert what in refused(patched(an_image(), offset, value)[:208]).what


@pytest.mark.parametrize("message_id", [2, 3, 5])
@pytest.mark.parametrize("n_bytes", [0, 2**32 - 1])
def test_text_of_impossible_length_is_refused_from_its_length(message_id: int, n_bytes: int) -> None:
    refused(struct.pack("<HI", message_id, n_bytes))


@pytest.mark.parametrize("prefix", [struct.pack("<HQQ", 6, 0, 1), struct.pack("<HQ", 7, 1), struct.pack("<H", 8)])
def test_long_text_of_impossible_length_is_refused_from_its_length(prefix: bytes) -> None:
    assert "more than the limit" in refused(prefix + struct.pack("<Q", 2**63)).what


def test_waveform_beyond_the_limit_is_refused() -> None:
    assert "waveform takes 60 bytes" in refused(waveform_bytes()[:42], Limits(waveform_bytes=59)).what


def test_message_at_the_limit_is_taken() -> None:
    assert decoded(encode(Text("12345")), Limits(text_bytes=5)) == [Text("12345")]
    assert "more than the limit of 4" in refused(encode(Text("12345")), Limits(text_bytes=4)).what


@pytest.mark.parametrize(
    ("meta", "what"),
    [
        (b"<ismrmrdMeta>", "not XML"),
        (b"<other/>", "not ismrmrdMeta"),
        (b"<ismrmrdMeta><meta><value>1</value></meta></ismrmrdMeta>", "no name"),
        (b"<!DOCTYPE a [<!ENTITY b 'c'>]><ismrmrdMeta/>", "DTD"),
    ],
)
def test_bad_image_meta_is_refused(meta: bytes, what: str) -> None:
    plain = encode(Image(an_image().header, {}, an_image().data))
    assert what in refused(plain[:200] + struct.pack("<Q", len(meta)) + meta + plain[208:]).what


def test_error_names_message_number_id_and_byte_offset() -> None:
    decoder = Decoder()
    decoder.receive(encode(ConfigFile("a")))
    with pytest.raises(ProtocolError) as caught:
        decoder.receive(patched(an_acquisition(), 34, b"\0\0"))
    assert caught.value.where == "message 2 (ACQUISITION, id 1008), byte offset 1026"


def test_good_messages_before_a_bad_one_are_handed_over_first() -> None:
    decoder = Decoder()
    stream = encode(Text("a")) + encode(an_acquisition()) + struct.pack("<H", 999) + encode(Text("lost"))
    assert_same(decoder.receive(stream), [Text("a"), an_acquisition()])
    assert decoder.error is not None
    for _ in range(2):
        with pytest.raises(ProtocolError, match="999"):
            decoder.receive(encode(Close()))
    with pytest.raises(ProtocolError, match="999"):
        decoder.end()


def test_acquisition_that_contradicts_its_header_is_never_sent() -> None:
    broken = an_acquisition()
    broken.data = broken.data[:, :-1]
    with pytest.raises(ProtocolError, match=r"header promises \(coils, samples\) = \(3, 7\)"):
        encode(broken)


@pytest.mark.parametrize("dtype", ["f8", "i2", "c16", "u1"])
def test_image_type_that_peers_misread_is_never_sent(dtype: str) -> None:
    with pytest.raises(ProtocolError, match="uint16, float32 or complex64"):
        encode(an_image(dtype))


@pytest.mark.parametrize("shape", [(7, 11), (1, 1, 0, 11), (1, 1, 1, 65536)])
def test_image_of_impossible_shape_is_never_sent(shape: tuple[int, ...]) -> None:
    with pytest.raises(ProtocolError, match="shape"):
        encode(Image(an_image().header, {}, np.zeros(shape, "f4")))


@pytest.mark.parametrize(("data_type", "dtype"), [(2, "<i2"), (3, "<u4"), (4, "<i4"), (6, "<f8"), (8, "<c16")])
def test_image_types_that_kstream_never_sends_are_still_read(data_type: int, dtype: str) -> None:
    pixels = np.arange(2 * 5 * 7 * 11).reshape(2, 5, 7, 11).astype(dtype)
    prefix = patched(Image(an_image().header, {}, an_image().data), 2, struct.pack("<H", data_type))[:208]
    (got,) = decoded(prefix + pixels.tobytes())
    assert isinstance(got, Image)
    assert got.data.dtype == dtype
    np.testing.assert_array_equal(got.data, pixels)


def test_a_message_in_small_pieces_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that starts over with every piece of a long message costs quadratic time."""
    plain, measured = FORMATS[MessageId.ACQUISITION], []

    def measure(prefix: memoryview, limits: Limits) -> int:
        measured.append(len(prefix))
        return plain.measure(prefix, limits)

    monkeypatch.setitem(FORMATS, MessageId.ACQUISITION, Format(plain.prefix, measure, plain.build))
    data = encode(new_acquisition(np.zeros((8, 4096), "c8")))
    decoder = Decoder()
    got = [m for at in range(0, len(data), 100) for m in decoder.receive(data[at : at + 100])]
    assert len(got) == 1
    assert measured == [340]


# ---- the ismrmrd package as a second opinion -------------------------------------------------------------------------

needs_serializer = pytest.mark.skipif(
    not hasattr(ismrmrd, "ProtocolSerializer"), reason="ismrmrd before 1.15 has no protocol serializer"
)


@needs_serializer
def test_ismrmrd_reads_what_we_write() -> None:
    sent: list[Message] = [
        ConfigFile("a.xml"),
        ConfigText("<b/>"),
        Text("log"),
        an_acquisition(),
        an_image("c8"),
        a_waveform(),
        Close(),
    ]
    stream = io.BytesIO(b"".join(map(encode, sent)))
    name, text, log, acquisition, image, waveform = ismrmrd.ProtocolDeserializer(stream).deserialize()
    assert (name, text, log) == ("a.xml", "<b/>", "log")
    assert (type(name), type(text)) == (ismrmrd.serialization.ConfigFile, ismrmrd.serialization.ConfigText)
    np.testing.assert_array_equal(acquisition.data, an_acquisition().data)
    np.testing.assert_array_equal(acquisition.traj, an_acquisition().trajectory)
    assert (acquisition.idx.kspace_encode_step_1, acquisition.idx.repetition) == (5, 2)
    np.testing.assert_array_equal(image.data, an_image("c8").data)
    assert dict(image.meta) == {"Frame": "3", "Dir": ["1.0", "0.0"]}
    assert (image.image_series_index, image.image_index) == (4, 9)
    np.testing.assert_array_equal(waveform.data, a_waveform().data)
    assert waveform.sample_time_us == 2500.0


@needs_serializer
def test_we_read_what_ismrmrd_writes() -> None:
    rng = np.random.default_rng(2)
    data = rng.standard_normal((3, 7, 2)).astype("f4").view("c8")[..., 0]
    acquisition = ismrmrd.Acquisition.from_array(data, rng.standard_normal((7, 2)).astype("f4"), scan_counter=77)
    acquisition.idx.slice = 6
    image = ismrmrd.Image.from_array(np.arange(385, dtype="f4").reshape(5, 7, 11), transpose=False)
    image.meta = ismrmrd.Meta({"Name": "\N{MICRO SIGN}", "Two": ["1", "2"]})
    stream = io.BytesIO()
    serializer = ismrmrd.ProtocolSerializer(stream)
    for item in (
        ismrmrd.serialization.ConfigFile("a.xml"),
        ismrmrd.serialization.ConfigText("b"),
        "log",
        acquisition,
        image,
    ):
        serializer.serialize(item)
    serializer.close()
    name, text, log, got, picture, close = decoded(stream.getvalue())
    assert (name, text, log, close) == (ConfigFile("a.xml"), ConfigText("b"), Text("log"), Close())
    assert isinstance(got, Acquisition)
    np.testing.assert_array_equal(got.data, data)
    np.testing.assert_array_equal(got.trajectory, acquisition.traj)
    assert (got.counter("slice"), int(got.header["scan_counter"])) == (6, 77)
    assert isinstance(picture, Image)
    np.testing.assert_array_equal(picture.data, image.data)
    assert picture.meta == {"Name": "\N{MICRO SIGN}", "Two": ["1", "2"]}
