"""
Golden angles and density weights
=================================

Spokes crowd at the centre of k-space, so each sample must be weighted with the area of
k-space that it stands for. A stream has to know that weight when the spoke *comes*, not
when the frame is full. Golden angles are known in advance, and so are the gaps between
them.
"""

import finufft
import matplotlib.pyplot as plt
import numpy as np
from scipy.special import j1

from kstream.readouts.trajectory import golden_angle_rad
from kstream.recon.density import angle_gaps_rad, polar_weights

# %%
# The first N golden angles leave gaps of two or three sizes. With a Fibonacci number of
# spokes (34, 55, 89) there are two, not far apart; with 50 spokes some stand for more
# than the mean, others for less.

figure, axes = plt.subplots(1, 2, figsize=(8, 2.8), sharey=True)
for axis, n in zip(axes, (34, 50), strict=True):
    gaps = angle_gaps_rad(np.arange(n) * golden_angle_rad(1))
    axis.bar(np.arange(n), gaps * n / np.pi, width=0.8)
    axis.axhline(1, color="#ffd166", ls="--")
    axis.set(title=f"{n} spokes", xlabel="spoke, in order of arrival")
axes[0].set_ylabel("angle it stands for / mean")
plt.show()

# %%
# Along a spoke the weight is the ramp, with a small correction where the ramp has its
# kink: without it the mean of the image would be wrong.

size, n_samples, n_spokes = 96, 192, 50
k = (np.arange(n_samples) - n_samples // 2) / 2
angles = np.arange(n_spokes) * golden_angle_rad(1)
spokes = np.stack(
    [
        k * np.cos(angles)[:, None],
        k * np.sin(angles)[:, None],
        np.zeros((n_spokes, n_samples)),
    ],
    -1,
)
ramp = polar_weights(spokes[0].astype(np.float32), np.pi / n_spokes)

figure, axis = plt.subplots(figsize=(8, 2.4))
axis.plot(k, ramp)
axis.set(xlabel="k, cycles per field of view", ylabel="weight")
plt.show()

# %%
# What the gaps are worth: the k-space of a disc is known exactly. It is sampled on these
# 50 spokes and transformed back by the exact adjoint, once with the mean angle and once
# with the gaps. ``gridding.angles`` is the setting that chooses.

radius = 20.3
distance = np.maximum(np.hypot(spokes[..., 0], spokes[..., 1]), 1e-9) / size
samples = radius * j1(2 * np.pi * radius * distance) / distance / size
y, x = np.mgrid[:size, :size] - size // 2
truth = (np.hypot(x, y) < radius).astype(float)


def image(steps_rad):
    weights = np.stack(
        [
            polar_weights(s.astype(np.float32), step)
            for s, step in zip(spokes, steps_rad, strict=True)
        ]
    )
    turns = [(2 * np.pi * spokes[..., axis] / size).ravel() for axis in (1, 0)]
    return (
        finufft.nufft2d1(
            *turns, (weights * samples).ravel().astype(complex), (size, size), isign=1
        ).real
        / size
    )


images = {
    "mean angle": image(np.full(n_spokes, np.pi / n_spokes)),
    "gaps": image(angle_gaps_rad(angles)),
}
inside = np.hypot(x, y) < 0.45 * size
errors = {
    name: np.linalg.norm((i - truth)[inside]) / np.linalg.norm(truth)
    for name, i in images.items()
}

figure, axes = plt.subplots(1, 3, figsize=(8, 2.9))
axes[0].imshow(truth)
axes[0].set_title("disc")
for axis, (name, made) in zip(axes[1:], images.items(), strict=True):
    axis.imshow(made - truth, vmin=-0.4, vmax=0.4)
    axis.set_title(f"error with {name}: {errors[name]:.3f}")
for axis in axes:
    axis.set(xticks=[], yticks=[])
plt.show()

assert errors["gaps"] < errors["mean angle"]
