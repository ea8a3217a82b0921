from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from kstream.errors import ConfigError, RecordingError, ScanError, ShapeError
from kstream.training.breast.data import (
    Exam,
    build_cache,
    exam_path,
    load_cohort,
    load_exam,
    recipe_of,
    same_recipe,
    save_exam,
)
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


def test_recipes_agree_if_they_differ_in_defaults_and_labels_alone(tiny: Experiment) -> None:
    recipe = json.loads(recipe_of(tiny, "train"))
    older = json.loads(json.dumps(recipe))
    del older["pipeline"]["coils"]["crop"], older["variants"]
    older["pipeline"]["segment"] = {"model": "another"}
    older["pipeline"]["frames"]["close_after"] = 7
    assert same_recipe(json.dumps(older), json.dumps(recipe))
    older["pipeline"]["coils"]["kernel"] = 7
    assert not same_recipe(json.dumps(older), json.dumps(recipe))
    assert not same_recipe("no JSON", json.dumps(recipe))


def test_exams_that_would_waste_hours_are_refused(tmp_path: Path, exams: list[Exam]) -> None:
    exam = exams[0]
    broken = exam.differences.copy()
    broken[1, 2, 3, 4] = np.nan
    with pytest.raises(ScanError, match="not finite"):
        save_exam(replace(exam, differences=broken), tmp_path / "a.h5", "r")
    with pytest.raises(ScanError, match="all zero"):
        save_exam(replace(exam, differences=exam.differences * 0), tmp_path / "a.h5", "r")
    with pytest.raises(ShapeError, match="labels"):
        save_exam(replace(exam, labels=exam.labels[:-1]), tmp_path / "a.h5", "r")
    with pytest.raises(ShapeError, match="radial-uniform-2"):
        save_exam(replace(exam, variants={"radial-uniform-2": exam.differences[0, 1:]}), tmp_path / "a.h5", "r")
    assert not list(tmp_path.iterdir())


def test_variants_come_back_in_half_precision(tmp_path: Path, exams: list[Exam]) -> None:
    kspace = exams[0].differences[1]
    save_exam(replace(exams[0], variants={"radial-uniform-2": kspace}, patient="p7"), tmp_path / "a.h5", "r")
    again = load_exam(tmp_path / "a.h5")
    np.testing.assert_allclose(again.variants["radial-uniform-2"], kspace, rtol=2e-3, atol=1e-3)
    assert (again.patient, again.source) == ("p7", "simulated")


def test_processes_that_simulate_do_without_torch() -> None:
    code = "import sys, kstream.training.breast.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
