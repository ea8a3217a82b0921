"""Rows 33, 34 and 39: the network, its process and its files."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from kstream.config import resolve
from kstream.models.bundle import SHIPPED
from kstream.mrd.messages import Close, Text
from tests.faults.harness import (
    N_IMAGES,
    PER_FRAME,
    STARS,
    Client,
    Server,
    acquisitions,
    opening,
    running,
    wait_until,
)

SCAN = acquisitions()
NAME = "breast-hybrid-small"
WORKER_S = 3


def segmented(*beside: Text) -> list[object]:
    """A whole scan whose last frame is to be segmented."""
    return [*opening("breast-dce"), *beside, *SCAN, Close()]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the shipped model in a worker process."""
    with running(tmp_path_factory.mktemp("models"), "--worker-s", str(WORKER_S), warm_up="breast-dce") as server:
        yield server


@pytest.fixture(scope="module")
def labelled(models: Server) -> list[bytes]:
    """What a scan with labels gives."""
    found = Client(models.port).send(*segmented()).success()
    assert [image.data.dtype.name for image in found.images] == ["float32"] * N_IMAGES + ["uint16"] * STARS.nz
    return found.pixels


def worker_of(server: Server) -> psutil.Process:
    wait_until(lambda: len(server.children) == 1, what="one worker")
    return server.children[0]


FAULTS = {
    "killed": (signal.SIGKILL, "deaths"),
    "segmentation fault": (signal.SIGSEGV, "deaths"),
}


@pytest.mark.parametrize("case", ["killed", pytest.param("segmentation fault", marks=pytest.mark.slow)])
def test_row_33_worker_that_dies_between_frames_is_replaced_and_the_scan_has_its_labels(
    models: Server, labelled: list[bytes], case: str
) -> None:
    number, counter = FAULTS[case]
    client = Client(models.port).send(*opening("breast-dce"), *SCAN[:PER_FRAME])
    client.receive_until(lambda got: len(got) > STARS.nz)
    worker, deaths = worker_of(models), models.metric(f"kstream_worker_{counter}")
    worker.send_signal(number)
    assert client.send(*SCAN[PER_FRAME:], Close()).success().pixels == labelled
    assert models.metric(f"kstream_worker_{counter}") == deaths + 1
    assert worker_of(models).pid != worker.pid
    assert Client(models.port).send(*segmented()).success().pixels == labelled


def test_row_33_worker_that_dies_with_a_frame_is_tried_once_more(models: Server, labelled: list[bytes]) -> None:
    worker, retries = worker_of(models), models.metric("kstream_worker_retries")
    worker.suspend()  # so that the frame is surely with it
    client = Client(models.port).send(*segmented())
    wait_until(lambda: models.metric("kstream_worker_requests") > 0)
    client.receive_until(lambda got: sum(hasattr(m, "meta") for m in got) == N_IMAGES)
    worker.kill()
    assert client.success().pixels == labelled
    assert models.metric("kstream_worker_retries") == retries + 1


def test_row_33_worker_that_hangs_is_killed_in_time_and_the_next_scan_is_clean(
    models: Server, labelled: list[bytes]
) -> None:
    worker, failed = worker_of(models), models.outcomes().get("with_errors", 0)
    worker.suspend()
    client = Client(models.port).send(*segmented())
    assert f"did not answer within {WORKER_S} s" in client.reason()
    assert client.pixels == labelled[:N_IMAGES]  # images still go back
    wait_until(lambda: not worker.is_running())
    wait_until(lambda: models.outcomes().get("with_errors") == failed + 1)
    assert models.metric("kstream_worker_timeouts") == 1
    assert Client(models.port).send(*segmented()).success().pixels == labelled


def test_row_33_other_sessions_do_not_notice_a_hanging_worker(models: Server, labelled: list[bytes]) -> None:
    worker = worker_of(models)
    worker.suspend()
    client = Client(models.port).send(*segmented())
    client.receive_until(lambda got: sum(hasattr(m, "meta") for m in got) == N_IMAGES)
    beside = Client(models.port).send(*opening(), *SCAN, Close()).success()
    assert len(beside.images) == N_IMAGES
    worker.resume()
    assert client.success().pixels == labelled


@pytest.fixture
def liar(tmp_path: Path) -> Iterator[str]:
    """Address of a worker that answers volumes with what is no answer."""
    address = f"ipc://{tmp_path}/liar"
    script = Path(__file__).parents[1] / "serve" / "lying_worker.py"
    process = subprocess.Popen([sys.executable, str(script), "--address", address], stdin=subprocess.PIPE)
    yield address
    process.kill()
    process.wait(10)
    assert process.stdin is not None
    process.stdin.close()


@pytest.mark.parametrize(
    "lie", [pytest.param("1", id="wrong shape"), pytest.param("3", id="wrong type", marks=pytest.mark.slow)]
)
def test_row_33_wrong_answer_is_never_a_label_map(tmp_path: Path, liar: str, lie: str) -> None:
    options = ("--worker", liar, "--set", f'segment.model="{lie}"')
    with running(tmp_path / "server", *options) as own:
        client = Client(own.port).send(*segmented())
        assert "gave no valid answer" in client.reason()
        assert len(client.images) == N_IMAGES
        wait_until(lambda: own.outcomes() == {"with_errors": 1})
        again = Client(own.port).send(*segmented()).closed()
        assert len(again.images) == N_IMAGES
        assert len(again.errors) == 1


def damaged_bundle(folder: Path, file: str, at: int = 1000) -> Path:
    """The shipped bundle with one byte of one file flipped."""
    copy = folder / "bundle"
    shutil.copytree(SHIPPED / NAME, copy)
    data = bytearray((copy / file).read_bytes())
    data[at] ^= 0xFF
    (copy / file).write_bytes(data)
    return copy


def test_row_34_corrupt_or_missing_model_is_told_before_k_space_and_images_still_come(tmp_path: Path) -> None:
    """The first image of the scan comes after the error; with ``stop``, there is none."""
    bundle = damaged_bundle(tmp_path, "weights.safetensors")
    with running(tmp_path / "server", "--set", f"segment.model={bundle}") as own:
        client = Client(own.port).send(*segmented()).closed()
        before, after = client.errors
        assert "are damaged: sha256" in before
        assert "no labels for frame 2" in after
        assert len(client.images) == N_IMAGES
        kinds = [type(m).__name__ if hasattr(m, "meta") else getattr(m, "text", "")[:3] for m in client.messages]
        assert kinds.index("ERR") < kinds.index("Image")
        wait_until(lambda: own.outcomes() == {"with_errors": 1})

        stopping = Client(own.port).send(*segmented(Text('{"segment.on_failure": "stop"}')))
        assert "are damaged: sha256" in stopping.reason()
        assert not stopping.images
        wait_until(lambda: own.outcomes() == {"with_errors": 1, "model": 1})

        shutil.rmtree(bundle)
        missing = Client(own.port).send(*segmented()).closed()
        assert len(missing.errors) == 2
        assert len(missing.images) == N_IMAGES


def test_row_34_model_that_a_client_makes_up_is_told_by_name(models: Server) -> None:
    client = Client(models.port).send(*segmented(Text('{"segment.model": "no-such-model"}'))).closed()
    assert "no-such-model" in client.errors[0]
    assert len(client.images) == N_IMAGES


@pytest.mark.slow  # it loads torch twice
def test_row_34_gpu_that_is_not_there_falls_back_if_told_so_and_fails_clearly_otherwise(
    tmp_path: Path, models: Server, labelled: list[bytes]
) -> None:
    nothing = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    with running(tmp_path, "--device", "cuda", env=nothing) as own:
        client = Client(own.port).send(*segmented()).closed()
        assert "'cuda' is not available" in client.errors[0]
        assert len(client.images) == N_IMAGES
    with running(tmp_path / "fallback", "--device", "cuda,cpu", env=nothing) as own:
        assert Client(own.port).send(*segmented()).success().pixels[:N_IMAGES] == labelled[:N_IMAGES]


def test_row_39_labels_and_magnitudes_in_one_series_are_split(models: Server) -> None:
    """Clients die of a series whose shape or pixel type changes."""
    assert resolve("breast-dce").config.images.label_series == 2
    client = Client(models.port).send(*segmented(Text('{"images.label_series": 1, "images.magnitude_series": 1}')))
    client.receive_all()
    series: dict[int, set[tuple[str, tuple[int, ...]]]] = {}
    for image in client.images:
        number = int(image.header["image_series_index"])
        series.setdefault(number, set()).add((image.data.dtype.name, image.data.shape))
    assert all(len(kinds) == 1 for kinds in series.values())
    if client.images:
        assert len(series) == 2
    else:
        assert "label_series" in "".join(client.texts)


def test_labels_are_labels(models: Server, labelled: list[bytes]) -> None:
    client = Client(models.port).send(*segmented()).success()
    assert client.pixels == labelled
    assert all(int(image.data.max()) <= 1 for image in client.images if image.data.dtype == np.uint16)
