"""Folders and command lines of nnU-Net; the package itself need not be there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from kstream.errors import ConfigError, ModelError
from kstream.training.heart.data import Subject
from kstream.training.heart.experiment import HeartData
from kstream.training.heart.nnunet import NnUNetDataset, case_name
from kstream.types import LabelTable

TABLE = LabelTable(("background", "LV cavity", "LV myocardium"), ((0, 0, 0), (1, 1, 1), (2, 2, 2)))


def subject(seed: int) -> Subject:
    rng = np.random.default_rng(seed)
    images = (rng.random((2, 3, 9, 7)) + 1j * rng.random((2, 3, 9, 7))).astype(np.complex64)
    labels = rng.integers(0, 4, (2, 3, 9, 7)).astype(np.uint8)
    return Subject(seed, images, labels, np.zeros(18, np.float32), np.zeros(3, bool))


@pytest.fixture
def dataset(tmp_path: Path) -> NnUNetDataset:
    made = NnUNetDataset(tmp_path, 27, "Heart")
    assert made.write([subject(1), subject(2)], [subject(3)], TABLE, (1.8, 1.9)) == 12
    return made


def test_cases_lie_where_nnunet_looks(dataset: NnUNetDataset) -> None:
    assert dataset.folder.name == "Dataset027_Heart"
    names = sorted(path.name for path in (dataset.folder / "imagesTr").iterdir())
    assert len(names) == 12
    assert names[0] == "heart000001v0f00_0000.nii.gz"
    assert len(list((dataset.folder / "labelsTr").iterdir())) == 12
    assert len(list((dataset.folder / "imagesTs").iterdir())) == 6
    described = json.loads((dataset.folder / "dataset.json").read_text())
    assert described == {
        "channel_names": {"0": "magnitude"},
        "labels": {"background": 0, "LV cavity": 1, "LV myocardium": 2},
        "numTraining": 12,
        "file_ending": ".nii.gz",
    }


def test_images_and_labels_are_those_of_the_subject(dataset: NnUNetDataset) -> None:
    case, made = case_name(2, 1, 2), subject(2)
    image = nibabel.load(dataset.folder / "imagesTr" / f"{case}_0000.nii.gz")
    assert image.shape == (7, 9, 1)
    assert image.header.get_zooms()[:2] == pytest.approx((1.8, 1.9))
    np.testing.assert_allclose(np.asarray(image.dataobj)[..., 0].T, np.abs(made.images[1, 2]), rtol=1e-6)
    labels = np.asarray(nibabel.load(dataset.folder / "labelsTr" / f"{case}.nii.gz").dataobj)[..., 0].T
    expected = np.where(made.labels[1, 2] < 3, made.labels[1, 2], 0)
    np.testing.assert_array_equal(labels, expected)


def test_the_undersampled_form_has_zero_filled_images(tmp_path: Path) -> None:
    made = NnUNetDataset(tmp_path, 28, "HeartU")
    made.write([subject(1)], [], TABLE, (1.8, 1.8), (HeartData(), 3.0))  # type: ignore[call-arg]
    path = made.folder / "imagesTr" / f"{case_name(1, 0, 0)}_0000.nii.gz"
    image = np.asarray(nibabel.load(path).dataobj)[..., 0].T
    assert np.abs(image - np.abs(subject(1).images[0, 0])).max() > 0.05


def test_folds_keep_subjects_together_and_old_cases_go(dataset: NnUNetDataset) -> None:
    path = dataset.root / "nnUNet_preprocessed" / "Dataset027_Heart" / "splits_final.json"
    for subjects in ((1, 2), (2, 4, 5, 6, 7, 8, 9)):
        dataset.write([subject(seed) for seed in subjects], [], TABLE, (1.8, 1.9))
        folds = json.loads(path.read_text())
        assert len(folds) == min(len(subjects), 5)
        for fold in folds:
            parts = [{case[: len("heart000001")] for case in fold[part]} for part in ("train", "val")]
            assert not parts[0] & parts[1]
            assert len(fold["train"]) + len(fold["val"]) == 6 * len(subjects)
        assert len({case for fold in folds for case in fold["val"]}) == 6 * len(subjects)
    names = {path.name[: len("heart000001")] for path in (dataset.folder / "imagesTr").iterdir()}
    assert names == {f"heart{seed:06d}" for seed in (2, 4, 5, 6, 7, 8, 9)}


def test_commands_plan_train_and_predict(dataset: NnUNetDataset) -> None:
    plan, train, predict = dataset.commands(fold="all")
    assert plan[:3] == ("nnUNetv2_plan_and_preprocess", "-d", "27")
    assert train == ("nnUNetv2_train", "27", "2d", "all", "-tr", "nnUNetTrainer")
    assert predict[predict.index("-i") + 1] == str(dataset.folder / "imagesTs")
    assert set(dataset.environment) == {"nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"}


def test_predictions_are_read_back(dataset: NnUNetDataset) -> None:
    with pytest.raises(ModelError, match="no prediction"):
        dataset.predictions(subject(3))
    folder = dataset.root / "predictions"
    folder.mkdir()
    for view, frame in np.ndindex(2, 3):
        labels = subject(3).labels[view, frame].T[..., None]
        nibabel.save(nibabel.nifti1.Nifti1Image(labels, np.eye(4)), folder / f"{case_name(3, view, frame)}.nii.gz")
    np.testing.assert_array_equal(dataset.predictions(subject(3)), subject(3).labels)


@pytest.mark.skipif(shutil.which("nnUNetv2_train") is not None, reason="nnU-Net is installed")
def test_without_the_package_the_extra_is_named(dataset: NnUNetDataset) -> None:
    with pytest.raises(ConfigError, match="not installed") as raised:
        dataset.run()
    assert "kstream[nnunet]" in raised.value.hint
