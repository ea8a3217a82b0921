"""Noise prewhitening: coils become uncorrelated and of unit noise (Pruessmann et al., MRM 2001, section on SNR)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ShapeError
from ..stream.telemetry import Counters
from ..types import Acquisition, Complex, NoiseCovariance, Notice
from .routing import NoiseReadout

DEAD = 1e-6
"""Noise variance relative to the median coil below which a coil is not connected: no preamplifier is so quiet."""
FAINTEST = 1e-60
"""Noise variance below which there is none: float32 does not hold samples divided by its root."""
LOUD = 100.0
"""Noise variance relative to the median coil that the user should hear of: 20 dB."""
SAMPLES_PER_COIL = 10
"""With fewer noise samples, off-diagonal covariances are mostly chance: only variances are used."""
N_WATCHED = 32
"""Image readouts in which a coil that gives only zeros is looked for."""


def noise_covariance(noise: list[Complex]) -> NoiseCovariance:
    """Covariance of complex noise samples, from arrays ``(coils, samples)``; the mean is taken off."""
    samples = np.concatenate(noise, axis=1).astype(np.complex128)
    samples -= samples.mean(axis=1, keepdims=True)
    n_samples = samples.shape[1]
    return NoiseCovariance(samples @ samples.conj().T / max(n_samples - 1, 1), n_samples)


def dead_coils(covariance: NoiseCovariance) -> NDArray[np.intp]:
    """Coils without noise: disconnected, or switched off."""
    variance = np.real(np.diag(covariance.matrix))
    positive = variance[variance > 0]
    return np.flatnonzero(variance <= max(DEAD * float(np.median(positive)) if len(positive) else 0.0, FAINTEST))


def whitening_matrix(covariance: NoiseCovariance) -> Complex:
    """Matrix ``W`` with ``W C W^H = 1``: the inverse of the Cholesky factor of the covariance, complex64.

    A coil without noise has nothing to say either: its row and column are 0, so that rounding in it is not amplified.
    With fewer than 10 samples per coil, only the variances are used.
    """
    matrix = np.zeros(covariance.matrix.shape, np.complex128)
    alive = np.setdiff1d(np.arange(len(matrix)), dead_coils(covariance))
    if not len(alive):
        return np.eye(len(matrix), dtype=np.complex64)
    part = covariance.matrix[np.ix_(alive, alive)]
    if covariance.n_samples < SAMPLES_PER_COIL * len(alive):
        part = np.diag(np.diag(part))
    ridge = 1e-9 * float(np.real(np.diag(part)).max())
    matrix[np.ix_(alive, alive)] = np.linalg.inv(np.linalg.cholesky(part + ridge * np.eye(len(alive))))
    return matrix.astype(np.complex64)


class Prewhiten:
    """Collects noise readouts, then multiplies every image readout by the whitening matrix.

    The matrix is made when the first image readout comes. Noise that comes later cannot be used for readouts already
    gridded, so it is left aside and the user is told. Without noise readouts, or switched off, data pass unchanged.
    White noise grows with the receiver bandwidth: where headers give the dwell times, the covariance is scaled from
    that of the noise readouts to that of the images. Coils without signal are told, and so are coils of unusual noise.
    """

    takes = (NoiseReadout, Acquisition)
    gives = (Acquisition, NoiseCovariance, Notice)

    def __init__(self, enabled: bool, counters: Counters) -> None:
        self._enabled = enabled
        self._counters = counters
        self._noise: list[Complex] = []
        self._dwell_us: list[float] = []
        self._matrix: Complex | None = None
        self._started = False
        self._n_watched = 0
        self._has_signal: NDArray[np.bool_] | None = None
        self._dead: frozenset[int] = frozenset()

    def push(self, item: NoiseReadout | Acquisition) -> list[Any]:
        if isinstance(item, NoiseReadout):
            return self._collect(item.acquisition)
        told = self._begin(item) if not self._started else []
        told += self._watch(item)
        if self._matrix is not None:
            if self._matrix.shape[0] != item.data.shape[0]:
                raise ShapeError(
                    f"noise was measured with {self._matrix.shape[0]} coils, this readout has {item.data.shape[0]}",
                    where=item.place,
                    hint="--set noise.prewhiten=false",
                )
            item = replace(item, data=self._matrix @ item.data)
        return [*told, item]

    def finish(self) -> list[Any]:
        return self._silent_coils() if 0 < self._n_watched < N_WATCHED else []

    def _collect(self, noise: Acquisition) -> list[Any]:
        if self._started:
            if self._counters.leave("noise after imaging") == 1:
                return [Notice("warning", f"noise readout after image readouts is not used ({noise.place})")]
            return []
        if self._noise and noise.data.shape[0] != self._noise[0].shape[0]:
            raise ShapeError(
                f"noise readouts of {self._noise[0].shape[0]} and of {noise.data.shape[0]} coils", where=noise.place
            )
        if not np.isfinite(noise.data).all():
            text = f"noise readout with samples that are NaN or Inf is not used ({noise.place})"
            return [Notice("warning", text)] if self._counters.leave("noise not finite") == 1 else []
        self._noise.append(noise.data)
        self._dwell_us.append(float(noise.header["sample_time_us"]))
        return []

    def _begin(self, image: Acquisition) -> list[Any]:
        self._started = True
        if not self._enabled or not self._noise:
            reason = "switched off" if not self._enabled else "no usable noise readout came before the first image"
            return [Notice("info", f"no prewhitening: {reason}")]
        scales = [_dwell_ratio(dwell_us, float(image.header["sample_time_us"])) for dwell_us in self._dwell_us]
        scaled = [noise * np.float32(np.sqrt(scale)) for noise, scale in zip(self._noise, scales, strict=True)]
        covariance = noise_covariance(scaled)
        self._noise.clear()
        n_coils = len(covariance.matrix)
        if covariance.n_samples <= n_coils:
            return [Notice("warning", f"no prewhitening: {covariance.n_samples} noise samples for {n_coils} coils")]
        self._matrix = whitening_matrix(covariance)
        text = f"prewhitening from {covariance.n_samples} noise samples, {n_coils} coils"
        if max(scales) != 1 or min(scales) != 1:
            text += f", variance times {np.median(scales):.3g} for the dwell time of the images"
        self._dead = frozenset(dead_coils(covariance).tolist())
        return [covariance, Notice("info", text), *_unusual(covariance)]

    def _watch(self, image: Acquisition) -> list[Any]:
        """Tell once of coils that gave nothing but zeros in the first image readouts."""
        if self._n_watched >= N_WATCHED:
            return []
        self._n_watched += 1
        signal = np.asarray(image.data.any(axis=1))
        if self._has_signal is not None and len(self._has_signal) == len(signal):
            signal = signal | self._has_signal
        self._has_signal = signal
        return self._silent_coils() if self._n_watched == N_WATCHED else []

    def _silent_coils(self) -> list[Any]:
        """Coils that gave nothing but zeros; those without noise have been counted already."""
        if self._has_signal is None or self._has_signal.all():
            return []
        silent = np.flatnonzero(~self._has_signal)
        text = f"coils without any signal in the first {self._n_watched} readouts: {_listed(silent)}"
        return [Notice("warning", text, kind="dead_coils", amount=len(set(silent.tolist()) - self._dead))]


def _dwell_ratio(noise_us: float, image_us: float) -> float:
    """Noise variance of an image sample over that of a noise sample; 1 where a header leaves a dwell time out."""
    return noise_us / image_us if noise_us > 0 and image_us > 0 else 1.0


def _unusual(covariance: NoiseCovariance) -> list[Notice]:
    """What the noise says about the coils and about itself."""
    told: list[Notice] = []
    variance = np.real(np.diag(covariance.matrix))
    dead = dead_coils(covariance)
    if len(dead):
        text = f"coils without noise are taken for disconnected and not used: {_listed(dead)}"
        told.append(Notice("warning", text, kind="dead_coils", amount=len(dead)))
    loud = np.flatnonzero(variance > LOUD * np.median(variance))
    if len(loud):
        told.append(Notice("warning", f"coils with over {LOUD:g} times the usual noise variance: {_listed(loud)}"))
    n_alive = len(variance) - len(dead)
    if covariance.n_samples < SAMPLES_PER_COIL * n_alive:
        text = f"{covariance.n_samples} noise samples are few for {n_alive} coils: only variances are used"
        told.append(Notice("warning", text))
    return told


def _listed(coils: NDArray[np.intp]) -> str:
    return ", ".join(str(int(coil)) for coil in coils)
