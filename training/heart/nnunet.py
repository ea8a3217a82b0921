"""nnU-Net as a baseline on the heart's data: its own package, its own folders, its own commands (extra ``nnunet``).

Each view is a case: a volume whose slices are the frames, so that its 2-D configuration sees one frame at a time. The
one channel is the magnitude of the fully sampled image (nnU-Net in paper 003), or of the zero-filled one (nnU-Net^u).
Its folders, as its documentation fixes them::

    nnUNet_raw/Dataset027_NAME/
      dataset.json            channel_names, labels, numTraining, file_ending
      imagesTr/CASE_0000.nii.gz   labelsTr/CASE.nii.gz
    nnUNet_preprocessed/Dataset027_NAME/splits_final.json     folds by subject; the rest is made by its commands
    nnUNet_results/                                       made and read by its commands
    images/CASE_0000.nii.gz   predictions/CASE.nii.gz       of the last call of `NnUNet.predict`
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
from ...recon.fourier import to_image
from .data import Labels, Subject, draw_lines, noisy_kspace
from .experiment import HeartExperiment
from .judge import Answers

FILE_ENDING = ".nii.gz"
N_FOLDS = 5
FOLD = "0"
NUMBER = "27"
COMMANDS = ("nnUNetv2_plan_and_preprocess", "nnUNetv2_train", "nnUNetv2_predict")
MAX_WORKERS = 8
FRAME_SPACING = 10.0
"""Distance of frames over that of pixels: nnU-Net cuts a volume along its coarsest axis."""


@dataclass(frozen=True)
class NnUNet:
    """nnU-Net as an experiment says, in a folder.

    Parameters
    ----------
    experiment : of method ``nnunet`` or ``nnunet-u``; its ``[nnunet]`` says how long it is trained.
    root : folder for everything.
    """

    experiment: HeartExperiment
    root: Path

    @property
    def dataset(self) -> str:
        """Name of the data set's folder."""
        return f"Dataset{int(NUMBER):03d}_{self.experiment.method.replace('-', '_')}"

    @property
    def raw(self) -> Path:
        return self.root / "nnUNet_raw" / self.dataset

    @property
    def preprocessed(self) -> Path:
        return self.root / "nnUNet_preprocessed" / self.dataset

    @property
    def weights(self) -> Path:
        """What a finished training leaves."""
        trained = f"{self.experiment.nnunet.trainer}__nnUNetPlans__2d"
        return self.root / "nnUNet_results" / self.dataset / trained / f"fold_{FOLD}" / "checkpoint_final.pth"

    def train(self, subjects: Sequence[Subject], device: str = "cpu") -> None:
        """Write the data set, and let nnU-Net plan, preprocess and train; what an earlier call left is deleted.

        Raises
        ------
        ConfigError : nnU-Net is not installed.
        ModelError : one of its commands failed.
        """
        check_installed()
        for folder in (self.raw, self.preprocessed, self.weights.parent):
            shutil.rmtree(folder, ignore_errors=True)
        self.write(subjects)
        plan, train = self.training_commands(device)
        self._run(plan, device)
        self._set_batch()
        self._origin.write_text(self._decisive() + "\n", encoding="utf-8")
        self._run(train, device)

    def is_trained(self) -> bool:
        """True if a training of this experiment has ended here.

        Raises
        ------
        ModelError : one of another experiment has, or nobody says of which; nothing is deleted for that.
        """
        if not self.weights.is_file():
            return False
        hint = f"delete {self.root} to train again, or choose another folder"
        if not self._origin.is_file():
            raise ModelError(
                "nothing says which experiment these weights are of",
                where=str(self.weights),
                likely="they were not trained by kstream train",
                hint=hint,
            )
        if self._origin.read_bytes().strip() != self._decisive().encode():
            raise ModelError(
                "these weights are of another experiment",
                where=str(self.weights),
                likely="the experiment changed after its training",
                hint=hint,
            )
        return True

    def write(self, subjects: Sequence[Subject]) -> int:
        """Write the training cases, ``dataset.json`` and the folds; gives the number of cases.

        Views of a subject are never in two parts of a fold, which nnU-Net's own folds do not promise.
        """
        names = self.experiment.labels.names
        n_cases = 0
        for subject in subjects:
            acceleration = self._acceleration(subject)
            for view, images in enumerate(self.seen(subject, acceleration)):
                case = case_name(subject.seed, view)
                known = np.where(subject.labels[view] < len(names), subject.labels[view], 0).astype(np.uint8)
                self._write_volume(self.raw / "imagesTr" / f"{case}_0000{FILE_ENDING}", images)
                self._write_volume(self.raw / "labelsTr" / f"{case}{FILE_ENDING}", known)
                n_cases += 1
        described = {
            "channel_names": {"0": "magnitude"},
            "labels": {name: index for index, name in enumerate(names)},
            "numTraining": n_cases,
            "file_ending": FILE_ENDING,
        }
        (self.raw / "dataset.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        self.preprocessed.mkdir(parents=True)
        folds = json.dumps(subject_folds(subjects), indent=2)
        (self.preprocessed / "splits_final.json").write_text(folds + "\n", encoding="utf-8")
        return n_cases

    def predict(self, subjects: Sequence[Subject], acceleration: float, device: str = "cpu") -> list[Answers]:
        """Labels of subjects, from the same lines as all networks get (`HeartTask.case`).

        Raises
        ------
        ConfigError : nnU-Net is not installed.
        ModelError : it has not been trained, its command failed, or a case has no prediction.
        """
        check_installed()
        if not self.is_trained():
            raise ModelError("this run has no weights yet", where=str(self.weights), hint="kstream train EXPERIMENT")
        for folder in (self.root / "images", self.root / "predictions"):
            shutil.rmtree(folder, ignore_errors=True)
        for subject in subjects:
            for view, images in enumerate(self.seen(subject, acceleration)):
                path = self.root / "images" / f"{case_name(subject.seed, view)}_0000{FILE_ENDING}"
                self._write_volume(path, images)
        self._run(self.prediction_command(device), device)
        return [Answers(labels=self.predictions(subject)) for subject in subjects]

    def seen(self, subject: Subject, acceleration: float) -> Iterator[NDArray[np.float32]]:
        """Magnitudes ``(frames, y, x)`` of each view, as the method's name says."""
        data = self.experiment.data
        if self.experiment.method == "nnunet":
            yield from np.abs(subject.images).astype(np.float32)
            return
        rng = np.random.default_rng([subject.seed, round(1000 * acceleration), 77])
        for kspace in noisy_kspace(subject.images, data, rng):
            lines = draw_lines(data, kspace.shape[1], kspace.shape[0], acceleration, rng)
            filled = np.asarray(kspace * lines[..., None], np.complex64)
            yield np.abs(to_image(filled)).astype(np.float32)

    def training_commands(self, device: str = "cpu") -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Command lines that plan and preprocess, and that train (2-D)."""
        workers = str(n_workers())
        trainer = self.experiment.nnunet.trainer
        return (
            (COMMANDS[0], "-d", NUMBER, "-c", "2d", "--verify_dataset_integrity", "-npfp", workers, "-np", workers),
            (COMMANDS[1], NUMBER, "2d", FOLD, "-tr", trainer, "-device", device.partition(":")[0]),
        )

    def prediction_command(self, device: str = "cpu") -> tuple[str, ...]:
        """Command line that labels what is in ``images``."""
        config = self.experiment.nnunet
        plain = () if config.mirrored else ("--disable_tta",)
        return (
            COMMANDS[2], "-d", NUMBER, "-c", "2d", "-f", FOLD, "-tr", config.trainer, "-i", str(self.root / "images"),
            "-o", str(self.root / "predictions"), "-device", device.partition(":")[0], "-npp", "1", "-nps", "1", *plain,
        )  # fmt: skip

    @property
    def environment(self) -> dict[str, str]:
        """Variables that tell nnU-Net's commands where everything is."""
        return {name: str(self.root / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}

    def predictions(self, subject: Subject) -> Labels:
        """Predicted labels of a subject, ``(views, frames, y, x)``.

        Raises
        ------
        ModelError : a case has no prediction.
        """
        import nibabel

        out = np.zeros(subject.labels.shape, np.uint8)
        for view in range(len(out)):
            path = self.root / "predictions" / f"{case_name(subject.seed, view)}{FILE_ENDING}"
            if not path.is_file():
                raise ModelError("a case has no prediction", where=str(path))
            out[view] = np.asarray(nibabel.nifti1.Nifti1Image.from_filename(path).dataobj).T
        return out

    def _acceleration(self, subject: Subject) -> float:
        """One of the experiment's, by the subject's seed: one network is trained for all, as other methods are."""
        return float(np.random.default_rng([subject.seed, 78]).choice(self.experiment.data.accelerations))

    @property
    def _origin(self) -> Path:
        """What the weights were trained by."""
        return self.root / "kstream-experiment.json"

    def _decisive(self) -> str:
        """What decides the weights, as JSON."""
        experiment = self.experiment
        parts = experiment.model_dump(mode="json", include={"method", "data", "labels", "nnunet"})
        del parts["nnunet"]["mirrored"]  # of the prediction
        train = experiment.cohorts["train"].model_dump(mode="json")
        return json.dumps({**parts, "train": train}, sort_keys=True)

    def _run(self, command: tuple[str, ...], device: str) -> None:
        own = dict.fromkeys(("nnUNet_n_proc_DA", "nnUNet_def_n_proc"), str(n_workers()))
        kind, _, number = device.partition(":")
        own |= {"nnUNet_compile": "f"} if kind == "cpu" else {}
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        names = dict(enumerate(visible if any(visible) else ()))
        gpu = {"CUDA_VISIBLE_DEVICES": names.get(int(number), number)} if number else {}  # as torch counts them
        done = subprocess.run(command, env={**own, **os.environ, **self.environment, **gpu}, check=False)
        if done.returncode:
            raise ModelError(f"{command[0]} ended with exit code {done.returncode}", where=" ".join(command))

    def _set_batch(self) -> None:
        """Put the experiment's batch size into nnU-Net's plans, if it has one; its own is meant for large GPUs."""
        path = self.preprocessed / "nnUNetPlans.json"
        if self.experiment.nnunet.batch:
            plans = json.loads(path.read_text("utf-8"))
            plans["configurations"]["2d"]["batch_size"] = self.experiment.nnunet.batch
            path.write_text(json.dumps(plans, indent=2) + "\n", encoding="utf-8")

    def _write_volume(self, path: Path, volume: NDArray[np.generic]) -> None:
        """A volume ``(frames, y, x)`` with the spacing of the images."""
        import nibabel

        protocol = self.experiment.protocol("train")
        pixel_mm = protocol.field_of_view_mm / protocol.matrix
        path.parent.mkdir(parents=True, exist_ok=True)
        affine = np.diag([pixel_mm, pixel_mm, FRAME_SPACING * pixel_mm, 1.0])
        nibabel.save(nibabel.nifti1.Nifti1Image(np.ascontiguousarray(volume.T), affine), path)


def check_installed() -> None:
    """Raise a `ConfigError` if nnU-Net's commands are not there."""
    if missing := [command for command in COMMANDS if shutil.which(command) is None]:
        raise ConfigError(
            f"nnU-Net is not installed: no {missing[0]}", hint="pip install 'kstream[nnunet]', in this environment"
        )


def n_workers() -> int:
    """Processes for nnU-Net's preprocessing and augmentation."""
    return min(os.cpu_count() or 1, MAX_WORKERS)


def case_name(seed: int, view: int) -> str:
    return f"heart{seed:06d}v{view}"


def subject_folds(subjects: Sequence[Subject]) -> list[dict[str, list[str]]]:
    """nnU-Net's folds, whole subjects in each part; as many as there are subjects, five at most."""
    names = [[case_name(subject.seed, view) for view in range(len(subject.labels))] for subject in subjects]
    n_folds = min(len(names), N_FOLDS)
    return [
        {
            "train": [case for i, cases in enumerate(names) if i % n_folds != fold for case in cases],
            "val": [case for i, cases in enumerate(names) if i % n_folds == fold for case in cases],
        }
        for fold in range(n_folds)
    ]
