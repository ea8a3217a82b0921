"""
The bridge: from k-space to the image, inside the network
=========================================================

The hybrid network has three parts: a small U-Net in k-space, the inverse Fourier
transform, which has no weights, and a U-Net in the image. This script looks at what
crosses the bridge.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

from kstream.models.bundle import Bundle
from kstream.models.fourier import as_complex
from kstream.recon.fourier import to_image
from kstream.segment.volume import to_channels
from kstream.training.breast.data import simulate_exam

# %%
# An exam through the pipeline: what the network gets is the contrast difference in
# k-space, 16 slices of it.

protocol = {
    "n_slices": 16,
    "field_of_view_mm": (320.0, 320.0, 64.0),
    "n_coils": 4,
    "n_lesions": 2,
}
exam = simulate_exam(7, protocol, "breast-dce-recon", ())
difference = exam.difference(2)
bundle = Bundle.load("breast-hybrid-small")
network = bundle.build()

with torch.inference_mode():
    kspace = torch.from_numpy(to_channels(difference))[None]
    features = network.k_stage(kspace)
    crossed = network.bridge(features)
    logits = network.image_stage(crossed)

# %%
# Four complex features leave the k-space stage. It never pools in the plane, so that no
# frequency is lost; along z it may. On the left the input, first as k-space, then as an
# image; to its right the features, before and after the bridge. Some show the body twice,
# once turned by half a turn: a network that treats real and imaginary parts as channels
# can also take the complex conjugate, which mirrors the image.

z = int(np.argmax(exam.labels.sum(axis=(1, 2))))
before = np.concatenate([difference[None], as_complex(features)[0].numpy()])[:, z]
after = to_image(before)
figure, axes = plt.subplots(2, 5, figsize=(8.6, 3.8))
for column in range(5):
    axes[0, column].imshow(np.log(np.abs(before[column]) + 1e-4), cmap="magma")
    image = np.abs(after[column])
    axes[1, column].imshow(image, vmax=np.percentile(image, 99.7))
    axes[0, column].set_title("input" if column == 0 else f"feature {column}")
for axis in axes.flat:
    axis.set(xticks=[], yticks=[])
axes[0, 0].set_ylabel("k-space (log)")
axes[1, 0].set_ylabel("image")
plt.show()

# %%
# The bridge is the same transform that the reconstruction uses: numpy's pair and torch's
# agree.

n = as_complex(features).shape[1]
real_imag = crossed[0, : 2 * n].numpy().reshape(n, 2, *difference.shape)
assert np.allclose(
    real_imag[:, 0] + 1j * real_imag[:, 1],
    to_image(as_complex(features)[0].numpy()),
    atol=1e-3,
)

# %%
# The image stage turns them into scores; where lesion wins, the voxel is a vote for
# lesion.

scores = (logits[0, 1] - logits[0, 0]).numpy()[z]
figure, axes = plt.subplots(1, 2, figsize=(6.6, 3.3))
axes[0].imshow(np.abs(after[0]), vmax=np.percentile(np.abs(after[0]), 99.7))
axes[0].contour(exam.labels[z], [0.5], colors="#40e0ff", linestyles="dashed")
axes[0].set_title("difference image, truth dashed")
axes[1].imshow(scores, cmap="RdBu_r", vmin=-8, vmax=8)
axes[1].contour(scores, [0.0], colors="w")
axes[1].set_title("lesion score minus background score")
for axis in axes:
    axis.set(xticks=[], yticks=[])
plt.show()

found = logits[0].argmax(0).numpy()
assert (
    2
    * np.count_nonzero(found & (exam.labels > 0))
    / (np.count_nonzero(found) + exam.labels.sum())
    > 0.3
)
