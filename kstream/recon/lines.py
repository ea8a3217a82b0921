"""Cartesian lines at their places: k-space as it was measured, with exact zeros where nothing was.

The way for networks that compare their image with the measurement (data consistency). `GridReadouts` is the way for
images alone; it interpolates, so that what lies between measured lines is small and not zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ScanError
from ..types import Complex, EarlyKSpace, FrameEnd, FrameProgress, KSpace, Readout, Scan
from .calibration import EspiritSettings
from .coils import Method, combine, volume_maps
from .fourier import to_image, to_kspace

OFF_GRID = 0.01
"""Cycles per field of view by which a sample may lie beside its place on the grid."""


class PlaceLines:
    """Puts every line into its frame's k-space when it comes; gives the coil-combined k-space when the frame ends.

    When `FrameProgress` announces a frame that is still open, what has come of it leaves as `EarlyKSpace`.

    One coil needs no combination: its samples leave as they came. With several, images of the measured lines are
    combined with maps of the same frame (ESPIRiT, from the centre of its k-space), or by root sum of squares, and the
    lines that were not measured are set to 0 again; the combined lines are then those of one virtual coil.

    Parameters
    ----------
    method, espirit : how coils are combined.
    memory_gib : k-space of frames that are open at the same time may take so much.

    Raises
    ------
    ScanError : the scan has partitions, or lines that do not lie on the grid, or asks for more memory than that.
    """

    takes = (Readout, FrameEnd, FrameProgress)
    gives = (KSpace, EarlyKSpace, FrameEnd)

    def __init__(self, scan: Scan, method: Method, espirit: EspiritSettings, memory_gib: float) -> None:
        nx, ny, nz = scan.recon_matrix
        if nz != 1:
            raise ScanError(
                f"lines of {nz} partitions cannot be placed: only slices that are excited apart",
                where="reconSpace of the header",
                hint="--set gridding.method=auto",
            )
        self._shape = (ny, nx)
        self._method, self._espirit = method, espirit
        self._most_bytes = int(memory_gib * 2**30)
        self._open: dict[tuple[int, int], _Frame] = {}

    def push(self, item: Readout | FrameEnd | FrameProgress) -> list[Any]:
        if isinstance(item, FrameProgress):
            end = item.so_far
            frame = self._open.get((end.frame, end.slice))  # None if an earlier step holds its lines
            return [EarlyKSpace(self._combined(frame, end), end.n_readouts, end.n_expected)] if frame else []
        if isinstance(item, FrameEnd):
            return [item, self._combined(self._open.pop((item.frame, item.slice)), item)]
        self._frame((item.frame, item.slice), item.data.shape[0]).add(item)
        return []

    def finish(self) -> list[Any]:
        return []

    def _frame(self, place: tuple[int, int], n_coils: int) -> _Frame:
        if place not in self._open:
            size = n_coils * self._shape[0] * self._shape[1] * 8
            if (len(self._open) + 1) * size > self._most_bytes:
                raise ScanError(
                    f"{len(self._open) + 1} open frames of {n_coils} coils and {self._shape} samples need more than "
                    f"{self._most_bytes / 2**30:g} GiB",
                    likely="frames that never become full pile up",
                    hint="--set gridding.memory_gib=N, or --set frames.readouts_per_frame=N",
                )
            self._open[place] = _Frame(n_coils, self._shape)
        return self._open[place]

    def _combined(self, frame: _Frame, end: FrameEnd) -> KSpace:
        data = frame.mean()[:, None]
        if len(data) == 1:
            return KSpace(data[0], end.frame, end.slice, end.received_ns, end.geometry)
        images = to_image(data)
        if self._method == "rss":
            image = np.sqrt(np.sum(np.abs(images) ** 2, axis=0)).astype(np.complex64)
        else:
            image = combine(images, volume_maps(images, self._espirit))
        kspace = to_kspace(image)
        kspace[:, frame.counts == 0] = 0
        return KSpace(kspace, end.frame, end.slice, end.received_ns, end.geometry)


class _Frame:
    """Sums of the lines of one frame: complex64 ``(coils, y, x)``, and how often each was measured, ``(y,)``."""

    def __init__(self, n_coils: int, shape: tuple[int, int]) -> None:
        self._sums: Complex = np.zeros((n_coils, *shape), np.complex64)
        self.counts: NDArray[np.int64] = np.zeros(shape[0], np.int64)

    def add(self, readout: Readout) -> None:
        """Put one line in.

        Raises
        ------
        ScanError : it does not lie on the grid.
        """
        _, ny, nx = self._sums.shape
        y, x = _places(readout, (ny, nx))
        inside = (x >= 0) & (x < nx)
        if not 0 <= y < ny:
            return
        self._sums[:, y, x[inside]] += readout.data[:, inside]
        self.counts[y] += 1

    def mean(self) -> Complex:
        """K-space with lines that were measured several times averaged."""
        return np.asarray(self._sums / np.maximum(self.counts, 1)[:, None].astype(np.float32), np.complex64)


def _places(readout: Readout, shape: tuple[int, int]) -> tuple[int, NDArray[np.intp]]:
    """Row of a line and columns of its samples, in centred k-space."""
    kx, ky = readout.trajectory[:, 0], readout.trajectory[:, 1]
    x, y = np.rint(kx), np.rint(ky[0])
    if max(float(np.abs(kx - x).max(initial=0)), float(np.abs(ky - y).max(initial=0))) > OFF_GRID:
        raise ScanError(
            "a line does not lie on the Cartesian grid of the image",
            where=f"frame {readout.frame}, slice {readout.slice}, readout {readout.key}",
            likely="readout oversampling is still there, the phase field of view is oversampled, or it is an EPI",
            hint="--set readouts.remove_oversampling=true, or --set gridding.method=auto",
        )
    return int(y) + shape[0] // 2, x.astype(np.intp) + shape[1] // 2
