"""Coil compression: few virtual coils that keep most of the energy (Buehrer et al., MRM 2007; Huang et al., MRI 2008).

Each slice has its own matrix, as it has its own coil maps: coils that see one slice may be blind for another. It comes
from the first readouts of the slice and stays: maps and frames must see the same virtual coils.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
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


@dataclass
class _Slice:
    """What waits for the virtual coils of one slice; then their matrix."""

    waiting: list[Readout] = field(default_factory=list)
    n_central: int = 0
    matrix: Complex | None = None


class CompressCoils:
    """Holds the first readouts of a slice, finds its virtual coils, and turns every readout into `n_virtual` coils.

    Parameters
    ----------
    n_virtual : virtual coils; a scan that has no more coils passes untouched.
    n_directions : readouts of the central partition to wait for: of all directions, if the order of the scan allows.
        The end of the slice's first frame ends the waiting too.
    centre : the central partition. It holds most of the energy; the edge of kz, with which a scan may begin, little but
        noise.
    """

    takes = (Readout, FrameEnd)
    gives = (Readout, FrameEnd, Notice)

    def __init__(self, n_virtual: int, n_directions: int, centre: int = 0) -> None:
        self._n_virtual, self._n_directions, self._centre = n_virtual, n_directions, centre
        self._slices: dict[int, _Slice] = {}

    def push(self, item: Readout | FrameEnd) -> list[Any]:
        state = self._slices.setdefault(item.slice, _Slice())
        if isinstance(item, FrameEnd):
            return [*self._release(state), item]
        if item.data.shape[0] <= self._n_virtual:
            return [item]
        if state.matrix is not None:
            return [replace(item, data=state.matrix @ item.data)]
        state.waiting.append(item)
        state.n_central += item.partition == self._centre
        return self._release(state) if state.n_central >= self._n_directions else []

    def finish(self) -> list[Any]:
        return [made for state in self._slices.values() for made in self._release(state)]

    def _release(self, state: _Slice) -> list[Any]:
        """Find the virtual coils of a slice and let go what waited for them."""
        held, state.waiting = state.waiting, []
        if not held:
            return []
        matrix, kept = compression_matrix([readout.data for readout in held], self._n_virtual)
        state.matrix = matrix
        text = (
            f"slice {held[0].slice}: {matrix.shape[1]} coils compressed to {self._n_virtual}, {100 * kept:.2f} % of "
            f"the energy of the first {len(held)} readouts kept"
        )
        return [Notice("info", text), *(replace(readout, data=matrix @ readout.data) for readout in held)]
