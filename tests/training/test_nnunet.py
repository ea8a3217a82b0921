"""nnU-Net's folders and command lines; where the package is installed, a training of a few frames (slow)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from kstream.errors import ConfigError, ModelError
from kstream.recon.fourier import to_image, to_kspace
from kstream.training.heart import nnunet
from kstream.training.heart.data import Subject, draw_lines
from kstream.training.heart.experiment import HeartExperiment
from kstream.training.heart.nnunet import NnUNet, case_name

SHAPE = (2, 3, 9, 7)


def subject(seed: int) -> Subject:
    rng = np.random.default_rng(seed)
    images = (rng.random(SHAPE) + 1j * rng.random(SHAPE)).astype(np.complex64)
    labels = rng.integers(0, 4, SHAPE).astype(np.uint8)
    return Subject(seed, images, labels, np.zeros(18, np.float32), np.zeros(3, bool))


def experiment(method: str = "nnunet", **changes: object) -> HeartExperiment:
    given: dict[str, object] = {
        "task": "heart", "name": "tiny", "description": "a test", "method": method,
        "data": {"protocol": {"matrix": 10, "field_of_view_mm": 18.0}, "accelerations": [3.0]},
        "cohorts": {"train": {"seeds": "1-2"}, "validation": {"seeds": "3"}},
        "labels": {"names": ["background", "LV cavity", "LV myocardium"],
                   "colours": [[0, 0, 0], [1, 1, 1], [2, 2, 2]]},
        "schedule": {"steps": 1},
    }  # fmt: skip
    return HeartExperiment(**{**given, **changes})  # type: ignore[arg-type]


@pytest.fixture
def made(tmp_path: Path) -> NnUNet:
    network = NnUNet(experiment(), tmp_path)
    assert network.write([subject(1), subject(2)]) == 4
    return network


def test_cases_lie_where_nnunet_looks(made: NnUNet) -> None:
    assert made.raw.name == "Dataset027_nnunet"
    names = sorted(path.name for path in (made.raw / "imagesTr").iterdir())
    assert names == [f"heart00000{seed}v{view}_0000.nii.gz" for seed in (1, 2) for view in (0, 1)]
    assert len(list((made.raw / "labelsTr").iterdir())) == 4
    assert json.loads((made.raw / "dataset.json").read_text()) == {
        "channel_names": {"0": "magnitude"},
        "labels": {"background": 0, "LV cavity": 1, "LV myocardium": 2},
        "numTraining": 4,
        "file_ending": ".nii.gz",
    }
    assert set(made.environment) == {"nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"}


def test_images_and_labels_are_those_of_the_subject(made: NnUNet) -> None:
    case, known = case_name(2, 1), subject(2)
    image = nibabel.load(made.raw / "imagesTr" / f"{case}_0000.nii.gz")
    assert image.shape == (7, 9, 3)
    assert image.header.get_zooms() == pytest.approx((1.8, 1.8, 18.0)), "frames are the coarsest axis"
    np.testing.assert_allclose(np.asarray(image.dataobj).T, np.abs(known.images[1]), rtol=1e-6)
    labels = np.asarray(nibabel.load(made.raw / "labelsTr" / f"{case}.nii.gz").dataobj).T
    np.testing.assert_array_equal(labels, np.where(known.labels[1] < 3, known.labels[1], 0))


def test_the_undersampled_form_sees_the_lines_that_all_networks_see(tmp_path: Path) -> None:
    network, known = NnUNet(experiment("nnunet-u"), tmp_path), subject(1)
    rng = np.random.default_rng([known.seed, 3000, 77])  # as HeartTask.case
    for view, shown in enumerate(network.seen(known, 3.0)):
        lines = draw_lines(network.experiment.data, 9, 3, 3.0, rng)
        assert 0.2 < lines.mean() < 0.5
        expected = np.abs(to_image(to_kspace(known.images[view]) * lines[..., None]))
        np.testing.assert_allclose(shown, expected, rtol=1e-4, atol=1e-5)
        assert np.abs(shown - np.abs(known.images[view])).max() > 0.05


def test_folds_keep_subjects_together(tmp_path: Path) -> None:
    for seeds in ((1, 2), (2, 4, 5, 6, 7, 8, 9)):
        folds = nnunet.subject_folds([subject(seed) for seed in seeds])
        assert len(folds) == min(len(seeds), 5)
        for fold in folds:
            parts = [{case[: len("heart000001")] for case in fold[part]} for part in ("train", "val")]
            assert not parts[0] & parts[1]
            assert len(fold["train"]) + len(fold["val"]) == 2 * len(seeds)
        assert len({case for fold in folds for case in fold["val"]}) == 2 * len(seeds)


def test_commands_plan_train_and_predict_as_the_experiment_says(tmp_path: Path) -> None:
    config = {"trainer": "nnUNetTrainer_5epochs", "mirrored": False}
    plan, train = NnUNet(experiment(nnunet=config), tmp_path).training_commands("cuda:0")
    assert plan[:5] == ("nnUNetv2_plan_and_preprocess", "-d", "27", "-c", "2d")
    assert train == ("nnUNetv2_train", "27", "2d", "0", "-tr", "nnUNetTrainer_5epochs", "-device", "cuda")
    predict = NnUNet(experiment(nnunet=config), tmp_path).prediction_command()
    assert predict[predict.index("-i") + 1] == str(tmp_path / "images")
    assert "--disable_tta" in predict
    assert "--disable_tta" not in NnUNet(experiment(), tmp_path).prediction_command()


def test_predictions_are_read_back(made: NnUNet) -> None:
    with pytest.raises(ModelError, match="no prediction"):
        made.predictions(subject(3))
    folder = made.root / "predictions"
    folder.mkdir()
    for view in range(2):
        volume = nibabel.nifti1.Nifti1Image(subject(3).labels[view].T, np.eye(4))
        nibabel.save(volume, folder / f"{case_name(3, view)}.nii.gz")
    np.testing.assert_array_equal(made.predictions(subject(3)), subject(3).labels)


def test_without_the_package_the_extra_is_named(made: NnUNet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for run in (lambda: made.train([subject(1)]), lambda: made.predict([subject(1)], 4.0)):
        with pytest.raises(ConfigError, match="not installed") as raised:
            run()
        assert "kstream[nnunet]" in raised.value.hint


def test_a_command_that_fails_is_told(made: NnUNet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in nnunet.COMMANDS:
        (tmp_path / name).write_text("#!/bin/sh\nexit 3\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(ModelError, match="nnUNetv2_plan_and_preprocess ended with exit code 3"):
        made.train([subject(1)])
    with pytest.raises(ModelError, match="no weights yet"):
        made.predict([subject(1)], 4.0)


def stand_in(folder: Path, network: NnUNet) -> None:
    """Commands that note how they were called, and leave what the real ones leave."""
    plans = network.preprocessed / "nnUNetPlans.json"
    content = '{"configurations": {"2d": {"batch_size": 99}}}'
    bodies = {
        nnunet.COMMANDS[0]: f"echo '{content}' > {plans}",
        nnunet.COMMANDS[1]: f"mkdir -p {network.weights.parent} && touch {network.weights}",
    }
    for name, body in bodies.items():
        note = f'echo "$0 $* gpu=$CUDA_VISIBLE_DEVICES" >> {folder}/calls'
        (folder / name).write_text(f"#!/bin/sh\n{note}\n{body}\n")
        (folder / name).chmod(0o755)
    (folder / nnunet.COMMANDS[2]).write_text("#!/bin/sh\n")
    (folder / nnunet.COMMANDS[2]).chmod(0o755)


def test_weights_of_another_experiment_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = NnUNet(experiment(nnunet={"batch": 5}), tmp_path / "run")
    stand_in(tmp_path, network)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert not network.is_trained()
    network.train([subject(1)], "cuda:1")
    assert network.is_trained()
    assert (tmp_path / "calls").read_text().splitlines()[1].endswith("-device cuda gpu=1")
    plans = json.loads((network.preprocessed / "nnUNetPlans.json").read_text())
    assert plans["configurations"]["2d"]["batch_size"] == 5
    assert NnUNet(experiment(nnunet={"batch": 5, "mirrored": False}), tmp_path / "run").is_trained()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,4")
    network.train([subject(1)], "cuda:1")
    assert (tmp_path / "calls").read_text().splitlines()[3].endswith("-device cuda gpu=4")
    for changed in (experiment(nnunet={"batch": 6}), experiment(cohorts={"train": {"seeds": "4"}})):
        with pytest.raises(ModelError, match="of another experiment"):
            NnUNet(changed, tmp_path / "run").is_trained()
    (tmp_path / "run" / "kstream-experiment.json").write_bytes(b"\xff\x00{")  # of a disk that was full, or worse
    with pytest.raises(ModelError, match="of another experiment"):
        network.is_trained()
    (tmp_path / "run" / "kstream-experiment.json").unlink()
    with pytest.raises(ModelError, match="which experiment these weights are of"):
        network.is_trained()
    network.weights.unlink()
    assert not network.is_trained()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(shutil.which("nnUNetv2_train") is None, reason="nnU-Net is not installed (extra nnunet)")
def test_nnunet_learns_where_the_bright_disk_is(tmp_path: Path) -> None:
    y, x = np.mgrid[:32, :32]

    def disk(seed: int) -> Subject:
        rng = np.random.default_rng(seed)
        inside = (y - rng.integers(10, 22)) ** 2 + (x - rng.integers(10, 22)) ** 2 < 40
        labels = np.broadcast_to(inside, (1, 3, 32, 32)).astype(np.uint8)
        images = labels + 0.1 * rng.random(labels.shape)
        return Subject(seed, images.astype(np.complex64), labels, np.zeros(18, np.float32), np.zeros(3, bool))

    network = NnUNet(experiment(nnunet={"trainer": "nnUNetTrainer_1epoch", "batch": 2, "mirrored": False}), tmp_path)
    network.train([disk(seed) for seed in range(10)])
    for one, answer in zip([disk(91), disk(92)], network.predict([disk(91), disk(92)], 1.0), strict=True):
        assert answer.labels is not None
        shared = 2 * ((answer.labels == 1) & (one.labels == 1)).sum()
        assert shared / ((answer.labels == 1).sum() + (one.labels == 1).sum()) > 0.9
