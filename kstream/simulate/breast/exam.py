"""Takes a protocol and a seed, gives a whole breast DCE exam: header, acquisitions and the truth beside them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...mrd.header import build_header
from ...mrd.recording import write_recording
from ...types import Acquisition, Geometry, Scan
from .acquisitions import assemble
from .anatomy import BreastPhantom
from .lesions import Lesion
from .protocol import BreastProtocol
from .scanner import Progress, noise_level, receive_array, sample_kspace


@dataclass(frozen=True)
class BreastExam:
    """One simulated exam.

    Parameters
    ----------
    scan : the header, with its XML.
    acquisitions : in order of time, noise scan first.
    truth_labels : uint8 ``(z, y, x)`` on the reconstruction grid, 1 inside a malignant mass.
    geometry : of the reconstruction grid.
    lesions : the malignant masses.
    phantom : what was scanned.
    protocol, seed : what made it.
    """

    scan: Scan
    acquisitions: list[Acquisition]
    truth_labels: NDArray[np.uint8]
    geometry: Geometry
    lesions: list[Lesion]
    phantom: BreastPhantom
    protocol: BreastProtocol
    seed: int

    def truth(self) -> dict[str, Any]:
        """What is known about the exam, ready for JSON."""
        masses = [
            {
                "centre_mm": list(lesion.centre_mm),
                "diameter_mm": lesion.diameter_mm,
                "volume_ml": lesion.volume_ml,
                "shape": lesion.shape,
                "kinetics": lesion.kinetics,
                "rim_enhancement": lesion.rim,
                "ktrans_per_min": lesion.ktrans_per_min,
                "ve": lesion.ve,
                "vp": lesion.vp,
            }
            for lesion in self.lesions
        ]
        return {
            "seed": self.seed,
            "lesions": masses,
            "lesion_voxels": int(self.truth_labels.sum()),
            "background_enhancement": self.phantom.background_enhancement,
            "n_benign": len(self.phantom.benign),
            "protocol": asdict(self.protocol),
        }


def simulate_breast_exam(
    protocol: BreastProtocol | None = None, seed: int = 0, progress: Progress | None = None, n_threads: int = 1
) -> BreastExam:
    """Scan one phantom.

    Parameters
    ----------
    protocol : defaults of `BreastProtocol` if left out.
    seed : anatomy, lesions, coils and noise follow from it; equal seeds give equal bytes.
    progress : called with the name of the step and the part of it that is done.
    n_threads : threads of the Fourier transforms.
    """
    protocol = protocol or BreastProtocol()
    report = progress or (lambda _step, _part: None)
    coil_rng, noise_rng = (np.random.default_rng(s) for s in np.random.SeedSequence([seed, 2]).spawn(2))
    report("building the phantom", 0.0)
    phantom = BreastPhantom(seed, protocol.n_lesions)
    geometry = protocol.geometry
    maps = phantom.rasterise(geometry, protocol.oversampling)
    labels = phantom.labels(geometry)
    report("building the phantom", 1.0)
    coils = receive_array(protocol, coil_rng)
    samples = sample_kspace(protocol, phantom, maps, coils, progress=progress, n_threads=n_threads)
    covariance = noise_level(protocol, coils) ** 2 * coils.noise_covariance
    acquisitions = assemble(protocol, samples, covariance, noise_rng)
    scan = protocol.scan()
    scan = replace(scan, xml=build_header(scan, patient_position="HFP"))
    return BreastExam(scan, acquisitions, labels, geometry, phantom.lesions, phantom, protocol, seed)


def save_exam(exam: BreastExam, path: Path) -> None:
    """Write the recording, and beside it the truth: ``scan.h5``, ``scan.truth.nii.gz`` and ``scan.truth.json``."""
    from ...output.nifti import write_nifti  # output is optional for those who simulate in memory

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_recording(path, exam.scan.xml, exam.acquisitions)
    write_nifti(path.with_suffix(".truth.nii.gz"), exam.truth_labels, exam.geometry, overwrite=True)
    path.with_suffix(".truth.json").write_text(json.dumps(exam.truth(), indent=2) + "\n", encoding="utf-8")
