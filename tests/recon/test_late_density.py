"""What was weighted wrongly while it came is put right at the end, in the stream."""

from dataclasses import replace

import numpy as np
import pytest

from kstream.config import resolve
from kstream.errors import ScanError
from kstream.pipeline import build_pipeline
from kstream.recon.density import AnglePlan
from kstream.recon.fourier import to_image
from kstream.recon.late_density import CorrectDensity
from kstream.stream import Pipeline
from kstream.stream.runners import run_inline
from kstream.types import (
    GOLDEN_ANGLE_RAD,
    Acquisition,
    Complex,
    EarlyKSpace,
    EncodingLimit,
    Float,
    FrameEnd,
    Geometry,
    KSpace,
    Notice,
    Readout,
    Scan,
)
from tests import phantom
from tests.scans import StackOfStars

N, N_SPOKES, N_COILS = 49, 77, 4
STARS = StackOfStars(nx=N, ny=N, nz=1, n_partitions=1, n_coils=N_COILS, spokes_per_frame=N_SPOKES, n_frames=3)
GOLDEN = np.arange(3 * N_SPOKES) * GOLDEN_ANGLE_RAD
RANDOM = np.tile(np.random.default_rng(0).uniform(0, np.pi, N_SPOKES), 3)
WAYS = ("gridding.method=zero-wait", "gridding.method=coil-grids")


def acquisitions(angles: np.ndarray) -> list[Acquisition]:
    """Spokes of the phantom at these angles, through the frames."""
    made = []
    for number, k in enumerate(phantom.spokes(angles, (N, N))):
        data = phantom.coil_kspace(k, (N, N), N_COILS)
        made.append(STARS.acquisition(data, k[:, :2].copy(), number, 0))
    return made


def pipeline_of(kind: str, *settings: str) -> Pipeline:
    limits = {**STARS.scan().limits, "kspace_encode_step_2": EncodingLimit(0, 0, 0)}
    scan = replace(STARS.scan(), limits=limits, trajectory=kind)
    settings = ("coils.calibration_frame=0", "coils.map_size=64", "trajectory.delay=off", *settings)
    return build_pipeline(scan, resolve("recon-radial", settings=settings).config).pipeline


def run(angles: np.ndarray, *settings: str, drop: tuple[int, ...] = (), kind: str = "radial") -> list[object]:
    pipeline = pipeline_of(kind, *settings)
    return run_inline(pipeline, [a for i, a in enumerate(acquisitions(angles)) if i not in drop])


def errors(items: list[object]) -> dict[int, float]:
    """Of the magnitude of every frame inside the object."""
    size = np.linalg.norm(phantom.coil_maps((N, N), N_COILS), axis=0)
    exact = np.abs(phantom.truth((N, N))) * size
    inside = exact > 0.1 * exact.max()
    images = {int(item.header["repetition"]): item.data[0, 0] for item in items if hasattr(item, "header")}
    left = {frame: (np.abs(image) - exact)[inside] for frame, image in images.items()}
    return {frame: float(np.linalg.norm(part) / np.linalg.norm(exact[inside])) for frame, part in left.items()}


def told(items: list[object]) -> list[str]:
    return [item.text for item in items if isinstance(item, Notice) and "density put right" in item.text]


@pytest.mark.parametrize("way", WAYS)
def test_spokes_that_never_came_leave_their_angle_to_their_neighbours(way: str) -> None:
    lost = tuple(N_SPOKES + i for i in range(3, N_SPOKES, 6))
    uneven = run(GOLDEN, way, "gridding.angles=mean", drop=lost, kind="goldenangle")
    even = run(GOLDEN, way, drop=lost, kind="goldenangle")
    assert errors(even)[1] < 0.5 * errors(uneven)[1]
    assert len(told(even)) == 1
    assert "frame 1 slice 0: the angles of its 64 spokes" in told(even)[0]
    assert not told(uneven)


def looks(items: list[object]) -> dict[tuple[int, int], np.ndarray]:
    """Magnitude of what was looked at, by frame and readouts."""
    return {
        (item.kspace.frame, item.n_readouts): np.abs(to_image(item.kspace.data[0]))
        for item in items
        if isinstance(item, EarlyKSpace)
    }


def run_to_looks(angles: np.ndarray, *settings: str) -> list[object]:
    """Everything up to the density of looks; what comes after it has no use for them without a network."""
    pipeline = pipeline_of("goldenangle", *settings)
    end = next(i for i, stage in enumerate(pipeline.stages) if isinstance(stage, CorrectDensity))
    return run_inline(Pipeline(*pipeline.stages[: end + 1], source=pipeline.takes), acquisitions(angles))


@pytest.mark.parametrize("way", ["gaps", "mean"])
def test_a_frame_that_is_looked_at_has_the_density_of_the_spokes_that_came(way: str) -> None:
    """The same spokes, had the scan ended with them, give the same image."""
    found = looks(run_to_looks(GOLDEN, WAYS[0], "frames.early=[40,60]", f"gridding.angles={way}"))
    assert set(found) == {(frame, n) for frame in range(3) for n in (40, 60)}
    exact = np.abs(phantom.truth((N, N))) * np.linalg.norm(phantom.coil_maps((N, N), N_COILS), axis=0)
    inside = exact > 0.1 * exact.max()
    for frame, n in ((1, 40), (1, 60), (2, 60)):
        cut = run(GOLDEN, WAYS[0], drop=tuple(range(frame * N_SPOKES + n, 3 * N_SPOKES)), kind="goldenangle")
        ended = next(i.data[0, 0] for i in cut if hasattr(i, "header") and i.header["repetition"] == frame)
        image = found[frame, n]
        assert np.linalg.norm((image - ended)[inside]) < 0.05 * np.linalg.norm(ended[inside])
        assert abs(image[inside].sum() / exact[inside].sum() - 1) < 0.05


def test_looking_changes_nothing_of_the_frame_that_is_looked_at() -> None:
    plain, looked = (run(GOLDEN, WAYS[0], *more, kind="goldenangle") for more in ((), ("frames.early=[9,50]",)))
    frames, same = ([i.data for i in items if hasattr(i, "header")] for items in (plain, looked))
    assert len(frames) == 3
    for frame, other in zip(frames, same, strict=True):
        np.testing.assert_array_equal(frame, other)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ((WAYS[1],), "neither lines nor zero-wait"),
        (("frames.share=2",), "frames.share"),
        (("partial_fourier.method=pocs",), "partial_fourier.method is pocs"),
    ],
)
def test_looks_that_cannot_be_had_are_refused(settings: tuple[str, ...], why: str) -> None:
    with pytest.raises(ScanError, match=why):
        pipeline_of("radial", "frames.early=[40]", *settings)


@pytest.mark.parametrize("way", WAYS)
def test_arbitrary_angles_are_put_right_in_the_first_frame_and_known_from_the_second_on(way: str) -> None:
    mean, found = errors(run(RANDOM, way, "gridding.angles=mean")), errors(run(RANDOM, way))
    assert found[0] < 0.8 * mean[0]
    assert found[1] == pytest.approx(found[2], rel=1e-3)
    assert found[1] < 0.85 * found[0]


@pytest.mark.parametrize("way", WAYS)
def test_sliding_window_has_the_density_of_all_its_spokes(way: str) -> None:
    """Beside the frame of all its spokes, weighted with the gaps that they leave together."""
    window = errors(run(GOLDEN, way, "frames.share=3", kind="goldenangle"))
    whole = errors(run(GOLDEN, way, "frames.n_frames=1", kind="goldenangle"))
    assert window[2] < 1.25 * whole[0]


def test_frames_that_came_as_planned_are_left_alone_to_the_bit() -> None:
    rng, plan = np.random.default_rng(1), AnglePlan(GOLDEN[:N_SPOKES], learns=True)
    data = (rng.standard_normal((2, 5, 7)) + 1j * rng.standard_normal((2, 5, 7))).astype(np.complex64)
    kspace = KSpace(data, 1, 0, 7, Geometry((7, 5, 2), (70.0, 50.0, 20.0)))
    stage = CorrectDensity(plan)
    assert stage.push(kspace) == [kspace]  # nothing is known of its spokes
    for readout in readouts(phantom.spokes(GOLDEN[N_SPOKES : 2 * N_SPOKES], (N, N)), frame=1):
        plan.step_rad(readout, N_SPOKES)
    over = ended(1, N_SPOKES)
    assert stage.push(over) == [over]
    (same,) = stage.push(kspace)
    assert same is kspace


GEOMETRY = Geometry((N, N, 1), (1.0, 1.0, 1.0))


def readouts(spokes: Float, n_partitions: int = 1, frame: int = 0) -> list[Readout]:
    samples: Complex = np.zeros((1, spokes.shape[1]), np.complex64)
    numbers = [(i, p) for i in range(len(spokes)) for p in range(n_partitions)]
    return [Readout(samples, spokes[i], frame, 0, p, (i, p), 0) for i, p in numbers]


def ended(frame: int, n_readouts: int) -> FrameEnd:
    return FrameEnd(frame, 0, n_readouts, n_readouts, 7, GEOMETRY)


def corrected(came: list[Readout], n_readouts: int | None = None) -> KSpace:
    """K-space of ones after a frame of these readouts, which were all taken for the mean step."""
    plan, sets = AnglePlan(learns=True), np.ones((2, 1, N, N), np.complex64)
    for readout in came:
        plan.step_rad(readout, N_SPOKES)
    stage = CorrectDensity(plan)
    stage.push(ended(0, len(came) if n_readouts is None else n_readouts))
    *_, kspace = stage.push(KSpace.of_sets(list(sets), 0, 0, 7, GEOMETRY))
    assert not stage._over
    assert not plan.used(0, 0)
    return kspace


def test_every_set_of_maps_is_put_right() -> None:
    right = corrected(readouts(phantom.spokes(RANDOM[:N_SPOKES], (N, N)), n_partitions=3))
    np.testing.assert_array_equal(*right.sets)
    assert np.ptp(right.data.real) > 0.5


RANDOM_SPOKES = phantom.spokes(RANDOM[:N_SPOKES], (N, N))
CENTRE_OUT = phantom.spokes(2 * RANDOM[:N_SPOKES], (N, N))[:, N:]
THREE = readouts(RANDOM_SPOKES, 3)
TURNED = readouts(phantom.spokes(RANDOM[:N_SPOKES] + 0.3, (N, N)), 3)


@pytest.mark.parametrize(
    ("came", "n_readouts"),
    [
        (readouts(CENTRE_OUT), None),
        ([r for r in THREE if r.key != (11, 2)], None),
        ([r for r in THREE if abs(r.partition - 1) + r.key[0] / N_SPOKES < 1.5], None),
        ([TURNED[i] if r.partition == 2 else r for i, r in enumerate(THREE)], None),
        (THREE[: 9 * 3], len(THREE)),
    ],
    ids=["from the centre", "one partition lost", "elliptical shutter", "turn with the partition", "part is known"],
)
def test_frames_that_no_gain_puts_right_pass_untouched(came: list[Readout], n_readouts: int | None) -> None:
    assert (corrected(came, n_readouts).data == 1).all()


def interleaved(n_frames: int, n_spokes: int, n_segments: int) -> tuple[Scan, list[Acquisition]]:
    """Heart phases that take turns, each of golden spokes."""
    limits = {**STARS.scan().limits, "kspace_encode_step_1": EncodingLimit(0, n_spokes - 1, 0)}
    limits |= {"kspace_encode_step_2": EncodingLimit(0, 0, 0), "phase": EncodingLimit(0, n_frames - 1, 0)}
    made = []
    for spokes in np.array_split(np.arange(n_spokes), n_segments):
        for phase in range(n_frames):
            for spoke in spokes:
                k = phantom.spokes(GOLDEN[[spoke]], (N, N))[0]
                data = phantom.coil_kspace(k, (N, N), N_COILS)
                made.append(STARS.acquisition(data, k[:, :2].copy(), int(spoke), 0))
                made[-1].header["idx"]["phase"] = phase
    return replace(STARS.scan(), limits=limits, user_parameters={"trajectory_units": "cycles_per_fov"}), made


@pytest.mark.parametrize("way", WAYS)
def test_interleaved_frames_that_came_as_planned_are_left_alone(way: str) -> None:
    scan, came = interleaved(20, 21, 3)
    found = []
    for angles in ("gaps", "mean"):
        settings = ("frames.by=phase", f"gridding.angles={angles}", "coils.map_size=16", "trajectory.delay=off", way)
        settings = (*settings, "coils.calibration_size=12", "coils.calibration_frame=0")
        config = resolve("recon-radial", settings=settings).config
        items = run_inline(build_pipeline(scan, config).pipeline, came)
        assert not told(items)
        images = {int(i.header["phase"]): i.data[0, 0] for i in items if hasattr(i, "header")}
        assert set(images) == set(range(20))
        found.append(np.array([np.linalg.norm(images[phase]) for phase in range(20)]))
    np.testing.assert_allclose(found[0], found[0][0], rtol=1e-4)  # all phases show the same, equally bright
    np.testing.assert_allclose(found[0], found[1], rtol=0.1)


def test_root_sum_of_squares_is_no_sum_over_spokes_and_left_alone() -> None:
    assert told(run(RANDOM, "coils.method=espirit", WAYS[1]))
    assert not told(run(RANDOM, "coils.method=rss"))
