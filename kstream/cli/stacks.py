"""Images that came back, stacked to volumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ScanError
from ..mrd.images import frame_of, label_table
from ..mrd.messages import Image
from ..output.nifti import geometry_from_images
from ..types import Geometry, LabelTable


@dataclass(frozen=True)
class Volume:
    """A stack of returned images: pixels ``(z, y, x)`` and where they lie.

    Parameters
    ----------
    rescale_slope, rescale_intercept : value = slope * pixel + intercept.
    slice_thickness_mm : of one image; the slice distance is larger if there are gaps.
    provenance : what made a label map: attributes that begin with ``kstream_``, without that.
    """

    data: NDArray[Any]
    geometry: Geometry
    table: LabelTable | None
    rescale_slope: float = 1.0
    rescale_intercept: float = 0.0
    slice_thickness_mm: float = 0.0
    provenance: Mapping[str, str] = field(default_factory=dict)

    @property
    def magnitude(self) -> NDArray[np.float32]:
        """Values as float32: rescaled, and the magnitude of complex ones."""
        pixels = np.abs(self.data) if np.iscomplexobj(self.data) else self.data.astype(np.float64)
        return (self.rescale_slope * pixels + self.rescale_intercept).astype(np.float32)

    @property
    def named_table(self) -> LabelTable:
        """The label table, for files that cannot do without.

        Raises
        ------
        ScanError : the images carry none.
        """
        if self.table is None:
            raise ScanError(
                "the label images carry no LabelTable",
                likely="another program made them, or the series is no label map",
                hint="export as NIfTI, or name another --label-series",
            )
        return self.table


def volumes(images: list[Image]) -> dict[int, Volume]:
    """All frames of one series by number, slices in order of position."""
    frames: dict[int, list[Image]] = {}
    for image in images:
        frames.setdefault(frame_of(image), []).append(image)
    return {frame: _stacked(frames[frame]) for frame in sorted(frames)}


def newest_volume(images: list[Image]) -> Volume:
    """The last frame of one series."""
    newest = max(frame_of(image) for image in images)
    return _stacked([image for image in images if frame_of(image) == newest])


def _stacked(images: list[Image]) -> Volume:
    """One volume of the images of one frame: several of one slice each, or one of all slices."""
    geometry, order = geometry_from_images([image.header for image in images])
    first = images[order[0]]
    is_volume = len(images) == 1
    return Volume(
        data=first.data[0] if is_volume else np.stack([images[i].data[0, 0] for i in order]),
        geometry=geometry,
        table=label_table(first),
        rescale_slope=_number(first.meta, "RescaleSlope", 1.0),
        rescale_intercept=_number(first.meta, "RescaleIntercept", 0.0),
        slice_thickness_mm=geometry.voxel_size_mm[2] if is_volume else float(first.header["field_of_view"][2]),
        provenance={
            key.removeprefix("kstream_"): str(value) for key, value in first.meta.items() if key.startswith("kstream_")
        },
    )


def _number(meta: Mapping[str, Any], name: str, default: float) -> float:
    try:
        return float(meta.get(name, default))
    except (TypeError, ValueError):  # a list, or what a peer wrote in words
        return default
