"""
Coil maps beside the truth
==========================

ESPIRiT finds the sensitivity of each coil in the data themselves, from the centre of
k-space. The simulator knows the true ones: those of circular loops around the breasts.
Both are shown relative to the root of the sum over coils, and with the phase of the first
coil taken away, for that is all that data can tell.
"""

from itertools import takewhile

import matplotlib.pyplot as plt
import numpy as np

from kstream.config import resolve
from kstream.pipeline import build_pipeline
from kstream.recon.calibration import EspiritSettings
from kstream.recon.coils import combine, volume_maps
from kstream.simulate import BreastProtocol, simulate_breast_exam
from kstream.simulate.breast.scanner import receive_array
from kstream.stream import Pipeline
from kstream.stream.runners import run_inline
from kstream.types import Acquisition, CoilImages

# %%
# One frame of a small scan, to the images of every coil: `gridding.method = coil-grids`
# keeps them apart. Whitening is off, so that coils stay what they are.

seed, n_coils = 3, 6
protocol = BreastProtocol(
    matrix=96,
    n_slices=4,
    field_of_view_mm=(320.0, 320.0, 40.0),
    n_coils=n_coils,
    frame_starts_s=(0.0,),
)
exam = simulate_breast_exam(protocol, seed)
config = resolve(
    "recon-radial", settings=["gridding.method=coil-grids", "noise.prewhiten=false"]
).config
stages = build_pipeline(exam.scan, config).pipeline.stages
until = Pipeline(
    *takewhile(lambda stage: CoilImages not in stage.takes, stages), source=[Acquisition]
)
coils = next(
    item for item in run_inline(until, exam.acquisitions) if isinstance(item, CoilImages)
)

# %%
# ESPIRiT on their centre, and the true maps on the same grid.

settings = EspiritSettings(
    calibration_size=24, kernel=6, threshold=0.02, crop=0.8, map_size=64, iterations=100
)
found = volume_maps(coils.data, settings)
rng = np.random.default_rng(np.random.SeedSequence([seed, 2]).spawn(2)[0])
array = receive_array(protocol, rng)
true = np.stack([array.sensitivity(coil)[::2, ::2, ::2] for coil in range(n_coils)])
true = true / np.linalg.norm(true, axis=0) * np.exp(-1j * np.angle(true[0]))

# %%

z = 2
body = np.abs(combine(coils.data, found))[z]
body = body > 0.15 * np.percentile(body, 99)
figure, axes = plt.subplots(3, n_coils, figsize=(8.4, 4.3))
for coil in range(n_coils):
    for row, shown in enumerate(
        (
            np.abs(coils.data[coil, z]),
            np.abs(found[coil, z]),
            np.abs(true[coil, z]) * (found[0, z] != 0),
        )
    ):
        axes[row, coil].imshow(
            shown,
            cmap="gray" if row == 0 else "viridis",
            vmin=0,
            vmax=None if row == 0 else 1,
        )
        axes[row, coil].set(xticks=[], yticks=[])
    axes[0, coil].set_title(f"coil {coil}")
for row, name in enumerate(("coil image", "ESPIRiT", "truth")):
    axes[row, 0].set_ylabel(name)
plt.show()

# %%
# How well they agree where there is tissue: 1 is equal up to a phase.

agreement = np.abs(np.sum(found[:, z].conj() * true[:, z], axis=0))[body]
low, middle = np.percentile(agreement, (5, 50))
print(f"median {middle:.4f}; 5 % of the voxels are below {low:.3f}")
assert middle > 0.98

# %%
# Maps weight each coil where it sees well and turn its phase back. What comes out keeps
# its phase, so that frames can be subtracted as complex numbers; a root sum of squares
# cannot.

figure, axes = plt.subplots(1, 3, figsize=(8, 2.9))
image = combine(coils.data, found)[z]
for axis, shown, name in (
    (axes[0], np.abs(image), "combined: magnitude"),
    (axes[1], np.where(body, np.angle(image), np.nan), "combined: phase"),
    (axes[2], np.linalg.norm(coils.data[:, z], axis=0), "root sum of squares"),
):
    axis.imshow(shown, cmap="twilight" if "phase" in name else "gray")
    axis.set(title=name, xticks=[], yticks=[])
plt.show()
