"""Every kind of trajectory that is promised, from acquisitions to images, beside the exact object."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from kstream.config import resolve
from kstream.pipeline import build_pipeline
from kstream.readouts.trajectory import golden_angle_rad
from kstream.stream.runners import run_inline
from kstream.types import Acquisition, AcquisitionFlag, EncodingLimit, Float, Notice, Scan
from tests import phantom
from tests.scans import StackOfStars

NX, NY, N_COILS, N_SPOKES = 45, 38, 4, 89
FOV_X_MM, FOV_Y_MM = 200.0, 200.0 * NY / NX
ASPECT = NY / NX
STARS = StackOfStars(nx=NX, ny=NY)
INDEX = np.arange(N_SPOKES)


def scan(kind: str, n_slices: int = 1, n_partitions: int = 1, matrix: tuple[int, int] = (NX, NY)) -> Scan:
    nx, ny = matrix
    return Scan(
        encoded_matrix=(2 * nx, 2 * ny, n_partitions),
        recon_matrix=(nx, ny, n_partitions),
        encoded_fov_mm=(2 * FOV_X_MM, 2 * FOV_X_MM * ny / nx, 5.0 * n_partitions),
        recon_fov_mm=(FOV_X_MM, FOV_X_MM * ny / nx, 5.0 * n_partitions),
        trajectory=kind,
        limits={
            "kspace_encode_step_1": EncodingLimit(0, N_SPOKES - 1, 0),
            "kspace_encode_step_2": EncodingLimit(0, n_partitions - 1, n_partitions // 2),
            "slice": EncodingLimit(0, n_slices - 1, 0),
        },
        n_coils=N_COILS,
        user_parameters={"trajectory_units": "cycles_per_fov"},
    )


def acquisition(
    k: Float, number: int, partition: int = 0, slice_: int = 0, gain: float = 1.0, **how: object
) -> Acquisition:
    """Exact samples at ``(samples, xyz)``; the trajectory is sent only if `is_carried`."""
    matrix = (NX, NY) if how.get("matrix") is None else how["matrix"]
    data = gain * phantom.coil_kspace(k, matrix, N_COILS)  # type: ignore[arg-type]
    sent = k[:, :2] if how.get("is_carried") else k[:, :0]
    made = STARS.acquisition(np.ascontiguousarray(data, np.complex64), np.ascontiguousarray(sent), number, partition)
    made.header["idx"]["slice"] = slice_
    return made


def images(
    scan: Scan, acquisitions: list[Acquisition], *settings: str, preset: str = "recon-radial"
) -> dict[int, Float]:
    """Magnitude ``(y, x)`` by number of the slice."""
    settings = ("coils.calibration_frame=0", "trajectory.delay=off", *settings)
    made = run_inline(build_pipeline(scan, resolve(preset, settings=settings).config).pipeline, acquisitions)
    return {int(item.header["slice"]): item.data[0, 0] for item in made if hasattr(item, "header")}


def error(image: Float, matrix: tuple[int, int] = (NX, NY)) -> float:
    """Inside the object, where coil maps are certain."""
    exact = np.abs(phantom.truth(matrix)) * np.linalg.norm(phantom.coil_maps(matrix, N_COILS), axis=0)
    inside = exact > 0.2 * exact.max()
    return float(np.linalg.norm((image - exact)[inside]) / np.linalg.norm(exact[inside]))


@dataclass(frozen=True)
class Kind:
    """Angles of the spokes, and the settings that say so where the trajectory is not carried."""

    angles: np.ndarray
    settings: tuple[str, ...]
    trajectory: str = "radial"


RANDOM = np.random.default_rng(0).permutation(INDEX) * np.pi / N_SPOKES + 0.3
KINDS = {
    "golden": Kind(INDEX * golden_angle_rad(1), ("trajectory.source=golden-angle",), "goldenangle"),
    "tiny golden": Kind(
        INDEX * golden_angle_rad(7), ("trajectory.source=golden-angle", "trajectory.golden_order=7"), "goldenangle"
    ),
    "uniform half circle": Kind(INDEX * np.pi / N_SPOKES, ("trajectory.source=uniform-half",)),
    "uniform full circle": Kind(INDEX * 2 * np.pi / N_SPOKES, ("trajectory.source=uniform-full",)),
    "alternating": Kind(
        INDEX * np.pi / N_SPOKES + np.pi * (INDEX % 2), ("trajectory.source=uniform-half", "trajectory.alternate=true")
    ),
    "clockwise from 20 degrees": Kind(
        np.deg2rad(20) - INDEX * np.pi / N_SPOKES,
        ("trajectory.source=uniform-half", "trajectory.first_angle_deg=20", "trajectory.clockwise=true"),
    ),
    "arbitrary": Kind(RANDOM, ("trajectory.source=acquisition",)),
}
WAYS = ("gridding.method=zero-wait", "gridding.method=coil-grids", "iterative.method=cg-sense")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", KINDS)
def test_spokes_of_every_order_show_the_object_where_it_is(name: str, way: str) -> None:
    """Two-dimensional, anisotropic, odd and even sizes; angles from counters but for arbitrary ones."""
    kind = KINDS[name]
    carried = kind.settings == ("trajectory.source=acquisition",)
    k = phantom.spokes(kind.angles, (NX, NY), ASPECT)
    sent = [acquisition(spoke, number, is_carried=carried) for number, spoke in enumerate(k)]
    found = images(scan(kind.trajectory), sent, way, *kind.settings)[0]
    assert found.shape == (NY, NX)
    assert error(found) < 0.05


@pytest.mark.parametrize("way", WAYS[:2])
def test_readouts_of_reversed_gradients_show_the_same(way: str) -> None:
    kind = KINDS["uniform half circle"]
    sent = [
        acquisition(spoke, i, is_carried=True) for i, spoke in enumerate(phantom.spokes(kind.angles, (NX, NY), ASPECT))
    ]
    for one in sent[::2]:
        one.data, one.trajectory = one.data[:, ::-1].copy(), one.trajectory[::-1].copy()
        one.header["flags"] = np.uint64(AcquisitionFlag.IS_REVERSE)
    assert error(images(scan("radial"), sent, way)[0]) < 0.05


@pytest.mark.parametrize("matrix", [(44, 44), (45, 45), (44, 37), (37, 46)])
@pytest.mark.parametrize("way", WAYS[:2])
def test_odd_and_even_sizes_of_any_shape_show_the_object_where_it_is(matrix: tuple[int, int], way: str) -> None:
    nx, ny = matrix
    k = phantom.spokes(INDEX * golden_angle_rad(1), matrix, ny / nx)
    sent = [acquisition(spoke, number, matrix=matrix) for number, spoke in enumerate(k)]
    assert error(images(scan("goldenangle", matrix=matrix), sent, way)[0], matrix) < 0.05


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("order", ["interleaved", "one by one"])
def test_slices_that_are_excited_apart_have_images_of_their_own(way: str, order: str) -> None:
    """Three slices of different strength."""
    k = phantom.spokes(INDEX * golden_angle_rad(1), (NX, NY), ASPECT)
    places = [(number, slice_) for number in INDEX for slice_ in range(3)]
    places = places if order == "interleaved" else sorted(places, key=lambda place: (place[1], place[0]))
    sent = [acquisition(k[number], number, 0, slice_, 1.0 + slice_) for number, slice_ in places]
    found = images(scan("goldenangle", n_slices=3), sent, way)
    assert sorted(found) == [0, 1, 2]
    assert all(error(found[slice_] / (1 + slice_)) < 0.05 for slice_ in found)


@pytest.mark.parametrize("way", WAYS)
def test_partitions_of_a_stack_become_slices(way: str) -> None:
    """The object lies in slice 2 of 0 to 2, one voxel from the centre."""
    k = phantom.spokes(INDEX * golden_angle_rad(1), (NX, NY), ASPECT)
    sent = []
    for number in INDEX:
        for partition in range(3):
            one = acquisition(k[number], number, partition, gain=1 / np.sqrt(3))
            one.data *= np.complex64(np.exp(-2j * np.pi * (partition - 1) / 3))
            sent.append(one)
    found = images(scan("goldenangle", n_partitions=3), sent, way)
    assert error(found[2]) < 0.05
    assert max(np.linalg.norm(found[0]), np.linalg.norm(found[1])) < 0.02 * np.linalg.norm(found[2])


def test_spiral_interleaves_show_the_object_where_it_is() -> None:
    t, n_turns = np.linspace(0, 1, 900), 8
    sent = []
    for number in range(N_SPOKES):
        angle = 2 * np.pi * (n_turns * t + number / N_SPOKES)
        k = np.stack([NX / 2 * t * np.cos(angle), NY / 2 * t * np.sin(angle), 0 * t], axis=1).astype(np.float32)
        sent.append(acquisition(k, number, is_carried=True))
    assert error(images(scan("spiral"), sent, preset="recon-spiral")[0]) < 0.05


def test_cartesian_lines_show_the_object_where_it_is() -> None:
    kx = (np.arange(2 * NX) - NX) / 2
    sent = []
    for line in range(2 * NY):
        k = np.stack([kx, np.full(2 * NX, (line - NY) / 2), 0 * kx], axis=1).astype(np.float32)
        sent.append(acquisition(k, line))
    limits = {"kspace_encode_step_1": EncodingLimit(0, 2 * NY - 1, NY)}
    found = images(replace(scan("cartesian"), limits=limits), sent, preset="recon-cartesian")[0]
    assert error(found) < 0.1  # the square of k-space shows more than the disc of spokes


def carried(trajectories: list[Float]) -> list[Acquisition]:
    """Acquisitions that say where they lie."""
    return [acquisition(k, number, is_carried=True) for number, k in enumerate(trajectories)]


N_PETALS = 3


def rosette(number: int) -> Float:
    """A readout of three petals through the centre ``(samples, xyz)``, turning faster from readout to readout."""
    t = (np.arange(320) + 0.5) / 320
    radius = np.sin(np.pi * N_PETALS * t)
    angle = (2.1 + 0.013 * number) * t * np.pi + number * golden_angle_rad(1)
    return np.stack([NX / 2 * radius * np.cos(angle), NY / 2 * radius * np.sin(angle), 0 * t], 1).astype(np.float32)


def notices(scan: Scan, acquisitions: list[Acquisition], *settings: str, preset: str = "recon-radial") -> list[str]:
    """Warnings that a client would be told."""
    config = resolve(preset, settings=("trajectory.delay=off", *settings)).config
    made = run_inline(build_pipeline(scan, config).pipeline, acquisitions)
    return [item.text for item in made if isinstance(item, Notice) and item.level == "warning"]


ROSETTE = [rosette(number) for number in range(N_SPOKES)]
VORONOI = ("iterative.density=voronoi", "trajectory.source=acquisition", "coils.calibration_frame=0")


def test_curved_readouts_without_symmetry_show_the_object_with_voronoi_weights() -> None:
    """Header type ``other``, kx and ky in the readouts; nothing of the petals is known beforehand."""
    sent = carried(ROSETTE)
    found = images(scan("other"), sent, *VORONOI, preset="recon-cg-sense")[0]
    assert found.shape == (NY, NX)
    assert error(found) < 0.04
    assert not notices(scan("other"), sent, *VORONOI, preset="recon-cg-sense")


def test_polar_weights_on_curved_readouts_are_told_for_their_image_is_wrong() -> None:
    sent = carried(ROSETTE)
    assert error(images(scan("other"), sent)[0]) > 1
    (told,) = notices(scan("other"), sent)
    assert "readout is neither" in told
    assert "iterative.density=voronoi" in told
    assert "readout is neither" in "".join(notices(scan("other"), sent, preset="recon-cg-sense"))


def test_polar_weights_on_blades_beside_the_centre_are_told() -> None:
    """PROPELLER: straight readouts of header type ``other``, of which most miss the centre."""
    x = (np.arange(2 * NX) - NX) / 2
    blade = [np.stack([x, np.full(2 * NX, float(y)), 0 * x], axis=1).astype(np.float32) for y in range(-9, 10)]
    assert any("readout is neither" in text for text in notices(scan("other"), carried(blade)))


@pytest.mark.parametrize("name", ["spokes", "shifted spokes", "interleaves", "S-shaped"])
def test_polar_weights_on_what_they_hold_for_are_not_doubted(name: str) -> None:
    t = np.linspace(0, 1, 300)
    k = phantom.spokes(INDEX * golden_angle_rad(1), (NX, NY), ASPECT)
    if name == "shifted spokes":
        k = k + np.random.default_rng(1).uniform(-0.3, 0.3, (N_SPOKES, 1, 3)).astype(np.float32) * (1, 1, 0)
    if name in ("interleaves", "S-shaped"):
        r = t if name == "interleaves" else 2 * t - 1
        turned = [8 * np.pi * np.abs(r) + 2 * np.pi * number / N_SPOKES for number in INDEX]
        k = np.stack([np.stack([NX / 2 * r * np.cos(a), NY / 2 * r * np.sin(a), 0 * t], axis=1) for a in turned])
    told = notices(scan("other"), carried([spoke.astype(np.float32) for spoke in k]))
    assert not any("readout is neither" in text for text in told)
