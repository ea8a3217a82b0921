"""What other programs sent, decoded by our codec and replayed into a real server; and their answers to our client."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kstream.config import resolve
from kstream.errors import ProtocolError
from kstream.mrd.codec import Decoder, encode
from kstream.mrd.header import parse_header
from kstream.mrd.messages import ConfigFile, Header, Image, Message, Response, Text, Waveform
from kstream.mrd.recording import write_recording
from kstream.mrd.session import Session
from kstream.pipeline import build_pipeline
from kstream.serve.replay import replay
from kstream.stream.runners import run_inline
from kstream.types import Acquisition
from tests.interop.captures import (
    PROBES,
    SCANS,
    Answers,
    Player,
    client_bytes,
    count,
    decode,
    server_bytes,
)

EVERY_CLIENT = {name: kinds for name, (kinds, _) in SCANS.items()} | PROBES


@pytest.mark.parametrize("name", EVERY_CLIENT)
def test_a_clients_stream_is_whole_and_in_order(name: str) -> None:
    messages = decode(client_bytes(name))
    assert count(messages) == EVERY_CLIENT[name]
    rules = Session("server")
    for message in messages:
        rules.check(message)
    assert rules.is_closed


@pytest.mark.parametrize("name", ["gadgetron_waveforms", "hdf5_to_stream_stars", "python_client_parameters"])
def test_one_byte_at_a_time_gives_the_same_messages(name: str) -> None:
    decoder, stream = Decoder(), client_bytes(name)
    messages: list[Message] = []
    for i in range(len(stream)):
        messages += decoder.receive(stream[i : i + 1])
    decoder.end()
    assert [encode(m) for m in messages] == [encode(m) for m in decode(stream)]


@pytest.mark.parametrize("name", [name for name in EVERY_CLIENT if name.startswith(("gadgetron", "ismrmrd"))])
def test_we_write_what_clients_without_padding_write(name: str) -> None:
    assert b"".join(encode(m) for m in decode(client_bytes(name))) == client_bytes(name)


@pytest.mark.parametrize("name", ["hdf5_to_stream_cartesian", "python_client_stars", "python_client_parameters"])
def test_padding_of_other_writers_is_cut_off(name: str) -> None:
    messages = decode(client_bytes(name))
    ours = b"".join(encode(m) for m in messages)
    assert ours != client_bytes(name)
    config, header = messages[0], messages[1]
    assert isinstance(config, ConfigFile)
    assert config.name in ("recon-cartesian", "breast-dce-recon")
    assert isinstance(header, Header)
    assert header.xml.rstrip().endswith(b">")
    assert all(not message.text.endswith("\0") for message in messages if isinstance(message, Text))


def test_the_name_of_a_configuration_may_be_followed_by_uninitialised_bytes() -> None:
    assert any(client_bytes("hdf5_to_stream_cartesian")[2:1026].partition(b"\0")[2])


@pytest.mark.parametrize("name", SCANS)
def test_a_clients_scan_comes_back_as_images(port: int, name: str) -> None:
    answers = Answers(port, client_bytes(name))
    assert answers.ended_well(), answers.errors
    assert len(answers.images) == SCANS[name][1]
    expected = [image.data.tobytes() for image in inline_images(decode(client_bytes(name)))]
    if name != "python_client_parameters":  # which asks for another pixel type: test_fire.py
        assert [image.data.tobytes() for image in answers.images] == expected


def inline_images(messages: list[Message]) -> list[Image]:
    """The pipeline without a server."""
    header = next(m for m in messages if isinstance(m, Header))
    preset = "breast-dce-recon" if b"goldenangle" in header.xml else "recon-cartesian"
    acquisitions = [m for m in messages if isinstance(m, Acquisition)]
    items = run_inline(build_pipeline(parse_header(header.xml), resolve(preset).config).pipeline, acquisitions)
    return [item for item in items if isinstance(item, Image)]


def test_every_client_gets_the_same_images_of_the_same_scan(port: int) -> None:
    for scan in ("cartesian", "stars"):
        names = [name for name in SCANS if name.endswith(scan)]
        assert len(names) >= 3
        results = [Answers(port, client_bytes(name)).pixels() for name in names]
        assert all(result == results[0] for result in results)


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_succeeds(port: int, name: str) -> None:
    answers = Answers(port, client_bytes(name))
    assert answers.ended_well(), answers.errors
    assert not answers.images
    responses = [m for m in answers.messages if isinstance(m, Response)]
    assert len(responses) == PROBES[name].get("Query", 0)
    assert all("Unknown" not in response.text for response in responses)


def test_compression_is_refused_by_name(port: int) -> None:
    answers = Answers(port, client_bytes("gadgetron_compressed"))
    (error,) = answers.errors
    assert "compressed" in error
    assert "CompressionPrecision" in error
    with pytest.raises(ProtocolError, match="compressed"):
        Decoder().receive(client_bytes("gadgetron_compressed")[1026 + 1281 :])


def test_waveforms_of_the_cpp_client_arrive() -> None:
    waves = [m for m in decode(client_bytes("gadgetron_waveforms")) if isinstance(m, Waveform)]
    assert [int(w.header["time_stamp"]) for w in waves] == [1001, 1009, 1017]
    assert [int(w.header["waveform_id"]) for w in waves] == [0, 1, 2]
    np.testing.assert_array_equal(waves[2].data, np.arange(10).reshape(2, 5) + 2)


def test_objects_of_ismrmrd_1_14_are_understood() -> None:
    messages = decode(client_bytes("ismrmrd_114_objects"))
    assert count(messages) == {"Acquisition": 2, "Waveform": 1, "Image": 7, "Close": 1}
    noise, line = messages[0], messages[1]
    assert isinstance(noise, Acquisition)
    assert isinstance(line, Acquisition)
    assert (noise.data.shape, noise.trajectory.shape) == ((2, 7), (7, 2))
    assert (noise.flags, line.flags) == (1 << 18, 0)
    assert (line.counter("kspace_encode_step_1"), int(line.header["user_int"][3])) == (1, -5)
    images = [m for m in messages if isinstance(m, Image)]
    assert [i.data.dtype.str for i in images] == ["<u2", "<i2", "<u4", "<f4", "<f8", "<c8", "<c16"]
    for image in images:
        np.testing.assert_array_equal(image.data[0, 0], np.arange(15).reshape(3, 5))
        assert image.meta == {"DataRole": "Image", "n": ["1", "2"]}


# ---- their server, our client ----------------------------------------------------------------------------------------


def test_images_of_the_python_server_are_what_its_source_computes() -> None:
    """``simplefft``: root sum of squares of the inverse FFT, scaled to 4095, readout oversampling cut off."""
    lines = [m.data for m in decode(client_bytes("gadgetron_cartesian")) if isinstance(m, Acquisition)]
    kspace = np.fft.fftshift(np.stack(lines, axis=-1), axes=(1, 2))
    magnitude = np.sqrt((np.abs(np.fft.ifftshift(np.fft.ifft2(kspace, axes=(1, 2)), axes=(1, 2))) ** 2).sum(axis=0))
    expected = np.around(magnitude * 4095 / magnitude.max())[4:12].T
    (image,) = [m for m in decode(server_bytes("python_server_simplefft")) if isinstance(m, Image)]
    assert image.data.dtype == np.int16
    assert np.abs(image.data[0, 0] - expected).max() <= 1
    assert int(image.header["image_series_index"]) == 0


@pytest.mark.parametrize("name", ["python_server_simplefft", "python_server_invertcontrast"])
def test_our_client_takes_the_python_servers_answer(tmp_path: Path, name: str) -> None:
    messages = decode(client_bytes("gadgetron_cartesian"))
    header = next(m for m in messages if isinstance(m, Header))
    acquisitions = [m for m in messages if isinstance(m, Acquisition)]
    write_recording(tmp_path / "scan.h5", header.xml, acquisitions)
    with Player(server_bytes(name)) as player:
        result = replay(tmp_path / "scan.h5", port=player.port, preset="simplefft", output=tmp_path / "images.h5")
    assert result.is_closed
    assert not result.errors
    assert [image.data.shape for image in result.images[0]] == [(1, 1, 12, 8)]
    assert count(player.messages) == {"ConfigFile": 1, "Header": 1, "Text": 1, "Acquisition": 12, "Close": 1}
    rules = Session("client")
    for message in decode(server_bytes(name)):
        rules.check(message)
    assert rules.is_closed
