"""Cine in NIfTI, on small files in the layouts of UK Biobank and ACDC."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

from kstream.errors import ConfigError, RecordingError, ScanError, ShapeError
from kstream.output.phenotypes import LEFT_ATRIUM, LV_CAVITY, LV_MYOCARDIUM, RIGHT_ATRIUM, RV_CAVITY
from kstream.recon.fourier import to_kspace
from kstream.training.__main__ import app
from kstream.training.heart.data import load_cohort
from kstream.training.heart.experiment import HeartExperiment
from kstream.training.heart.plan import check_settings, last_task, task_subjects
from kstream.training.readers.cine import read_acdc, read_uk_biobank, synthetic_kspace_images
from kstream.training.readers.cine_cache import load_study, save_study

X, Y, SLICES, FRAMES = 11, 13, 4, 5


def affine(z_mm: float = 10.0, up: bool = False) -> np.ndarray:
    """Pixels of 1.8 x 1.8 mm on axial planes, stacked from head to foot, or from foot to head."""
    return np.array([[-1.8, 0, 0, 30.0], [0, -1.8, 0, 40.0], [0, 0, z_mm if up else -z_mm, 50.0], [0, 0, 0, 1]])


def write(path: Path, data: np.ndarray, matrix: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.nifti1.Nifti1Image(data, matrix), path)


def ramp(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape)


@pytest.fixture
def biobank(tmp_path: Path) -> Path:
    folder = tmp_path / "1000017"
    labels = np.zeros((X, Y, SLICES, FRAMES), np.uint8)
    labels[2:5, 3:6], labels[6, 7], labels[8, 9] = 1, 2, 3
    write(folder / "sa.nii.gz", ramp(X, Y, SLICES, FRAMES), affine())
    write(folder / "seg_sa.nii.gz", labels, affine())
    for view, top in (("la_2ch", 1), ("la_4ch", 2)):
        write(folder / f"{view}.nii.gz", ramp(X, Y, 1, FRAMES), affine(6.0))
        one = np.zeros((X, Y, 1, FRAMES), np.uint8)
        one[1, 2], one[3, 4] = 1, top
        write(folder / f"seg_{view}.nii.gz", one, affine(6.0))
    return folder


def test_biobank_folders_become_views(biobank: Path) -> None:
    study = read_uk_biobank(biobank)
    assert study.subject == "1000017"
    assert [v.name for v in study.views] == ["4ch", "2ch", "sax0", "sax1", "sax2", "sax3"]
    view = study.views[2]
    assert view.magnitude.shape == (FRAMES, Y, X)
    assert view.magnitude[3, 7, 6] == ramp(X, Y, SLICES, FRAMES)[6, 7, 0, 3]
    assert view.labels is not None
    assert (view.labels[0, 3:6, 2:5] == LV_CAVITY).all()
    assert view.labels[0, 7, 6] == LV_MYOCARDIUM
    assert view.labels[0, 9, 8] == RV_CAVITY
    four, two = study.views[:2]
    assert four.labels is not None
    assert two.labels is not None
    assert set(np.unique(four.labels)) == {0, LEFT_ATRIUM, RIGHT_ATRIUM}
    assert set(np.unique(two.labels)) == {0, LEFT_ATRIUM}


def test_slices_lie_where_the_file_says_and_count_from_the_base(biobank: Path, tmp_path: Path) -> None:
    views = read_uk_biobank(biobank).views[2:]
    heights = [v.geometry.position_mm[2] for v in views]
    assert heights == [50.0, 40.0, 30.0, 20.0]  # the base is up
    assert views[0].geometry.position_mm[0] == pytest.approx(-(30.0 - 1.8 * 5))  # RAS to LPS
    assert views[0].geometry.voxel_size_mm == pytest.approx((1.8, 1.8, 10.0))
    folder = tmp_path / "upside_down"
    write(folder / "sa.nii.gz", ramp(X, Y, SLICES, FRAMES), affine(up=True))
    turned = read_uk_biobank(folder).views
    assert [v.geometry.position_mm[2] for v in turned] == [80.0, 70.0, 60.0, 50.0]
    assert turned[0].magnitude[0, 0, 0] == 3 * FRAMES  # the last slice of the file
    assert turned[0].labels is None


def test_a_single_frame_with_more_label_slices_is_matched_by_position(tmp_path: Path) -> None:
    folder = tmp_path / "A"
    write(folder / "sa_ED.nii.gz", ramp(X, Y, SLICES, 1), affine())
    labels = np.zeros((X, Y, SLICES + 3), np.uint8)
    labels[..., 2] = 4
    shifted = affine()
    shifted[2, 3] += 20.0  # two slices more above
    write(folder / "seg_sa_ED.nii.gz", labels, shifted)
    views = read_uk_biobank(folder).views
    assert [bool((v.labels == RV_CAVITY).all()) for v in views] == [True, False, False, False]


def test_labels_of_another_plane_are_refused(biobank: Path) -> None:
    write(biobank / "seg_sa.nii.gz", np.zeros((X - 1, Y, SLICES, FRAMES), np.uint8), affine())
    with pytest.raises(ShapeError, match="labels"):
        read_uk_biobank(biobank)


def test_folders_without_short_axes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="no short axes"):
        read_uk_biobank(tmp_path)


def test_acdc_folders_become_views_with_two_drawn_frames(tmp_path: Path) -> None:
    folder = tmp_path / "patient007"
    write(folder / "patient007_4d.nii.gz", ramp(X, Y, SLICES, FRAMES), affine())
    (folder / "Info.cfg").write_text("ED: 1\nES: 4\nGroup: DCM\nHeight: 184.0\nNbFrame: 5\nWeight: 95.0\n")
    for number, frame in ((1, 0), (4, 3)):
        labels = np.zeros((X, Y, SLICES), np.uint8)
        labels[1, 2], labels[3, 4], labels[5, 6] = 1, 2, 3
        write(folder / f"patient007_frame{number:02d}.nii.gz", ramp(X, Y, SLICES, FRAMES)[..., frame], affine())
        write(folder / f"patient007_frame{number:02d}_gt.nii.gz", labels, affine())
    study = read_acdc(folder)
    assert study.info["Group"] == "DCM"
    view = study.views[0]
    assert view.labelled_frames == (0, 3)
    assert view.labels is not None
    assert [int(view.labels[3, y, x]) for x, y in ((1, 2), (3, 4), (5, 6))] == [RV_CAVITY, LV_MYOCARDIUM, LV_CAVITY]
    assert not view.labels[1].any()


def test_damaged_files_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "B"
    folder.mkdir()
    (folder / "sa.nii.gz").write_bytes(b"no gzip at all")
    with pytest.raises(RecordingError, match=r"sa\.nii\.gz"):
        read_uk_biobank(folder)


def test_synthetic_kspace_has_no_conjugate_symmetry(biobank: Path) -> None:
    images = synthetic_kspace_images(read_uk_biobank(biobank).views[0], np.random.default_rng(0))
    assert images.shape == (FRAMES, Y, X)
    kspace = to_kspace(images)[0]
    assert np.abs(kspace - kspace[::-1, ::-1].conj()).max() > 1e-2 * np.abs(kspace).max()


def experiment(method: str = "disk", **protocol: int) -> HeartExperiment:
    sizes = {"matrix": 12, "n_frames": 3, "n_short_axis": 2, "n_long_axis": 2, **protocol}
    return HeartExperiment.model_validate(
        {
            "task": "heart", "name": "real", "description": "a test", "method": method,
            "data": {"source": "uk-biobank-cine", "protocol": sizes, "views": ["sax0"], "queries": 9},
            "cohorts": {name: {"seeds": "1"} for name in ("train", "validation")},
            "network": {"arguments": {"width": 32, "n_latents": 3, "n_layers": 1}},
            "schedule": {"steps": 1},
        }
    )  # fmt: skip


def test_studies_come_back_from_the_cache(biobank: Path, tmp_path: Path) -> None:
    study = read_uk_biobank(biobank)
    save_study(study, tmp_path / "one.h5")
    back = load_study(tmp_path / "one.h5")
    assert back.subject == study.subject
    for ours, theirs in zip(back.views, study.views, strict=True):
        assert (ours.name, ours.labelled_frames, ours.geometry) == (
            theirs.name,
            theirs.labelled_frames,
            theirs.geometry,
        )
        np.testing.assert_array_equal(ours.magnitude, theirs.magnitude)
        np.testing.assert_array_equal(ours.labels, theirs.labels)  # type: ignore[arg-type]
    with pytest.raises(RecordingError):
        load_study(tmp_path / "two.h5")


def test_the_command_reads_subjects_that_experiments_can_train_on(biobank: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    ran = CliRunner().invoke(app, ["read", "uk-biobank-cine", str(biobank.parent), "--cache", str(cache)])
    assert ran.exit_code == 0, ran.output
    config = experiment()
    (subject,) = load_cohort(config, "train", cache)
    assert subject.images.shape == subject.labels.shape == (4, 3, 12, 12)  # 4ch, 2ch and two of four short axes
    study = read_uk_biobank(biobank)
    labels = study.views[3].labels  # the second of four, and the middle rows of 13 (11 columns are filled up)
    assert labels is not None
    np.testing.assert_array_equal(subject.labels[2][:, :, :11], labels[[0, 1, 3]][:, 0:12])
    assert (subject.labels[2][:, :, 11] == 0).all()
    (one,) = task_subjects(config, "train", cache)
    task = last_task(config, [one], [one])
    parts = task.loss(task.network, task.batch(0))
    assert np.isfinite(sum(float(part.detach()) for part in parts.values()))  # type: ignore[union-attr]
    with pytest.raises(ScanError, match="labelled frames"):
        load_cohort(experiment(n_frames=6), "train", cache)
    with pytest.raises(ConfigError, match="no phenotypes"):
        check_settings(experiment("resnet50"))
