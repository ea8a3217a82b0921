"""An image by least squares instead of by one adjoint: CG-SENSE, with total variation or a temporal prior by option.

Minimises ``||W^(1/2) (F S x - y)||^2 / 2 + R(x)`` for one slice of one frame, where ``S`` are coil sensitivity maps,
``F`` the non-uniform Fourier transform and ``W`` the density weights (Pruessmann et al., MRM 2001). It starts when the
frame ends, so it is no rival of the zero-wait adjoint in latency; at high acceleration it is one in quality.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import finufft
import numpy as np
import scipy.fft
from numpy.typing import NDArray

from ..errors import ScanError
from ..types import Complex, Float, FrameEnd, KSpace, Notice, Readout
from .density import pipe_menon_weights, voronoi_weights
from .fourier import to_kspace
from .sampling import Sampling

EPS = 1e-5
"""Accuracy of the non-uniform transforms; single precision bears little more."""
Method = Literal["cg-sense", "tv", "temporal"]
Density = Literal["scan", "voronoi", "pipe-menon"]


class SenseOperator:
    """The linear map from an image ``(y, x)`` to samples of all coils ``(coils, samples)`` of one slice, and back.

    With several sets of maps an image has an axis of sets, and the samples are those of the sum of what the sets see
    (soft SENSE: Uecker et al., MRM 2014, eq. 20).

    Parameters
    ----------
    trajectory : ``(samples, xy or xyz)`` in cycles per field of view.
    weights : float32 ``(samples,)``, used by `normal` and `weighted_adjoint` only.
    maps : complex64 ``(coils, y, x)``, or ``(sets, coils, y, x)`` for images ``(sets, y, x)``.
    """

    def __init__(self, trajectory: Float, weights: Float, maps: Complex) -> None:
        self.maps = maps
        self._shape = ny, nx = maps.shape[-2:]
        self._weights = np.asarray(weights, np.float32)
        k = np.asarray(trajectory, np.float64)
        self._y = np.ascontiguousarray(k[:, 1] * (2 * np.pi / ny), np.float32)
        self._x = np.ascontiguousarray(k[:, 0] * (2 * np.pi / nx), np.float32)
        self._scale = np.float32(1 / np.sqrt(ny * nx))
        self._filter = self._point_spread()

    def forward(self, image: Complex) -> Complex:
        """Samples ``(coils, samples)`` that this image would have given."""
        coils = np.ascontiguousarray(self._seen(image))
        samples = finufft.nufft2d2(self._y, self._x, coils, eps=EPS, isign=-1, nthreads=1)
        return np.asarray(samples.reshape(len(coils), -1) * self._scale, np.complex64)

    def adjoint(self, samples: Complex) -> Complex:
        """The transpose of `forward`: image ``(y, x)``."""
        flat = np.ascontiguousarray(samples, np.complex64)
        coils = finufft.nufft2d1(self._y, self._x, flat, self._shape, eps=EPS, isign=1, nthreads=1)
        images = coils.reshape(-1, *self._shape) * self._scale
        return np.asarray(np.einsum("...cyx,cyx->...yx", self.maps.conj(), images), np.complex64)

    def weighted_adjoint(self, samples: Complex) -> Complex:
        """`adjoint` of density-weighted samples: the image that needs no iteration."""
        return self.adjoint(samples * self._weights)

    def normal(self, image: Complex) -> Complex:
        """``A^H W A``, by convolution with the point spread function (Wajer & Pruessmann, ISMRM 2001)."""
        ny, nx = self._shape
        total = np.zeros(image.shape, np.complex64)
        for number, seen in enumerate(self._seen(image)):
            spectrum = scipy.fft.fft2(seen, s=(2 * ny, 2 * nx))
            spectrum *= self._filter
            total += self.maps[..., number, :, :].conj() * scipy.fft.ifft2(spectrum)[:ny, :nx]
        return total

    def _seen(self, image: Complex) -> Complex:
        """What every coil sees: ``(coils, y, x)``."""
        seen = self.maps * image[..., None, :, :]
        return np.asarray(seen if seen.ndim == 3 else seen.sum(axis=0), np.complex64)

    def _point_spread(self) -> Complex:
        """Transfer function of ``F^H W F`` on the doubled grid, where no shift wraps round."""
        ny, nx = self._shape
        weights = self._weights.astype(np.complex64)
        spread = finufft.nufft2d1(self._y, self._x, weights, (2 * ny, 2 * nx), eps=EPS, isign=1, nthreads=1)
        return np.asarray(scipy.fft.fft2(scipy.fft.ifftshift(spread)) * self._scale**2, np.complex64)


@dataclass(frozen=True)
class Solution:
    """What an iteration came to.

    Parameters
    ----------
    image : complex64 ``(y, x)``, or ``(sets, y, x)``.
    residuals : norm of the gradient (CG) or of the last change (proximal steps) over its first value, per iteration.
    """

    image: Complex
    residuals: tuple[float, ...]


def conjugate_gradients(
    normal: Callable[[Complex], Complex], rhs: Complex, n_iterations: int, tolerance: float, l2: float = 0.0
) -> Solution:
    """Solve ``(N + l2) x = rhs`` from 0; stop when the residual is below `tolerance` of ``rhs``.

    With few iterations, stopping is itself the regularisation: noise comes in last.
    """
    image = np.zeros_like(rhs)
    residual = rhs.copy()
    direction = rhs.copy()
    energy = first = _energy(residual)
    history: list[float] = []
    for _ in range(n_iterations):
        if energy <= tolerance**2 * first or not first:
            break
        image_of = normal(direction) + np.float32(l2) * direction
        curvature = float(np.vdot(direction, image_of).real)
        if curvature <= 0:
            break
        step = np.float32(energy / curvature)
        image += step * direction
        residual -= step * image_of
        energy, before = _energy(residual), energy
        direction = residual + np.float32(energy / before) * direction
        history.append(float(np.sqrt(energy / first)))
    return Solution(image, tuple(history))


def proximal_gradients(
    normal: Callable[[Complex], Complex],
    rhs: Complex,
    proximal: Callable[[Complex, float], Complex],
    n_iterations: int,
    tolerance: float,
) -> Solution:
    """FISTA (Beck & Teboulle, SIAM J. Imaging Sci. 2009) for ``x^H N x / 2 - Re(x^H rhs) + R(x)``.

    `proximal(image, step)` is the proximal map of ``step * R``. Stops when an iteration changes less than `tolerance`.
    """
    step = 1 / _largest_eigenvalue(normal, rhs)
    image = np.zeros_like(rhs)
    ahead, momentum = image, 1.0
    history: list[float] = []
    for _ in range(n_iterations):
        moved = proximal(np.asarray(ahead - np.float32(step) * (normal(ahead) - rhs), np.complex64), step)
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = moved + np.float32((momentum - 1) / following) * (moved - image)
        change = np.sqrt(_energy(moved - image) / max(_energy(moved), 1e-30))
        image, momentum = moved, following
        history.append(float(change))
        if change <= tolerance:
            break
    return Solution(image, tuple(history))


def _largest_eigenvalue(normal: Callable[[Complex], Complex], like: Complex, n_iterations: int = 12) -> float:
    """Upper estimate of the largest eigenvalue of `normal` (power method, 5 % added)."""
    vector, value = like, 1.0
    for _ in range(n_iterations):
        norm = np.sqrt(_energy(vector))
        if norm == 0:
            return 1.0
        vector = normal(np.asarray(vector / norm, np.complex64))
        value = float(np.sqrt(_energy(vector)))
    return 1.05 * value or 1.0


def _energy(values: Complex) -> float:
    return float(np.vdot(values, values).real)


def soft_threshold(values: Complex, threshold: float) -> Complex:
    """Complex values drawn towards 0 by `threshold`: the proximal map of the l1 norm."""
    size = np.abs(values)
    return np.asarray(values * (np.maximum(size - threshold, 0) / np.maximum(size, 1e-30)), np.complex64)


def total_variation_proximal(image: Complex, weight: float, n_iterations: int = 12) -> Complex:
    """Proximal map of isotropic total variation of ``(y, x)`` by the dual iteration of Chambolle (JMIV 2004, eq. 9).

    Leading axes are images of their own.
    """
    if weight <= 0:
        return image
    if image.ndim > 2:
        return np.stack([total_variation_proximal(part, weight, n_iterations) for part in image])
    dual = np.zeros((2, *image.shape), np.complex64)
    scaled = image / np.float32(weight)
    for _ in range(n_iterations):
        slope = _gradient(np.asarray(_divergence(dual) - scaled, np.complex64))
        dual = (dual + 0.25 * slope) / (1 + 0.25 * np.sqrt((np.abs(slope) ** 2).sum(axis=0)))
    return np.asarray(image - np.float32(weight) * _divergence(dual), np.complex64)


def _gradient(image: Complex) -> Complex:
    slope = np.zeros((2, *image.shape), np.complex64)
    slope[0, :-1] = np.diff(image, axis=0)
    slope[1, :, :-1] = np.diff(image, axis=1)
    return slope


def _divergence(dual: Complex) -> Complex:
    """Minus the transpose of `_gradient`."""
    total = np.zeros(dual.shape[1:], np.complex64)
    total[:-1] += dual[0, :-1]
    total[1:] -= dual[0, :-1]
    total[:, :-1] += dual[1, :, :-1]
    total[:, 1:] -= dual[1, :, :-1]
    return total


@dataclass(frozen=True)
class IterativeSettings:
    """How to iterate.

    Parameters
    ----------
    iterations, tolerance : when to stop.
    l2 : Tikhonov weight of CG, relative to weights of 1.
    method : ``tv`` smooths in the plane; ``temporal`` draws changes since the frame before to 0.
    weight : of these two, relative to the largest voxel of the weighted adjoint.
    density : weights of the samples: as the adjoint has them, or from where the samples of a frame lie (arbitrary
        trajectories).
    """

    iterations: int = 15
    tolerance: float = 1e-3
    l2: float = 0.0
    method: Method = "cg-sense"
    weight: float = 0.005
    density: Density = "scan"


def solve_slice(
    operator: SenseOperator, samples: Complex, settings: IterativeSettings, previous: Complex | None = None
) -> Solution:
    """Image of one slice from samples ``(coils, samples)``; `previous` is the frame before, for the temporal prior."""
    rhs = operator.weighted_adjoint(samples)
    if settings.method == "cg-sense" or (settings.method == "temporal" and previous is None):
        return conjugate_gradients(operator.normal, rhs, settings.iterations, settings.tolerance, settings.l2)
    weight = settings.weight * float(np.abs(rhs).max())

    def proximal(image: Complex, step: float) -> Complex:
        if settings.method == "tv" or previous is None:
            return total_variation_proximal(image, weight * step)
        return np.asarray(previous + soft_threshold(image - previous, weight * step), np.complex64)

    return proximal_gradients(operator.normal, rhs, proximal, settings.iterations, settings.tolerance)


@dataclass
class _Frame:
    """Readouts of one frame of one slice, by spoke and partition."""

    readouts: dict[int, list[Readout]] = field(default_factory=dict)
    n_bytes: int = 0


class ReconstructIteratively:
    """Holds the readouts of a frame; when it ends, gives combined k-space of an iterated image.

    It stands in for gridding and combination. Along kz the zero-filled transform is used, so slices are solved apart.

    Parameters
    ----------
    sampling : density weights and the transform along kz.
    maps_of : makes coil maps ``(coils, z, y, x)`` from coil images of the same shape, or several sets of them.
    calibration_frame : frame that gives the maps; -1: each its own.
    memory_gib : readouts held at the same time, coil images and maps may take so much.
    n_sets : of maps, for that memory.

    Raises
    ------
    ScanError : the header asks for more memory than that.
    """

    takes = (Readout, FrameEnd)
    gives = (KSpace, FrameEnd, Notice)

    def __init__(
        self,
        sampling: Sampling,
        maps_of: Callable[[Complex], Complex],
        calibration_frame: int,
        settings: IterativeSettings,
        memory_gib: float,
        n_sets: int = 1,
    ) -> None:
        self._n_sets = n_sets
        self._sampling, self._shape, self._n_partitions = sampling, sampling.shape, sampling.n_partitions
        self._maps_of, self._settings = maps_of, settings
        self._calibration_frame, self._memory_gib = calibration_frame, memory_gib
        self._frames: dict[tuple[int, int], _Frame] = {}
        self._maps: dict[int, Complex] = {}
        self._previous: dict[int, Complex] = {}
        self._waiting: list[tuple[FrameEnd, _Frame]] = []
        self._held_bytes = 0
        self._doubts: list[Any] = []
        self._check_memory(max(sampling.scan.n_coils, 1))
        self._along_z = sampling.partition_to_z()

    def push(self, item: Readout | FrameEnd) -> list[Any]:
        if isinstance(item, Readout):
            self._keep(item)
            return []
        frame = self._frames.pop((item.frame, item.slice), None)
        if frame is None:
            return [item]
        if self._calibration_frame not in (-1, item.frame) and item.slice not in self._maps:
            self._waiting.append((item, frame))
            return [item]
        ready = [item, *self._solved(item, frame)]
        now = [pair for pair in self._waiting if pair[0].slice == item.slice]
        self._waiting = [pair for pair in self._waiting if pair[0].slice != item.slice]
        return ready + [made for end, held in now for made in self._solved(end, held)]

    def finish(self) -> list[Any]:
        """Frames whose calibration frame never came calibrate themselves, and the user is told."""
        left: list[Any] = []
        for end, frame in self._waiting:
            text = f"frame {end.frame} slice {end.slice}: calibration frame never came; it calibrates itself"
            left += [Notice("warning", text), *self._solved(end, frame, is_own=True)]
        self._waiting = []
        return left

    def _keep(self, readout: Readout) -> None:
        frame = self._frames.setdefault((readout.frame, readout.slice), _Frame())
        frame.readouts.setdefault(readout.key[0], []).append(readout)
        frame.n_bytes += readout.data.nbytes
        self._held_bytes += readout.data.nbytes
        self._check_memory(len(readout.data))

    def _check_memory(self, n_coils: int) -> None:
        """What waits; and coil images, their k-space and the maps of a frame that is solved, maps of other slices."""
        images = (2 + self._n_sets * max(len(self._maps), 1)) * n_coils * 8 * int(np.prod(self._shape))
        needed_gib = (self._held_bytes + images) / 2**30
        if needed_gib > self._memory_gib:
            raise ScanError(
                f"readouts that wait for their frame and images of {n_coils} coils, matrix "
                f"{self._sampling.scan.recon_matrix}, take more than {self._memory_gib:g} GiB: {needed_gib:.1f}",
                likely="the header is wrong, or frames that never become full pile up",
                hint="--set gridding.memory_gib=N, or --set iterative.method=off",
            )

    def _solved(self, end: FrameEnd, frame: _Frame, *, is_own: bool = False) -> list[Any]:
        trajectory, weights, data = self._gathered(frame)
        doubts, self._doubts = self._doubts, []
        self._held_bytes -= frame.n_bytes
        if is_own or self._calibration_frame in (-1, end.frame):
            self._maps[end.slice] = self._maps_of(self._coil_images(trajectory, weights, data))
        maps, previous = self._maps[end.slice], self._previous.get(end.slice)
        solutions = []
        for z in range(self._shape[0]):
            operator = SenseOperator(trajectory, weights, np.ascontiguousarray(maps[..., z, :, :]))
            before = previous[..., z, :, :] if previous is not None else None
            solutions.append(solve_slice(operator, self._slice(data, z), self._settings, before))
        image = np.stack([solution.image for solution in solutions], axis=-3)
        self._previous[end.slice] = image
        worst = max(solution.residuals[-1] if solution.residuals else 0.0 for solution in solutions)
        most = max(len(solution.residuals) for solution in solutions)
        sets = to_kspace(image).reshape(-1, *self._shape)
        kspace = KSpace.of_sets(list(sets), end.frame, end.slice, end.received_ns, end.geometry)
        text = f"frame {end.frame} slice {end.slice}: {most} iterations, residual {worst:.2g}"
        return [*doubts, Notice("info", text), kspace]

    def _gathered(self, frame: _Frame) -> tuple[Float, Float, Complex]:
        """Trajectory ``(samples, 3)``, weights ``(samples,)`` and data ``(partitions, coils, samples)`` of a frame."""
        first, trajectories, data = [], [], []
        for spoke in sorted(frame.readouts):
            readouts = frame.readouts[spoke]
            k = readouts[0].trajectory
            block = np.zeros((self._n_partitions, *readouts[0].data.shape), np.complex64)
            for readout in readouts:
                if readout.trajectory.shape != k.shape or np.abs(readout.trajectory[:, :2] - k[:, :2]).max() > 0.01:
                    raise ScanError(
                        "partitions of one spoke have different trajectories; slices cannot be solved apart",
                        where=f"frame {readout.frame}, readout {readout.key}",
                        hint="--set iterative.method=off",
                    )
                block[readout.partition] = readout.data
            first.append(readouts[0])
            trajectories.append(k)
            data.append(block)
        return np.concatenate(trajectories), self._frame_weights(first), np.concatenate(data, axis=2)

    def _frame_weights(self, readouts: list[Readout]) -> Float:
        """Density weights ``(samples,)`` of a plane, now that all of its readouts are known."""
        _, ny, nx = self._shape
        k = np.concatenate([readout.trajectory for readout in readouts])
        if self._settings.density == "scan":
            weighted = [self._sampling.weights(readout) for readout in readouts]
            self._doubts += [notice for _, told in weighted for notice in told]
            return np.concatenate([weights for weights, _ in weighted])
        if self._settings.density == "voronoi":
            weights = voronoi_weights(k)
        else:
            weights = pipe_menon_weights(k, (ny, nx), oversampling=2)
        inside = (np.abs(k[:, :2]) <= np.array([nx, ny]) / 2 + 1e-3).all(axis=1)
        return np.where(inside, weights, 0).astype(np.float32)

    def _slice(self, data: Complex, z: int) -> Complex:
        """Samples ``(coils, samples)`` of one slice: the transform along kz."""
        return np.asarray(np.tensordot(self._along_z[z], data, axes=1), np.complex64)

    def _coil_images(self, trajectory: Float, weights: Float, data: Complex) -> Complex:
        """Weighted adjoint of every coil ``(coils, z, y, x)``."""
        nz, ny, nx = self._shape
        y, x = (np.ascontiguousarray(trajectory[:, axis] * np.float32(2 * np.pi / n)) for axis, n in ((1, ny), (0, nx)))
        images: NDArray[np.complex64] = np.empty((data.shape[1], nz, ny, nx), np.complex64)
        for z in range(nz):
            samples = np.ascontiguousarray(self._slice(data, z) * weights)
            planes = finufft.nufft2d1(y, x, samples, (ny, nx), eps=EPS, isign=1, nthreads=1)
            images[:, z] = planes.reshape(-1, ny, nx) / np.float32(np.sqrt(ny * nx))
        return images
