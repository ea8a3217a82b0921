"""The preset brain-seranet: from lines to labels, when they come, and that they are those of training."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kstream.config import resolve
from kstream.errors import ScanError
from kstream.mrd.codec import Decoder, encode
from kstream.mrd.images import label_table
from kstream.mrd.messages import Close, ConfigFile, Header, Image, Text
from kstream.pipeline import build_pipeline
from kstream.segment import Segment
from kstream.serve.server import MrdServer, ServerSettings
from kstream.serve.store import ModelStore
from kstream.simulate.brain.exam import BrainExam, simulate_brain_exam
from kstream.simulate.brain.protocol import BrainProtocol
from kstream.simulate.brain.scanner import LABELS
from kstream.training.brain.heads import HeadExam
from kstream.training.brain.task import Slice, predict, to_batch
from kstream.types import EarlyKSpace, ScaledKSpace
from tests.brain_bundle import save_tiny, tiny_network
from tests.scans import StackOfStars

PRESET = "brain-seranet"
PROTOCOL = BrainProtocol(
    matrix=(40, 48), n_slices=3, voxel_mm=(4.5, 4.5, 12.0), n_centre=8, concatenations=3, readout_oversampling=1
)
N_NOISE = PROTOCOL.n_noise_readouts


@pytest.fixture(scope="module")
def exam() -> BrainExam:
    return simulate_brain_exam(PROTOCOL, seed=3)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("bundle") / "tiny").folder


@pytest.fixture(scope="module")
def segment(bundle: Path) -> Segment:
    return Segment(ModelStore().segmenter(str(bundle)))


def stream(exam: BrainExam, *settings: str, segment: Segment | None = None) -> list[list[Any]]:
    """What came out at each acquisition, and at the end."""
    pipeline = build_pipeline(exam.scan, resolve(PRESET, settings=settings).config, segment).pipeline
    return [*(pipeline.push(acquisition) for acquisition in exam.acquisitions), pipeline.finish()]


def of(kind: type, *items: Any) -> list[Any]:
    return [item for item in items if isinstance(item, kind)]


def test_a_slice_is_segmented_when_its_last_line_is_in(exam: BrainExam, segment: Segment) -> None:
    made = stream(exam, segment=segment)
    when = [index - N_NOISE + 1 for index, items in enumerate(made) if of(Image, *items)]
    assert when == [PROTOCOL.n_lines * n for n in (1, 2, 3)]
    for number, index in enumerate(when):
        magnitude, labels = of(Image, *made[index + N_NOISE - 1])
        assert sorted(int(i.header["image_series_index"]) for i in (magnitude, labels)) == [1, 2]
        assert {int(magnitude.header["slice"]), int(labels.header["slice"])} == {number}


def test_the_network_sees_the_numbers_that_training_gives_it(exam: BrainExam) -> None:
    """K-space from the stream, prewhitened and in a scanner's units, against k-space from the cache of training."""
    items = [item for step in stream(exam) for item in step]
    frames = of(ScaledKSpace, *items)
    assert [frame.slice for frame in frames] == [0, 1, 2]
    for frame in frames:
        # The scan's own noise in place of the one that training draws; then the code of training.
        noisy = HeadExam(3, exam.samples[:, 0], exam.truth_labels, exam.head.white)
        under, _ = noisy.measured(frame.slice, exam.lines, 0.0, np.random.default_rng(0))
        assert np.array_equal(frame.data[0] != 0, under != 0)
        np.testing.assert_allclose(frame.data[0], under, atol=2e-6 * float(np.abs(under).max()))


def test_labels_of_the_stream_are_those_of_training(exam: BrainExam, segment: Segment) -> None:
    labels = [
        image for step in stream(exam, segment=segment) for image in of(Image, *step) if label_table(image) is not None
    ]
    head = HeadExam(3, exam.samples[:, 0], exam.truth_labels, exam.head.white)
    slices = [Slice(*head.measured(z, exam.lines, 0.0, np.random.default_rng(0)), head.labels[z]) for z in range(3)]
    expected = predict(tiny_network(), slices)
    assert len(np.unique(expected)) > 1
    for z, image in enumerate(labels):
        assert (image.data[0, 0] == expected[z]).mean() > 0.999
        assert label_table(image) == LABELS


def test_readout_oversampling_is_removed_before_the_network(segment: Segment) -> None:
    exam = simulate_brain_exam(replace(PROTOCOL, readout_oversampling=2, noise=0.0), seed=3)
    plain = simulate_brain_exam(replace(PROTOCOL, noise=0.0), seed=3)
    twice, once = (of(ScaledKSpace, *(i for step in stream(e) for i in step)) for e in (exam, plain))
    for a, b in zip(twice, once, strict=True):
        assert np.linalg.norm(a.data - b.data) < 0.02 * np.linalg.norm(b.data)


def test_early_results_come_after_the_wanted_lines_in_a_series_of_their_own(exam: BrainExam, segment: Segment) -> None:
    made = stream(exam, "frames.early=[9, 12]", segment=segment)
    for number in range(3):
        start = N_NOISE + number * PROTOCOL.n_lines
        for lines in (9, 12):
            (early,) = of(Image, *made[start + lines - 1])
            assert int(early.header["image_series_index"]) == 4
            assert early.meta["kstream_lines"] == f"{lines} of {PROTOCOL.n_lines}"
            assert int(early.header["slice"]) == number
        final = of(Image, *made[start + PROTOCOL.n_lines - 1])
        assert sorted(int(image.header["image_series_index"]) for image in final) == [1, 2]
        assert all("kstream_lines" not in image.meta for image in final)
    assert not of(EarlyKSpace, *(item for step in made for item in step))


def test_several_coils_are_combined_into_lines_of_one() -> None:
    exam = simulate_brain_exam(replace(PROTOCOL, n_coils=4, n_slices=1, concatenations=1, noise=0.02), seed=3)
    (frame,) = of(ScaledKSpace, *(item for step in stream(exam) for item in step))
    assert np.array_equal(frame.data[0].any(axis=1), exam.lines)


def test_another_kind_of_scan_is_refused() -> None:
    stars = StackOfStars()
    config = resolve(PRESET, settings=["gridding.density=polar"]).config
    with pytest.raises(ScanError, match=r"gridding\.method is lines, but the trajectory is"):
        build_pipeline(stars.scan(), config)


def test_early_results_need_lines(exam: BrainExam) -> None:
    config = resolve(PRESET, settings=["gridding.method=auto", "frames.early=[9]"]).config
    with pytest.raises(ScanError, match=r"frames\.early"):
        build_pipeline(exam.scan, config)


def test_batches_hold_real_and_imaginary_parts() -> None:
    under, full = (np.full((3, 5), value, np.complex64) for value in (1 + 2j, 3 - 4j))
    batch = to_batch([Slice(under, full, np.zeros((3, 5), np.uint8))])
    assert torch.equal(batch["kspace"][0, :, 0, 0], torch.tensor([1.0, 2.0]))
    assert torch.equal(batch["full"][0, :, 0, 0], torch.tensor([3.0, -4.0]))


@pytest.fixture
def server(bundle: Path) -> Iterator[MrdServer]:
    settings = ServerSettings(handshake_s=5.0, idle_s=20.0, settings=(f"segment.model={bundle}",))
    server = MrdServer(port=0, settings=settings)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.stop()
    thread.join()


def test_through_the_socket_every_slice_comes_back_with_its_labels_as_soon_as_it_is_complete(
    server: MrdServer, exam: BrainExam
) -> None:
    inline = [image for step in stream(exam) for image in of(Image, *step)]
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    decoder, received = Decoder(), []
    connection.sendall(b"".join(encode(message) for message in (ConfigFile(PRESET), Header(exam.scan.xml))))
    first = N_NOISE + PROTOCOL.n_lines
    connection.sendall(b"".join(encode(acquisition) for acquisition in exam.acquisitions[:first]))
    while len(of(Image, *received)) < 2:  # blocks (and times out) if the server waited for the end of the scan
        received += decoder.receive(connection.recv(1 << 16))
    assert {int(image.header["slice"]) for image in of(Image, *received)} == {0}
    connection.sendall(b"".join(encode(message) for message in (*exam.acquisitions[first:], Close())))
    while data := connection.recv(1 << 16):
        received += decoder.receive(data)
    connection.close()
    assert not [text.text for text in of(Text, *received) if text.text.startswith("ERR")]
    labels = [image for image in of(Image, *received) if label_table(image) is not None]
    magnitude = [image for image in of(Image, *received) if label_table(image) is None]
    assert [int(image.header["slice"]) for image in labels] == [0, 1, 2]
    assert all(label_table(image) == LABELS for image in labels)
    assert len({image.data.tobytes() for image in labels}) == 3
    for ours, theirs in zip(inline, magnitude, strict=True):
        assert np.array_equal(ours.data, theirs.data)
