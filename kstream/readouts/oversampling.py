"""Readout oversampling removal: fewer samples per readout, exact for what lies inside the kept field of view."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import scipy.fft

from ..types import Complex, Float, Notice, Scan
from .trajectory import PlacedAcquisition


def cropped(data: Complex, n_kept: int) -> Complex:
    """Samples ``(coils, n_kept)`` of the middle of the profile of ``(coils, samples)``, in the same units.

    Transform to the profile, crop, transform back. Sample ``m`` lies where sample
    ``n // 2 + (m - n_kept // 2) * n / n_kept`` was.
    """
    n = data.shape[-1]
    profile = scipy.fft.fftshift(scipy.fft.ifft(scipy.fft.ifftshift(data, -1), axis=-1), -1)
    first = n // 2 - n_kept // 2
    middle = scipy.fft.ifftshift(profile[..., first : first + n_kept], -1)
    return np.asarray(scipy.fft.fftshift(scipy.fft.fft(middle, axis=-1), -1), np.complex64)


class RemoveOversampling:
    """Crops each readout to the field of view of the recon space, and thins its trajectory to match.

    For Cartesian lines this is the usual crop along x. For spokes it crops the field of view along each spoke, as the
    published breast recipe does: signal outside is lost from the spoke, instead of lying outside of the image. Readouts
    that are not straight and even cannot be cropped; they pass, and the user is told.
    """

    takes = (PlacedAcquisition,)
    gives = (PlacedAcquisition, Notice)

    def __init__(self, scan: Scan, enabled: bool) -> None:
        self._fov = np.array(scan.recon_fov_mm[:2])
        self._enabled = enabled
        self._told = False

    def push(self, placed: PlacedAcquisition) -> list[Any]:
        if not self._enabled:
            return [placed]
        n = placed.acquisition.data.shape[1]
        n_kept = self._kept(placed.trajectory)
        if n_kept is None or n_kept >= n:
            why = "readouts are not straight and even" if n_kept is None else "there is none"
            return [*self._tell(f"readout oversampling is not removed: {why}"), placed]
        told = self._tell(f"readout oversampling removed: {n} -> {n_kept} samples")
        return [*told, _thinned(placed, n_kept)]

    def finish(self) -> list[Any]:
        return []

    def _kept(self, trajectory: Float) -> int | None:
        """Samples to keep: the length of the profile over that of the field of view; None for a curved readout."""
        k = trajectory[:, :2].astype(np.float64) / self._fov
        step = (k[-1] - k[0]) / max(len(k) - 1, 1)
        length = float(np.linalg.norm(step))
        if length == 0 or np.abs(k - k[0] - np.arange(len(k))[:, None] * step).max() > 0.02 * length:
            return None
        is_spoke = bool((np.abs(step) > 1e-3 * length).all())
        extent_mm = float(self._fov.max()) if is_spoke else float(self._fov[int(np.abs(step).argmax())])
        return int(np.ceil(len(k) * extent_mm * length - 1e-3))

    def _tell(self, text: str) -> list[Any]:
        if self._told:
            return []
        self._told = True
        return [Notice("info", text)]


def _thinned(placed: PlacedAcquisition, n_kept: int) -> PlacedAcquisition:
    acquisition, k = placed.acquisition, placed.trajectory.astype(np.float64)
    n = acquisition.data.shape[1]
    step = (k[-1] - k[0]) / (n - 1)
    index = n // 2 + (np.arange(n_kept) - n_kept // 2) * (n / n_kept)
    header = acquisition.header.copy()
    header["number_of_samples"], header["center_sample"] = n_kept, n_kept // 2
    thinned = replace(acquisition, header=header, data=cropped(acquisition.data, n_kept))
    return PlacedAcquisition(thinned, (k[0] + index[:, None] * step).astype(np.float32))
