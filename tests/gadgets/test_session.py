"""A gadget in this process, at the door for ``<connect>``: what comes in, what goes out, and what must never."""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kstream.config import resolve
from kstream.mrd.buffers import GADGET_FORMATS, read_recon_data
from kstream.mrd.codec import Decoder, encode
from kstream.mrd.messages import Image, Opaque
from kstream.pipeline import build_pipeline
from kstream.serve.gadget_items import build_tail, expand_images, recon_data_readouts
from kstream.serve.server import MrdServer, ServerSettings
from kstream.serve.store import ModelStore
from kstream.stream import Pipeline
from kstream.stream.runners import run_inline
from kstream.types import FrameImage, Scan
from tests.gadgets import specification as spec
from tests.gadgets.gadgetron_double import STARS, Gadgetron, ids, images, readouts
from tests.serve.conftest import Client

Dial = Callable[..., Gadgetron]
PRESET = "breast-dce-recon"
N_IMAGES = STARS.n_frames * STARS.nz
X, Y = 11, 7


def messages(seed: int = 0) -> list[bytes]:
    return [readout.message for readout in readouts(seed)]


def scan(gadgetron: Gadgetron, *items: bytes, **properties: str) -> list[spec.Incoming]:
    gadgetron.open(**({"preset": PRESET, "target": "reconstruct"} | properties))
    return gadgetron.whole_scan(*(items or messages()))


def picture(number: int) -> bytes:
    pixels = struct.pack(f"<{2 * X * Y}f", *(number + i for i in range(2 * X * Y)))
    return spec.image((X, Y, 1), pixels, b'<?xml version="1.0"?>\n<ismrmrdMeta>  <meta/> </ismrmrdMeta>' * (number % 2))


def image_array(frames: int = 3) -> bytes:
    rng = np.random.default_rng(2)
    pixels = rng.standard_normal((frames, 5, Y, X, 2)).astype("<f4").tobytes()
    heads = b"".join(spec.image_header((X, Y, 5), repetition=i) for i in range(frames))
    out = struct.pack("<H", 1024) + spec.array((X, Y, 5, 1, frames, 1, 1), pixels)
    return out + spec.array((frames, 1, 1), heads) + struct.pack("<Q", 0) + b"\0\0"


def test_whole_scan_gives_every_image_and_one_close(dialled: Dial) -> None:
    found = scan(dialled())
    assert ids(found) == [1022] * N_IMAGES + [4]


def test_images_are_those_of_the_mrd_server_to_the_byte(dialled: Dial) -> None:
    server = MrdServer(port=0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    client = Client(server.port)
    name = struct.pack("<H", 1) + PRESET.encode().ljust(1024, b"\0")
    client.raw(b"".join([name, spec.header(STARS.scan().xml), *messages(), spec.CLOSE]))
    raw = b""
    while data := client.socket.recv(1 << 16):
        raw += data
    client.socket.close()
    server.stop()
    thread.join(10)
    theirs = b"".join(images(scan(dialled())))
    assert len(theirs) > N_IMAGES * 4 * STARS.nx * STARS.ny
    assert b"".join(encode(m) for m in Decoder().receive(raw) if isinstance(m, Image)) == theirs


def test_images_of_a_frame_come_before_the_next_frame_is_sent(dialled: Dial) -> None:
    gadgetron = dialled()
    gadgetron.open(preset=PRESET, target="reconstruct")
    sent = messages()
    n_first = 5 + STARS.spokes_per_frame * STARS.n_partitions
    gadgetron.send(*sent[:n_first])
    with gadgetron.socket.makefile("rb") as stream:
        for _ in range(STARS.nz):  # blocks, and times out, if it waited for the end of the scan
            assert spec.read_message(stream).id == 1022
        gadgetron.send(*sent[n_first:], spec.CLOSE)
        assert ids(spec.read_messages(stream)) == [1022] * (N_IMAGES - STARS.nz) + [4]


def test_bucket_gives_what_its_acquisitions_give(dialled: Dial) -> None:
    found = readouts()
    cut = [found[i : i + 40] for i in range(0, len(found), 40)]
    # a readout for calibration and imaging is in both parts of its bucket, and counts once
    both = [spec.Readout(_flagged(r.header, 1 << 20), r.trajectory, r.samples) for r in cut[1]]
    cut[1] = both
    calibration = [spec.Readout(_flagged(r.header, 1 << 19), r.trajectory, r.samples) for r in cut[2][:3]]
    buckets = [
        spec.bucket(part, reference, [(2, 3)], [spec.stats(*[(0,)] * 9)])
        for part, reference in zip(cut, [[], both, calibration, *[[]] * len(cut)], strict=False)
    ]
    assert images(scan(dialled(), *buckets)) == images(scan(dialled()))


def _flagged(header: bytes, flags: int) -> bytes:
    return header[:2] + struct.pack("<Q", flags) + header[10:]


def buffers(found: list[spec.Readout]) -> list[bytes]:
    """Sorted as ``BucketToBufferGadget`` does it: all lines of the encoding limits, those not sampled are empty."""
    n_e1 = STARS.spokes_per_frame * STARS.n_frames
    out = []
    for part in (found[: len(found) // 2], found[len(found) // 2 :]):
        shape = (1, 1, 1, STARS.n_coils, STARS.n_partitions, n_e1, STARS.n_samples)
        data = np.zeros(shape, "<c8")
        trajectory = np.zeros((1, 1, 1, STARS.n_partitions, n_e1, STARS.n_samples, 2), "<f4")
        heads = [[spec.acquisition_header()] * n_e1 for _ in range(STARS.n_partitions)]
        for readout in part:
            e1, e2 = struct.unpack_from("<HH", readout.header, 242)
            data[0, 0, 0, :, e2, e1] = np.frombuffer(readout.samples, "<c8").reshape(STARS.n_coils, -1)
            trajectory[0, 0, 0, e2, e1] = np.frombuffer(readout.trajectory, "<f4").reshape(-1, 2)
            heads[e2][e1] = readout.header
        body = spec.array(shape[::-1], data.tobytes()) + b"\1"
        body += spec.array(trajectory.shape[::-1], trajectory.tobytes()) + b"\0"
        body += spec.array((n_e1, STARS.n_partitions, 1, 1, 1), b"".join(h for row in heads for h in row))
        out.append(struct.pack("<HQ", 1023, 1) + body + spec.sampling((38, 38, 5)) + b"\0")
    return out


def test_sorted_buffers_give_what_their_readouts_give(dialled: Dial) -> None:
    found = readouts(noise=0)
    assert images(scan(dialled(), *buffers(found))) == images(scan(dialled(), *(r.message for r in found)))


def test_discarded_samples_and_asymmetric_echoes_of_buffers_keep_their_centre() -> None:
    def centres(trajectory: str, *headers: bytes) -> list[int]:
        n = len(headers)
        data = spec.array((9, n, 1, 1, 1, 1, 1), bytes(8 * 9 * n))
        heads = spec.array((n, 1, 1, 1, 1), b"".join(headers))
        limits = (0, 6, 8, 0, 0, 0, 0, 0, 0)
        raw = struct.pack("<Q", 1) + data + b"\0\0" + heads + spec.sampling((9, n, 1), limits) + b"\0"
        recon = read_recon_data(memoryview(bytearray(raw)))
        found = recon_data_readouts(recon, replaced(trajectory))
        assert all(a.data.shape == (1, 9) and int(a.header["number_of_samples"]) == 9 for a in found)
        assert not any(a.header["discard_pre"] or a.header["discard_post"] for a in found)
        return [int(a.header["center_sample"]) for a in found]

    trimmed = spec.acquisition_header(12, 1, discard=(2, 1), centre=7)
    asymmetric = spec.acquisition_header(7, 1, centre=2)
    centred = spec.acquisition_header(9, 1, centre=4)
    assert centres("radial", trimmed) == [5]
    assert centres("cartesian", asymmetric, centred) == [6, 4]


def replaced(trajectory: str) -> Scan:
    return replace(STARS.scan(), trajectory=trajectory)


def test_what_is_not_taken_goes_back_to_the_byte_and_in_order(dialled: Dial) -> None:
    foreign = [picture(1), spec.waveform(2, 3), image_array(), picture(2), spec.waveform(1, 0)]
    mixed = [m for pair in itertools.zip_longest(messages(), foreign * 3) for m in pair if m is not None]
    found = scan(dialled(), *mixed)
    ours = set(images(scan(dialled())))
    assert [m.raw for m in found[:-1] if m.raw not in ours] == foreign * 3
    assert len([m for m in found if m.raw in ours]) == N_IMAGES


def test_chain_without_readouts_passes_everything_and_does_not_fail(dialled: Dial) -> None:
    foreign = [picture(1), spec.waveform(2, 3), image_array(), picture(2)]
    found = scan(dialled(), *foreign)
    assert [m.raw for m in found] == [*foreign, spec.CLOSE]


def test_buckets_and_buffers_pass_a_gadget_for_images(dialled: Dial, toy: Path) -> None:
    settings = ServerSettings(settings=(f"segment.model={toy}",))
    foreign = [spec.bucket(readouts()[:3], (), [(2, 3)]), messages()[0], picture(1)]
    found = scan(dialled(settings), *foreign, preset="breast-dce", target="segment_images")
    assert [m.raw for m in found] == [*foreign, spec.CLOSE]


def test_image_arrays_become_labels_and_pass_on(dialled: Dial, toy: Path) -> None:
    settings = ServerSettings(settings=(f"segment.model={toy}", "segment.frames=[2]"))
    sent = image_array()
    found = scan(dialled(settings), sent, preset="breast-dce", target="segment_images")
    assert ids(found) == [1024, *[1022] * 5, 4]
    assert found[0].raw == sent
    labels = Decoder().receive(b"".join(images(found)))
    assert {m.data.dtype for m in labels if isinstance(m, Image)} == {np.dtype("<u2")}
    assert {int(m.header["repetition"]) for m in labels if isinstance(m, Image)} == {2}


def test_tail_labels_images_as_the_whole_pipeline_labels_their_readouts(toy: Path) -> None:
    """Combined images of the pipeline itself, sent as an image array, give its labels again."""
    config = resolve("breast-dce", settings=[f"segment.model={toy}"]).config
    store, header = ModelStore(), STARS.scan()
    acquisitions = STARS.acquisitions(np.random.default_rng(0))
    pipeline = build_pipeline(header, config, store.segment_stage(config.segment)).pipeline
    *stages, make_images = pipeline.stages
    seen: list[FrameImage] = []

    class Spy:
        takes, gives = make_images.takes, make_images.gives

        def push(self, item: object) -> list[object]:
            seen.extend([item] if isinstance(item, FrameImage) else [])
            return make_images.push(item)

        def finish(self) -> list[object]:
            return []

    made = run_inline(Pipeline(*stages, Spy(), source=pipeline.takes), acquisitions)
    whole = [m for m in made if isinstance(m, Image) and m.data.dtype == np.uint16]
    heads = b"".join(spec.image_header((19, 19, 5), repetition=f.frame) for f in seen)
    raw = struct.pack("<H", 1024) + spec.array((19, 19, 5, 1, 3, 1, 1), b"".join(f.data.tobytes() for f in seen))
    raw += spec.array((3, 1, 1), heads) + struct.pack("<Q", 0) + b"\0\0"
    (opaque,) = Decoder(None, GADGET_FORMATS).receive(raw)
    assert isinstance(opaque, Opaque)
    tail = build_tail(header, config, store.segment_stage(config.segment))
    ended = run_inline(tail, [i for i in expand_images(opaque, 5) if i is not opaque])
    found = [m for m in ended if isinstance(m, Image)]
    assert len(found) == len(whole) == 5
    same = [np.mean(a.data == b.data) for a, b in zip(found, whole, strict=True)]
    assert min(same) > 0.98
    assert any(m.data.any() for m in found)


# ---- failures --------------------------------------------------------------------------------------------------------


def bad_readout() -> bytes:
    head = spec.acquisition_header(31, STARS.n_coils, 0, counters=(7, 1))
    return struct.pack("<H", 1008) + head + bytes(8 * 31 * STARS.n_coils)


def test_row_40_failure_is_error_then_close(dialled: Dial) -> None:
    sent = messages()
    found = scan(dialled(), *sent[:60], bad_readout(), *sent[60:])
    assert ids(found)[-2:] == [8, 4]
    assert "31 samples" in found[-2].text


def test_failure_is_told_even_if_nothing_more_comes(dialled: Dial) -> None:
    gadgetron = dialled()
    gadgetron.open(preset=PRESET, target="reconstruct")
    gadgetron.send(*messages()[:60], bad_readout())
    assert ids(gadgetron.receive()) == [8, 4]


def test_complete_frames_have_gone_before_the_error(dialled: Dial) -> None:
    sent = messages()
    n_first = 5 + STARS.spokes_per_frame * STARS.n_partitions
    gadgetron = dialled()
    gadgetron.open(preset=PRESET, target="reconstruct")
    gadgetron.send(*sent[:n_first])
    with gadgetron.socket.makefile("rb") as stream:
        for _ in range(STARS.nz):
            assert spec.read_message(stream).id == 1022
        gadgetron.send(bad_readout())
        assert ids(spec.read_messages(stream)) == [8, 4]


@pytest.mark.parametrize(
    ("properties", "word"),
    [
        ({"preset": "nonsense"}, "there is no preset"),
        ({"colour": "red"}, "'colour' has no meaning"),
        ({"coils__methd": "rss"}, "did you mean coils.method"),
        ({"coils__method": "magic"}, "coils.method"),
        ({"target": "dance"}, "no target 'dance'"),
        ({"worker": "ipc:///somewhere"}, "cannot be chosen by whoever connects"),
        ({"segment__model": "/etc"}, "a client may name a model"),
        ({"preset": "recon-cartesian"}, "density weights do not suit"),
    ],
)
def test_configuration_that_cannot_be_is_an_error(dialled: Dial, properties: dict[str, str], word: str) -> None:
    found = scan(dialled(), **properties)
    assert ids(found) == [8, 4]
    assert word in found[0].text


@pytest.mark.parametrize("text", ['<?xml version="1.0"?>\n', "<configuration/>", "<configuration></configuration>\0"])
def test_configuration_may_be_empty(dialled: Dial, text: str) -> None:
    gadgetron = dialled(ServerSettings(settings=("segment.model=''",)))
    gadgetron.send(spec.config(text), spec.header(STARS.scan().xml))
    assert ids(gadgetron.whole_scan(*messages())) == [1022] * N_IMAGES + [4]


@pytest.mark.parametrize(
    "first",
    [
        spec.header(b"<a/>"),
        spec.config("<configuration/>") * 2,
        spec.config("<configuration/>") + messages()[0],
        spec.config("<config"),
        struct.pack("<H", 1) + bytes(1024),
        struct.pack("<H", 999),
        struct.pack("<H", 6) + bytes(24),
    ],
)
def test_wrong_openings_are_errors(dialled: Dial, first: bytes) -> None:
    gadgetron = dialled()
    gadgetron.send(first)
    assert ids(gadgetron.receive()) == [8, 4]


def test_unknown_id_ends_the_scan(dialled: Dial) -> None:
    found = scan(dialled(), *messages()[:7], struct.pack("<H", 1051) + bytes(100))
    assert ids(found) == [8, 4]
    assert "1051" in found[0].text


def test_close_before_anything_is_answered_with_close(dialled: Dial) -> None:
    gadgetron = dialled()
    assert ids(gadgetron.whole_scan()) == [4]


def test_scan_that_gives_no_image_fails(dialled: Dial) -> None:
    found = scan(dialled(), *messages()[:5])
    assert ids(found) == [8, 4]
    assert "no image was made" in found[0].text


def test_labels_that_could_not_be_made_fail_the_scan_after_its_images(dialled: Dial) -> None:
    settings = ServerSettings(settings=("segment.model=no-such-model", "segment.on_failure=images"))
    found = scan(dialled(settings), preset="breast-dce", target="segment")
    assert ids(found) == [*[1022] * N_IMAGES, 8, 4]
    assert "no labels" in found[-2].text


def test_row_40_stream_that_ends_without_close_is_told(dialled: Dial) -> None:
    gadgetron = dialled()
    gadgetron.open(preset=PRESET, target="reconstruct")
    gadgetron.send(*messages()[:9], messages()[9][:500])
    gadgetron.socket.shutdown(socket.SHUT_WR)
    begin = time.monotonic()
    found = gadgetron.receive()
    assert ids(found) == [8, 4]
    assert "ended inside ACQUISITION" in found[0].text
    assert time.monotonic() - begin < 2


def test_half_closed_connection_still_gets_its_images(dialled: Dial) -> None:
    gadgetron = dialled()
    gadgetron.open(preset=PRESET, target="reconstruct")
    gadgetron.send(*messages(), spec.CLOSE)
    gadgetron.socket.shutdown(socket.SHUT_WR)
    assert ids(gadgetron.receive()) == [1022] * N_IMAGES + [4]


def test_slow_parent_bounds_what_waits_and_loses_nothing(dialled: Dial) -> None:
    """A Gadgetron that does not read stops being read from, long before memory is full."""
    big = spec.image((256, 256, 1), bytes(8 * 256 * 256))
    gadgetron = dialled(ServerSettings(queue_mib=1, send_mib=1, send_s=60))
    gadgetron.open(preset=PRESET, target="reconstruct")
    gadgetron.socket.settimeout(1.0)
    sent = 0
    stream = memoryview(big * 200)
    with contextlib.suppress(TimeoutError):
        while sent < len(stream):
            sent += gadgetron.socket.send(stream[sent : sent + 65536])
    assert 0 < sent < 60 << 20
    gadgetron.socket.settimeout(60)
    reader, found = gadgetron.receive_beside()
    gadgetron.send(bytes(stream[sent:]), spec.CLOSE)
    reader.join(60)
    assert [m.raw == big for m in found] == [True] * 200 + [False]
