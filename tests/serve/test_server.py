import json
import socket
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kstream.mrd.codec import Decoder, encode
from kstream.mrd.messages import Close, ConfigFile, ConfigText, Header, Image, Query, Text
from kstream.serve.server import SUMMARY, MrdServer, ServerSettings
from kstream.types import Acquisition
from tests.scans import StackOfStars
from tests.serve.conftest import Client, serving

STARS = StackOfStars()
PRESET = "breast-dce-recon"


def scan_messages(seed: int = 0) -> list[object]:
    acquisitions = STARS.acquisitions(np.random.default_rng(seed), noise=5)
    return [ConfigFile(PRESET), Header(STARS.scan().xml), Text('{"summary": true}'), *acquisitions, Close()]


def pixels(images: list[Image]) -> list[bytes]:
    return [image.data.tobytes() for image in images]


def good_session(server: MrdServer, seed: int = 0) -> Client:
    client = Client(server.port)
    client.send(*scan_messages(seed))
    client.receive_all()
    return client


def test_whole_scan_gives_every_frame_and_one_close(server: MrdServer) -> None:
    client = good_session(server)
    assert client.ended_with_one_close()
    assert len(client.images) == STARS.n_frames * STARS.nz
    (summary,) = [json.loads(t[len(SUMMARY) :]) for t in client.texts if t.startswith(SUMMARY)]
    n_noise, n_imaging = 5, STARS.n_frames * STARS.spokes_per_frame * STARS.n_partitions
    assert (summary["received"], summary["frames"], summary["dropped"]) == (n_noise + n_imaging, 3, 0)
    assert summary["images"] == len(client.images)
    assert sum(summary["readout_latency"]["counts"]) == n_noise + n_imaging
    assert len(summary["latencies_ms"]["magnitude"]) == 3


def test_images_of_a_frame_come_before_the_next_frame_is_sent(server: MrdServer) -> None:
    client = Client(server.port)
    messages = scan_messages()
    n_first = 3 + 5 + STARS.spokes_per_frame * STARS.n_partitions
    client.send(*messages[:n_first])
    decoder, images = Decoder(), 0
    while images < STARS.nz:  # blocks (and times out) if the server waited for the end of the scan
        got = decoder.receive(client.socket.recv(1 << 16))
        images += sum(isinstance(m, Image) for m in got)
    client.send(*messages[n_first:])
    while data := client.socket.recv(1 << 16):
        images += sum(isinstance(m, Image) for m in decoder.receive(data))
    client.socket.close()
    assert images == STARS.n_frames * STARS.nz


def test_sessions_at_the_same_time_give_what_they_give_alone(server: MrdServer) -> None:
    alone = [pixels(good_session(server, seed).images) for seed in range(3)]
    together: dict[int, list[bytes]] = {}

    def run(seed: int) -> None:
        together[seed] = pixels(good_session(server, seed).images)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [together[seed] for seed in range(3)] == alone
    assert alone[0] != alone[1]


def test_bytes_cut_anywhere_give_the_same_images(server: MrdServer) -> None:
    whole = pixels(good_session(server).images)
    stream = b"".join(encode(m) for m in scan_messages())
    client = Client(server.port)
    rng = np.random.default_rng(1)
    cuts = np.sort(rng.integers(0, len(stream), 300))
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        client.raw(stream[start:stop])
    client.receive_all()
    assert pixels(client.images) == whole


@pytest.mark.parametrize("text", [PRESET, json.dumps({"preset": PRESET, "parameters": {"coils.method": "rss"}})])
def test_config_text_may_be_a_name_or_json(server: MrdServer, text: str) -> None:
    client = Client(server.port)
    client.send(ConfigText(text), *scan_messages()[1:])
    client.receive_all()
    assert len(client.images) == STARS.n_frames * STARS.nz


def test_json_parameters_after_the_header_change_the_configuration(server: MrdServer) -> None:
    client = Client(server.port)
    config, header, *rest = scan_messages()
    client.send(config, header, Text(json.dumps({"parameters": {"images.magnitude_type": "uint16"}})), *rest)
    client.receive_all()
    assert {image.data.dtype for image in client.images} == {np.dtype("<u2")}
    (summary,) = [json.loads(t[len(SUMMARY) :]) for t in client.texts if t.startswith(SUMMARY)]
    assert ["images.magnitude_type", '"uint16"', "client"] in summary["config"]


def test_a_file_of_settings_stands_below_the_client_and_above_the_preset(
    tmp_path: Path, settings: ServerSettings
) -> None:
    file = tmp_path / "site.toml"
    file.write_text('[images]\nmagnitude_type = "uint16"\nmagnitude_series = 7\n')
    config, header, *rest = scan_messages()
    with serving(replace(settings, config=file)) as server:
        client = Client(server.port)
        client.send(config, header, Text(json.dumps({"parameters": {"images.magnitude_series": 9}})), *rest)
        client.receive_all()
        file.write_text('[images]\nmagnitude_typ = "uint16"\n')  # read anew for each scan
        second = good_session(server)
    assert {(image.data.dtype.str, int(image.header["image_series_index"])) for image in client.images} == {("<u2", 9)}
    assert "images.magnitude_typ" in second.error


def test_configuration_then_close_is_a_probe_and_succeeds(server: MrdServer) -> None:
    client = Client(server.port)
    client.send(ConfigFile(PRESET), Close())
    client.receive_all()
    assert client.ended_with_one_close()
    assert not [t for t in client.texts if t.startswith("ERR")]


def bad_spoke() -> list[object]:
    config, header, *rest = scan_messages()
    short = STARS.acquisition(np.ones((3, 31), np.complex64), np.zeros((31, 0), np.float32), 7, 1)
    return [config, header, *rest[:60], short, *rest[60:]]


BAD: dict[str, tuple[list[object], list[str]]] = {
    "header before configuration": (scan_messages()[1:2], ["HEADER", "CONFIG"]),
    "acquisition before header": ([scan_messages()[0], scan_messages()[9]], ["ACQUISITION", "HEADER"]),
    "second configuration": ([ConfigFile(PRESET), ConfigFile(PRESET)], ["CONFIG"]),
    "unknown preset": ([ConfigFile("../../os"), scan_messages()[1]], ["no preset", "breast-dce"]),
    "no acquisitions": ([*scan_messages()[:2], Close()], ["no acquisitions"]),
    "spoke contradicts header": (bad_spoke(), ["31 samples", "promises 38", "kspace_encode_step_1 = 7"]),
    "header is not XML": ([ConfigFile(PRESET), Header(b"not xml")], ["header"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_told_closed_and_harms_nobody(
    server: MrdServer, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = pixels(good_session(server).images)
    messages, words = BAD[name]
    client = Client(server.port)
    client.send(*messages)
    client.receive_all()
    assert client.ended_with_one_close()
    text = client.error
    for word in words:
        assert word in text
    assert "\n  try" in text or "\n  where" in text
    assert any(record.levelname == "ERROR" and words[0] in record.getMessage() for record in caplog.records)
    assert pixels(good_session(server).images) == before


@pytest.mark.parametrize("n_bytes", [1, 700, 1026 + 6 + 10, 9000])
def test_truncated_stream_is_told_and_closed(server: MrdServer, n_bytes: int) -> None:
    stream = b"".join(encode(m) for m in scan_messages())
    client = Client(server.port)
    client.raw(stream[:n_bytes])
    client.socket.shutdown(socket.SHUT_WR)
    client.receive_all()
    assert client.ended_with_one_close()
    assert "ended" in client.error or "closed" in client.error


def test_frames_that_were_complete_come_back_when_the_sender_dies(server: MrdServer) -> None:
    client = Client(server.port)
    messages = scan_messages()
    n_two_frames = 3 + 5 + 2 * STARS.spokes_per_frame * STARS.n_partitions
    client.send(*messages[:n_two_frames])
    client.raw(encode(messages[n_two_frames])[:500])
    client.socket.shutdown(socket.SHUT_WR)
    client.receive_all()
    assert len(client.images) == 2 * STARS.nz
    assert "acquisition" in client.error.lower()
    assert client.ended_with_one_close()


def test_unknown_message_ends_the_session_and_keeps_what_came_before(server: MrdServer) -> None:
    client = Client(server.port)
    messages = scan_messages()
    client.send(*messages[: 3 + 5 + STARS.spokes_per_frame * STARS.n_partitions])
    client.raw((4242).to_bytes(2, "little"))
    client.receive_all()
    assert "4242" in client.error
    assert len(client.images) == STARS.nz


@pytest.mark.parametrize("settings", [ServerSettings(handshake_s=0.3)])
def test_client_that_sends_nothing_is_told_and_closed(server: MrdServer) -> None:
    client = Client(server.port)
    client.receive_all()
    assert "no complete header" in client.error
    assert client.ended_with_one_close()


@pytest.mark.parametrize("settings", [ServerSettings(max_sessions=1)])
def test_one_session_too_many_is_refused_with_a_reason(server: MrdServer) -> None:
    first = Client(server.port)
    first.send(*scan_messages()[:2], Query(7, "kstream::version"))
    assert [m.correlation for m in Decoder().receive(first.socket.recv(1 << 16))] == [7]  # its header was taken
    second = Client(server.port)
    second.receive_all()
    assert "busy" in second.error
    first.send(Close())
    first.receive_all()
    assert len(good_session(server).images) == STARS.n_frames * STARS.nz


def test_pipeline_over_the_socket_equals_the_pipeline_inline(server: MrdServer) -> None:
    from kstream.config import resolve
    from kstream.pipeline import build_pipeline
    from kstream.stream.runners import run_inline

    acquisitions = [m for m in scan_messages() if isinstance(m, Acquisition)]
    inline = run_inline(build_pipeline(STARS.scan(), resolve(PRESET).config).pipeline, acquisitions)
    assert pixels(good_session(server).images) == pixels([i for i in inline if isinstance(i, Image)])


DEEP = "[" * 100_000
BAD_TEXT = {
    "parameters are a list": ConfigText('{"preset": "breast-dce-recon", "parameters": [1]}'),
    "nested too deep": ConfigText('{"a":' + DEEP),
    "endless number": ConfigText('{"a": ' + "9" * 5000 + "}"),
}


@pytest.mark.parametrize("name", BAD_TEXT)
def test_strange_json_is_an_error_that_is_told(server: MrdServer, name: str) -> None:
    client = Client(server.port)
    client.send(BAD_TEXT[name])
    client.receive_all()
    assert client.error
    assert client.ended_with_one_close()


@pytest.mark.parametrize("text", [DEEP, "9" * 5000, '{"coils.crop": "x"', "\x00\x1b[31m"])
def test_strange_text_after_the_header_is_only_logged(server: MrdServer, text: str) -> None:
    client = Client(server.port)
    config, header, *rest = scan_messages()
    client.send(config, header, Text(text), *rest)
    client.receive_all()
    assert len(client.images) == STARS.n_frames * STARS.nz


def test_scan_of_noise_only_says_why_no_image_came(server: MrdServer) -> None:
    client = Client(server.port)
    client.send(*scan_messages()[:8], Close())
    client.receive_all()
    assert "no image was sent: of 5 acquisitions, 5 noise" in client.error


def test_client_may_not_name_a_model_by_path(server: MrdServer) -> None:
    client = Client(server.port)
    config, header, *rest = scan_messages()
    client.send(config, header, Text('{"segment.model": "/etc"}'), *rest)
    client.receive_all()
    assert "never" in client.error or "not a path" in client.error


def test_stopping_server_ends_its_sessions_with_a_word(server: MrdServer) -> None:
    client = Client(server.port)
    client.send(*scan_messages()[:21])
    while not any(isinstance(m, Text) for m in Decoder().receive(client.socket.recv(1 << 16))):
        pass
    server.stop(grace_s=0.1)
    client.messages = []
    while client.socket.recv(1 << 16):
        pass
    client.socket.close()
