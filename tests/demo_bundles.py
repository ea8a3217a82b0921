"""Bundles for the demo's tests: networks that nobody trained, which say what protocol they were trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kstream.models.bundle import DESCRIPTION
from tests.brain_bundle import save_tiny
from tests.hearts import disk_bundle, kmtr_bundle

CINE: dict[str, Any] = {
    "data": {
        "protocol": {
            "matrix": 24,
            "n_frames": 5,
            "n_short_axis": 1,
            "n_long_axis": 0,
            "field_of_view_mm": 150.0,
            "through_samples": 1,
        },
        "accelerations": [3.0, 6.0],
        "density": "disk",
        "noise": 0.0,
    },
    "cohorts": {"train": {"seeds": [1, 2, 3]}, "validation": {"seeds": [11]}},
}

HEADS = """task = "brain"
[data]
noise = [0.05]
fraction = 0.4
n_centre = 8
[data.protocol]
matrix = [40, 48]
voxel_mm = [4.5, 4.5, 12.0]
n_slices = 3
[cohorts.train]
seeds = "1-17, 30"
"""


def heart(folder: Path, *, kmtr: bool = False, metrics: dict[str, Any] | None = None) -> Path:
    """A DiSK that says how it was trained; or a k-MTR that does not."""
    bundle = kmtr_bundle(folder) if kmtr else disk_bundle(folder)
    _describe(bundle.folder, metrics=metrics or {}, **({} if kmtr else {"training": {"experiment": CINE}}))
    return bundle.folder


def brain(folder: Path) -> Path:
    """A SERANet with its experiment file beside it."""
    bundle = save_tiny(folder)
    _describe(bundle.folder, training={"experiment": "heads.toml"})
    (bundle.folder / "heads.toml").write_text(HEADS)
    return bundle.folder


def _describe(folder: Path, **fields: Any) -> None:
    path = folder / DESCRIPTION
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
