"""Splits of patients: the folds of paper 000, number for number, and a validation part that is not the test part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError

SEED = 123


def stratified_folds(labels: Sequence[int] | NDArray[np.integer], n_folds: int, seed: int = SEED) -> NDArray[np.int64]:
    """Test fold, from 0, of every item: scikit-learn's ``StratifiedKFold(n_folds, shuffle=True, random_state=seed)``.

    Raises
    ------
    ConfigError : if a class has fewer items than there are folds.
    """
    values = np.asarray(labels)
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first))  # classes in order of appearance
    classes = order[inverse]
    counts = np.bincount(classes)
    if not len(values) or counts.min() < n_folds:
        smallest = int(counts.min()) if len(values) else 0
        raise ConfigError(
            f"{n_folds} folds cannot be made: the smallest class has {smallest} patients",
            likely="a cohort with too few patients with a lesion",
            hint=f"at most {smallest} folds" if smallest > 1 else "more patients",
        )
    ordered = np.sort(classes)
    allocation = np.array([np.bincount(ordered[i::n_folds], minlength=len(counts)) for i in range(n_folds)])
    rng = np.random.RandomState(seed)  # the legacy generator: its stream is frozen, and scikit-learn's
    folds = np.empty(len(values), np.int64)
    for index in range(len(counts)):
        own = np.arange(n_folds).repeat(allocation[:, index])
        rng.shuffle(own)
        folds[classes == index] = own
    return folds


def shuffled_folds(n_items: int, n_folds: int, seed: int = SEED) -> NDArray[np.int64]:
    """Test fold, from 0, of every item: scikit-learn's ``KFold(n_folds, shuffle=True, random_state=seed)``.

    Raises
    ------
    ConfigError : if there are fewer items than folds.
    """
    if n_items < n_folds:
        raise ConfigError(f"{n_folds} folds cannot be made of {n_items} patients")
    indices = np.arange(n_items)
    np.random.RandomState(seed).shuffle(indices)
    folds = np.empty(n_items, np.int64)
    for fold, members in enumerate(np.array_split(indices, n_folds)):
        folds[members] = fold
    return folds


def split_patients(
    has_lesion: Mapping[str, bool], n_folds: int = 5, fold: int = 1, seed: int = SEED, published: bool = False
) -> dict[str, tuple[str, ...]]:
    """Patients of ``train``, ``validation`` and ``test`` for one fold (from 1, as published).

    The test part is the fold. `published` validates on the test part, as the authors' code does; else the fold after it
    is the validation part, so that nothing is selected on what is reported. Cohorts in which every patient has a lesion
    are shuffled, others stratified.

    Raises
    ------
    ConfigError : if the folds cannot be made, or a part has no patient with a lesion.
    """
    if not 1 <= fold <= n_folds or n_folds < (2 if published else 3):
        raise ConfigError(f"fold {fold} of {n_folds} does not exist, or leaves nothing to train on")
    patients = sorted(has_lesion)
    labels = np.array([has_lesion[patient] for patient in patients], np.int64)
    if not labels.any():
        raise ConfigError(
            f"none of {len(patients)} patients has a lesion", likely="the data set was read without its masks"
        )
    folds = shuffled_folds(len(patients), n_folds, seed) if labels.all() else stratified_folds(labels, n_folds, seed)
    test = folds == fold - 1
    validation = test if published else folds == fold % n_folds
    parts = {"train": ~(test | validation), "validation": validation, "test": test}
    for name, members in parts.items():
        if not labels[members].any():
            raise ConfigError(f"the {name} part of fold {fold} has no patient with a lesion", hint="fewer folds")
    return {
        name: tuple(p for p, is_in in zip(patients, members, strict=True) if is_in) for name, members in parts.items()
    }
