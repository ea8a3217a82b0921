"""nnU-Net as a baseline on the heart's data: its own package, its own folders, its own commands (extra ``nnunet``).

Each frame of each view is a case of one 2-D image with one channel: the magnitude of the fully sampled image (nnU-Net
in paper 003), or of the zero-filled one (nnU-Net^u). Its folders, as its documentation fixes them::

    nnUNet_raw/Dataset027_NAME/
      dataset.json            channel_names, labels, numTraining, file_ending
      imagesTr/CASE_0000.nii.gz   labelsTr/CASE.nii.gz    imagesTs/CASE_0000.nii.gz
    nnUNet_preprocessed/Dataset027_NAME/splits_final.json     folds by subject; the rest is made by its commands
  nnUNet_results/                                       made and read by its commands
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import ConfigError, ModelError
from ...recon.fourier import to_image, to_kspace
from ...types import LabelTable
from .data import Subject, draw_lines
from .experiment import HeartData, HeartExperiment
from .judge import Answers

FILE_ENDING = ".nii.gz"
N_FOLDS = 5
DATASET_NUMBER = 27
COMMANDS = ("nnUNetv2_plan_and_preprocess", "nnUNetv2_train", "nnUNetv2_predict")


@dataclass(frozen=True)
class NnUNetDataset:
    """Where a data set of nnU-Net lies.

    Parameters
    ----------
    root : folder that holds ``nnUNet_raw``, ``nnUNet_preprocessed`` and ``nnUNet_results``.
    number, name : of the data set; its folder is ``Dataset{number:03d}_{name}``.
    """

    root: Path
    number: int
    name: str

    @property
    def folder(self) -> Path:
        return self.root / "nnUNet_raw" / f"Dataset{self.number:03d}_{self.name}"

    @property
    def _preprocessed(self) -> Path:
        return self.root / "nnUNet_preprocessed" / self.folder.name

    @property
    def environment(self) -> dict[str, str]:
        """Variables that tell nnU-Net's commands where everything is."""
        return {name: str(self.root / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}

    def write(
        self,
        train: Sequence[Subject],
        test: Sequence[Subject],
        table: LabelTable,
        spacing_mm: tuple[float, float],
        undersampling: tuple[HeartData, float] | None = None,
    ) -> int:
        """Write all cases, ``dataset.json`` and the folds; gives the number of training cases.

        What is in the data set's folders is deleted first, so that no case of an earlier call is trained on. Frames of
        a subject are never in two parts of a fold (``splits_final.json``), which nnU-Net's own folds do not promise.

        Parameters
        ----------
        table : names of the classes; labels beyond it become background.
        spacing_mm : pixel size along x and y.
        undersampling : how lines are drawn, and the acceleration: images are zero-filled then. None: fully sampled.
        """
        for folder in (self.folder, self._preprocessed, self.root / "predictions"):
            shutil.rmtree(folder, ignore_errors=True)
        n_train = 0
        for part, subjects in (("Tr", train), ("Ts", test)):
            for subject in subjects:
                for case, image, labels in _cases(subject, undersampling):
                    self._write_image(self.folder / f"images{part}" / f"{case}_0000{FILE_ENDING}", image, spacing_mm)
                    if part == "Tr":
                        known = np.where(labels < len(table.names), labels, 0).astype(np.uint8)
                        self._write_image(self.folder / "labelsTr" / f"{case}{FILE_ENDING}", known, spacing_mm)
                        n_train += 1
        described = {
            "channel_names": {"0": "magnitude"},
            "labels": {name: index for index, name in enumerate(table.names)},
            "numTraining": n_train,
            "file_ending": FILE_ENDING,
        }
        (self.folder / "dataset.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        self._preprocessed.mkdir(parents=True)
        folds = json.dumps(subject_folds(train), indent=2)
        (self._preprocessed / "splits_final.json").write_text(folds + "\n", encoding="utf-8")
        return n_train

    def commands(self, fold: str = "0", trainer: str = "nnUNetTrainer") -> tuple[tuple[str, ...], ...]:
        """Command lines that plan, train (2-D) and predict the test images, in order."""
        number = str(self.number)
        predicted = str(self.root / "predictions")
        return (
            (COMMANDS[0], "-d", number, "-c", "2d", "--verify_dataset_integrity"),
            (COMMANDS[1], number, "2d", fold, "-tr", trainer),
            (COMMANDS[2], "-d", number, "-c", "2d", "-f", fold, "-tr", trainer, "-i", str(self.folder / "imagesTs"),
             "-o", predicted),
        )  # fmt: skip

    def run(self, fold: str = "0", trainer: str = "nnUNetTrainer") -> Path:
        """Plan, train and predict; gives the folder with the predicted label maps.

        Raises
        ------
        ConfigError : nnU-Net is not installed.
        ModelError : one of its commands failed.
        """
        check_installed()
        for command in self.commands(fold, trainer):
            done = subprocess.run(command, env={**os.environ, **self.environment}, check=False)
            if done.returncode:
                raise ModelError(f"{command[0]} ended with exit code {done.returncode}", where=" ".join(command))
        return self.root / "predictions"

    def predictions(self, subject: Subject) -> NDArray[np.uint8]:
        """Predicted labels of a subject, ``(views, frames, y, x)``.

        Raises
        ------
        ModelError : a case has no prediction.
        """
        import nibabel

        out = np.zeros(subject.labels.shape, np.uint8)
        for view, frame in np.ndindex(*subject.labels.shape[:2]):
            path = self.root / "predictions" / f"{case_name(subject.seed, view, frame)}{FILE_ENDING}"
            if not path.is_file():
                raise ModelError("a case has no prediction", where=str(path), hint="NnUNetDataset.run")
            out[view, frame] = np.asarray(nibabel.nifti1.Nifti1Image.from_filename(path).dataobj)[..., 0].T
        return out

    def _write_image(self, path: Path, image: NDArray[np.generic], spacing_mm: tuple[float, float]) -> None:
        import nibabel

        path.parent.mkdir(parents=True, exist_ok=True)
        affine = np.diag([*spacing_mm, 1.0, 1.0])
        nibabel.save(nibabel.nifti1.Nifti1Image(np.ascontiguousarray(image.T[..., None]), affine), path)


def check_installed() -> None:
    """Raise a `ConfigError` if nnU-Net's commands are not there."""
    if missing := [command for command in COMMANDS if shutil.which(command) is None]:
        raise ConfigError(
            f"nnU-Net is not installed: no {missing[0]}", hint="pip install 'kstream[nnunet]', in this environment"
        )


def case_name(seed: int, view: int, frame: int) -> str:
    return f"heart{seed:06d}v{view}f{frame:02d}"


def subject_folds(subjects: Sequence[Subject]) -> list[dict[str, list[str]]]:
    """nnU-Net's folds, whole subjects in each part; as many as there are subjects, five at most."""
    names = [
        [case_name(subject.seed, view, frame) for view, frame in np.ndindex(*subject.labels.shape[:2])]
        for subject in subjects
    ]
    n_folds = min(len(names), N_FOLDS)
    return [
        {
            "train": [case for i, cases in enumerate(names) if i % n_folds != fold for case in cases],
            "val": [case for i, cases in enumerate(names) if i % n_folds == fold for case in cases],
        }
        for fold in range(n_folds)
    ]


def _cases(
    subject: Subject, undersampling: tuple[HeartData, float] | None
) -> Iterator[tuple[str, NDArray[np.float32], NDArray[np.uint8]]]:
    """Name, magnitude and labels ``(y, x)`` of every frame of every view."""
    for view, images in enumerate(subject.images):
        shown = images
        if undersampling is not None:
            data, acceleration = undersampling
            rng = np.random.default_rng([subject.seed, view, 78])
            lines = draw_lines(data, images.shape[1], images.shape[0], acceleration, rng)
            shown = to_image(np.asarray(to_kspace(images) * lines[..., None], np.complex64))
        for frame, image in enumerate(np.abs(shown).astype(np.float32)):
            yield case_name(subject.seed, view, frame), image, subject.labels[view, frame]


def predicted_answers(
    experiment: HeartExperiment, run: Path, train: Sequence[Subject], test: Sequence[Subject], acceleration: float
) -> list[Answers]:
    """Train nnU-Net on the training subjects, and let it label the test subjects; ``nnunet-u`` sees zero-filled images.

    Its folders lie in ``RUN/nnunet-4x`` for an acceleration of 4. Everything is done anew at each call.

    Raises
    ------
    ConfigError : nnU-Net is not installed.
    ModelError : one of its commands failed.
    """
    name = "heart_undersampled" if experiment.method == "nnunet-u" else "heart"
    dataset = NnUNetDataset(run / f"nnunet-{acceleration:g}x", DATASET_NUMBER, name)
    check_installed()
    protocol = experiment.protocol("train")
    size_mm = protocol.field_of_view_mm / protocol.matrix
    undersampling = (experiment.data, acceleration) if experiment.method == "nnunet-u" else None
    dataset.write(train, test, experiment.labels.table(), (size_mm, size_mm), undersampling)
    dataset.run()
    return [Answers(labels=dataset.predictions(subject)) for subject in test]
