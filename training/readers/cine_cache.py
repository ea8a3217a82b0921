"""Cine subjects of public data in a cache: read once from NIfTI, kept as they are, for experiments of the heart's task.

One HDF5 file per subject, ``FOLDER/DATASET/NAME.h5``, with a group per view in the order of `CineStudy`: ``magnitude``
float32 ``(frames, y, x)``, ``labels`` uint8 of the same shape if anybody drew some, attributes ``labelled_frames`` and
those of the view's geometry.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ...errors import ConfigError, KstreamError, RecordingError
from ...types import Geometry, Vector
from .cine import CineStudy, CineView, read_acdc, read_uk_biobank

READERS = {"uk-biobank-cine": read_uk_biobank, "acdc": read_acdc}
"""Data sets, and what reads the folder of one subject."""

_PLACE = ("field_of_view_mm", "position_mm", "read_dir", "phase_dir", "slice_dir")


def convert_cine(dataset: str, folder: Path, cache: Path) -> Iterator[tuple[str, int, int]]:
    """Read every subject's folder; gives ``(subject, done, total)``. Subjects that the cache has are kept.

    Raises
    ------
    ConfigError : a folder without subjects. Else as the reader, with the subject's name.
    """
    names = sorted(path.name for path in folder.glob("*") if path.is_dir() and any(path.glob("*.nii*")))
    if not names:
        raise ConfigError(
            "no subject was found", where=str(folder), likely=f"this is not a folder of {dataset} as it is published"
        )
    for number, name in enumerate(names, start=1):
        path = cache / dataset / f"{name}.h5"
        if not path.is_file():
            try:
                save_study(READERS[dataset](folder / name), path)
            except KstreamError as error:
                raise error.at(f"subject {name}") from error
        yield name, number, len(names)


def cached_subjects(dataset: str, cache: Path) -> list[Path]:
    """Files of all subjects, by name; a subject's number is its place in this list, from 1."""
    return sorted((cache / dataset).glob("*.h5"))


def save_study(study: CineStudy, path: Path) -> None:
    """Write a subject; an interrupted write leaves nothing that looks finished."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    with h5py.File(unfinished, "w") as file:
        file.attrs["subject"] = study.subject
        for key, value in study.info.items():
            file.attrs[f"info {key}"] = value
        for number, view in enumerate(study.views):
            group = file.create_group(f"{number:02d}-{view.name}")
            group.create_dataset("magnitude", data=view.magnitude, compression="gzip")
            if view.labels is not None:
                group.create_dataset("labels", data=view.labels, compression="gzip")
            place = view.geometry
            frames = np.array(view.labelled_frames, np.int64)
            group.attrs.update(name=view.name, labelled_frames=frames, matrix=place.matrix)
            group.attrs.update({name: getattr(place, name) for name in _PLACE})
    unfinished.replace(path)


def load_study(path: Path) -> CineStudy:
    """Read a subject that `save_study` wrote.

    Raises
    ------
    RecordingError : if the file is missing or damaged.
    """
    try:
        with h5py.File(path) as file:
            views = tuple(_view(file[name]) for name in sorted(file))
            info = {key.removeprefix("info "): str(v) for key, v in file.attrs.items() if key.startswith("info ")}
            return CineStudy(str(file.attrs["subject"]), views, info)
    except (OSError, KeyError) as error:
        raise RecordingError(
            f"cannot read the subject: {error}", where=str(path), hint="python -m kstream.training read --help"
        ) from error


def _view(group: Any) -> CineView:
    attributes: Mapping[str, Any] = group.attrs
    nx, ny, nz = (int(n) for n in attributes["matrix"])
    size, position, read, phase, normal = (_vector(attributes[name]) for name in _PLACE)
    return CineView(
        str(attributes["name"]),
        group["magnitude"][...],
        group["labels"][...] if "labels" in group else None,
        tuple(int(frame) for frame in attributes["labelled_frames"]),
        Geometry((nx, ny, nz), size, position, read, phase, normal),
    )


def _vector(values: Any) -> Vector:
    return float(values[0]), float(values[1]), float(values[2])
