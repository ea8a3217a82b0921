"""Real recordings, ours beside SigPy's CG-SENSE: ``python -m benchmarks.real_pictures DATA docs/images``.

DATA is the folder with the recordings that ``docs/real-data.md`` names. Both get the same samples, nominal trajectory,
density weights and coil maps (ours); the third column is the difference, fifty times brighter. Printed are the relative
differences over the image.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import sigpy.mri

from kstream.mrd.importing import ArraySource, import_arrays
from kstream.recon.calibration import EspiritSettings
from kstream.recon.coils import volume_maps
from kstream.recon.density import angle_gaps_rad, polar_weights, readout_angle_rad
from kstream.recon.iterative import IterativeSettings, SenseOperator, solve_slice

N_ITERATIONS = 15


@dataclass(frozen=True)
class Recording:
    """A file, how its arrays are read, and how its images are called."""

    file: str
    source: ArraySource
    titles: tuple[str, ...]


RECORDINGS = {
    "heart": Recording(
        "heart_radial_25sp_12ch.mat",
        ArraySource("rawdata", ("samples", "lines", "coils"), trajectory_key="k"),
        ("heart, 25 spokes, 12 coils",),
    ),
    "phantom": Recording(
        "phantom_radial_33sp_17ch_3slc.npy",
        ArraySource("", ("slices", "lines", "coils", "samples"), angles="full-circle", oversampling=2),
        tuple(f"phantom, slice {number}, 33 spokes, 17 coils" for number in range(3)),
    ),
}


def both(path: Path, source: ArraySource, slice_: int) -> tuple[np.ndarray, np.ndarray]:
    """Images ``(y, x)`` of one slice: ours, and SigPy's."""
    scan, acquisitions = import_arrays(path, source)
    chosen = [a for a in acquisitions if a.counter("slice") == slice_]
    n = scan.recon_matrix[0]
    scale = scan.encoded_matrix[0] * scan.recon_fov_mm[0] / scan.encoded_fov_mm[0]
    k = np.stack([np.pad(a.trajectory * scale, ((0, 0), (0, 1))) for a in chosen]).astype(np.float32)
    gaps = angle_gaps_rad(np.array([readout_angle_rad(spoke) for spoke in k]))
    weights = np.concatenate([polar_weights(spoke, gap) for spoke, gap in zip(k, gaps, strict=True)])
    samples, flat = np.concatenate([a.data for a in chosen], axis=1), k.reshape(-1, 3)
    weights = np.where((np.abs(flat) <= n / 2 + 1e-3).all(axis=1), weights, 0).astype(np.float32)
    coil = SenseOperator(flat, weights, np.ones((1, n, n), np.complex64))
    images = np.stack([coil.weighted_adjoint(one[None]) for one in samples])[:, None]
    maps = volume_maps(images, EspiritSettings(24, 6, 0.02, 0.8, 64, 100))[:, 0]
    ours = solve_slice(SenseOperator(flat, weights, maps), samples, IterativeSettings(N_ITERATIONS, 0.0)).image
    app = sigpy.mri.app.SenseRecon(
        samples, maps, lamda=0, weights=weights, coord=flat[:, [1, 0]], max_iter=N_ITERATIONS, tol=0, show_pbar=False
    )
    return ours, app.run()


def picture(recording: Recording, folder: Path, target: Path) -> None:
    """A row for each slice: ours, SigPy's, fifty times their difference."""
    n_rows = len(recording.titles)
    figure, axes = plt.subplots(n_rows, 3, figsize=(8.1, 2.85 * n_rows), squeeze=False, layout="constrained")
    for slice_, (row, title) in enumerate(zip(axes, recording.titles, strict=True)):
        ours, theirs = both(folder / recording.file, recording.source, slice_)
        apart = ours - theirs
        print(f"{title}: {100 * np.linalg.norm(apart) / np.linalg.norm(theirs):.2f} % apart")
        top = float(np.percentile(np.abs(theirs), 99.7))
        names = (f"kstream: {title}", "SigPy, SenseRecon", "difference, x 50")
        for axis, image, name in zip(row, (ours, theirs, 50 * apart), names, strict=True):
            axis.imshow(np.abs(image), cmap="gray", vmin=0, vmax=top, interpolation="nearest")
            axis.set_title(name, fontsize=8)
            axis.axis("off")
    figure.savefig(target, dpi=110, bbox_inches="tight", pad_inches=0.06)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of the recordings")
    parser.add_argument("output", type=Path, help="folder for the pictures")
    parser.add_argument("--only", choices=tuple(RECORDINGS))
    arguments = parser.parse_args()
    for name in [arguments.only] if arguments.only else RECORDINGS:
        picture(RECORDINGS[name], arguments.data, arguments.output / f"real-{name}.png")


if __name__ == "__main__":
    main()
