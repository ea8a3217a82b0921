"""Takes a cine protocol and a seed, gives a whole cardiac examination: header, acquisitions and the truth."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...mrd.header import build_header
from ...mrd.recording import write_recording
from ...output.phenotypes import HEART_LABELS
from ...types import Acquisition, Scan
from .acquisitions import noise_acquisitions, view_acquisitions
from .images import HeartScene
from .protocol import CineProtocol
from .scanner import Progress, Receiver, breath_shift_mm, breath_states, sample_view
from .subject import HeartSubject
from .views import View, plan_views

_PAUSE_S = 8.0  # between views, to breathe


@dataclass(frozen=True)
class CineExam:
    """One simulated cardiac examination.

    Parameters
    ----------
    scan : the header, with its XML.
    acquisitions : in order of time, noise scan first.
    truth_labels : uint8 ``(views, frames, y, x)``, indices of `output.phenotypes.HEART_LABELS`.
    views : names and places of the slices.
    subject : sizes and function of the three-dimensional heart; phenotypes and diseases follow from it.
    protocol, seed : what made it.
    """

    scan: Scan
    acquisitions: list[Acquisition]
    truth_labels: NDArray[np.uint8]
    views: tuple[View, ...]
    subject: HeartSubject
    protocol: CineProtocol
    seed: int

    def truth(self) -> dict[str, Any]:
        """What is known about the exam, ready for JSON."""
        return {
            "seed": self.seed,
            "phenotypes": self.subject.phenotypes(),
            "diseases": self.subject.diseases(),
            "subject": asdict(self.subject),
            "views": [view.name for view in self.views],
            "labels": list(HEART_LABELS.names),
            "protocol": asdict(self.protocol),
        }


def scene_and_views(protocol: CineProtocol, seed: int) -> tuple[HeartScene, tuple[View, ...]]:
    """The scene of a seed, and the planes that an operator plans on it."""
    scene = HeartScene(seed, protocol.flip_angle_deg)
    rng = np.random.default_rng(np.random.SeedSequence([seed, 11]))
    plane = (protocol.matrix, protocol.matrix), (protocol.field_of_view_mm, protocol.field_of_view_mm)
    views = plan_views(scene.place, scene.heart.form.length_mm, protocol.views, *plane, protocol.thickness_mm, rng)
    return scene, views


def truth_labels(protocol: CineProtocol, scene: HeartScene, views: tuple[View, ...]) -> NDArray[np.uint8]:
    """Labels of all views and frames at the end of breathing out: uint8 ``(views, frames, y, x)``."""
    phases = np.arange(protocol.n_frames) / protocol.n_frames
    return np.stack([[scene.labels(view.geometry, float(phase)) for phase in phases] for view in views])


def simulate_cine_exam(
    protocol: CineProtocol | None = None, seed: int = 0, progress: Progress | None = None
) -> CineExam:
    """Scan one heart.

    Parameters
    ----------
    protocol : defaults of `CineProtocol` if left out.
    seed : subject, chest, plan, lines, coils and noise follow from it; equal seeds give equal bytes.
    progress : called with the name of the step and the part of it that is done.

    A scan in free breathing is labelled frame by frame at the mean shift of the readouts of the frame.
    """
    protocol = protocol or CineProtocol()
    report = progress or (lambda _step, _part: None)
    coil_rng, line_rng, field_rng, noise_rng = (
        np.random.default_rng(s) for s in np.random.SeedSequence([seed, 12]).spawn(4)
    )
    scene, views = scene_and_views(protocol, seed)
    receiver = Receiver.of(protocol, coil_rng)
    heart_mm = scene.place.point(0.0, 0.0, 0.4 * scene.heart.form.length_mm)
    covariance = receiver.noise_level(protocol, heart_mm) ** 2 * receiver.covariance
    rate = scene.heart.subject.heart_rate_bpm
    schedule = protocol.schedule(rate)
    acquisitions = noise_acquisitions(protocol, views[0].geometry, covariance, noise_rng)
    labels = np.zeros((len(views), protocol.n_frames, protocol.matrix, protocol.matrix), np.uint8)
    begin_s = 0.0
    for number, view in enumerate(views):
        report("scanning the heart", number / len(views))
        lines = protocol.lines(line_rng) if protocol.trajectory == "cartesian" else None
        offset_s = float(field_rng.uniform(0, protocol.breath_period_s))
        states = breath_states(protocol, schedule.time_s, offset_s)
        samples = sample_view(protocol, scene, view, receiver, schedule, lines, states, field_rng)
        acquisitions += view_acquisitions(
            protocol, number, view.geometry, schedule, samples, lines, covariance, begin_s, noise_rng
        )
        labels[number] = _view_labels(protocol, scene, view, schedule.frame, states)
        begin_s += float(schedule.time_s[-1]) + _PAUSE_S
    report("scanning the heart", 1.0)
    scan = protocol.scan(rate)
    scan = replace(scan, xml=build_header(scan))
    return CineExam(scan, acquisitions, labels, views, scene.heart.subject, protocol, seed)


def save_cine_exam(exam: CineExam, path: Path) -> None:
    """Write the recording, and beside it the truth: ``scan.h5``, ``scan.truth.npz`` and ``scan.truth.json``."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_recording(path, exam.scan.xml, exam.acquisitions)
    np.savez_compressed(path.with_suffix(".truth.npz"), labels=exam.truth_labels)
    path.with_suffix(".truth.json").write_text(json.dumps(exam.truth(), indent=2) + "\n", encoding="utf-8")


def _view_labels(
    protocol: CineProtocol, scene: HeartScene, view: View, frame: NDArray[np.intp], states: NDArray[np.intp]
) -> NDArray[np.uint8]:
    """Labels ``(frames, y, x)`` of one view, each frame at the mean state of breath of its readouts."""
    means = [float(states[frame == number].mean()) for number in range(protocol.n_frames)]
    return np.stack(
        [
            scene.labels(view.geometry, number / protocol.n_frames, breath_shift_mm(protocol, state))
            for number, state in enumerate(means)
        ]
    )
