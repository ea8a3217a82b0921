"""Array mathematics as steps of the stream."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import ScanError
from ..stream.crew import Crew, InlineCrew
from ..types import CoilImages, Complex, FrameEnd, FrameImage, KSpace, Notice, Readout
from .fourier import to_image
from .gridding import FrameGrid, PlaneGridder
from .sampling import Sampling

SMALLEST = float(np.finfo(np.float32).tiny)


class GridReadouts:
    """Adds every readout to its frame's grid of every coil when it comes; gives coil images when the frame ends.

    The way for all trajectories in a plane. `CombineSpokes` is the way for spokes that share coil maps.

    Parameters
    ----------
    oversampling, width : of the Kaiser-Bessel kernel.
    memory_gib : grids and coil images of frames that are open at the same time, and maps, may take so much.
    n_sets : sets of maps, for that memory.

    Raises
    ------
    ScanError : the header asks for more memory than that.
    """

    takes = (Readout, FrameEnd)
    gives = (CoilImages, FrameEnd, Notice)

    def __init__(self, sampling: Sampling, oversampling: float, width: int, memory_gib: float, n_sets: int = 1) -> None:
        nz, ny, nx = sampling.shape
        self._sampling, self._memory_gib = sampling, memory_gib
        self._grid_bytes = sampling.n_partitions * int(nx * ny * oversampling**2) * 8
        self._image_bytes = (2 + n_sets) * max(nz, sampling.n_partitions) * ny * nx * 8
        self._grids: dict[tuple[int, int], FrameGrid] = {}
        self._check_memory(max(sampling.scan.n_coils, 1))
        self._gridder = PlaneGridder((ny, nx), oversampling, width)
        self._partition_to_z = sampling.partition_to_z()

    def push(self, item: Readout | FrameEnd) -> list[Any]:
        if isinstance(item, FrameEnd):
            grid = self._grids.pop((item.frame, item.slice))
            images = grid.to_images(self._partition_to_z)
            return [item, CoilImages(images, item.frame, item.slice, item.received_ns, item.geometry)]
        weights, told = self._sampling.weights(item)
        self._grid(item).add(item.data, item.trajectory, weights, item.partition)
        return told

    def finish(self) -> list[Any]:
        return []

    def _grid(self, readout: Readout) -> FrameGrid:
        place = (readout.frame, readout.slice)
        if place not in self._grids:
            self._check_memory(readout.data.shape[0])
            self._grids[place] = FrameGrid(self._gridder, self._sampling.n_partitions, readout.data.shape[0])
        return self._grids[place]

    def _check_memory(self, n_coils: int) -> None:
        n_open = len(self._grids) + 1
        needed_gib = n_coils * (n_open * self._grid_bytes + self._image_bytes) / 2**30
        if needed_gib > self._memory_gib:
            raise ScanError(
                f"{n_open} open frames of {n_coils} coils, matrix {self._sampling.scan.recon_matrix} and "
                f"{self._sampling.n_partitions} partitions need {needed_gib:.1f} GiB, more than {self._memory_gib:g}",
                likely="the header is wrong, or frames that never become full pile up",
                hint="--set gridding.memory_gib=N, or --set frames.readouts_per_frame=N",
            )


class ToImageSpace:
    """Combined k-space of a frame to its complex image, for those who look at it.

    With several sets of coil maps, the magnitude is the root of the sum of squares of their images, and the phase that
    of the first. Where two places fold onto one voxel, both eigenvalues are 1 and the eigenvectors any basis of what
    they span: no set alone is an image of something, but their sum of squares is the same for every basis.

    Parameters
    ----------
    crew : works on several slices at a time.
    """

    takes = (KSpace,)
    gives = (FrameImage,)

    def __init__(self, crew: Crew | None = None) -> None:
        self._crew = crew or InlineCrew()

    def push(self, kspace: KSpace) -> list[Any]:
        image = np.empty_like(kspace.data)

        def transform(z: int) -> None:
            image[z] = _combined([to_image(data[z]) for data in kspace.sets])

        self._crew.each(transform, len(image))
        return [FrameImage(image, kspace.frame, kspace.slice, kspace.received_ns, kspace.geometry)]

    def finish(self) -> list[Any]:
        return []


def _combined(sets: list[Complex]) -> Complex:
    """The image of the first set; with others, the root of the sum of squares with the phase of the first."""
    first = sets[0]
    if len(sets) == 1:
        return first
    size = np.abs(first)
    total = np.sqrt(sum(np.abs(image) ** 2 for image in sets))
    return np.asarray(total * np.where(size > 0, first / np.maximum(size, SMALLEST), 1), np.complex64)
