"""Coil compression: few virtual coils that keep most of the energy (Buehrer et al., MRM 2007; Huang et al., MRI 2008).

The matrix comes from the first readouts of the scan and stays: maps and frames must see the same virtual coils.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..types import Complex, FrameEnd, Notice, Readout


def compression_matrix(data: list[Complex], n_virtual: int) -> tuple[Complex, float]:
    """Orthonormal rows ``(virtual, coils)`` that keep the most energy of arrays ``(coils, samples)``, and its share.

    The rows are the leading eigenvectors of the coils' correlation, so compressed noise stays white and of unit
    variance if it was before.
    """
    correlation = sum(d.astype(np.complex128) @ d.conj().T.astype(np.complex128) for d in data)
    values, vectors = np.linalg.eigh(np.asarray(correlation))
    kept = values[::-1][:n_virtual].sum() / max(values.sum(), 1e-300)
    return np.asarray(vectors[:, ::-1][:, :n_virtual].conj().T, np.complex64), float(kept)


class CompressCoils:
    """Holds the first readouts, finds the virtual coils from them, and turns every readout into `n_virtual` coils.

    Parameters
    ----------
    n_virtual : virtual coils; a scan that has no more coils passes untouched.
    n_calibration : readouts to hold: of all directions and the centre of kz, if the order of the scan allows.
    """

    takes = (Readout, FrameEnd)
    gives = (Readout, FrameEnd, Notice)

    def __init__(self, n_virtual: int, n_calibration: int) -> None:
        self._n_virtual, self._n_calibration = n_virtual, n_calibration
        self._held: list[Readout | FrameEnd] = []
        self._n_held = 0
        self._matrix: Complex | None = None

    def push(self, item: Readout | FrameEnd) -> list[Any]:
        if self._matrix is not None:
            return [self._compressed(item)]
        if isinstance(item, Readout) and item.data.shape[0] <= self._n_virtual:
            return [item]
        self._held.append(item)
        self._n_held += isinstance(item, Readout)
        return self._release() if isinstance(item, FrameEnd) or self._n_held >= self._n_calibration else []

    def finish(self) -> list[Any]:
        return self._release() if self._held else []

    def _release(self) -> list[Any]:
        held, self._held = self._held, []
        data = [item.data for item in held if isinstance(item, Readout)]
        if not data:
            return list(held)
        self._matrix, kept = compression_matrix(data, self._n_virtual)
        text = (
            f"{data[0].shape[0]} coils compressed to {self._n_virtual}, {100 * kept:.2f} % of the energy of the first "
            f"{len(data)} readouts kept"
        )
        return [Notice("info", text), *(self._compressed(item) for item in held)]

    def _compressed(self, item: Readout | FrameEnd) -> Readout | FrameEnd:
        if isinstance(item, FrameEnd) or self._matrix is None:
            return item
        return replace(item, data=self._matrix @ item.data)
