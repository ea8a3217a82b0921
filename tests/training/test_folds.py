from __future__ import annotations

import pytest

from kstream.errors import ConfigError
from kstream.training.folds import shuffled_folds, split_patients, stratified_folds

LABELS = [1, 0, 0, 1, 0, 1, 0, 0, 0, 1, 1, 0, 0, 1, 0, 0, 1, 0, 0, 0, 1, 0, 1]
# scikit-learn 1.9.1, StratifiedKFold and KFold of five folds, shuffled with random_state 123
STRATIFIED = [3, 2, 0, 0, 1, 2, 2, 1, 1, 3, 1, 4, 2, 0, 3, 4, 4, 3, 4, 0, 2, 0, 1]
SHUFFLED = [3, 3, 4, 1, 1, 0, 4, 1, 1, 2, 3, 1, 2, 4, 0, 2, 2, 3, 0, 0, 0, 4, 2]


def test_folds_are_those_of_scikit_learn() -> None:
    assert stratified_folds(LABELS, 5).tolist() == STRATIFIED
    assert shuffled_folds(len(LABELS), 5).tolist() == SHUFFLED


def test_every_patient_is_tested_once_and_parts_are_disjoint() -> None:
    patients = {f"p{number:02d}": bool(label) for number, label in enumerate(LABELS)}
    tested: list[str] = []
    for fold in range(1, 6):
        parts = split_patients(patients, 5, fold)
        assert sorted(p for part in parts.values() for p in part) == sorted(patients)
        assert all(any(patients[p] for p in part) for part in parts.values())
        tested += parts["test"]
    assert sorted(tested) == sorted(patients)


def test_the_published_split_validates_on_what_it_reports() -> None:
    patients = {f"p{number:02d}": bool(label) for number, label in enumerate(LABELS)}
    parts = split_patients(patients, 5, 2, published=True)
    assert parts["validation"] == parts["test"]
    assert parts["test"] == tuple(f"p{i:02d}" for i, fold in enumerate(STRATIFIED) if fold == 1)
    assert len(parts["train"]) + len(parts["test"]) == len(patients)


def test_cohorts_with_lesions_only_are_shuffled() -> None:
    parts = split_patients({f"p{number:02d}": True for number in range(23)}, 5, 1)
    assert parts["test"] == tuple(f"p{i:02d}" for i, fold in enumerate(SHUFFLED) if fold == 0)


def test_folds_that_cannot_be_made_are_refused() -> None:
    with pytest.raises(ConfigError, match="smallest class has 2"):
        stratified_folds([1, 1, 0, 0, 0, 0], 3)
    with pytest.raises(ConfigError, match="smallest class has 0"):
        stratified_folds([], 3)
    with pytest.raises(ConfigError, match="cannot be made of 2"):
        shuffled_folds(2, 3)
    with pytest.raises(ConfigError, match="does not exist"):
        split_patients({"a": True}, 5, 6)
    with pytest.raises(ConfigError, match="none of 6 patients has a lesion"):
        split_patients({f"p{number}": False for number in range(6)}, 3, 1)
    with pytest.raises(ConfigError, match="smallest class has 2"):
        split_patients({f"p{number}": number < 2 for number in range(9)}, 3, 1)
