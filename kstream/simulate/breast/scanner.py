"""Takes a phantom and a protocol, gives the k-space samples of a golden-angle stack-of-stars DCE scan.

Contrast agent moves while the scan runs, so each readout has its own image. Curves of all voxels span a space of a few
functions of time: ``y(readout) = F static + sum_r b_r(t_readout) F component_r``, with F the coil-weighted Fourier sum.
Off-resonance and decay during the readout (2 ms) are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...types import Complex, Float
from ..coils import CoilArray, breast_array, loop_field, noise_covariance, receive_sensitivity, spline_matrix
from ..encoding import SpokeTransform, partition_transform
from ..fields import SlowField
from ..raster import TissueMaps
from ..tissue import FAT, GLAND
from .anatomy import BreastPhantom
from .kinetics import Bolus, TemporalBasis, TissueCurves, spoiled_gradient_echo, temporal_basis
from .protocol import BreastProtocol

__all__ = [
    "BreastProtocol", "CoilArray", "SignalComponents", "noise_level", "receive_array", "sample_kspace",
    "signal_components",
]  # fmt: skip

Progress = Callable[[str, float], None]

_COARSE_MM = 9.0


@dataclass(frozen=True)
class SignalComponents:
    """The magnetisation of the phantom over the scan: one image that stays, and a few that fade in and out.

    Parameters
    ----------
    columns : flat (y, x) indices that carry signal; all other columns are empty.
    static : float32 ``(z, columns)``, before contrast.
    dynamic : float32 ``(rank, z, columns)``.
    basis : functions of time of the dynamic images over `times_s`.
    """

    columns: NDArray[np.intp]
    static: Float
    dynamic: Float
    basis: TemporalBasis | None


def excitation_profile(positions: NDArray[np.floating], fraction: float, edge: float) -> Float:
    """Signal along an axis of the field of view (positions in -0.5..0.5): 1 inside, smoothly to 0 at its border."""
    inside = (0.5 * fraction - np.abs(positions)) / edge
    return np.asarray(0.5 * (1.0 + np.tanh(2.0 * inside)), dtype=np.float32)


def _fov_window(protocol: BreastProtocol) -> tuple[Float, Float, Float]:
    """Slab profile along z and saturation bands along the borders in plane, on the fine grid (z, y, x)."""
    axes = []
    for n, f, fraction, edge in zip(
        (protocol.n_slices, protocol.matrix, protocol.matrix), reversed(protocol.oversampling), (0.90, 0.96, 0.96),
        (0.04, 0.02, 0.02), strict=True,
    ):  # fmt: skip
        positions = (np.arange(n * f) / f - (n - 1) / 2) / n
        axes.append(excitation_profile(positions, fraction, edge) if n > 1 else np.ones(n * f, dtype=np.float32))
    return axes[0], axes[1], axes[2]


def signal_components(
    phantom: BreastPhantom, maps: TissueMaps, protocol: BreastProtocol, times_s: NDArray[np.float64]
) -> SignalComponents:
    """Turn tissue into signal: pre-contrast image exactly, enhancement as coefficients of a temporal basis.

    Parameters
    ----------
    times_s : ascending readout times after the bolus arrives; may be empty.
    """
    nz, ny, nx = maps.shape
    columns = np.flatnonzero(maps["proton_density"].any(axis=0).reshape(-1))
    volume = {name: array.reshape(nz, ny * nx)[:, columns] for name, array in maps.values.items()}
    x, y, z = (p.reshape(nz, ny * nx)[:, columns] for p in maps.positions_mm)
    wz, wy, wx = _fov_window(protocol)
    flip = np.float32(np.deg2rad(protocol.flip_angle_deg)) * phantom.transmit_field(x, y, z)
    density = volume["proton_density"] * (wz[:, None] * (wy[:, None] * wx).reshape(-1)[columns])
    water = density * (1 - volume["fat_fraction"])
    fat = density * volume["fat_fraction"] * phantom.fat_residual(x, y, z)
    echo = {"tr_ms": protocol.tr_ms, "te_ms": protocol.te_ms}
    r1, r2_star = 1e3 / volume["t1_ms"], 1e3 / volume["t2_star_ms"]
    before = spoiled_gradient_echo(r1, r2_star, flip_rad=flip, **echo)
    fat_signal = spoiled_gradient_echo(1e3 / FAT.t1_ms, 1e3 / FAT.t2_star_ms, flip_rad=flip, **echo)
    static = np.asarray(water * before + fat * fat_signal, dtype=np.float32)
    if times_s.size == 0:
        return SignalComponents(columns, static, np.zeros((0, nz, columns.size), dtype=np.float32), None)

    enhancing = np.flatnonzero(((volume["ktrans_per_min"] > 0) | (volume["vp"] > 0)) & (water > 1e-4))
    ktrans, ve, vp, r1, r2_star, flip, water, before = (
        a.reshape(-1)[enhancing]
        for a in (volume["ktrans_per_min"], volume["ve"], volume["vp"], r1, r2_star, flip, water, before)
    )
    bolus = Bolus(protocol.injection_s + phantom.arrival_delay_s, phantom.dose)
    curves = TissueCurves(bolus, float(times_s[-1]))

    def enhancement(time_s: float, pick: slice | NDArray[np.intp]) -> Float:
        agent = curves.concentration_mm(time_s, ktrans[pick], ve[pick], vp[pick])
        after = spoiled_gradient_echo(
            r1[pick] + np.float32(bolus.r1_per_mm_s) * agent,
            r2_star[pick] + np.float32(bolus.r2_star_per_mm_s) * agent,
            flip_rad=flip[pick],
            **echo,
        )
        return np.asarray(water[pick] * (after - before[pick]), dtype=np.float32)

    samples = np.random.default_rng(phantom.seed).integers(enhancing.size, size=1024)
    basis = temporal_basis(lambda t: enhancement(t, samples), times_s)
    nodes = np.stack([enhancement(float(t), slice(None)) for t in basis.node_times_s])
    dynamic = np.zeros((basis.rank, nz * columns.size), dtype=np.float32)
    dynamic[:, enhancing] = basis.from_nodes.astype(np.float32) @ nodes
    return SignalComponents(columns, static, dynamic.reshape(basis.rank, nz, columns.size), basis)


def receive_array(protocol: BreastProtocol, rng: np.random.Generator) -> CoilArray:
    """Sensitivities of the loops around the breasts over the field of view, with the smooth phase of the object."""
    geometry = protocol.geometry
    knots, matrices = [], []
    for n, f, extent in zip(geometry.matrix, protocol.oversampling, protocol.field_of_view_mm, strict=True):
        coarse = np.linspace(0, n - 1 / f, max(4, round(extent / _COARSE_MM)))
        knots.append(coarse)
        matrices.append(spline_matrix(coarse, np.arange(n * f) / f))
    kz, ky, kx = np.meshgrid(knots[2], knots[1], knots[0], indexing="ij")
    points = np.stack([kx, ky, kz], axis=-1) @ geometry.affine_lps[:3, :3].T + geometry.affine_lps[:3, 3]
    fields = np.stack([receive_sensitivity(loop_field(loop, points)) for loop in breast_array(protocol.n_coils)])
    covariance = noise_covariance(fields, rng)
    phase = SlowField.random(rng, float(rng.uniform(-np.pi, np.pi)), 0.8)
    x, y, z = (points[..., axis].astype(np.float32) for axis in range(3))
    coarse_maps = (fields * np.exp(1j * phase.at(x, y, z))).astype(np.complex64)
    return CoilArray(coarse_maps, (matrices[2], matrices[1], matrices[0]), covariance)


def noise_level(protocol: BreastProtocol, coils: CoilArray) -> float:
    """Standard deviation of one complex k-space sample that gives the protocol's SNR.

    The image of one frame with ramp weights ``pi |k| dk / spokes`` has the noise variance
    ``sigma^2 pi^2 n dk / (12 spokes) * partitions / slices`` per coil in orthonormal units (the sum of squared weights
    over n^2), and optimal combination of R = sum |s|^2 divides it by R. The signal is that of fibroglandular tissue in
    the middle of the breasts.
    """
    if protocol.snr == 0:
        return 0.0
    tissue = GLAND.proton_density * spoiled_gradient_echo(
        1e3 / GLAND.t1_ms, 1e3 / GLAND.t2_star_ms,
        tr_ms=protocol.tr_ms, te_ms=protocol.te_ms, flip_rad=np.deg2rad(protocol.flip_angle_deg),
    )  # fmt: skip
    centres = np.array([[-74.0, -45.0, 0.0], [74.0, -45.0, 0.0]])
    fields = np.stack([receive_sensitivity(loop_field(loop, centres)) for loop in breast_array(protocol.n_coils)])
    sensitivity = float(np.sqrt(np.mean(np.sum(np.abs(fields) ** 2, axis=0))))
    gain = np.pi**2 * protocol.matrix / (12.0 * protocol.n_spokes * protocol.readout_oversampling)
    gain *= protocol.n_partitions / protocol.n_slices
    return float(tissue) * sensitivity / (protocol.snr * float(np.sqrt(gain)))


def sample_kspace(
    protocol: BreastProtocol,
    phantom: BreastPhantom,
    maps: TissueMaps,
    coils: CoilArray,
    *,
    progress: Progress | None = None,
    n_threads: int = 1,
) -> Complex:
    """Noise-free samples of the whole scan: complex64 ``(spokes, partitions, coils, samples)``."""
    times = protocol.readout_times_s
    arrival_s = protocol.injection_s + phantom.arrival_delay_s
    is_enhanced = times.max(axis=1) > arrival_s
    enhanced = np.flatnonzero(is_enhanced)
    enhanced_times = times[enhanced]
    components = signal_components(phantom, maps, protocol, np.sort(enhanced_times.reshape(-1)))
    kx, ky = protocol.sampled_xy()
    plane, fine = (protocol.matrix, protocol.matrix), protocol.oversampling[:2]
    n_partitions = protocol.n_partitions
    to_all = SpokeTransform(kx, ky, plane, fine, n_partitions, n_threads)
    to_enhanced = None
    weights = np.zeros((0, n_partitions, enhanced.size), dtype=np.float32)
    if components.basis is not None:
        to_enhanced = SpokeTransform(kx[enhanced], ky[enhanced], plane, fine, n_partitions, n_threads)
        functions = components.basis.functions.reshape(-1, enhanced.size, n_partitions)
        weights = functions.transpose(0, 2, 1).astype(np.float32)
    kz = np.arange(n_partitions, dtype=np.float64) - protocol.center_partition
    along_z = partition_transform(kz, protocol.n_slices, protocol.oversampling[2])
    nz, ny, nx = maps.shape
    planes = np.zeros((n_partitions, ny * nx), dtype=np.complex64)
    samples = np.empty((len(kx), n_partitions, protocol.n_coils, protocol.n_samples), dtype=np.complex64)
    for coil in range(protocol.n_coils):
        sensitivity = coils.sensitivity(coil).reshape(nz, ny * nx)[:, components.columns]

        def project(image: Float, transform: SpokeTransform, sensitivity: Complex = sensitivity) -> Complex:
            planes[:, components.columns] = along_z @ (sensitivity * image)
            return transform(planes.reshape(n_partitions, ny, nx))

        kspace = project(components.static, to_all)
        if to_enhanced is not None:
            change = sum(
                w[..., None] * project(c, to_enhanced) for w, c in zip(weights, components.dynamic, strict=True)
            )
            kspace[:, enhanced] += change
        samples[:, :, coil] = kspace.transpose(1, 0, 2)
        if progress is not None:
            progress("sampling k-space", (coil + 1) / protocol.n_coils)
    return samples
