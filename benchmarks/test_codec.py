"""Encoding and decoding acquisitions, beside ismrmrd's own serializer: `make bench`."""

import io

import ismrmrd
import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from kstream.mrd.codec import Decoder, encode, encode_parts
from kstream.mrd.messages import new_acquisition
from kstream.types import Acquisition

N = 256
COILS, SAMPLES = 16, 640


@pytest.fixture(scope="module")
def stream() -> bytes:
    rng = np.random.default_rng(0)
    data = (rng.standard_normal((COILS, SAMPLES)) + 1j * rng.standard_normal((COILS, SAMPLES))).astype(np.complex64)
    return encode(new_acquisition(data, rng.standard_normal((SAMPLES, 2)).astype(np.float32))) * N


@pytest.mark.benchmark(group="decode 256 acquisitions of 16 x 640")
def test_decode(benchmark: BenchmarkFixture, stream: bytes) -> None:
    def decode() -> int:
        decoder = Decoder()
        return sum(len(decoder.receive(stream[i : i + 2**16])) for i in range(0, len(stream), 2**16))

    assert benchmark(decode) == N


@pytest.mark.benchmark(group="decode 256 acquisitions of 16 x 640")
def test_decode_where_the_socket_writes(benchmark: BenchmarkFixture, stream: bytes) -> None:
    """As a socket does: one copy, from the system's buffer to where the samples stay."""
    view = memoryview(stream)

    def decode() -> int:
        decoder, at, n = Decoder(), 0, 0
        while at < len(view):
            space = decoder.space()
            piece = view[at : at + len(space)]
            space[: len(piece)] = piece
            at, n = at + len(piece), n + len(decoder.filled(len(piece)))
        return n

    assert benchmark(decode) == N


@pytest.mark.benchmark(group="decode 256 acquisitions of 16 x 640")
def test_decode_with_ismrmrd(benchmark: BenchmarkFixture, stream: bytes) -> None:
    def decode() -> int:
        reader = ismrmrd.ProtocolDeserializer(io.BytesIO(stream + (4).to_bytes(2, "little")))
        return sum(1 for _ in reader.deserialize())

    assert benchmark(decode) == N


@pytest.fixture(scope="module")
def acquisition(stream: bytes) -> Acquisition:
    (got,) = Decoder().receive(stream[: len(stream) // N])
    assert isinstance(got, Acquisition)
    return got


@pytest.mark.benchmark(group="encode an acquisition of 16 x 640")
def test_encode(benchmark: BenchmarkFixture, acquisition: Acquisition) -> None:
    assert len(benchmark(encode, acquisition)) == 87_382


@pytest.mark.benchmark(group="encode an acquisition of 16 x 640")
def test_encode_without_copies(benchmark: BenchmarkFixture, acquisition: Acquisition) -> None:
    assert sum(map(len, benchmark(encode_parts, acquisition))) == 87_382


@pytest.mark.benchmark(group="encode an acquisition of 16 x 640")
def test_encode_with_ismrmrd(benchmark: BenchmarkFixture, acquisition: Acquisition) -> None:
    theirs = ismrmrd.Acquisition.from_array(acquisition.data, acquisition.trajectory)

    def encode_theirs() -> int:
        stream = io.BytesIO()
        ismrmrd.ProtocolSerializer(stream).serialize(theirs)
        return stream.tell()

    assert benchmark(encode_theirs) == 87_382
