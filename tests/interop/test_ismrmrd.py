"""The installed ``ismrmrd`` as a second codec: its serializer as our client, its deserializer as our reader."""

from __future__ import annotations

import io
import socket
import warnings
from typing import Any

import numpy as np
import pytest

from kstream.mrd import messages as ours_messages
from kstream.mrd.codec import Decoder, encode
from kstream.mrd.images import label_images, label_table, magnitude_images
from kstream.mrd.messages import Acquisition, Header
from kstream.mrd.meta import meta_to_xml
from tests.interop.captures import Answers, client_bytes, count, decode
from tests.mrd.test_images import a_kspace, a_label_map, an_image
from tests.scans import StackOfStars

with warnings.catch_warnings():
    import ismrmrd
    from ismrmrd.serialization import ConfigFile, ConfigText, ProtocolDeserializer, ProtocolSerializer

STARS = StackOfStars()


def theirs(acquisition: Acquisition) -> Any:
    out = ismrmrd.Acquisition.from_array(acquisition.data, acquisition.trajectory)
    return ismrmrd.Acquisition(acquisition.header.tobytes(), out.data, out.traj)


class TheirClient:
    """Sends with ``ProtocolSerializer`` and reads with ``ProtocolDeserializer``, over one socket."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=30)

    def run(self, objects: list[Any]) -> list[Any]:
        with self._socket, self._socket.makefile("wb") as out, self._socket.makefile("rb") as back:
            with ProtocolSerializer(out) as serializer:
                for item in objects:
                    serializer.serialize(item)
            return list(ProtocolDeserializer(back).deserialize())


def scan_objects(config: Any) -> list[Any]:
    header = ismrmrd.xsd.CreateFromDocument(STARS.scan().xml)
    acquisitions = STARS.acquisitions(np.random.default_rng(0), noise=2)
    return [config, header, *(theirs(acquisition) for acquisition in acquisitions)]


def our_stream() -> bytes:
    acquisitions = STARS.acquisitions(np.random.default_rng(0), noise=2)
    messages = [
        ours_messages.ConfigFile("breast-dce-recon"),
        Header(STARS.scan().xml),
        *acquisitions,
        ours_messages.Close(),
    ]
    return b"".join(encode(message) for message in messages)


@pytest.mark.parametrize("config", [ConfigFile("breast-dce-recon"), ConfigText("breast-dce-recon")])
def test_their_client_runs_a_whole_scan_and_gets_our_images(port: int, config: Any) -> None:
    got = TheirClient(port).run(scan_objects(config))
    images = [item for item in got if isinstance(item, ismrmrd.Image)]
    ours = Answers(port, our_stream()).images
    assert len(images) == len(ours) == STARS.n_frames * STARS.nz
    for image, own in zip(images, ours, strict=True):
        np.testing.assert_array_equal(image.data, own.data)
        assert bytes(image.getHead()) == own.header.tobytes()
        assert dict(ismrmrd.Meta.deserialize(image.attribute_string).items()) == own.meta
    assert all(isinstance(item, (str, ismrmrd.Image)) for item in got)
    assert not [item for item in got if isinstance(item, str) and item.startswith("ERR")]


def test_their_client_hears_an_error_before_close(port: int) -> None:
    got = TheirClient(port).run(scan_objects(ConfigFile("nothing-like-that"))[:4])
    (error,) = [item for item in got if isinstance(item, str) and item.startswith("ERR")]
    assert "no preset" in error


@pytest.mark.parametrize("kind", ["magnitude", "scaled", "labels"])
def test_they_read_the_attributes_and_pixels_that_we_wrote(tmp_path: Any, kind: str) -> None:
    scan = STARS.scan()
    images = {
        "magnitude": lambda: magnitude_images(a_kspace(), an_image(), scan, 1),
        "scaled": lambda: magnitude_images(a_kspace(), an_image(), scan, 1, rescale_slope=0.01),
        "labels": lambda: label_images(a_label_map(), scan, 2),
    }[kind]()
    path = tmp_path / "images.stream"
    path.write_bytes(b"".join(encode(image) for image in images) + b"\4\0")
    with ProtocolDeserializer(str(path)) as reader:
        got = list(reader.deserialize())
    for image, own in zip(got, images, strict=True):
        np.testing.assert_array_equal(image.data, own.data)
        assert image.data.dtype == own.data.dtype
        head = image.getHead()
        assert head.attribute_string_len == len(image.attribute_string) == len(meta_to_xml(own.meta))
        image.attribute_string.encode("ascii")
        assert tuple(head.position) == tuple(own.header["position"].tolist())
    assert (label_table(images[0]) is not None) == (kind == "labels")


def test_both_serialise_a_scan_to_the_same_bytes_but_for_the_header() -> None:
    sink = io.BytesIO()
    with ProtocolSerializer(sink) as serializer:
        for item in scan_objects(ConfigFile("breast-dce-recon")):
            serializer.serialize(item)
    theirs_, ours = decode(sink.getvalue()), decode(our_stream())
    assert count(theirs_) == count(ours)
    same = [encode(a) == encode(b) for a, b in zip(theirs_, ours, strict=True) if not isinstance(a, Header)]
    assert all(same)


def test_the_installed_version_writes_objects_as_1_14_did() -> None:
    rng = np.random.default_rng(9)
    decoder, parts = Decoder(), []
    for n in range(2):
        data = (rng.standard_normal((2, 7)) + 1j * rng.standard_normal((2, 7))).astype(np.complex64)
        acquisition = ismrmrd.Acquisition.from_array(data, rng.standard_normal((7, 2)).astype(np.float32))
        acquisition.scan_counter, acquisition.idx.kspace_encode_step_1 = n + 1, n
        acquisition.position[:] = (1, 2, 3)
        acquisition.user_int[3] = -5
        if n == 0:
            acquisition.set_flag(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
        parts.append(b"\xf0\x03")
        acquisition.serialize_into(lambda part: parts.append(bytes(part)))
    stream = b"".join(parts)
    assert client_bytes("ismrmrd_114_objects").startswith(stream)
    assert len(decoder.receive(stream)) == 2


def test_a_garbage_padded_configuration_name_breaks_their_reader_and_not_ours() -> None:
    stream = client_bytes("hdf5_to_stream_cartesian")
    with pytest.raises(UnicodeDecodeError):
        next(ProtocolDeserializer(io.BytesIO(stream)).deserialize())
    assert count(decode(stream)) == {"ConfigFile": 1, "Header": 1, "Acquisition": 12, "Close": 1}
