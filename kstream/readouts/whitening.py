"""Noise prewhitening: coils become uncorrelated and of unit noise (Pruessmann et al., MRM 2001, section on SNR)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import ShapeError
from ..stream.telemetry import Counters
from ..types import Acquisition, Complex, NoiseCovariance, Notice
from .routing import NoiseReadout


def noise_covariance(noise: list[Complex]) -> NoiseCovariance:
    """Covariance of complex noise samples, from arrays ``(coils, samples)``; the mean is taken off."""
    samples = np.concatenate(noise, axis=1).astype(np.complex128)
    samples -= samples.mean(axis=1, keepdims=True)
    n_samples = samples.shape[1]
    return NoiseCovariance(samples @ samples.conj().T / max(n_samples - 1, 1), n_samples)


def whitening_matrix(covariance: NoiseCovariance) -> Complex:
    """Matrix ``W`` with ``W C W^H = 1``: the inverse of the Cholesky factor of the covariance, complex64.

    A coil without noise (disconnected) would make the factor singular; it is given the largest variance, so that it
    cannot dominate what the others measured.
    """
    variance = np.real(np.diag(covariance.matrix))
    largest = float(variance.max(initial=0)) or 1.0
    dead = variance <= 1e-12 * largest
    factor = np.linalg.cholesky(covariance.matrix + np.diag(np.where(dead, largest, 1e-9 * largest)))
    return np.linalg.inv(factor).astype(np.complex64)


class Prewhiten:
    """Collects noise readouts, then multiplies every image readout by the whitening matrix.

    The matrix is made when the first image readout comes. Noise that comes later cannot be used for readouts already
    gridded, so it is left aside and the user is told. Without noise readouts, or switched off, data pass unchanged.
    """

    takes = (NoiseReadout, Acquisition)
    gives = (Acquisition, NoiseCovariance, Notice)

    def __init__(self, enabled: bool, counters: Counters) -> None:
        self._enabled = enabled
        self._counters = counters
        self._noise: list[Complex] = []
        self._matrix: Complex | None = None
        self._started = False

    def push(self, item: NoiseReadout | Acquisition) -> list[Any]:
        if isinstance(item, NoiseReadout):
            return self._collect(item.acquisition)
        begun = self._begin() if not self._started else []
        if self._matrix is not None:
            if self._matrix.shape[0] != item.data.shape[0]:
                raise ShapeError(
                    f"noise was measured with {self._matrix.shape[0]} coils, this readout has {item.data.shape[0]}",
                    where=item.place,
                    hint="--set noise.prewhiten=false",
                )
            item = replace(item, data=self._matrix @ item.data)
        return [*begun, item]

    def finish(self) -> list[Any]:
        return []

    def _collect(self, noise: Acquisition) -> list[Any]:
        if self._started:
            if self._counters.leave("noise after imaging") == 1:
                return [Notice("warning", f"noise readout after image readouts is not used ({noise.place})")]
            return []
        if self._noise and noise.data.shape[0] != self._noise[0].shape[0]:
            raise ShapeError(
                f"noise readouts of {self._noise[0].shape[0]} and of {noise.data.shape[0]} coils", where=noise.place
            )
        if np.isfinite(noise.data).all():
            self._noise.append(noise.data)
        return []

    def _begin(self) -> list[Any]:
        self._started = True
        if not self._enabled or not self._noise:
            reason = "switched off" if not self._enabled else "no noise readout came before the first image readout"
            return [Notice("info", f"no prewhitening: {reason}")]
        covariance = noise_covariance(self._noise)
        n_coils = len(covariance.matrix)
        if covariance.n_samples <= n_coils:
            return [Notice("warning", f"no prewhitening: {covariance.n_samples} noise samples for {n_coils} coils")]
        self._matrix = whitening_matrix(covariance)
        return [covariance, Notice("info", f"prewhitening from {covariance.n_samples} noise samples, {n_coils} coils")]
