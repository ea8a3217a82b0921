"""Encoding and decoding acquisitions, beside ismrmrd's own serializer: `make bench`."""

import io

import ismrmrd
import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from kstream.mrd.codec import Decoder, encode
from kstream.mrd.messages import new_acquisition

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
def test_decode_with_ismrmrd(benchmark: BenchmarkFixture, stream: bytes) -> None:
    def decode() -> int:
        reader = ismrmrd.ProtocolDeserializer(io.BytesIO(stream + (4).to_bytes(2, "little")))
        return sum(1 for _ in reader.deserialize())

    assert benchmark(decode) == N
