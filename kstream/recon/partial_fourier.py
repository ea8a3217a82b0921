"""The partitions that a partial Fourier scan leaves out along kz: zero-filled, or filled by conjugate symmetry.

A scan that acquires kz from ``low`` to ``high`` with ``|low| < high`` knows both signs only up to ``|low|``. An image
whose phase is smooth follows from the rest (Noll et al., IEEE TMI 1991, homodyne; Haacke et al., JMR 1991, POCS). Both
work on the coil-combined image, pixel by pixel in the plane, so they come after everything else.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import ScanError
from ..types import Complex, KSpace, Notice, Scan
from .fourier import to_image, to_kspace
from .sampling import kz_positions

Method = Literal["zero", "homodyne", "pocs"]


def is_partial(kz: NDArray[np.floating]) -> bool:
    """True if one side of kz was measured further out than the other, by more than the one of an even number."""
    return abs(float(kz.max() + kz.min())) > 1.5


def fill_homodyne(image: Complex, kz: NDArray[np.floating]) -> Complex:
    """Homodyne reconstruction along z of a complex image ``(z, y, x)``; the result is real up to the smooth phase.

    1. The phase of the image of the symmetric centre is taken for that of the object. 2. k-space is weighted: 2 where
    only one sign was measured, 0 where nothing was, a ramp between them across the centre. 3. The real part after
    removal of the phase is the image; the phase is put back.
    """
    nz = image.shape[0]
    position, low, high = _range(kz, nz)
    kspace = to_kspace(image, (0,))
    phase = _smooth_phase(kspace, position, min(-low, high))
    towards = position if high >= -low else -position
    both = max(min(-low, high), 1)
    weight = np.clip(1 + towards / both, 0, 2)[:, None, None].astype(np.float32)
    measured = ((position >= low) & (position <= high))[:, None, None]
    weighted = to_image(np.asarray(kspace * weight * measured, np.complex64), (0,))
    return np.asarray((weighted * phase.conj()).real * phase, np.complex64)


def fill_pocs(image: Complex, kz: NDArray[np.floating], n_iterations: int = 10) -> Complex:
    """Projection onto convex sets along z of a complex image ``(z, y, x)``: measured samples stay as they are.

    1. The magnitude with the phase of the symmetric centre is transformed. 2. Measured samples are put back. Repeated;
    an image that is consistent with its data is left alone, unlike by homodyne.
    """
    position, low, high = _range(kz, image.shape[0])
    measured = ((position >= low) & (position <= high))[:, None, None]
    data = np.where(measured, to_kspace(image, (0,)), 0).astype(np.complex64)
    phase = _smooth_phase(data, position, min(-low, high))
    current = to_image(data, (0,))
    for _ in range(n_iterations):
        guess = to_kspace(np.asarray(np.abs(current) * phase, np.complex64), (0,))
        current = to_image(np.where(measured, data, guess).astype(np.complex64), (0,))
    return current


def _range(kz: NDArray[np.floating], nz: int) -> tuple[NDArray[np.intp], int, int]:
    """Positions of the image's own kz, and the lowest and highest that were measured."""
    position = np.arange(nz) - nz // 2
    low, high = int(np.ceil(max(kz.min(), -(nz / 2)))), int(np.floor(min(kz.max(), (nz - 1) / 2)))
    return position, low, high


def _smooth_phase(kspace: Complex, position: NDArray[np.intp], both: int) -> Complex:
    """Unit phasors of the image of the centre, tapered (Hann) so that it does not ring."""
    taper = np.where(np.abs(position) <= both, np.cos(0.5 * np.pi * position / (both + 1)) ** 2, 0)
    centre = to_image(np.asarray(kspace * taper[:, None, None], np.complex64), (0,))
    return np.asarray(centre / np.maximum(np.abs(centre), 1e-30), np.complex64)


class FillPartialFourier:
    """Fills what a partial Fourier scan left out along kz, frame by frame; other scans pass untouched.

    Raises
    ------
    ScanError : at construction, if partitions do not lie on the recon grid along kz.
    """

    takes = (KSpace,)
    gives = (KSpace, Notice)

    def __init__(self, scan: Scan, n_partitions: int, method: Method, iterations: int = 10) -> None:
        self._kz = kz_positions(scan, n_partitions)
        self._method = method if n_partitions > 1 and is_partial(self._kz) else "zero"
        self._iterations = iterations
        self._told = method == "zero"
        if self._method != "zero" and not np.isclose(scan.recon_fov_mm[2], scan.encoded_fov_mm[2], rtol=1e-3):
            raise ScanError(
                f"{method} needs the same extent along z in encoded and recon space, "
                f"not {scan.encoded_fov_mm[2]:g} and {scan.recon_fov_mm[2]:g} mm",
                hint="--set partial_fourier.method=zero",
            )

    def push(self, kspace: KSpace) -> list[Any]:
        told = self._tell()
        if self._method == "zero":
            return [*told, kspace]
        return [*told, kspace.changed(self._filled)]

    def finish(self) -> list[Any]:
        return []

    def _filled(self, kspace: Complex) -> Complex:
        image = to_image(kspace)
        if self._method == "homodyne":
            return to_kspace(fill_homodyne(image, self._kz))
        return to_kspace(fill_pocs(image, self._kz, self._iterations))

    def _tell(self) -> list[Any]:
        if self._told:
            return []
        self._told = True
        span = f"kz from {self._kz.min():g} to {self._kz.max():g}"
        if self._method == "zero":
            return [Notice("info", f"{span} is symmetric: no partial Fourier to fill")]
        return [Notice("info", f"partial Fourier, {span}: filled by {self._method}")]
