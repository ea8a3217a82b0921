"""
Gradient delays, before and after
=================================

Gradients lag behind what was asked for by a few microseconds, so that every spoke misses
the centre of k-space by part of a sample, each in its own direction. The image gets halos
and shading. kstream finds the delays in the first spokes of the scan and moves the spokes
to where they really are.
"""

import matplotlib.pyplot as plt
import numpy as np

from kstream.config import resolve
from kstream.mrd.messages import Image
from kstream.pipeline import build_pipeline
from kstream.simulate import BreastProtocol, simulate_breast_exam
from kstream.stream.runners import run_inline
from kstream.types import Notice

# %%
# The simulator knows what a delay does: the trajectory in the data stays nominal, the
# samples lie elsewhere.


def protocol(delays):
    return BreastProtocol(
        matrix=96,
        n_slices=4,
        field_of_view_mm=(320.0, 320.0, 32.0),
        n_coils=5,
        frame_starts_s=(0.0,),
        snr=100.0,
        gradient_delays_samples=delays,
    )


true_delays = (0.9, -0.7, 0.0)
delayed = simulate_breast_exam(protocol(true_delays), seed=5)
perfect = simulate_breast_exam(protocol((0.0, 0.0, 0.0)), seed=5)


def reconstruct(exam, policy):
    config = resolve("recon-radial", settings=[f"trajectory.delay={policy}"]).config
    items = run_inline(build_pipeline(exam.scan, config).pipeline, exam.acquisitions)
    told = [
        item.text
        for item in items
        if isinstance(item, Notice) and "gradient delays" in item.text
    ]
    return np.stack([item.data[0, 0] for item in items if isinstance(item, Image)]), told


truth, _ = reconstruct(perfect, "off")
before, _ = reconstruct(delayed, "off")
after, told = reconstruct(delayed, "estimate")
print(told[0])

# %%
# The figures are those of the simulator, with their standard errors. `off` leaves the
# trajectory as it is; known delays are set with ``trajectory.delay=[0.9, -0.7, 0.0]``.

z = 2
white = np.percentile(truth[z], 99.5)
tissue = truth > 0.2 * white


def error_of(made):
    return np.linalg.norm((made - truth)[tissue]) / np.linalg.norm(truth[tissue])


figure, axes = plt.subplots(2, 3, figsize=(8, 5.6))
for column, (name, made) in enumerate(
    (("no delays", truth), ("delays, not corrected", before), ("delays, corrected", after))
):
    axes[0, column].imshow(made[z], vmin=0, vmax=white)
    axes[1, column].imshow(made[z] - truth[z], vmin=-white / 3, vmax=white / 3)
    axes[0, column].set_title(name)
    axes[1, column].set_title(f"error in tissue {error_of(made):.3f}")
for axis in axes.flat:
    axis.set(xticks=[], yticks=[])
plt.show()

assert error_of(after) < 0.4 * error_of(before)
