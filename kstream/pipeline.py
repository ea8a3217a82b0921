"""The file to read first: (scan, configuration) -> pipeline, one line per step of a spoke's journey."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .config import Config
from .errors import ScanError
from .mrd.stages import MakeImages
from .readouts.framing import FramePlan, FrameReadouts
from .readouts.routing import RouteReadouts
from .readouts.trajectory import ResolveTrajectory
from .readouts.whitening import Prewhiten
from .recon.coils import CombineCoils
from .recon.contrast import SubtractContrast
from .recon.stages import GridReadouts, ToImageSpace
from .stream import Pipeline, Stage
from .stream.telemetry import Counters
from .types import Acquisition, Scan

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


def build_pipeline(scan: Scan, config: Config, segment: Segment | None = None) -> Measurement:
    """Steps from acquisitions to images.

    Parameters
    ----------
    scan : the header's content.
    config : settings, one section per step.
    segment : the network step, made by `load_segment`; without it, contrast differences leave the pipeline as they are.

    Raises
    ------
    ScanError : if the header cannot carry this configuration.
    """
    counters = Counters()
    plan = FramePlan.of(scan, config.frames.by, config.frames.n_frames, config.frames.readouts_per_frame)
    _check_frames(plan, config)
    _check_density(scan, config)
    _check_plane(scan, config)
    trajectory, coils, gridding, images = config.trajectory, config.coils, config.gridding, config.images
    stages: list[Stage] = [
        RouteReadouts(scan, config.readouts.samples, counters),
        Prewhiten(config.noise.prewhiten, counters),
        ResolveTrajectory(
            scan,
            trajectory.source,
            trajectory.units,
            plan.n_spokes,
            trajectory.angle_index,
            trajectory.delay_samples,
        ),
        FrameReadouts(scan, plan, counters),
        GridReadouts(
            scan,
            plan.readouts_per_plane,
            plan.n_partitions,
            plan.n_averages,
            gridding.density,
            gridding.oversampling,
            gridding.width,
            gridding.memory_gib,
        ),
        CombineCoils(
            coils.method,
            coils.calibration_frame,
            coils.calibration_size,
            coils.kernel,
            coils.threshold,
            coils.crop,
            coils.map_size,
            coils.iterations,
        ),
    ]
    if config.contrast.subtract:
        stages.append(SubtractContrast(config.contrast.pre_frame))
    if segment is not None:
        stages.append(segment)
    stages += [ToImageSpace(), MakeImages(scan, images.magnitude_series, images.label_series, images.magnitude_type)]
    return Measurement(Pipeline(*stages, source=[Acquisition]), counters, plan)


def _check_plane(scan: Scan, config: Config) -> None:
    """Refuse planes that a network would need gigabytes for, before any readout is taken."""
    nx, ny, _ = scan.recon_matrix
    if config.segment.model and nx * ny > MAX_PLANE_VOXELS:
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
