"""Density compensation: the area of k-space for which each sample stands, in (cycles per field of view) squared.

The weights of a fully sampled Cartesian frame are all 1, so that the weighted adjoint has the units of the object
and frames of different sampling can be compared.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from ..types import Float

Method = Literal["polar", "uniform"]


def polar_weights(trajectory: Float, angle_step_rad: float, aspect: float = 1.0) -> Float:
    """Weights of one readout of a set that repeats under rotation: spokes or spiral interleaves.

    A sample at ``k(n)`` on a readout that repeats every `angle_step_rad` owns the Jacobian of ``(n, angle) -> k``,
    ``|k . dk/dn| * angle_step_rad``. For a spoke this is the ramp ``|k| dk`` times the step; for a spiral it is the
    form of Hoge et al., MRM 1997. Where the readout crosses the centre the cell is a disc, not a ring: its area is
    ``pi dk^2 / 4`` for all readouts together, which bounds the weight from below.

    Parameters
    ----------
    trajectory : float32 ``(samples, xyz)`` in cycles per field of view.
    angle_step_rad : mean angle between neighbouring readouts: pi / spokes for spokes through the centre,
        2 pi / interleaves for readouts that start there.
    aspect : field of view along y over that along x: rotation is a symmetry in units of length only.

    Returns
    -------
    float32 ``(samples,)``.
    """
    k = trajectory[:, :2].astype(np.float64) / (1.0, aspect)
    step = np.gradient(k, axis=0)
    radial = np.abs(np.einsum("nd,nd->n", k, step))
    centre = np.einsum("nd,nd->n", step, step) / 4
    return np.asarray(np.maximum(radial, centre) * angle_step_rad * aspect, np.float32)


def angle_step_rad(trajectory: Float, n_readouts: float) -> float:
    """Mean angle between neighbouring readouts of a frame, from the shape of one of them.

    A readout whose ends lie on opposite sides of the centre is a spoke and serves two directions.
    """
    is_spoke = float(trajectory[0, :2] @ trajectory[-1, :2]) < 0
    return np.pi / n_readouts if is_spoke else 2 * np.pi / n_readouts
