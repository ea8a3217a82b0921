"""Gradient delays from the data themselves, and their correction before anything is gridded.

Delayed gradients move a spoke of direction ``n`` by ``-S n``, with a symmetric matrix ``S = [[Sx, Sxy], [Sxy, Sy]]`` in
samples (Moussavi et al., MRM 2014; Rosenzweig et al., MRM 2019: RING). The centre of k-space is sampled by every spoke,
so a few spokes overdetermine a small image of it; the ``S`` that leaves the smallest residual is the delay. That is the
joint estimate of image and trajectory of Ianni & Grissom, MRM 2016 (TrACR), with the three parameters of RING. RING's
own estimate, from crossings of pairs, was tried first: on a recording whose signal still approaches its steady state it
depended on which spokes were taken, and this one does not (docs/real-data.md).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from ..errors import ScanError
from ..types import Acquisition, AcquisitionFlag, Complex, Float, Notice, Scan
from .trajectory import PlacedAcquisition

Policy = Literal["off", "estimate"] | tuple[float, float, float]

MAX_DELAY_SAMPLES = 3.0
"""Delays are looked for up to here; those seen on scanners are below 2."""
MARGIN = 1.15
"""The small image covers this much more than the field of view: objects end beyond it, softly."""
MIN_SPOKES = 8
MAX_RESIDUAL = 0.5
"""Of the norm of the centre, per degree of freedom that the image leaves; noise has 1."""
STRENGTHS = (0.2, 5.0)
"""Bounds of the strength of a spoke: those of an object are found between 0.8 and 1.5, noise among them runs to 0.2."""
N_GROUPS = 4
"""Spokes are left out in so many groups in turn for the standard error (jackknife)."""
N_VIRTUAL_COILS = 6
RIDGE = 4e-4
"""Relative to the largest eigenvalue of the normal equations: directions below 2 % of the strongest are damped."""
MAX_STEPS = 14
DIFFERENCE = 0.01
"""Samples over which slopes are taken."""
MAX_MOVE = 0.5
"""Samples per step."""
OVER_RELAXATION = 1.6
MAX_REACH = 7.0
"""Cycles per field of view up to which the centre is used; the cost of the fit grows with the fourth power."""
MAX_GAP_RAD = np.pi / 3
"""Lines of spokes must leave no larger gap: over a narrow fan, a delay looks like a shift of the origin."""
MAX_TURN_GAP_RAD = np.pi / 2
"""What is worth waiting for: spokes that run all ways leave no larger gap in the full turn. Spokes over half a turn,
all one way, have a mean shift that looks like a phase of the image, and noise costs three times as much there."""
MAX_LEFT = 0.99
"""Of the inconsistency without the delays: they must explain at least the rest."""


@dataclass(frozen=True)
class DelayFit:
    """Gradient delays in samples of the readout, with standard errors.

    Parameters
    ----------
    sx, sy, sxy : the symmetric matrix ``S``; x and y are the axes of the recon space.
    error : standard errors of the three.
    residual, residual_before : inconsistency of the centre with and without the delays, relative to its norm.
    n_spokes : that gave them.
    freedom : share of the samples that the image leaves free: noise alone has a residual of its root.
    """

    sx: float
    sy: float
    sxy: float
    error: tuple[float, float, float] = (0.0, 0.0, 0.0)
    residual: float = 0.0
    residual_before: float = 0.0
    n_spokes: int = 0
    freedom: float = 1.0

    @property
    def matrix(self) -> NDArray[np.float64]:
        """``S`` as an array ``(2, 2)``."""
        return np.array([[self.sx, self.sxy], [self.sxy, self.sy]])

    @property
    def largest_samples(self) -> float:
        """Largest shift of any spoke, in samples."""
        return float(np.abs(np.linalg.eigvalsh(self.matrix)).max())

    def is_significant(self, least_samples: float) -> bool:
        """True if some delay is larger than `least_samples` and than three standard errors, and explains the data.

        An image must explain most of the centre: more than it explains of noise, of which it has none but takes as many
        degrees of freedom as it has. The delays must leave at most MAX_LEFT of what it does not explain.
        """
        values = np.abs([self.sx, self.sy, self.sxy])
        is_seen = bool((values > np.maximum(least_samples, 3 * np.array(self.error))).any())
        explains = self.residual < min(MAX_LEFT * self.residual_before, MAX_RESIDUAL * self.freedom**0.5)
        return is_seen and explains and self.largest_samples < MAX_DELAY_SAMPLES

    def __str__(self) -> str:
        parts = zip(("Sx", "Sy", "Sxy"), (self.sx, self.sy, self.sxy), self.error, strict=True)
        return ", ".join(f"{name} = {value:.2f} +- {error:.2f}" for name, value, error in parts)


def fit_delays(
    data: Complex,
    trajectory: Float,
    field_of_view_mm: tuple[float, float],
    sign: NDArray[np.floating] | None = None,
) -> DelayFit:
    """Delays from the centres of straight spokes.

    1. The samples nearest to the nominal centre of each spoke are taken: as far out as the spokes satisfy Nyquist, and
    at most to MAX_REACH. 2. The delay matrix that leaves the least residual of a ridge-regularised least-squares image
    of the centre is found by Gauss-Newton, from the best of a few isotropic delays. 3. With it the strength of each
    spoke is found: the signal may still approach its steady state. Equal energy of all spokes will not do instead: an
    object that is not round has spokes of different energy, and over half a turn that looks like a delay of up to 0.4
    samples. Spokes whose strength runs to its bound hold noise, and are left out of a second fit. 4. Leaving out a
    quarter of the spokes in turn gives the standard errors (delete-group jackknife).

    Parameters
    ----------
    data : complex64 ``(spokes, coils, samples)``.
    trajectory : float32 ``(spokes, samples, 2 or 3)`` nominal, cycles per field of view.
    field_of_view_mm : along x and y; directions are in units of length.
    sign : ``(spokes,)``, -1 for readouts that were acquired in the reversed direction and turned round; default all 1.

    Raises
    ------
    ScanError : fewer than 8 spokes, or spokes that are not straight, or that do not pass the centre.
    """
    if len(data) < MIN_SPOKES:
        raise ScanError(f"{len(data)} spokes are too few to find gradient delays; {MIN_SPOKES} are needed")
    centre = _Centre.of(data, trajectory, field_of_view_mm, np.ones(len(data)) if sign is None else sign)
    best, strength = centre.fit(centre.best_start(), np.ones(len(data)), MAX_STEPS)
    is_sound = (strength > STRENGTHS[0]) & (strength < STRENGTHS[1])
    if not is_sound.all() and is_sound.sum() >= MIN_SPOKES:
        centre = centre.of_spokes(is_sound)
        best, strength = centre.fit(centre.best_start(), np.ones(int(is_sound.sum())), MAX_STEPS)
    centre, n_spokes = centre.weighted(strength), len(strength)
    parts = []
    for group in range(N_GROUPS):
        others = np.arange(n_spokes) % N_GROUPS != group
        parts.append(centre.of_spokes(others).fit(best, np.ones(int(others.sum())), 4)[0])
    spread = np.array(parts) - np.mean(parts, axis=0)
    error = np.sqrt((N_GROUPS - 1) / N_GROUPS * (spread**2).sum(axis=0))
    sx, sy, sxy = (float(value) for value in best)
    return DelayFit(
        sx,
        sy,
        sxy,
        error=(float(error[0]), float(error[1]), float(error[2])),
        residual=float(np.linalg.norm(centre.left(best))),
        residual_before=float(np.linalg.norm(centre.left(np.zeros(3)))),
        n_spokes=n_spokes,
        freedom=centre.freedom(best),
    )


def shift_of(fit: DelayFit, trajectory: Float, field_of_view_mm: tuple[float, float], sign: float = 1.0) -> Float:
    """Shift ``-S n`` of one straight spoke, float32 ``(xyz)`` in cycles per field of view: to be added to it."""
    direction, step_per_mm = _directions(trajectory[None, :, :2], field_of_view_mm)
    shift = np.zeros(3, np.float32)
    shift[:2] = -sign * (fit.matrix @ direction[0]) * step_per_mm[0] * np.array(field_of_view_mm)
    return shift


@dataclass(frozen=True)
class _Centre:
    """Samples about the centre, and what is needed to fit an image to them.

    Parameters
    ----------
    samples : complex ``(spokes, samples, coils)``, of norm 1 all together.
    k : ``(spokes, samples, 2)`` in cycles per field of view.
    step : ``(spokes, 2, 3)``: minus the shift in cycles per field of view for a unit of Sx, Sy and Sxy.
    pixels : ``(pixels, 2)`` positions in fields of view.
    """

    samples: NDArray[np.complex128]
    k: NDArray[np.float64]
    step: NDArray[np.float64]
    pixels: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        data: Complex,
        trajectory: Float,
        field_of_view_mm: tuple[float, float],
        sign: NDArray[np.floating],
    ) -> _Centre:
        k = np.asarray(trajectory[..., :2], np.float64)
        fov = np.array(field_of_view_mm)
        direction, step_per_mm = _directions(k, field_of_view_mm)
        oversampling = 1 / float(np.median(step_per_mm) * fov.max())
        reach = int(np.clip(0.8 * len(data) * oversampling / np.pi, 4, max(MAX_REACH * oversampling, 4)))
        nearest = np.linalg.norm(k / fov, axis=2).argmin(axis=1)
        if nearest.min() < reach or nearest.max() >= k.shape[1] - reach:
            raise ScanError("spokes do not pass the centre of k-space, so gradient delays cannot be found")
        index = nearest[:, None] + np.arange(-reach, reach + 1)
        rows = np.arange(len(k))[:, None]
        samples = _compressed(data.transpose(0, 2, 1)[rows, index])
        near_peak = np.linalg.norm(samples, axis=2)[:, reach // 2 : -(reach // 2)].max(axis=1)
        samples /= np.maximum(near_peak, 1e-30)[:, None, None]  # all spokes share k = 0: a start for their strengths
        samples /= max(float(np.linalg.norm(samples)), 1e-30)
        nx, ny = direction.T
        basis = np.stack([np.stack([nx, 0 * nx], 1), np.stack([0 * ny, ny], 1), np.stack([ny, nx], 1)], axis=2)
        step = basis * (step_per_mm * sign)[:, None, None] * fov[:, None]
        return cls(samples, k[rows, index], step, _pixels(np.abs(k[rows, index]).max(axis=(0, 1))))

    def of_spokes(self, chosen: NDArray[np.bool_]) -> _Centre:
        """The same of some spokes."""
        samples = self.samples[chosen]
        samples = samples / max(float(np.linalg.norm(samples)), 1e-30)
        return replace(self, samples=samples, k=self.k[chosen], step=self.step[chosen])

    def weighted(self, strength: NDArray[np.float64]) -> _Centre:
        """The same with every spoke times its strength."""
        samples = self.samples * strength[:, None, None]
        return replace(self, samples=samples / max(float(np.linalg.norm(samples)), 1e-30))

    @cached_property
    def ridge(self) -> NDArray[np.float64]:
        """What is added to the normal equations, from the nominal trajectory."""
        nominal = self._waves(np.zeros(3))
        return RIDGE * float(np.linalg.norm(nominal.conj().T @ nominal, 2)) * np.eye(len(self.pixels))

    def left(self, delays: NDArray[np.float64]) -> NDArray[np.complex128]:
        """What an image leaves of the samples for these ``(Sx, Sy, Sxy)``: ``(spokes, samples, coils)``."""
        waves, samples = self._waves(delays), self.samples.reshape(-1, self.samples.shape[2])
        normal = waves.conj().T @ waves + self.ridge
        image = scipy.linalg.solve(normal, waves.conj().T @ samples, assume_a="pos")
        return np.asarray((samples - waves @ image).reshape(self.samples.shape), np.complex128)

    def freedom(self, delays: NDArray[np.float64]) -> float:
        """Share of the samples that the fitted image leaves free: one less the trace of the fit over their number."""
        waves = self._waves(delays)
        gram = waves.conj().T @ waves
        taken = np.trace(scipy.linalg.solve(gram + self.ridge, gram, assume_a="pos")).real
        return float(1 - taken / len(waves))

    def _waves(self, delays: NDArray[np.float64]) -> NDArray[np.complex128]:
        """Samples of every pixel alone: ``(spokes * samples, pixels)``."""
        k = self.k - (self.step @ delays)[:, None, :]
        return np.asarray(np.exp(-2j * np.pi * (k.reshape(-1, 2) @ self.pixels.T)), np.complex128)

    def fit(
        self, delays: NDArray[np.float64], strength: NDArray[np.float64], n_steps: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Delays, and by how much each spoke is too weak, by as many steps of Gauss-Newton; both in each step.

        Given the image, the strength of a spoke is a quotient. These quotients alone converge slowly (0.6 per step), so
        a little more than each is taken.
        """
        for _ in range(n_steps):
            centre = self.weighted(strength)
            left = centre.left(delays)
            slopes = [(centre.left(delays + step) - left).ravel() / DIFFERENCE for step in DIFFERENCE * np.eye(3)]
            real = np.concatenate([np.real(slopes), np.imag(slopes)], axis=1).T
            move, *_ = np.linalg.lstsq(real, -np.concatenate([left.real.ravel(), left.imag.ravel()]), rcond=None)
            explained = np.einsum("scv,scv->s", centre.samples.conj(), centre.samples - left).real
            energy = np.einsum("scv,scv->s", centre.samples.conj(), centre.samples).real
            strength = strength * np.clip(explained / np.maximum(energy, 1e-30), 0.5, 2) ** OVER_RELAXATION
            strength = np.clip(strength / strength.mean(), *STRENGTHS)
            delays = delays + np.clip(move, -MAX_MOVE, MAX_MOVE)
            if np.abs(move).max() < 1e-3:
                break
        return delays, strength

    def best_start(self) -> NDArray[np.float64]:
        """The best of a few isotropic delays: the residual has side minima about a sample apart."""
        starts = [np.array([delay, delay, 0.0]) for delay in np.arange(-2.0, 2.01, 0.5)]
        return min(starts, key=lambda start: float(np.linalg.norm(self.left(start))))


def _directions(
    trajectory: NDArray[np.floating], field_of_view_mm: tuple[float, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Unit vectors ``(spokes, 2)`` of straight readouts and their step per sample in cycles per millimetre."""
    k = np.asarray(trajectory[..., :2], np.float64) / np.array(field_of_view_mm)
    step = (k[:, -1] - k[:, 0]) / (k.shape[1] - 1)
    length = np.linalg.norm(step, axis=1)
    straight = k[:, :1] + np.arange(k.shape[1])[:, None] * step[:, None, :]
    if not (length > 0).all() or np.abs(k - straight).max() > 0.05 * length.max():
        raise ScanError(
            "readouts are not straight and evenly sampled, so they have no single gradient delay",
            hint="--set trajectory.delay=off",
        )
    return step / length[:, None], length


def _compressed(samples: NDArray[np.complexfloating]) -> NDArray[np.complex128]:
    """The few virtual coils ``(..., coils)`` that hold most of the energy: the fit costs less, and noise leaves."""
    flat = np.asarray(samples, np.complex128).reshape(-1, samples.shape[-1])
    _, vectors = np.linalg.eigh(flat.conj().T @ flat)
    return np.asarray(samples @ vectors[:, ::-1][:, :N_VIRTUAL_COILS], np.complex128)


def _pixels(reach: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pixel positions ``(pixels, 2)`` in fields of view, as fine as samples out to `reach` can show."""
    axes = []
    for limit in reach:
        n = 2 * int(np.ceil(limit * MARGIN)) + 1
        axes.append((np.arange(n) - n // 2) * MARGIN / n)
    x, y = np.meshgrid(*axes)
    return np.stack([x.ravel(), y.ravel()], axis=1)


@dataclass
class _Held:
    """Readouts of one slice that wait for its delays, and those among them that lie in the central partition."""

    waiting: list[PlacedAcquisition] = field(default_factory=list)
    central: list[PlacedAcquisition] = field(default_factory=list)


class CorrectDelays:
    """Moves spokes to where delayed gradients put them; finds the delays of each slice from its first spokes.

    Readouts are held until enough spokes of the central partition have come that run all ways, or until a whole frame
    of the slice is held (always so if angles span half a turn); then they go on at once, corrected if the delays are
    significant, and the user is told the figures. Scans without straight spokes through the centre pass untouched.

    Parameters
    ----------
    policy : ``off``, ``estimate``, or known ``(Sx, Sy, Sxy)`` in samples.
    n_spokes : spokes of the central partition to wait for, and to fit: of more that came, those spread evenly in
        angle.
    readouts_per_frame : most readouts that are held per slice.
    least_samples : smaller delays are not corrected.
    """

    takes = (PlacedAcquisition,)
    gives = (PlacedAcquisition, Notice)

    def __init__(
        self, scan: Scan, policy: Policy, n_spokes: int, readouts_per_frame: int, least_samples: float = 0.05
    ) -> None:
        self._fov = scan.recon_fov_mm[:2]
        self._centre = scan.limit("kspace_encode_step_2").center
        self._n_spokes, self._most_held, self._least = n_spokes, readouts_per_frame, least_samples
        self._policy: Policy = policy if scan.trajectory in ("radial", "goldenangle", "other") else "off"
        self._held: dict[int, _Held] = {}
        self._fits: dict[int, DelayFit | None] = {}

    def push(self, placed: PlacedAcquisition) -> list[Any]:
        if self._policy == "off":
            return [placed]
        slice_ = placed.acquisition.counter("slice")
        if slice_ in self._fits:
            return [self._corrected(placed, self._fits[slice_])]
        if not isinstance(self._policy, str):
            return self._know(slice_, placed, self._policy)
        return self._hold(slice_, placed)

    def finish(self) -> list[Any]:
        """What was still held when the scan ended, corrected if what came is enough."""
        return [item for slice_ in sorted(self._held) for item in self._release(slice_)]

    def _know(self, slice_: int, placed: PlacedAcquisition, delays: tuple[float, float, float]) -> list[Any]:
        """Apply delays that the configuration gives."""
        if not _is_spoke(placed.trajectory):
            self._policy = "off"
            return [Notice("warning", "gradient delays are set, but readouts are not spokes: not corrected"), placed]
        self._fits[slice_] = fit = DelayFit(*delays)
        told = [] if len(self._fits) > 1 else [Notice("info", f"gradient delays as set: {fit} samples")]
        return [*told, self._corrected(placed, fit)]

    def _hold(self, slice_: int, placed: PlacedAcquisition) -> list[Any]:
        if not _is_spoke(placed.trajectory):
            self._fits[slice_] = None
            return [*(self._release(slice_) if slice_ in self._held else []), placed]
        held = self._held.setdefault(slice_, _Held())
        held.waiting.append(placed)
        if placed.acquisition.counter("kspace_encode_step_2") == self._centre:
            held.central.append(placed)
        is_enough = len(held.central) >= self._n_spokes and _run_all_ways(held.central)
        return self._release(slice_) if is_enough or len(held.waiting) >= self._most_held else []

    def _release(self, slice_: int) -> list[Any]:
        held = self._held.pop(slice_)
        if slice_ in self._fits:
            return [*held.waiting]
        self._fits[slice_], notice = self._estimate(slice_, _spread(held.central, self._n_spokes))
        return [notice, *(self._corrected(placed, self._fits[slice_]) for placed in held.waiting)]

    def _estimate(self, slice_: int, spokes: list[PlacedAcquisition]) -> tuple[DelayFit | None, Notice]:
        """Delays, None if they shall not be corrected, and what to tell."""
        name = f"slice {slice_}"
        if len(spokes) < MIN_SPOKES or _largest_gap_rad(_angles_rad(spokes), np.pi) > MAX_GAP_RAD:
            return None, Notice("info", f"{name}: gradient delays not sought, {len(spokes)} spokes do not suffice")
        try:
            fit = fit_delays(
                np.stack([placed.acquisition.data for placed in spokes]),
                np.stack([placed.trajectory for placed in spokes]),
                self._fov,
                np.array([_sign(placed.acquisition) for placed in spokes]),
            )
        except ScanError as error:  # such as asymmetric echoes: delays cannot be found, images can be made
            return None, Notice("info", f"{name}: gradient delays not sought: {error.what}")
        figures = f"{fit} samples, inconsistency of the centre {fit.residual_before:.3g} -> {fit.residual:.3g}"
        if fit.is_significant(self._least):
            return fit, Notice("info", f"{name}: gradient delays corrected: {figures} ({fit.n_spokes} spokes)")
        return None, Notice("info", f"{name}: no significant gradient delays: {figures} ({fit.n_spokes} spokes)")

    def _corrected(self, placed: PlacedAcquisition, fit: DelayFit | None) -> PlacedAcquisition:
        if fit is None or not _is_spoke(placed.trajectory):
            return placed
        shift = shift_of(fit, placed.trajectory, self._fov, _sign(placed.acquisition))
        return PlacedAcquisition(placed.acquisition, placed.trajectory + shift)


def _sign(acquisition: Acquisition) -> float:
    """-1 for a readout that was acquired in reverse and then turned round."""
    return -1.0 if acquisition.has(AcquisitionFlag.IS_REVERSE) else 1.0


def _is_spoke(trajectory: Float) -> bool:
    """True for a straight readout that passes the centre, well inside its ends."""
    k = trajectory[:, :2].astype(np.float64)
    step = (k[-1] - k[0]) / max(len(k) - 1, 1)
    length = float(np.linalg.norm(step))
    if length == 0 or np.abs(k - k[0] - np.arange(len(k))[:, None] * step).max() > 0.05 * length:
        return False
    distance = np.linalg.norm(k, axis=1)
    return bool(distance.min() <= length and 4 <= distance.argmin() < len(k) - 4)


def _angles_rad(spokes: list[PlacedAcquisition]) -> NDArray[np.float64]:
    """Directions in which the gradients ran, in ``[0, 2 pi)``."""
    ends = np.array([_sign(p.acquisition) * (p.trajectory[-1, :2] - p.trajectory[0, :2]) for p in spokes])
    x, y = ends.reshape(-1, 2).T
    return np.asarray(np.arctan2(y, x) % (2 * np.pi), np.float64)


def _largest_gap_rad(angles: NDArray[np.float64], turn: float) -> float:
    """Largest angle between neighbours on a circle of `turn`."""
    places = np.sort(angles % turn)
    return float(np.diff(places, append=places[0] + turn).max()) if len(places) else turn


def _run_all_ways(spokes: list[PlacedAcquisition]) -> bool:
    """True if the lines leave no large gap, nor the directions along them."""
    angles = _angles_rad(spokes)
    is_wide = _largest_gap_rad(angles, np.pi) <= MAX_GAP_RAD
    return is_wide and _largest_gap_rad(angles, 2 * np.pi) <= MAX_TURN_GAP_RAD


def _spread(spokes: list[PlacedAcquisition], n: int) -> list[PlacedAcquisition]:
    """At most `n` spokes, as evenly spread over the directions as they come, in order of arrival.

    1. The circle is cut at its largest gap. 2. `n` directions spread evenly over the rest choose the spokes next to
    them. 3. Where two chose the same, the first of those left fill up.
    """
    if len(spokes) <= n:
        return spokes
    angles = _angles_rad(spokes)
    order = np.argsort(angles, kind="stable")
    cut = int(np.diff(angles[order], append=angles[order[0]] + 2 * np.pi).argmax()) + 1
    order = np.roll(order, -cut)
    place = (angles[order] - angles[order[0]]) % (2 * np.pi)
    wanted = np.linspace(0, place[-1], n)
    chosen = set(order[np.abs(wanted[:, None] - place).argmin(axis=1)].tolist())
    chosen.update([i for i in range(len(spokes)) if i not in chosen][: n - len(chosen)])
    return [spokes[i] for i in sorted(chosen)]
