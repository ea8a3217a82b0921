"""
The journey of a spoke
======================

What happens to one readout between the scanner and the label map, with a picture at each
step. The scan is simulated and small; the steps are those of a real session, one by one.
`kstream.pipeline` is the same on one page of code.
"""

from itertools import takewhile

# sphinx_gallery_thumbnail_number = 3
import matplotlib.pyplot as plt
import numpy as np

from kstream.config import resolve
from kstream.engines.torch_engine import TorchEngine
from kstream.models.bundle import Bundle
from kstream.pipeline import build_pipeline
from kstream.recon.calibration import Calibration, EspiritSettings
from kstream.recon.combine import CombineSpokes
from kstream.recon.density import AnglePlan
from kstream.recon.fourier import to_image
from kstream.recon.sampling import Sampling
from kstream.recon.zero_wait import SpokeSum
from kstream.segment.metrics import dice
from kstream.segment.volume import segment_volume
from kstream.simulate import BreastProtocol, simulate_breast_exam
from kstream.stream import Pipeline
from kstream.stream.runners import run_inline
from kstream.types import Acquisition, AcquisitionFlag, Difference, Readout

# %%
# One exam: 16 slices of two breasts, one frame before the contrast agent and two after
# it. Spokes of a frame are turned by the golden angle; each is acquired for 12 partitions
# (kz), by 6 coils.

protocol = BreastProtocol(
    n_slices=16, field_of_view_mm=(320.0, 320.0, 64.0), n_coils=6, n_lesions=2
)
exam = simulate_breast_exam(protocol, seed=7)
acquisitions = [
    a for a in exam.acquisitions if not a.has(AcquisitionFlag.IS_NOISE_MEASUREMENT)
]
print(f"{len(acquisitions)} readouts of {protocol.n_coils} coils")

# %%
# A readout as it comes
# ---------------------
# An acquisition is a header and complex samples of every coil. All coils peak where the
# spoke passes the centre of k-space; each sees its own part of the body.

middle = protocol.center_partition
first = acquisitions[middle]
figure, axis = plt.subplots(figsize=(8, 2.8))
axis.semilogy(np.abs(first.data).T)
axis.set(
    xlabel="sample",
    ylabel="magnitude",
    title=f"spoke 0, partition {middle}: {first.data.shape[0]} coils",
)
plt.show()

# %%
# Its place in k-space
# --------------------
# The trajectory came with the acquisition; otherwise it follows from the spoke's angle or
# number. 111.25 degrees from spoke to spoke: whenever one stops, the directions are
# spread evenly.

figure, axes = plt.subplots(1, 3, figsize=(8, 3.3), sharex=True, sharey=True)
for axis, n in zip(axes, (8, 21, 55), strict=True):
    for spoke in range(n):
        k = acquisitions[spoke * protocol.n_partitions + middle].trajectory
        axis.plot(*k.T, lw=0.7, color=plt.cm.viridis(spoke / 55))
    axis.set(title=f"{n} spokes", aspect="equal", xlabel="kx, cycles per field of view")
axes[0].set_ylabel("ky")
plt.show()

# %%
# Into the image, at once
# -----------------------
# The first steps of the pipeline make the coils' noise white, resolve the trajectory, and
# label each readout with its frame.

config = resolve("breast-dce-recon").config
stages = build_pipeline(exam.scan, config).pipeline.stages
before = Pipeline(
    *takewhile(lambda stage: not isinstance(stage, CombineSpokes), stages),
    source=[Acquisition],
)
made = [item for acquisition in exam.acquisitions for item in before.push(acquisition)]
readouts = [item for item in made if isinstance(item, Readout) and item.frame == 0]
print(" > ".join(type(stage).__name__ for stage in stages))

# %%
# Coil maps come from the first spokes of the pre-contrast frame, by ESPIRiT on the centre
# of k-space ...

angles = AnglePlan(protocol.spoke_angles_rad[: protocol.n_spokes])
sampling = Sampling(exam.scan, protocol.n_spokes, protocol.n_partitions, 1, "polar", angles)
espirit = EspiritSettings(24, 6, 0.02, 0.8, 64, 100)
calibration = Calibration(espirit, sampling.shape, sampling.partition_to_z())
for readout in readouts:
    calibration.add(
        readout.data, readout.trajectory, sampling.weights(readout)[0], readout.partition
    )
maps, _ = calibration.maps()

# %%
# ... and from then on each spoke is filtered, smeared over the plane, multiplied by the
# conjugate maps, summed over coils and added to the frame's one volume. There is an image
# after every spoke, although nobody needs it.

z = int(np.argmax(exam.truth_labels.sum(axis=(1, 2))))
total = SpokeSum(maps, sampling.partition_to_z())
images = {}
for spoke in range(protocol.n_spokes):
    of_spoke = sorted((r for r in readouts if r.key[0] == spoke), key=lambda r: r.partition)
    total.add(
        np.stack([r.data for r in of_spoke]),
        of_spoke[0].trajectory,
        sampling.weights(of_spoke[0])[0],
    )
    if spoke + 1 in (8, 21, 55):
        images[spoke + 1] = np.abs(total.image()[z])

figure, axes = plt.subplots(1, 3, figsize=(8, 2.9))
for axis, (n, image) in zip(axes, images.items(), strict=True):
    axis.imshow(image, vmax=np.percentile(image, 99.5))
    axis.set(title=f"after {n} of {protocol.n_spokes} spokes", xticks=[], yticks=[])
plt.show()

# %%
# The last spoke of the frame
# ---------------------------
# One transform makes k-space of the volume. The pre-contrast frame is subtracted there:
# what is left is the contrast agent. The whole pipeline does it, for all frames.

pipeline = build_pipeline(exam.scan, config).pipeline
difference = next(
    i
    for i in run_inline(pipeline, exam.acquisitions)
    if isinstance(i, Difference) and i.frame == 2
)

figure, axes = plt.subplots(1, 2, figsize=(6.4, 3.1))
axes[0].imshow(np.log(np.abs(difference.data[z]) + 1e-3), cmap="magma")
axes[0].set(title="difference, k-space (log)", xticks=[], yticks=[])
image = np.abs(to_image(difference.data[z]))
axes[1].imshow(image, vmax=np.percentile(image, 99.8))
axes[1].set(title="the same as an image", xticks=[], yticks=[])
plt.show()

# %%
# The network
# -----------
# It takes the difference *in k-space* and gives labels in image space. Vessels and glands
# enhance too; the network has to tell them from lesions.

bundle = Bundle.load("breast-hybrid-small")
engine = TorchEngine(bundle.build(), {})
labels = segment_volume(
    difference.data, engine, bundle.info.patch_depth, bundle.info.patch_stride
)

figure, axis = plt.subplots(figsize=(4.2, 4.2))
axis.imshow(images[55], vmax=np.percentile(images[55], 99.5))
axis.contour(labels[z], [0.5], colors="#ff4040")
axis.contour(exam.truth_labels[z], [0.5], colors="#40e0ff", linestyles="dashed")
axis.set(
    title=f"labels (red), truth (dashed): Dice {dice(labels, exam.truth_labels):.2f}",
    xticks=[],
    yticks=[],
)
plt.show()

# %%
# The label map leaves through the socket that the spokes came in by, as images with the
# geometry of the scan.

assert dice(labels, exam.truth_labels) > 0.3
