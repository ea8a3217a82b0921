"""The file to read first: (scan, configuration) -> pipeline, one line per step of a spoke's journey."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from .config import Config
from .errors import ScanError
from .mrd.stages import MakeImages, Overlay
from .readouts.delays import CorrectDelays
from .readouts.framing import FramePlan, FrameReadouts
from .readouts.oversampling import RemoveOversampling
from .readouts.routing import RouteReadouts
from .readouts.signal import WatchSignal
from .readouts.trajectory import ResolveTrajectory, SpokeOrder, planned_angles_rad
from .readouts.whitening import Prewhiten
from .recon import iterative
from .recon.calibration import EspiritSettings, map_finder
from .recon.coils import CombineCoils, map_sets
from .recon.combine import CombineSpokes, frame_sums
from .recon.compression import CompressCoils
from .recon.contrast import SubtractContrast
from .recon.density import OPEN_FRAMES, AnglePlan
from .recon.late_density import CorrectDensity
from .recon.lines import PlaceLines
from .recon.partial_fourier import FillPartialFourier
from .recon.sampling import Sampling, kz_positions
from .recon.scaling import ScaleKSpace
from .recon.sharing import ShareFrames
from .recon.stages import GridReadouts, ToImageSpace
from .segment.cine import CineModel, CinePlan
from .segment.cine_stage import cine_stage
from .stream import Pipeline, Stage
from .stream.crew import Crew, Wake
from .stream.telemetry import Counters
from .types import Acquisition, Complex, Scan

if TYPE_CHECKING:
    from .segment.stage import Segment


MAX_PLANE_VOXELS = 512 * 512
"""Largest plane that is segmented: the papers use 320 x 320 and 384 x 384, and memory grows with the plane."""


@dataclass(frozen=True)
class Measurement:
    """A pipeline for one measurement, with its counters and its frame plan."""

    pipeline: Pipeline
    counters: Counters
    plan: FramePlan


def build_pipeline(
    scan: Scan,
    config: Config,
    segment: Segment | None = None,
    crew: Crew | None = None,
    cine: CineModel | None = None,
) -> Measurement:
    """Steps from acquisitions to images.

    Parameters
    ----------
    scan : the header's content.
    config : settings, one section per step.
    segment : the network step, made by `load_segment`; without it, contrast differences leave the pipeline as they are.
    crew : hands for the steps that can use some; without it, everything happens in the caller's thread.
    cine : the network of a cine scan, which takes readouts as they are: no image is reconstructed then.

    Raises
    ------
    ScanError : if the header cannot carry this configuration.
    """
    counters = Counters()
    plan = FramePlan.of(scan, config.frames.by, config.frames.n_frames, config.frames.readouts_per_frame)
    _check_frames(plan, config)
    if cine is None:
        _check_density(scan, config)
    _check_plane(scan, config)
    trajectory = config.trajectory
    stages: list[Stage] = [
        RouteReadouts(scan, config.readouts.samples, counters, config.readouts.not_finite),
        Prewhiten(config.noise.prewhiten, counters),
        ResolveTrajectory(
            scan,
            trajectory.source,
            trajectory.units,
            plan.n_spokes,
            trajectory.angle_index,
            trajectory.delay_samples,
            order=_spoke_order(config),
            angle_units=trajectory.angle_units,
            outside=trajectory.outside,
            counters=counters,
        ),
        CorrectDelays(scan, trajectory.delay, min(trajectory.delay_spokes, plan.n_spokes), plan.n_expected),
        RemoveOversampling(scan, config.readouts.remove_oversampling),
        FrameReadouts(scan, plan, counters, config.frames.close_after, config.frames.early),
        WatchSignal(),
    ]
    if config.coils.compress:
        centre = int(np.abs(kz_positions(scan, plan.n_partitions)).argmin())
        stages.append(CompressCoils(config.coils.compress, _readouts_of_all_directions(scan, plan), centre))
        scan = replace(scan, n_coils=min(scan.n_coils, config.coils.compress))
    if cine is not None:
        stages.append(cine_stage(cine, CinePlan.of(scan, config.cine, plan.n_frames), config.cine))
        stages.append(make_images(scan, config, plan.by))
        return Measurement(Pipeline(*stages, source=[Acquisition, Wake]), counters, plan)
    stages += _combining(scan, config, plan, crew)
    if config.partial_fourier.method != "zero":
        stages.append(
            FillPartialFourier(
                scan, plan.n_partitions, config.partial_fourier.method, config.partial_fourier.iterations
            )
        )
    if config.contrast.subtract:
        stages.append(SubtractContrast(config.contrast.pre_frame))
    if config.scaling.method != "off":
        stages.append(ScaleKSpace())
    if segment is not None:
        stages.append(segment)
    stages += [ToImageSpace(crew), make_images(scan, config, plan.by)]
    return Measurement(Pipeline(*stages, source=[Acquisition, Wake]), counters, plan)


def make_images(scan: Scan, config: Config, frames_by: str) -> MakeImages:
    """The last step, for frames that are numbered by `frames_by`."""
    images, overlay = config.images, None
    is_updated = bool(config.frames.early) or (bool(config.cine.model) and config.cine.update != "slice")
    if images.overlay != "off":
        overlay = Overlay(images.overlay_series, images.overlay, images.contour_axes)
    return MakeImages(
        scan,
        images.magnitude_series,
        images.label_series,
        images.magnitude_type,
        frames_by,
        label_lut=images.label_lut,
        overlay=overlay,
        provisional_series=images.provisional_series if is_updated else None,
    )


def _combining(scan: Scan, config: Config, plan: FramePlan, crew: Crew | None) -> list[Stage]:
    """Steps from readouts to coil-combined k-space: spokes that share coil maps are combined while they come."""
    coils, gridding = config.coils, config.gridding
    planned = planned_angles_rad(scan, config.trajectory.source, plan.n_spokes, _spoke_order(config))
    aspect = scan.recon_fov_mm[1] / scan.recon_fov_mm[0]
    has_gaps, share = gridding.angles == "gaps" and gridding.density == "polar", config.frames.share
    is_corrected = has_gaps and _can_correct_density(scan, config)
    angle_plan = AnglePlan(
        planned if has_gaps else None,
        plan.n_averages,
        aspect,
        learns=has_gaps,
        n_frames=0 if is_corrected or config.frames.early else OPEN_FRAMES,
    )
    shared: list[Stage] = [ShareFrames(share)] if share > 1 else []
    is_looked_at = bool(config.frames.early) and _is_zero_wait(scan, config)
    corrected = [CorrectDensity(angle_plan, share, aspect, early_only=not is_corrected)]
    afterwards = [*shared, *corrected] if is_corrected or is_looked_at else shared
    sampling = Sampling(scan, plan.readouts_per_plane, plan.n_partitions, plan.n_averages, gridding.density, angle_plan)
    _check_combination(scan, config)
    if config.iterative.method != "off":
        return [_iterating(config, config.iterative.method, sampling), *shared]
    if gridding.method == "lines":
        return [_placing(scan, config), *shared]
    if not _is_zero_wait(scan, config):
        return [
            GridReadouts(sampling, gridding.oversampling, gridding.width, gridding.memory_gib, coils.sets),
            CombineCoils(coils.method, coils.calibration_frame, _espirit(config)),
            *afterwards,
        ]
    # The first spokes of a golden-angle frame cover all directions; those of a uniform frame only when it is full.
    n_calibration = coils.calibration_spokes if scan.trajectory == "goldenangle" else 0
    return [
        CombineSpokes(
            sampling,
            _espirit(config),
            coils.calibration_frame,
            n_calibration,
            gridding.memory_gib,
            crew,
            frame_sums(gridding.device),
        ),
        *afterwards,
    ]


def _can_correct_density(scan: Scan, config: Config) -> bool:
    """True if combined k-space is the weighted sum over spokes, which that of a root sum of squares is not."""
    is_sum = config.iterative.method == "off" and (config.coils.method != "rss" or scan.n_coils == 1)
    return is_sum and scan.trajectory in ("radial", "goldenangle")


def _placing(scan: Scan, config: Config) -> Stage:
    """One step from Cartesian lines to combined k-space."""
    return PlaceLines(scan, config.coils.method, _espirit(config), config.gridding.memory_gib)


def _espirit(config: Config) -> EspiritSettings:
    coils = config.coils
    return EspiritSettings(
        coils.calibration_size,
        coils.kernel,
        coils.threshold,
        coils.crop,
        coils.map_size,
        coils.iterations,
        coils.weighting,
        coils.sets,
        map_finder(config.gridding.device),
    )


def _iterating(config: Config, method: iterative.Method, sampling: Sampling) -> Stage:
    """One step from readouts to combined k-space of an iterated image."""
    coils, steps = config.coils, config.iterative
    espirit = _espirit(config)
    settings = iterative.IterativeSettings(
        steps.iterations, steps.tolerance, steps.l2, method, steps.weight, steps.density
    )

    def maps_of(images: Complex) -> Complex:
        if len(images) == 1:
            return np.ones_like(images)
        sets = map_sets(images, espirit)
        return sets if coils.sets > 1 else np.asarray(sets[0], np.complex64)

    return iterative.ReconstructIteratively(
        sampling, maps_of, coils.calibration_frame, settings, config.gridding.memory_gib, coils.sets
    )


def _spoke_order(config: Config) -> SpokeOrder:
    trajectory = config.trajectory
    return SpokeOrder(trajectory.golden_order, trajectory.first_angle_deg, trajectory.alternate, trajectory.clockwise)


def _readouts_of_all_directions(scan: Scan, plan: FramePlan) -> int:
    """Readouts of one plane after which every coil's energy has been seen: a few golden angles, or a whole frame."""
    whole = max(int(plan.readouts_per_plane), 1)
    return min(16 * plan.n_averages, whole) if scan.trajectory == "goldenangle" else whole


def _is_zero_wait(scan: Scan, config: Config) -> bool:
    """Spokes of several coils that share the maps of one frame can be combined while they come."""
    return config.gridding.method not in ("coil-grids", "lines") and not _against_zero_wait(scan, config)


def _against_zero_wait(scan: Scan, config: Config) -> list[str]:
    """Why spokes cannot be combined while they come."""
    reasons = {
        "images are iterated": config.iterative.method != "off",
        "the trajectory is not radial": scan.trajectory not in ("radial", "goldenangle"),
        "coils.method is rss": config.coils.method == "rss",
        "every frame calibrates its own maps": config.coils.calibration_frame < 0,
        "there is one coil": scan.n_coils == 1,
    }
    return [reason for reason, applies in reasons.items() if applies]


def _check_combination(scan: Scan, config: Config) -> None:
    """Refuse settings that contradict each other: one of them would have no effect."""
    gridding, against, where = config.gridding, _against_zero_wait(scan, config), "header and configuration"
    if config.iterative.method != "off" and config.coils.method == "rss":
        raise ScanError(
            "an iterated image needs coil maps, and coils.method is rss",
            where="configuration",
            hint="--set coils.method=espirit, or --set iterative.method=off",
        )
    if config.coils.sets > 1 and (config.coils.method == "rss" or gridding.method == "lines"):
        why = "a root sum of squares (coils.method) has no maps"
        if config.coils.method != "rss":
            why = "lines that are placed as they come (gridding.method) are combined with one set"
        raise ScanError(
            f"coils.sets is {config.coils.sets}, but {why}",
            where="configuration",
            hint="--set coils.sets=1, or --set coils.method=espirit and gridding.method=auto",
        )
    if gridding.method == "lines" and scan.trajectory not in ("cartesian", "epi"):
        raise ScanError(
            f"gridding.method is lines, but the trajectory is {scan.trajectory}",
            where=where,
            likely="the preset is of another kind of scan",
            hint="--set gridding.method=auto, or another preset (`kstream config`)",
        )
    _check_early(scan, config)
    if gridding.method == "zero-wait" and against:
        raise ScanError(
            f"zero-wait combination is not possible: {', '.join(against)}",
            where=where,
            hint="--set gridding.method=auto",
        )
    if gridding.device != "cpu" and not _is_zero_wait(scan, config):
        why = ", ".join(against) or f"gridding.method is {gridding.method}"
        raise ScanError(
            f"gridding.device is {gridding.device}, but only zero-wait combination has it, and here it is not "
            f"possible: {why}",
            where=where,
            hint="--set gridding.device=cpu",
        )


def _check_early(scan: Scan, config: Config) -> None:
    """Refuse looks at frames that are not full where the steps on the way cannot give them."""
    reasons = {
        "gridding.method is neither lines nor zero-wait": config.gridding.method != "lines"
        and not _is_zero_wait(scan, config),
        "frames are shared (frames.share)": config.frames.share > 1,
        f"partial_fourier.method is {config.partial_fourier.method}": config.partial_fourier.method != "zero",
    }
    against = [reason for reason, applies in reasons.items() if applies]
    if config.frames.early and against:
        raise ScanError(
            f"frames.early is {list(config.frames.early)}, but {', '.join(against)}",
            where="header and configuration",
            hint="--set frames.early=[]",
        )


def _check_plane(scan: Scan, config: Config) -> None:
    """Refuse planes that a network would need gigabytes for, before any readout is taken."""
    nx, ny, _ = scan.recon_matrix
    if (config.segment.model or config.cine.model) and nx * ny > MAX_PLANE_VOXELS:
        raise ScanError(
            f"a plane of {nx} x {ny} voxels is too large to segment; the limit is {MAX_PLANE_VOXELS} voxels",
            where="reconSpace of the header",
            likely="the header is wrong",
            hint="a preset without a network (`kstream config`)",
        )


def _check_density(scan: Scan, config: Config) -> None:
    """Refuse weights of another kind of trajectory: the image would come out, and be wrong."""
    kinds = {"polar": ("radial", "goldenangle", "spiral"), "uniform": ("cartesian", "epi")}
    for method, trajectories in kinds.items():
        if scan.trajectory in trajectories and config.gridding.density != method:
            raise ScanError(
                f"{config.gridding.density} density weights do not suit a {scan.trajectory} scan",
                where="header and gridding.density",
                likely="the preset is of another kind of scan",
                hint=f"--set gridding.density={method}, or another preset (`kstream config`)",
            )


def _check_frames(plan: FramePlan, config: Config) -> None:
    """Refuse a configuration that asks for frames which this scan does not have: its result would stay empty."""
    pre = config.contrast.pre_frame
    if config.contrast.subtract and pre < config.frames.share - 1:
        raise ScanError(
            f"contrast.pre_frame is frame {pre}, but the first output that spans {config.frames.share} frames is frame "
            f"{config.frames.share - 1}",
            where="configuration",
            hint=f"--set contrast.pre_frame={config.frames.share - 1}",
        )
    wanted = [("coils.calibration_frame", config.coils.calibration_frame)]
    wanted += [("contrast.pre_frame", pre), ("a post-contrast frame", pre + 1)] * config.contrast.subtract
    wanted += [("segment.frames", frame) for frame in config.segment.frames if config.segment.model]
    for setting, frame in wanted:
        if frame >= plan.n_frames:
            raise ScanError(
                f"{setting} is frame {frame}, but the scan has {plan.n_frames} (numbered from 0, by {plan.by})",
                where="header and configuration",
                likely="the preset is of another kind of scan, or the header does not say how many frames there are",
                hint="--set frames.n_frames=N, or another preset (`kstream config`)",
            )
