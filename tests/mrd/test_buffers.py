"""Gadgetron's composite messages: bytes by its sources, the gadgetron package where it is right, and limits."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kstream.errors import ProtocolError
from kstream.mrd import buffers
from kstream.mrd.buffers import GADGET_FORMATS, STATS, encode_bucket, encode_image_array, encode_recon_data
from kstream.mrd.codec import Decoder, Limits
from kstream.mrd.messages import Close, Opaque, Waveform
from kstream.types import Acquisition
from tests.gadgets import specification as spec

SHAPES = [(3, 7, 2), (2, 5, 0), (1, 11, 3)]
"""(coils, samples, trajectory dimensions) of acquisitions."""

E0, E1, E2, CHA, N, S, LOC = 7, 5, 3, 2, 1, 2, 3
X, Y, Z = 11, 7, 5


def floats(n: int, start: float = 0.5) -> bytes:
    return struct.pack(f"<{n}f", *(start + i for i in range(n)))


def readout(number: int, coils: int, samples: int, dims: int, flags: int = 0) -> spec.Readout:
    head = spec.acquisition_header(samples, coils, dims, flags=flags, scan_counter=number, counters=(number, 1))
    return spec.Readout(head, floats(samples * dims), floats(2 * coils * samples, 100.0 * number))


READOUTS = [readout(i + 1, *shape) for i, shape in enumerate(SHAPES)]
CALIBRATION = [readout(9, 3, 5, 2, flags=1 << 19)]
SETS = [(1, 2, 3), (1,), (0,), (), (4,), (0, 1), (2,), (3,), (5, 65535)]
BUCKET = spec.bucket(
    READOUTS, CALIBRATION, [(2, 3), (1, 5)], [spec.stats(*SETS), spec.stats(*[()] * 9)], [spec.stats(*[(7,)] * 9)]
)


def recon_buffer(has_trajectory: bool, has_density: bool) -> bytes:
    n_places = E1 * E2 * N * S * LOC
    heads = b"".join(spec.acquisition_header(E0 * (i % 2), CHA, 2, scan_counter=i) for i in range(n_places))
    data = spec.array((E0, E1, E2, CHA, N, S, LOC), floats(2 * E0 * n_places * CHA))
    trajectory, density = b"\0", b"\0"
    if has_trajectory:
        trajectory = b"\1" + spec.array((2, E0, E1, E2, N, S, LOC), floats(2 * E0 * n_places))
    if has_density:
        density = b"\1" + spec.array((E0, E1, E2, N, S, LOC), floats(E0 * n_places, 0.25))
    headers = spec.array((E1, E2, N, S, LOC), heads)
    return data + trajectory + density + headers + spec.sampling((E0, E1, E2), (0, 3, 6, 0, 2, 4, 0, 1, 2))


RECON_DATA = (
    struct.pack("<HQ", 1023, 2)
    + recon_buffer(True, False)
    + (b"\1" + recon_buffer(False, False))
    + recon_buffer(True, True)
    + b"\0"
)


def image_array(meta: list[bytes], waveforms: list[tuple[int, int]] | None, has_headers: bool) -> bytes:
    n_images = N * S * LOC
    out = struct.pack("<H", 1024)
    out += spec.array((X, Y, Z, 1, N, S, LOC), floats(2 * X * Y * Z * n_images))
    heads = b"".join(spec.image_header((X, Y, Z), repetition=i) for i in range(n_images))
    out += spec.array((N, S, LOC), heads)
    out += struct.pack("<Q", len(meta)) + b"".join(struct.pack("<Q", len(text)) + text for text in meta)
    if waveforms is None:
        out += b"\0"
    else:
        parts = b"".join(spec.waveform_header(*shape) + spec.waveform_samples(*shape) for shape in waveforms)
        out += b"\1" + struct.pack("<Q", len(waveforms)) + parts
    n_lines = Y * Z * n_images
    acquired = b"".join(spec.acquisition_header(X, 1, scan_counter=i) for i in range(n_lines))
    return out + (b"\1" + spec.array((Y, Z, N, S, LOC), acquired) if has_headers else b"\0")


META = [
    f"<ismrmrdMeta><meta><name>n</name><value>{i}</value></meta></ismrmrdMeta>".encode() for i in range(N * S * LOC)
]
IMAGE_ARRAY = image_array(META, [(2, 3), (1, 4)], True)
WHOLE = {"bucket": BUCKET, "recon data": RECON_DATA, "image array": IMAGE_ARRAY}


def payload(message: bytes) -> memoryview:
    return memoryview(bytearray(message[2:]))


def decoded(stream: bytes, step: int, limits: Limits | None = None) -> list[Any]:
    decoder = Decoder(limits, GADGET_FORMATS)
    out: list[Any] = []
    for start in range(0, len(stream), step):
        out += decoder.receive(stream[start : start + step])
    decoder.end()
    return out


def test_bucket_is_read_as_the_specification_lays_it_out() -> None:
    bucket = buffers.read_bucket(payload(BUCKET))
    assert [a.data.shape + a.trajectory.shape[1:] for a in bucket.data] == SHAPES
    for found, sent in zip([*bucket.data, *bucket.reference], [*READOUTS, *CALIBRATION], strict=True):
        assert found.header.tobytes() == sent.header
        assert found.trajectory.tobytes() == sent.trajectory
        assert found.data.tobytes() == sent.samples
    assert [tuple(bucket.data_stats[0][name]) for name in STATS] == SETS
    assert [len(bucket.data_stats), len(bucket.reference_stats)] == [2, 1]
    assert bucket.reference_stats[0]["average"] == (7,)
    assert [w.data.shape for w in bucket.waveforms] == [(2, 3), (1, 5)]
    assert bucket.waveforms[0].data.tolist() == [[1000, 1001, 1002], [1003, 1004, 1005]]
    assert int(bucket.waveforms[1].header["waveform_id"]) == 1


def test_recon_data_is_read_with_the_first_index_of_the_wire_last() -> None:
    recon = buffers.read_recon_data(payload(RECON_DATA))
    first = recon.bits[0].buffer
    assert first.data.shape == (LOC, S, N, CHA, E2, E1, E0)
    assert first.data.ravel()[1] == 2.5 + 3.5j
    assert first.data[0, 0, 0, 0, 0, 1, 0] == 0.5 + 2 * E0 + 1j * (1.5 + 2 * E0)
    assert first.trajectory is not None
    assert first.trajectory.shape == (LOC, S, N, E2, E1, E0, 2)
    assert first.headers.shape == (LOC, S, N, E2, E1)
    assert int(first.headers[0, 0, 0, 1, 0]["scan_counter"]) == E1
    assert first.sampling["encoded_matrix"].tolist() == [E0, E1, E2]
    assert first.sampling["limits"].tolist() == [[0, 3, 6], [0, 2, 4], [0, 1, 2]]
    assert first.density is None
    assert recon.bits[0].reference is not None
    assert recon.bits[0].reference.trajectory is None
    density = recon.bits[1].buffer.density
    assert density is not None
    assert density.ravel()[-1] == 0.25 + E0 * E1 * E2 * N * S * LOC - 1
    assert recon.bits[1].reference is None


def test_encoding_space_without_readouts_is_empty() -> None:
    """``rbit_.resize(espace + 1)`` leaves buffers whose arrays have no dimensions at all."""
    nothing = struct.pack("<Q", 0)
    empty = nothing + b"\0\0" + nothing + spec.sampling((0, 0, 0)) + b"\0"
    recon = buffers.read_recon_data(payload(struct.pack("<HQ", 1023, 2) + empty + recon_buffer(False, False) + b"\0"))
    assert recon.bits[0].buffer.data.size == recon.bits[0].buffer.headers.size == 0
    assert recon.bits[1].buffer.data.shape == (LOC, S, N, CHA, E2, E1, E0)


def test_image_array_is_read_with_attributes_waveforms_and_headers() -> None:
    images = buffers.read_image_array(payload(IMAGE_ARRAY))
    assert images.data.shape == (LOC, S, N, 1, Z, Y, X)
    assert images.data[0, 0, 0, 0, 0, 1, 0] == 0.5 + 2 * X + 1j * (1.5 + 2 * X)
    assert images.headers["repetition"].ravel().tolist() == list(range(N * S * LOC))
    assert images.meta == META
    assert images.waveforms is not None
    assert [w.data.tolist()[0][0] for w in images.waveforms] == [1000, 1000]
    assert images.acquisition_headers is not None
    assert images.acquisition_headers.shape == (LOC, S, N, Z, Y)
    bare = buffers.read_image_array(payload(image_array([], None, False)))
    assert (bare.meta, bare.waveforms, bare.acquisition_headers) == ([], None, None)


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_read_is_written_to_the_byte(name: str) -> None:
    read, encode = {
        "bucket": (buffers.read_bucket, encode_bucket),
        "recon data": (buffers.read_recon_data, encode_recon_data),
        "image array": (buffers.read_image_array, encode_image_array),
    }[name]
    assert b"".join(encode(read(payload(WHOLE[name])))) == WHOLE[name]  # type: ignore[operator]


@pytest.mark.parametrize("step", [1, 7, 1000, 40_000, 1 << 20])
def test_stream_cut_anywhere_gives_the_same_messages(step: int) -> None:
    picture = spec.image((X, Y, 1), floats(2 * X * Y), b"<ismrmrdMeta/>")
    wave = spec.waveform(2, 3)
    sent = [BUCKET, wave, RECON_DATA, READOUTS[0].message, IMAGE_ARRAY, picture, IMAGE_ARRAY, READOUTS[1].message]
    found = decoded(b"".join([*sent, spec.CLOSE]), step)
    assert isinstance(found.pop(), Close)
    for message, raw in zip(found, sent, strict=True):
        if isinstance(message, Opaque):
            assert struct.pack("<H", message.message_id) + bytes(message.payload) == raw
        else:
            assert isinstance(message, Acquisition)
            assert message.data.tobytes() == raw[-message.data.nbytes :]


def test_large_arrays_arrive_whole_however_they_are_cut() -> None:
    side = 150
    pixels = np.arange(2 * side**2 * 7, dtype="<f4").tobytes()
    heads = spec.array((7, 1, 1), spec.image_header((side, side, 1)) * 7)
    texts = struct.pack("<Q", 7) + b"".join(struct.pack("<Q", 100_000) + bytes([65 + i]) * 100_000 for i in range(7))
    raw = struct.pack("<H", 1024) + spec.array((side, side, 1, 1, 7, 1, 1), pixels) + heads + texts + b"\0\0"
    found = decoded(raw + BUCKET + raw, 30_011)
    assert [bytes(message.payload) for message in found] == [raw[2:], BUCKET[2:], raw[2:]]
    assert buffers.read_image_array(found[2].payload).meta[6] == b"G" * 100_000


@pytest.mark.parametrize("name", WHOLE)
def test_message_cut_at_any_byte_is_truncated_and_never_complete(name: str) -> None:
    whole = WHOLE[name]
    for end in [*range(3, 400), *range(400, len(whole), 97), len(whole) - 1]:
        decoder = Decoder(None, GADGET_FORMATS)
        assert decoder.receive(whole[:end]) == []
        with pytest.raises(ProtocolError, match="ended inside"):
            decoder.end()


HUGE = 2**40


def announced(at: int, value: int, message: bytes) -> bytes:
    return message[:at] + struct.pack("<Q", value) + message[at + 8 :]


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (announced(2 + 16, HUGE, BUCKET), "too_large"),
        (announced(2, HUGE, BUCKET), "bad_size"),
        (announced(2 + 64, 2**63, BUCKET), "too_large"),
        (announced(2 + 80, 3, BUCKET), "bad_size"),
        (announced(2, HUGE, RECON_DATA), "too_large"),
        (announced(10, 8, RECON_DATA), "bad_size"),
        (announced(10, HUGE, RECON_DATA), "too_large"),
        (announced(18, HUGE, RECON_DATA), "too_large"),
        (announced(10, 2**32, IMAGE_ARRAY), "too_large"),
    ],
)
def test_impossible_sizes_are_refused_before_anything_is_kept(raw: bytes, code: str) -> None:
    decoder = Decoder(None, GADGET_FORMATS)
    with pytest.raises(ProtocolError) as caught:
        decoder.receive(raw[:400])
    assert caught.value.code == code


def test_buffer_limit_is_the_callers() -> None:
    assert len(decoded(IMAGE_ARRAY, 4096, Limits(buffer_bytes=len(IMAGE_ARRAY) - 2))) == 1
    with pytest.raises(ProtocolError, match="more than the limit"):
        decoded(IMAGE_ARRAY, 4096, Limits(buffer_bytes=len(IMAGE_ARRAY) - 3))


def test_flag_that_is_neither_is_refused() -> None:
    bad = bytearray(image_array([], None, False))
    bad[-1] = 2
    with pytest.raises(ProtocolError, match="a flag has the value 2"):
        decoded(bytes(bad), 4096)


@pytest.mark.parametrize(
    ("raw", "read", "match"),
    [
        (spec.bucket([spec.Readout(READOUTS[0].header, b"", READOUTS[0].samples)]), "read_bucket", "headers promise"),
        (spec.bucket(READOUTS, data_stats=[spec.stats(*SETS[:8])]), "read_bucket", "bytes"),
        (spec.bucket([readout(1, 1, 3, 4)]), "read_bucket", "headers promise"),
        (image_array(META[:2], None, False), "read_image_array", "2 attribute texts"),
    ],
)
def test_contradictions_inside_a_message_are_errors(raw: bytes, read: str, match: str) -> None:
    with pytest.raises(ProtocolError, match=match):
        getattr(buffers, read)(payload(raw))


def test_random_damage_never_gives_anything_but_a_message_or_our_error() -> None:
    rng = np.random.default_rng(3)
    for name, whole in WHOLE.items():
        read: Callable[[memoryview], Any] = getattr(buffers, f"read_{name.replace(' ', '_')}")
        for _ in range(300):
            damaged = bytearray(whole)
            for at in rng.integers(2, len(whole), 3):
                damaged[at] = int(rng.integers(256))
            if rng.random() < 0.5:
                damaged[2 + int(rng.integers(100))] = 255
            try:
                found = Decoder(None, GADGET_FORMATS).receive(bytes(damaged))
                for message in found:
                    read(message.payload)
            except ProtocolError:
                continue


def test_server_does_not_read_composite_messages() -> None:
    for whole in WHOLE.values():
        with pytest.raises(ProtocolError, match="is not supported"):
            Decoder().receive(whole)


# ---- against the gadgetron package, where it is right ----------------------------------------------------------------


# ctypes of the ismrmrd package describe themselves wrongly to numpy, which the gadgetron package does not mind.
ctypes_warns = pytest.mark.filterwarnings("ignore:A builtin ctypes object:RuntimeWarning")


class Wire(io.BytesIO):
    """What the package's readers and writers ask for."""


def test_package_reads_a_bucket_without_waveforms_as_we_do() -> None:
    package = pytest.importorskip("gadgetron.types.acquisition_bucket")
    raw = spec.bucket(READOUTS, CALIBRATION, (), [spec.stats(*SETS)], [spec.stats(*[(7,)] * 9)])
    theirs, ours = package.read_acquisition_bucket(Wire(raw[2:])), buffers.read_bucket(payload(raw))
    for their, our in zip([*theirs.data, *theirs.ref], [*ours.data, *ours.reference], strict=True):
        assert bytes(their.getHead()) == our.header.tobytes()
        assert np.array_equal(their.data, our.data)
        assert np.array_equal(their.traj.ravel(), our.trajectory.ravel())
    for name in STATS:
        assert getattr(theirs.datastats[0], name) == set(ours.data_stats[0][name])


@ctypes_warns
def test_package_reads_and_writes_recon_data_as_we_do() -> None:
    package = pytest.importorskip("gadgetron.types.recon_data")
    theirs, ours = package.read_recon_data(Wire(RECON_DATA[2:])), buffers.read_recon_data(payload(RECON_DATA))
    for their, our in zip(theirs, ours.bits, strict=True):
        assert np.array_equal(their.data.data.T, our.buffer.data)
        assert np.array_equal(their.data.trajectory.T, our.buffer.trajectory)
        assert bytes(their.data.sampling) == our.buffer.sampling.tobytes()
        assert (their.ref is None) == (our.reference is None)
    out = Wire()
    package.write_recon_data(out, theirs)
    assert out.getvalue() == RECON_DATA


@ctypes_warns
def test_package_reads_and_writes_image_arrays_without_waveforms_as_we_do() -> None:
    package = pytest.importorskip("gadgetron.types.image_array")
    raw = image_array(META, None, True)
    theirs, ours = package.read_image_array(Wire(raw[2:])), buffers.read_image_array(payload(raw))
    assert np.array_equal(theirs.data.T, ours.data)
    assert [text.encode() for text in theirs.meta] == ours.meta
    assert bytes(theirs.headers.ravel(order="F")[3]) == ours.headers.ravel()[3].tobytes()
    out = Wire()
    package.write_image_array(out, theirs)
    assert out.getvalue() == b"".join(encode_image_array(ours)) == raw


@ctypes_warns
def test_package_writes_a_stray_id_for_each_waveform_and_we_do_not() -> None:
    """Defect (c) of the package: a test that fails when it is mended, and then says so."""
    package = pytest.importorskip("gadgetron.types.image_array")
    import ismrmrd

    theirs = package.read_image_array(Wire(image_array([], None, False)[2:]))
    theirs.waveform = [ismrmrd.Waveform.from_array(np.arange(6, dtype=np.uint32).reshape(2, 3))]
    out = Wire()
    package.write_image_array(out, theirs)
    ours = buffers.read_image_array(payload(image_array([], None, False)))
    ours.waveforms = [Waveform(np.zeros((), buffers.WAVEFORM_HEADER)[()], np.arange(6, dtype="<u4").reshape(2, 3))]
    assert len(out.getvalue()) == len(b"".join(encode_image_array(ours))) + 2
