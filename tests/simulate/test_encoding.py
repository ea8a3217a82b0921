"""The Fourier sums of the simulator against slow exact sums and closed forms, on odd and different sizes."""

import numpy as np
import pytest

from kstream.simulate.encoding import SpokeTransform, partition_transform

NX, NY, NZ = 9, 7, 5


@pytest.mark.parametrize("factor", [(1, 1, 1), (2, 3, 2), (3, 2, 4)])
@pytest.mark.parametrize("matrix", [(NX, NY, NZ), (8, 6, 4)])
def test_encoding_equals_the_exact_sum(factor: tuple[int, int, int], matrix: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(1)
    (fx, fy, fz), (nx, ny, nz) = factor, matrix
    shape = nz * fz, ny * fy, nx * fx
    image = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)
    kx, ky = rng.uniform(-nx / 2, nx / 2, (3, 11)), rng.uniform(-ny / 2, ny / 2, (3, 11))
    kz = np.array([-2.0, 0.0, 1.0])
    planes = np.einsum("pz,zyx->pyx", partition_transform(kz, nz, fz), image)
    got = SpokeTransform(kx, ky, (nx, ny), (fx, fy), 3)(planes)
    x = (np.arange(nx * fx) / fx - nx // 2) / nx
    y = (np.arange(ny * fy) / fy - ny // 2) / ny
    z = (np.arange(nz * fz) / fz - nz // 2) / nz
    wave = [np.exp(-2j * np.pi * k[..., None] * r) for k, r in ((kx, x), (ky, y), (kz, z))]
    exact = np.einsum("skx,sky,pz,zyx->psk", *wave, image) / np.sqrt(nx * ny * nz) / (fx * fy * fz)
    assert np.linalg.norm(got - exact) < 3e-5 * np.linalg.norm(exact)


def test_band_limited_object_gives_back_its_orthonormal_coefficients() -> None:
    """The k-space of an object whose centred orthonormal Fourier coefficients are known is those coefficients."""
    rng = np.random.default_rng(2)
    coefficients = rng.standard_normal((NZ, NY, NX)) + 1j * rng.standard_normal((NZ, NY, NX))
    fx, fy, fz = 2, 3, 2
    waves = []
    for n, f in ((NZ, fz), (NY, fy), (NX, fx)):
        k, r = np.arange(n) - n // 2, np.arange(n * f) / f - n // 2
        waves.append(np.exp(2j * np.pi * np.outer(r, k) / n) / np.sqrt(n))
    fine = np.einsum("zc,yb,xa,cba->zyx", *waves, coefficients).astype(np.complex64)
    # On the reconstruction grid it is NumPy's orthonormal inverse transform, centred.
    centred = np.fft.fftshift(np.fft.ifftn(np.fft.ifftshift(coefficients), norm="ortho"))
    np.testing.assert_allclose(fine[::fz, ::fy, ::fx], centred, atol=1e-5)
    ky, kx = np.meshgrid(np.arange(NY) - NY // 2, np.arange(NX) - NX // 2, indexing="ij")
    along_z = partition_transform(np.arange(NZ) - NZ // 2.0, NZ, fz)
    planes = np.einsum("pz,zyx->pyx", along_z, fine)
    got = SpokeTransform(kx.astype(float), ky.astype(float), (NX, NY), (fx, fy), NZ)(planes)
    np.testing.assert_allclose(got, coefficients, atol=2e-4)


def test_gaussian_blob_has_its_analytic_transform() -> None:
    """A Gaussian off centre: the sampled sum converges to its integral, amplitude, width, place and sign."""
    n, f, nz, fz = 31, 2, 11, 2
    centre, width = np.array([2.3, -4.1, 0.7]), np.array([1.9, 2.4, 1.5])  # recon voxels from voxel n // 2
    x, z = np.arange(n * f) / f - n // 2, np.arange(nz * fz) / fz - nz // 2
    gx, gy, gz = (np.exp(-((r - c) ** 2) / (2 * w**2)) for r, c, w in zip((x, x, z), centre, width, strict=True))
    blob = (gz[:, None, None] * gy[:, None] * gx).astype(np.complex64)
    angle = np.array([0.3, 1.9, 4.0])[:, None]
    k = (np.arange(2 * n) - n) / 2
    kx, ky, kz = k * np.cos(angle), k * np.sin(angle), np.array([-3.0, 0.0, 2.0])
    planes = np.einsum("pz,zyx->pyx", partition_transform(kz, nz, fz), blob)
    got = SpokeTransform(kx, ky, (n, n), (f, f), 3)(planes)

    def one_axis(frequency: np.ndarray, size: int, axis: int) -> np.ndarray:
        q = 2 * np.pi * frequency / size
        spread = np.sqrt(2 * np.pi) * width[axis] * np.exp(-0.5 * (q * width[axis]) ** 2)
        return np.asarray(spread * np.exp(-1j * q * centre[axis]) / np.sqrt(size))

    exact = one_axis(kz, nz, 2)[:, None, None] * one_axis(kx, n, 0) * one_axis(ky, n, 1)
    np.testing.assert_allclose(got, exact, atol=1e-3 * np.abs(exact).max())
