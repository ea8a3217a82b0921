"""What Gadgetron hands over in bulk, as items of a pipeline: buckets and buffers to acquisitions, arrays to k-space."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..config import Config
from ..errors import ConfigError, ScanError
from ..mrd.buffers import Bucket, ImageArray, ReconBuffer, ReconData, read_bucket, read_image_array, read_recon_data
from ..mrd.messages import ACQUISITION_HEADER, MessageId, Opaque
from ..pipeline import make_images
from ..recon.contrast import SubtractContrast
from ..recon.fourier import to_kspace
from ..segment import Segment
from ..stream import Pipeline
from ..types import Acquisition, AcquisitionFlag, Geometry, KSpace, Notice, Origin, Scan

FRAME_COUNTERS = ("repetition", "contrast", "phase", "set")
BOTH = AcquisitionFlag.IS_PARALLEL_CALIBRATION_AND_IMAGING


def readouts_of(message: Opaque, scan: Scan, received_ns: int) -> list[Acquisition] | None:
    """The acquisitions in a bucket or a set of buffers, in the order of their scan counters; None for anything else.

    Raises
    ------
    ProtocolError : the message contradicts itself.
    """
    match message.message_id:
        case MessageId.BUCKET:
            found = bucket_readouts(read_bucket(message.payload))
        case MessageId.RECON_DATA:
            found = recon_data_readouts(read_recon_data(message.payload), scan)
        case _:
            return None
    for acquisition in found:
        acquisition.received_ns = received_ns
    return found


def bucket_readouts(bucket: Bucket) -> list[Acquisition]:
    """Calibration, then data; a readout for calibration and imaging is in both parts and taken from the data."""
    calibration = [acquisition for acquisition in bucket.reference if not acquisition.has(BOTH)]
    return sorted([*calibration, *bucket.data], key=_scan_counter)


def recon_data_readouts(recon: ReconData, scan: Scan) -> list[Acquisition]:
    """Every place of the buffers that was sampled."""
    found: list[Acquisition] = []
    for bit in recon.bits:
        if bit.reference is not None:
            found += [acquisition for acquisition in _sampled(bit.reference, scan) if not acquisition.has(BOTH)]
        found += _sampled(bit.buffer, scan)
    return sorted(found, key=_scan_counter)


def _scan_counter(acquisition: Acquisition) -> int:
    return int(acquisition.header["scan_counter"])


def _sampled(buffer: ReconBuffer, scan: Scan) -> list[Acquisition]:
    n_samples, n_coils = buffer.data.shape[-1], buffer.data.shape[3]
    found = []
    for place in zip(*np.nonzero(buffer.headers["number_of_samples"]), strict=True):
        loc, s, n, e2, e1 = place
        header = np.array([buffer.headers[place]], ACQUISITION_HEADER)[0]
        header["center_sample"] = _centre(header, buffer, scan)
        header["number_of_samples"], header["active_channels"] = n_samples, n_coils
        header["discard_pre"] = header["discard_post"] = 0
        if buffer.trajectory is None:
            trajectory = np.zeros((n_samples, 0), np.float32)
        else:
            trajectory = np.ascontiguousarray(buffer.trajectory[place])
        header["trajectory_dimensions"] = trajectory.shape[1]
        found.append(Acquisition(header, np.ascontiguousarray(buffer.data[loc, s, n, :, e2, e1]), trajectory))
    return found


def _centre(header: Any, buffer: ReconBuffer, scan: Scan) -> int:
    """Sample of the centre of k-space in the buffer.

    ``BucketToBufferGadget`` leaves discarded samples out; Cartesian readouts that are not centred are shifted so that
    their centre comes to the centre of the buffer.
    """
    n_samples, centre = int(header["number_of_samples"]), int(header["center_sample"])
    if scan.trajectory not in ("cartesian", "epi"):
        return max(centre - int(header["discard_pre"]), 0)
    if n_samples == buffer.data.shape[-1] and (centre == n_samples // 2 or centre >= n_samples):
        return n_samples // 2
    return int(buffer.sampling["limits"][0, 1])


# ---- the tail of the pipeline ----------------------------------------------------------------------------------------


class ImagesToKSpace:
    """Complex images of an image array to combined k-space of frames, one for each header.

    Parameters
    ----------
    counter : of the image header, numbers the frames.
    """

    takes = (ImageArray,)
    gives = (KSpace, Notice)

    def __init__(self, scan: Scan, counter: str) -> None:
        self._first, self._counter = scan.limit(counter).minimum, counter
        self._told = False

    def push(self, images: ImageArray) -> list[Any]:
        n_coils = images.data.shape[3]
        if n_coils != 1:
            raise ScanError(
                f"the image array has {n_coils} channels, expected 1",
                likely="coils are not combined yet at this point of the chain",
                hint="put the gadget after the one that combines coils",
            )
        return [item for place in np.ndindex(images.headers.shape) for item in self._frame(images, place)]

    def finish(self) -> list[Any]:
        return []

    def _frame(self, images: ImageArray, place: tuple[int, ...]) -> list[Any]:
        header, image = images.headers[place], images.data[place][0]
        told: list[Any] = []
        if not self._told and not image.imag.any():
            self._told = True
            told = [Notice("warning", "the images have no phase: a difference of magnitudes is not what models learnt")]
        frame, number = int(header[self._counter]) - self._first, int(header["slice"])
        geometry = image_geometry(header, image.shape)
        kspace = to_kspace(np.ascontiguousarray(image))
        return [*told, KSpace(kspace, frame, number, images.received_ns, geometry)]


def image_geometry(header: Any, shape: tuple[int, ...]) -> Geometry:
    """Where an image ``(z, y, x)`` lies, from its header; directions that are zero are the patient's axes."""
    fov_mm = tuple(float(extent) or 1.0 for extent in header["field_of_view"])

    def vector(name: str, default: tuple[float, float, float]) -> tuple[float, float, float]:
        x, y, z = (float(component) for component in header[name])
        return (x, y, z) if (x, y, z) != (0.0, 0.0, 0.0) else default

    return Geometry(
        matrix=(shape[2], shape[1], shape[0]),
        field_of_view_mm=(fov_mm[0], fov_mm[1], fov_mm[2]),
        position_mm=vector("position", (0.0, 0.0, 0.0)),
        read_dir=vector("read_dir", (1.0, 0.0, 0.0)),
        phase_dir=vector("phase_dir", (0.0, 1.0, 0.0)),
        slice_dir=vector("slice_dir", (0.0, 0.0, 1.0)),
        origin=Origin(
            measurement_uid=int(header["measurement_uid"]),
            acquisition_time_stamp=int(header["acquisition_time_stamp"]),
            physiology_time_stamp=tuple(header["physiology_time_stamp"].tolist()),
            patient_table_position_mm=vector("patient_table_position", (0.0, 0.0, 0.0)),
        ),
    )


def build_tail(scan: Scan, config: Config, segment: Segment | None) -> Pipeline:
    """Steps from image arrays to label images: the end of the corridor that `build_pipeline` builds.

    Raises
    ------
    ConfigError : the preset has no contrast difference or no network, so that nothing would come out.
    """
    if segment is None or not config.contrast.subtract:
        raise ConfigError(
            "images can only be segmented from a contrast difference",
            where="segment.model and contrast.subtract",
            likely="a preset without a network",
            hint='<property name="preset" value="breast-dce"/>',
        )
    if config.images.overlay != "off":
        raise ConfigError(
            "labels cannot be shown on images that come from elsewhere",
            where="images.overlay",
            hint="images.overlay=off",
        )
    counter = frame_counter(scan, config.frames.by)
    return Pipeline(
        ImagesToKSpace(scan, counter),
        SubtractContrast(config.contrast.pre_frame),
        segment,
        make_images(scan, config, counter),
        source=[ImageArray],
    )


def frame_counter(scan: Scan, by: str) -> str:
    """The counter of image headers that numbers frames: the configured one, or the first that runs."""
    if by in FRAME_COUNTERS:
        return by
    return next((counter for counter in FRAME_COUNTERS if scan.limit(counter).size > 1), FRAME_COUNTERS[0])


Expand = Callable[[Opaque, int], list[Any]]
"""A message that is not an acquisition, and when it came -> items for the pipeline."""


def readouts_expander(scan: Scan) -> Expand:
    """Buckets and buffers become acquisitions; the rest goes past the pipeline."""

    def expand(message: Opaque, received_ns: int) -> list[Any]:
        found = readouts_of(message, scan, received_ns)
        return [message] if found is None else list(found)

    return expand


def expand_images(message: Opaque, received_ns: int) -> list[Any]:
    """Image arrays are passed on, and taken as images; the rest goes past the pipeline."""
    if message.message_id != MessageId.IMAGE_ARRAY:
        return [message]
    images = read_image_array(message.payload)
    images.received_ns = received_ns
    return [message, images]
