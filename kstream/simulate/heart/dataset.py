"""Takes a cine protocol and a seed, gives fully sampled single-coil images of all views, for training.

The same heart, chest, plan and phase as the recording of that seed with one coil, no noise and no breathing: its lines
are those of the k-space of these images. Undersampling is drawn later, as often as one likes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ...recon.fourier import to_image
from ...types import Complex
from ..encoding import partition_transform
from ..phase_map import gaussian_phase_rad
from .exam import scene_and_views, truth_labels
from .protocol import CineProtocol
from .scanner import field_window
from .subject import HeartSubject
from .views import View


@dataclass(frozen=True)
class CineSubject:
    """What training needs of one subject.

    Parameters
    ----------
    images : complex64 ``(views, frames, y, x)``, what a fully sampled scan with the body coil reconstructs to.
    labels : uint8 of the same shape, indices of `output.phenotypes.HEART_LABELS`.
    views : names and places of the slices.
    subject : phenotypes and diseases.
    """

    images: Complex
    labels: NDArray[np.uint8]
    views: tuple[View, ...]
    subject: HeartSubject


def cine_subject(protocol: CineProtocol, seed: int) -> CineSubject:
    """Images and truth of a seed; coils, noise, sampling and breathing of the protocol have no part in it."""
    protocol = replace(protocol, n_coils=1, breath_mm=0.0, snr=0.0)
    scene, views = scene_and_views(protocol, seed)
    field_rng = np.random.default_rng(np.random.SeedSequence([seed, 12]).spawn(4)[2])
    n, factor = protocol.matrix, protocol.oversampling
    along = partition_transform(np.arange(n, dtype=np.float64) - n // 2, n, factor)
    window = field_window(protocol)
    images = np.empty((len(views), protocol.n_frames, n, n), np.complex64)
    for number, view in enumerate(views):
        field_rng.uniform(0, protocol.breath_period_s)  # the breath of the recording, which this one holds
        phase = np.exp(1j * gaussian_phase_rad((n * factor, n * factor), field_rng)) * window
        slab = scene.still(view.geometry, (factor, factor), protocol.through_samples)
        for frame in range(protocol.n_frames):
            fine = np.asarray(phase * slab.image(frame / protocol.n_frames), np.complex64)
            images[number, frame] = to_image(np.asarray(along @ fine @ along.T, np.complex64))
    return CineSubject(images, truth_labels(protocol, scene, views), views, scene.heart.subject)
