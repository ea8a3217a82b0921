from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from kstream.errors import ConfigError, RecordingError, ScanError
from kstream.training.data import Exam, build_cache, exam_path, load_cohort, load_exam, recipe_of, save_exam
from kstream.training.experiment import Experiment


def test_an_exam_comes_back_as_it_was_saved(tmp_path: Path, exams: list[Exam]) -> None:
    path = tmp_path / "train" / "exam-0.h5"
    save_exam(exams[0], path, "recipe")
    again = load_exam(path, "recipe")
    np.testing.assert_array_equal(again.differences, exams[0].differences)
    np.testing.assert_array_equal(again.labels, exams[0].labels)
    assert (again.seed, again.frames, again.voxel_size_mm) == (0, (1, 2), (2.0, 2.5, 4.0))
    assert [file.name for file in path.parent.iterdir()] == ["exam-0.h5"]


def test_exams_of_another_recipe_are_refused(tmp_path: Path, exams: list[Exam]) -> None:
    save_exam(exams[0], tmp_path / "a.h5", "recipe")
    with pytest.raises(RecordingError, match="other settings"):
        load_exam(tmp_path / "a.h5", "another")


def test_missing_and_damaged_files_are_recording_errors(tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("not HDF5")
    with h5py.File(tmp_path / "empty.h5", "w") as file:
        file.attrs["recipe"] = "r"
    for name in ("nothing.h5", "text.h5", "empty.h5"):
        with pytest.raises(RecordingError, match="cannot read the exam"):
            load_exam(tmp_path / name, "r")


def test_a_missing_frame_is_named(exams: list[Exam]) -> None:
    with pytest.raises(ScanError, match="no frame 3"):
        exams[0].difference(3)


@pytest.fixture
def tiny() -> Experiment:
    protocol = {"matrix": 24, "n_slices": 6, "n_spokes": 13, "n_coils": 3}
    return Experiment.model_validate(
        {
            "name": "tiny",
            "description": "a scan as small as they get",
            "data": {"protocol": protocol},
            "cohorts": {
                "train": {"seeds": "1"},
                "validation": {"seeds": "2"},
                "free": {"seeds": "3", "protocol": {"n_lesions": 0}},
            },
            "network": {"architecture": "breast-magnitude"},
            "schedule": {"steps": 1},
        }
    )


def test_a_cohorts_protocol_overrides_the_experiments(tiny: Experiment) -> None:
    assert tiny.protocol("free")["n_lesions"] == 0
    assert tiny.protocol("free")["matrix"] == 24
    assert recipe_of(tiny, "free") != recipe_of(tiny, "train")


def test_the_cache_holds_what_the_pipeline_gave_and_is_not_built_twice(tmp_path: Path, tiny: Experiment) -> None:
    built = list(build_cache(tiny, tmp_path, workers=1))
    assert [done for _, done, _ in built] == [1, 2, 3]
    [exam] = load_cohort(tiny, "train", tmp_path)
    assert exam.frames == (1, 2)
    assert exam.differences.shape == (2, 6, 24, 24)
    assert np.isfinite(exam.differences).all()
    assert np.abs(exam.differences).max() > 0
    assert not load_cohort(tiny, "free", tmp_path)[0].has_lesion
    exam_path(tmp_path, "validation", 2).unlink()
    assert [path.name for path, _, _ in build_cache(tiny, tmp_path, workers=1)] == ["exam-2.h5"]


def test_an_unknown_protocol_field_is_a_config_error(tiny: Experiment) -> None:
    wrong = tiny.model_copy(update={"data": tiny.data.model_copy(update={"protocol": {"slices": 6}})})
    with pytest.raises(ConfigError, match="slices"):
        recipe_of(wrong, "train")
