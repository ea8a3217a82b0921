"""Native radial undersampling: spokes of a recorded scan are dropped before anything is reconstructed from them.

Paper 000 names it as missing: its masks leave out Cartesian lines of k-space that was regridded from all spokes. Here
the kept spokes go through the streaming reconstruction as a scan of their own: coil maps, density compensation and
gridding know nothing of the others. The same spokes are kept in every frame, as a shorter protocol would play them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ...errors import ScanError
from ...recon.density import angle_gaps_rad, readout_angle_rad
from ...types import Acquisition, AcquisitionFlag, EncodingLimit, Scan

SPOKE = "kspace_encode_step_1"


def drop_spokes(
    scan: Scan, acquisitions: Sequence[Acquisition], kept: NDArray[np.int64], n_spokes: int
) -> tuple[Scan, list[Acquisition]]:
    """A scan of the spokes `kept` of every frame.

    Spokes are numbered anew, the header says how many are left and promises no order of angles, so that the pipeline
    takes each for the mean angle. Density compensation is recomputed by weighing each spoke by its own gap over that
    mean (half the gaps to the kept neighbours, `recon.density.angle_gaps_rad`): the product is its area.

    Parameters
    ----------
    scan, acquisitions : a radial scan whose acquisitions carry their trajectory; `SPOKE` counts spokes over the scan or
        within each frame, as its limits say. Noise readouts pass.
    kept : numbers of the kept spokes within a frame, ascending.
    n_spokes : of a frame.

    Raises
    ------
    ScanError : if a spoke carries no trajectory, or a kept one does not exist.
    """
    if not len(kept) or int(kept[-1]) >= n_spokes:
        raise ScanError(f"spokes {list(kept)} cannot be kept of frames that have {n_spokes}")
    place = {int(spoke): number for number, spoke in enumerate(kept)}
    counted = scan.limit(SPOKE).size
    is_global = counted > n_spokes
    weights = _weights(acquisitions, place, n_spokes)
    chosen = []
    for acquisition in acquisitions:
        if acquisition.has(AcquisitionFlag.IS_NOISE_MEASUREMENT):
            chosen.append(acquisition)
            continue
        frame, spoke = divmod(acquisition.counter(SPOKE), n_spokes)
        if spoke in place:
            header = acquisition.header.copy()
            header["idx"][SPOKE] = frame * len(kept) * is_global + place[spoke]
            data = acquisition.data * np.float32(weights[spoke])
            chosen.append(Acquisition(header, data, acquisition.trajectory, acquisition.received_ns))
    n_counted = counted // n_spokes * len(kept) if is_global else len(kept)
    limits = {**scan.limits, SPOKE: EncodingLimit(0, n_counted - 1, 0)}
    user = {**scan.user_parameters, "spokes_per_frame": len(kept)}
    return replace(scan, limits=limits, user_parameters=user, trajectory="radial"), chosen


def _weights(acquisitions: Sequence[Acquisition], place: dict[int, int], n_spokes: int) -> dict[int, float]:
    """Gap of each kept spoke over the mean gap; angles of the first frame, of which the others are turned copies."""
    angles: dict[int, float] = {}
    for acquisition in acquisitions:
        if acquisition.has(AcquisitionFlag.IS_NOISE_MEASUREMENT):
            continue
        spoke = acquisition.counter(SPOKE)
        if spoke in place and spoke not in angles:
            if acquisition.trajectory.shape[1] < 2:
                raise ScanError("spokes can only be dropped from scans that carry their trajectory")
            angles[spoke] = readout_angle_rad(acquisition.trajectory)
    if missing := sorted(set(place) - set(angles)):
        raise ScanError(f"the scan lacks spokes {missing} of its first frame")
    spokes = sorted(angles)
    gaps = angle_gaps_rad(np.array([angles[spoke] for spoke in spokes]))
    return dict(zip(spokes, (gaps / gaps.mean()).tolist(), strict=True))
