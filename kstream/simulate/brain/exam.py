"""Takes a protocol and a seed, gives a whole brain exam: header, acquisitions and the oracle labels beside them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...mrd.header import build_header
from ...mrd.messages import ACQUISITION_HEADER
from ...mrd.recording import write_recording
from ...types import Acquisition, AcquisitionFlag, Complex, Geometry, Scan
from ..breast.protocol import TICK_S
from .head import Tissue
from .lines import Lines, gaussian_lines
from .protocol import BrainProtocol
from .scanner import LABELS, Anatomy, Labels, Progress, ScannedHead, scan_head

_FIRST_TICK = 14_400_000  # ten o'clock, so that only differences of time stamps mean anything


@dataclass(frozen=True)
class BrainExam:
    """One simulated exam.

    Parameters
    ----------
    scan : the header, with its XML.
    acquisitions : in order of time, noise scan first.
    truth_labels : uint8 ``(z, y, x)``, indices of `LABELS`.
    samples : complex64 ``(slices, coils, y, samples)``, what the acquisitions carry; 0 where no line was acquired.
    lines : bool ``(y,)``, which lines were acquired, of every slice.
    geometry : of the stack of slices.
    head : the same scan fully sampled and without noise.
    """

    scan: Scan
    acquisitions: list[Acquisition]
    truth_labels: Labels
    samples: Complex
    lines: Lines
    geometry: Geometry
    head: ScannedHead
    protocol: BrainProtocol
    seed: int

    def truth(self) -> dict[str, Any]:
        """What is known about the exam, ready for JSON."""
        voxels = np.bincount(self.truth_labels.reshape(-1), minlength=len(LABELS.names))
        tissues = np.bincount(self.head.tissues.reshape(-1), minlength=len(Tissue))
        return {
            "seed": self.seed,
            "labels": list(LABELS.names),
            "voxels": {name: int(n) for name, n in zip(LABELS.names, voxels, strict=True)},
            "tissues": {tissue.name.lower(): int(tissues[tissue]) for tissue in Tissue},
            "te_ms": self.head.te_ms,
            "tr_ms": self.head.tr_ms,
            "lines": np.flatnonzero(self.lines).tolist(),
            "protocol": asdict(self.protocol),
        }


def simulate_brain_exam(
    protocol: BrainProtocol | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    anatomy: Anatomy | None = None,
) -> BrainExam:
    """Scan one head.

    Parameters
    ----------
    protocol : defaults of `BrainProtocol` if left out.
    seed : head, tissue values, times, fields, lines and noise follow from it; equal seeds give equal bytes.
    progress : called with the name of the step and the part of it that is done.
    anatomy : what is scanned; by default the simulated head of the seed.
    """
    protocol = protocol or BrainProtocol()
    line_rng, noise_rng = (np.random.default_rng(s) for s in np.random.SeedSequence([seed, 6]).spawn(2))
    head = scan_head(protocol, seed, anatomy, progress)
    lines = gaussian_lines(protocol.matrix[1], protocol.fraction, protocol.n_centre, line_rng)
    sigma = noise_sigma(protocol, head.white)
    samples = add_noise(head.samples, sigma, noise_rng)
    samples[:, :, ~lines] = 0
    noise = add_noise(
        np.zeros((protocol.n_noise_readouts, protocol.n_coils, protocol.n_samples), np.complex64), sigma, noise_rng
    )
    scan = protocol.scan(head.te_ms, head.tr_ms)
    scan = replace(scan, xml=build_header(scan))
    acquisitions = [*_noise_acquisitions(protocol, noise), *_line_acquisitions(protocol, samples, lines, head.tr_ms)]
    return BrainExam(scan, acquisitions, head.labels, samples, lines, protocol.geometry, head, protocol, seed)


def noise_sigma(protocol: BrainProtocol, white: float) -> float:
    """Standard deviation of the real (and of the imaginary) part of a sample.

    The transform is orthonormal, so it is that of the fully sampled image; removing readout oversampling averages it
    down, so samples of an oversampled readout have more.
    """
    return protocol.noise * white * float(np.sqrt(protocol.readout_oversampling))


def add_noise(samples: Complex, sigma: float, rng: np.random.Generator) -> Complex:
    """Samples with white circular Gaussian noise; a copy."""
    noise = rng.standard_normal((*samples.shape, 2), dtype=np.float32) * np.float32(sigma)
    return np.asarray(samples + noise.view(np.complex64)[..., 0])


def save_brain_exam(exam: BrainExam, path: Path) -> None:
    """Write the recording, and beside it the truth: ``scan.h5``, ``scan.truth.nii.gz`` and ``scan.truth.json``."""
    from ...output.nifti import write_nifti  # output is optional for those who simulate in memory

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_recording(path, exam.scan.xml, exam.acquisitions)
    truth = path.with_suffix(".truth.nii.gz")
    write_nifti(truth, exam.truth_labels, exam.geometry, table=LABELS, overwrite=True)
    path.with_suffix(".truth.json").write_text(json.dumps(exam.truth(), indent=2) + "\n", encoding="utf-8")


def _blank(protocol: BrainProtocol, count: int) -> NDArray[np.void]:
    headers = np.zeros(count, dtype=ACQUISITION_HEADER)
    headers["version"] = headers["measurement_uid"] = 1
    headers["number_of_samples"] = protocol.n_samples
    headers["available_channels"] = headers["active_channels"] = protocol.n_coils
    for coil in range(protocol.n_coils):
        headers["channel_mask"][:, coil // 64] |= np.uint64(1 << (coil % 64))
    headers["center_sample"] = protocol.n_samples // 2
    headers["sample_time_us"] = protocol.dwell_us
    stack = protocol.geometry
    headers["position"] = stack.position_mm
    headers["read_dir"], headers["phase_dir"] = stack.read_dir, stack.phase_dir
    headers["slice_dir"] = stack.slice_dir
    return headers


def _noise_acquisitions(protocol: BrainProtocol, noise: Complex) -> list[Acquisition]:
    """Readouts with the transmitter off, a second before the first line."""
    headers = _blank(protocol, protocol.n_noise_readouts)
    headers["scan_counter"] = np.arange(len(headers))
    headers["acquisition_time_stamp"] = _FIRST_TICK - round(1.0 / TICK_S)
    headers["flags"] = np.uint64(int(AcquisitionFlag.IS_NOISE_MEASUREMENT))
    return _acquisitions(headers, noise)


def _line_acquisitions(protocol: BrainProtocol, samples: Complex, lines: Lines, tr_ms: float) -> list[Acquisition]:
    """Lines in the order in which they are acquired, with counters, flags, places and times."""
    slices, within, repetition = protocol.order().T
    numbers = np.flatnonzero(lines)[within]
    headers = _blank(protocol, len(slices))
    index = headers["idx"]
    index["slice"], index["kspace_encode_step_1"] = slices, numbers
    positions = np.array([protocol.geometry.slice_position_mm(z) for z in range(protocol.n_slices)])
    headers["position"] = positions[slices]
    headers["scan_counter"] = protocol.n_noise_readouts + np.arange(len(slices))
    place = np.arange(len(slices)) - np.searchsorted(repetition, repetition)  # within its TR
    per_tr = np.bincount(repetition)[repetition]
    time_s = (repetition + place / per_tr) * tr_ms * 1e-3
    headers["acquisition_time_stamp"] = _FIRST_TICK + np.round(time_s / TICK_S)
    first, last = within == 0, within == protocol.n_lines - 1
    for where, flags in (
        (first, AcquisitionFlag.FIRST_IN_SLICE | AcquisitionFlag.FIRST_IN_ENCODE_STEP1),
        (last, AcquisitionFlag.LAST_IN_SLICE | AcquisitionFlag.LAST_IN_ENCODE_STEP1),
    ):
        headers["flags"][where] |= np.uint64(int(flags))
    headers["flags"][-1] |= np.uint64(int(AcquisitionFlag.LAST_IN_MEASUREMENT))
    return _acquisitions(headers, samples[slices, :, numbers])


def _acquisitions(headers: NDArray[np.void], data: Complex) -> list[Acquisition]:
    empty = np.zeros((data.shape[-1], 0), np.float32)
    return [Acquisition(header, readout, empty) for header, readout in zip(headers, data, strict=True)]
