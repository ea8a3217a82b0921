"""Cine scans through a real server: what comes back is what the training path computes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kstream.config import resolve
from kstream.engines.array_engine import load_array_engine
from kstream.errors import ConfigError, ModelError
from kstream.models.bundle import Bundle
from kstream.mrd.images import frame_of
from kstream.output.phenotypes import DISEASES, PHENOTYPES, phenotypes
from kstream.recon.fourier import to_kspace
from kstream.segment.cine import CineModel, CinePlan
from kstream.segment.lines import LineAnalysis, analyse_lines, line_values
from kstream.segment.points import frame_queries, label_frames, real_values, sample_coordinates
from kstream.segment.scaling import scaled_samples
from kstream.serve.replay import ReplayResult, replay
from kstream.serve.workers import ModelWorkers, WorkerSettings
from kstream.simulate.heart.dataset import cine_subject
from kstream.simulate.heart.exam import CineExam, save_cine_exam, simulate_cine_exam
from kstream.training.heart.slices import slice_points
from kstream.types import AcquisitionFlag
from tests.hearts import SMALL, disk_bundle, kmtr_bundle, serving

LABELS, PROVISIONAL = 2, 4


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return disk_bundle(tmp_path_factory.mktemp("bundle") / "disk-test")


@pytest.fixture(scope="module")
def cine_port(bundle: Bundle) -> Iterator[int]:
    with serving(bundle) as port:
        yield port


@pytest.fixture(scope="module")
def kmtr(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return kmtr_bundle(tmp_path_factory.mktemp("bundle") / "kmtr-test")


@pytest.fixture(scope="module")
def kmtr_port(kmtr: Bundle) -> Iterator[int]:
    with serving(kmtr) as port:
        yield port


@pytest.fixture(scope="module")
def exam() -> CineExam:
    return simulate_cine_exam(SMALL, 3)


def send(exam: CineExam, port: int, folder: Path, preset: str = "cine-disk", **parameters: Any) -> ReplayResult:
    save_cine_exam(exam, folder / "scan.h5")
    return replay(folder / "scan.h5", port=port, preset=preset, parameters=parameters)


def volume(result: ReplayResult, series: int) -> dict[tuple[int, int], np.ndarray]:
    """Labels by slice and frame."""
    return {(int(i.header["slice"]), frame_of(i)): i.data[0, 0] for i in result.images[series]}


def findings(result: ReplayResult) -> dict[str, Any]:
    (text,) = [text for text in result.texts if text.startswith("{") and "cine findings" in text]
    return dict(json.loads(text))


def training_labels(exam: CineExam, bundle: Bundle) -> np.ndarray:
    """Labels ``(slices, frames, y, x)`` from the data that training sees: k-space of images, at the scan's lines."""
    subject = cine_subject(exam.protocol, exam.seed)
    model = CineModel.of(bundle.info, load_array_engine(bundle, precision="fp32"))
    n, n_frames = exam.protocol.matrix, exam.protocol.n_frames
    plan = CinePlan(n_frames, len(exam.views), (n, n), exam.protocol.views, 0.0)
    kspace = to_kspace(subject.images)
    out = []
    for number in range(len(exam.views)):
        coordinates, values = [], []
        for acquisition in exam.acquisitions:
            if acquisition.has(AcquisitionFlag.IS_NOISE_MEASUREMENT) or acquisition.counter("slice") != number:
                continue
            line, frame = acquisition.counter("kspace_encode_step_1"), acquisition.counter("phase")
            k = np.zeros((n, 3), np.float32)
            k[:, 0], k[:, 1] = np.arange(n) - n // 2, line - n // 2
            coordinates.append(sample_coordinates(k, frame, n_frames, (n, n)))
            values.append(real_values(kspace[number, frame, line]))
        stacked = np.concatenate(coordinates), np.concatenate(values)
        out.append(label_frames(model, *stacked, np.arange(n_frames), plan))
    return np.stack(out)


def test_socket_gives_the_labels_of_the_training_path(
    exam: CineExam, cine_port: int, bundle: Bundle, tmp_path: Path
) -> None:
    result = send(exam, cine_port, tmp_path)
    assert not result.errors
    expected = training_labels(exam, bundle)
    got = volume(result, LABELS)
    assert len(np.unique(expected)) > 1
    for (number, frame), labels in got.items():
        np.testing.assert_array_equal(labels, expected[number, frame])
    assert len(got) == len(exam.views) * exam.protocol.n_frames


def test_raw_values_have_one_scale_in_training_and_in_a_stream(exam: CineExam, tmp_path: Path) -> None:
    """Without companding: the tokens of a training batch, and their labels, are those that come out of the socket."""
    made = disk_bundle(tmp_path / "disk-test", compand=0.0)
    model = CineModel.of(made.info, load_array_engine(made, precision="fp32"))
    acquired = [a for a in exam.acquisitions if not a.has(AcquisitionFlag.IS_NOISE_MEASUREMENT)]
    louder = replace(exam, acquisitions=[replace(a, data=np.float32(512) * a.data) for a in acquired])
    kspace = to_kspace(cine_subject(exam.protocol, exam.seed).images)
    n, n_frames = exam.protocol.matrix, exam.protocol.n_frames
    lines = np.zeros((len(exam.views), n_frames, n), np.bool_)
    for a in acquired:
        lines[a.counter("slice"), a.counter("phase"), a.counter("kspace_encode_step_1")] = True
    with serving(made) as port:
        got = volume(send(louder, port, tmp_path), LABELS)
    for number in range(len(exam.views)):
        coordinates, values = slice_points(kspace[number], lines[number])
        batch = (
            coordinates[None],
            scaled_samples(values)[None],
            frame_queries(np.arange(n_frames), n_frames, (n, n))[None],
        )
        logits = model.engine.run_arrays(batch)[0][0].reshape(-1, n_frames, n, n)
        for frame in range(n_frames):
            chosen = np.take_along_axis(logits[:, frame], got[number, frame][None].astype(np.intp), axis=0)[0]
            assert (logits[:, frame].max(axis=0) - chosen).max() < 1e-5  # sums in another order


def test_findings_come_back_as_json_and_as_image_meta(
    exam: CineExam, cine_port: int, bundle: Bundle, tmp_path: Path
) -> None:
    result = send(exam, cine_port, tmp_path)
    told = findings(result)["phenotypes_from_labels"]
    assert set(told) == set(PHENOTYPES)
    labels = training_labels(exam, bundle)
    truth = phenotypes(labels, [v.geometry for v in exam.views], exam.protocol.views, exam.subject.heart_rate_bpm)
    finite = {name: value for name, value in truth.items() if np.isfinite(value)}
    assert finite
    assert {name: told[name] for name in finite} == pytest.approx(finite, abs=0.006, rel=1e-3)
    last = [image for image in result.images[LABELS] if int(image.header["slice"]) == len(exam.views) - 1]
    for name in finite:
        assert float(str(last[0].meta[f"kstream_{name}"])) == pytest.approx(finite[name], rel=1e-2, abs=0.006)


def test_a_segmentation_goes_back_after_every_frame(exam: CineExam, cine_port: int, tmp_path: Path) -> None:
    one_by_one = simulate_cine_exam(replace(SMALL, order="frames"), 3)
    result = send(one_by_one, cine_port, tmp_path)
    early = volume(result, PROVISIONAL)
    n_frames = SMALL.n_frames
    assert set(early) == {(s, f) for s in range(3) for f in range(n_frames - 1)}  # the last one's labels are final


def test_a_segmentation_goes_back_after_every_so_many_lines(exam: CineExam, cine_port: int, tmp_path: Path) -> None:
    result = send(exam, cine_port, tmp_path, **{"cine.update": "lines", "cine.update_lines": 7})
    n_per_slice = SMALL.readouts_per_frame * SMALL.n_frames
    assert len(result.images[PROVISIONAL]) == 3 * (n_per_slice // 7)
    samples = [int(str(image.meta["kstream_samples"])) for image in result.images[PROVISIONAL]]
    assert samples[0] == 7 * SMALL.matrix
    assert samples[1] == 14 * SMALL.matrix


@pytest.mark.parametrize("changes", [{"trajectory": "radial", "order": "frames"}, {"n_coils": 3, "snr": 40.0}])
def test_radial_and_multi_coil_scans_come_back_labelled(
    changes: dict[str, Any], cine_port: int, tmp_path: Path
) -> None:
    exam = simulate_cine_exam(replace(SMALL, **changes), 4)
    result = send(exam, cine_port, tmp_path, **{"cine.update": "slice"})
    assert not result.errors
    assert len(volume(result, LABELS)) == len(exam.views) * SMALL.n_frames
    assert findings(result)


def test_a_scan_that_stops_early_has_labels_of_what_came(exam: CineExam, cine_port: int, tmp_path: Path) -> None:
    cut = replace(exam, acquisitions=exam.acquisitions[:-9])
    result = send(cut, cine_port, tmp_path, **{"cine.update": "slice"})
    assert any("incomplete" in text for text in result.warnings)
    assert len(volume(result, LABELS)) == len(exam.views) * SMALL.n_frames
    assert findings(result)


@pytest.mark.parametrize("preset", ["cine-disk", "cine-kmtr"])
def test_half_a_scan_and_a_scan_of_zeros_give_no_numbers_of_a_heart(
    preset: str, exam: CineExam, cine_port: int, kmtr_port: int, tmp_path: Path
) -> None:
    port = {"cine-disk": cine_port, "cine-kmtr": kmtr_port}[preset]
    half = replace(exam, acquisitions=exam.acquisitions[: len(exam.acquisitions) // 2])
    result = send(half, port, tmp_path, preset)
    assert any("planned frames never came" in text for text in result.warnings)
    told = findings(result)
    assert 0 < told["frames_measured"] < told["frames_planned"] == len(exam.views) * SMALL.n_frames
    numbers = [told.get(name, {}).get("LVEDV_mL") for name in ("phenotypes", "phenotypes_from_labels")]
    assert [*numbers, *told.get("probabilities", {}).values()] == [None] * (2 + 3 * (preset == "cine-kmtr"))
    silent = [
        a if a.has(AcquisitionFlag.IS_NOISE_MEASUREMENT) else replace(a, data=0 * a.data) for a in exam.acquisitions
    ]
    result = send(replace(exam, acquisitions=silent), port, tmp_path, preset)
    assert not result.images
    assert sum("has no signal" in text for text in result.errors) == len(exam.views)
    assert not any("cine findings" in text for text in result.texts)


def test_a_line_beyond_its_limit_is_left_aside(exam: CineExam, cine_port: int, tmp_path: Path) -> None:
    header = exam.acquisitions[-1].header.copy()
    header["idx"]["kspace_encode_step_1"] = 65535
    beyond = replace(exam.acquisitions[-1], header=header)
    result = send(replace(exam, acquisitions=[*exam.acquisitions[:-1], beyond]), cine_port, tmp_path)
    assert not result.errors
    assert any("outside the planned frames" in text for text in result.warnings)
    assert any("incomplete" in text for text in result.warnings)


def test_a_client_may_not_name_a_folder(exam: CineExam, port: int, tmp_path: Path) -> None:
    result = send(exam, port, tmp_path, **{"cine.model": str(tmp_path)})
    assert "not a path" in result.errors[0]


# ---- k-MTR ----


def training_analysis(exam: CineExam, bundle: Bundle) -> LineAnalysis:
    """What k-MTR gives for the data that training sees: k-space of images, at the scan's lines."""
    subject = cine_subject(exam.protocol, exam.seed)
    model = CineModel.of(bundle.info, load_array_engine(bundle, precision="fp32"))
    n, n_frames = exam.protocol.matrix, exam.protocol.n_frames
    kspace = to_kspace(subject.images)
    places, values = [], []
    for acquisition in exam.acquisitions:
        if not acquisition.has(AcquisitionFlag.IS_NOISE_MEASUREMENT):
            place = tuple(acquisition.counter(name) for name in ("slice", "phase", "kspace_encode_step_1"))
            places.append(place)
            values.append(line_values(kspace[place]))
    plan = CinePlan(n_frames, len(exam.views), (n, n), exam.protocol.views, 0.0)
    return analyse_lines(model, np.array(places, np.float32), np.stack(values), plan)


def test_kmtr_gives_through_the_socket_what_it_gives_in_training(
    exam: CineExam, kmtr_port: int, kmtr: Bundle, tmp_path: Path
) -> None:
    result = send(exam, kmtr_port, tmp_path, "cine-kmtr")
    assert not result.errors
    expected = training_analysis(exam, kmtr)
    for (number, frame), labels in volume(result, LABELS).items():
        np.testing.assert_array_equal(labels, expected.labels[number, frame])
    told = findings(result)
    assert expected.phenotypes is not None
    assert expected.disease_logits is not None
    assert [told["phenotypes"][name] for name in PHENOTYPES] == pytest.approx(list(expected.phenotypes), abs=0.01)
    chances = 1 / (1 + np.exp(-expected.disease_logits))
    assert [told["probabilities"][name] for name in DISEASES] == pytest.approx(list(chances), abs=1e-4)
    meta = result.images[LABELS][0].meta
    assert float(str(meta["kstream_hypertension"])) == pytest.approx(chances[2], abs=1e-3)
    assert PROVISIONAL not in result.images


def test_kmtr_labels_frames_while_lines_come(exam: CineExam, kmtr_port: int, tmp_path: Path) -> None:
    result = send(exam, kmtr_port, tmp_path, "cine-kmtr", **{"cine.update": "lines", "cine.update_lines": 40})
    n_lines = 3 * SMALL.readouts_per_frame * SMALL.n_frames
    assert len(result.images[PROVISIONAL]) == n_lines // 40


def test_kmtr_refuses_spokes(kmtr_port: int, tmp_path: Path) -> None:
    radial = simulate_cine_exam(replace(SMALL, trajectory="radial"), 3)
    result = send(radial, kmtr_port, tmp_path, "cine-kmtr")
    assert "takes Cartesian lines" in result.errors[0]
    assert "cine-disk" in result.errors[0]


def test_a_worker_process_gives_what_this_process_gives(bundle: Bundle) -> None:
    inputs, outputs = bundle.tensors()
    workers = ModelWorkers(WorkerSettings(n_processes=1, n_threads=1, precision="fp32"))
    workers.start()
    try:
        config = resolve("cine-disk", settings=(f"cine.model={bundle.folder}",)).config.cine
        engine = workers.cine_model(config).engine
        (logits,) = engine.run_arrays(inputs)
        np.testing.assert_allclose(logits, outputs[0], atol=1e-5)
        assert engine.describe()["engine"] == "torch-cpu"
        with pytest.raises(ModelError, match="the model failed"):
            engine.run_arrays(inputs[:2])
        (again,) = engine.run_arrays(inputs)
        np.testing.assert_array_equal(again, logits)
    finally:
        workers.stop()


def test_a_worker_that_is_started_by_hand_runs_a_cine_model_on_the_engine_that_it_was_told(
    bundle: Bundle, tmp_path: Path
) -> None:
    """OpenVINO does not hold such networks, and says why; torch takes over, as it was told to."""
    address, model = f"ipc://{tmp_path}/w", str(bundle.folder)
    command = [sys.executable, "-m", "kstream", "worker", "--address", address, "--model", model]
    command += ["--engine", "openvino,torch", "--precision", "fp32"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    workers = ModelWorkers(WorkerSettings(addresses=(address,)))
    try:
        assert process.stderr is not None
        said = ""
        while "is ready" not in said and (line := process.stderr.readline()):
            said += line
        workers.start()
        inputs, outputs = bundle.tensors()
        (logits,), told = workers.evaluate(model, inputs, bundle.info.sha256)
        np.testing.assert_allclose(logits, outputs[0], atol=1e-5)
        assert (told["engine"], told["precision"], told["sha256"]) == ("torch-cpu", "fp32", bundle.info.sha256)
        assert "engine openvino does not run disk-test, whose inputs vary in number" in told["fallback"]
    finally:
        workers.stop()
        process.kill()
        process.communicate()


def test_models_of_other_kinds_are_refused() -> None:
    shipped = Bundle.load("breast-hybrid-small")
    with pytest.raises(ConfigError, match="does not analyse cine scans"):
        CineModel.of(shipped.info, None)  # type: ignore[arg-type]
