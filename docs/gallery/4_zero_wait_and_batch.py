"""
Zero-wait sum and batch transform
=================================

The coil-combined image is a sum over spokes, so that nothing has to wait for the last of
them. This script adds a frame spoke by spoke and compares the result with the exact
adjoint of all samples at once, by FINUFFT.
"""

from itertools import takewhile

import finufft
import matplotlib.pyplot as plt
import numpy as np

from kstream.config import resolve
from kstream.pipeline import build_pipeline
from kstream.recon.calibration import Calibration, EspiritSettings
from kstream.recon.combine import CombineSpokes
from kstream.recon.sampling import Sampling
from kstream.recon.zero_wait import SpokeSum
from kstream.simulate import BreastProtocol, simulate_breast_exam
from kstream.stream import Pipeline
from kstream.types import Acquisition, Readout

# %%
# A frame of 34 spokes, 6 partitions and 5 coils, as readouts; and the weights of each
# spoke.

protocol = BreastProtocol(
    matrix=96,
    n_slices=8,
    field_of_view_mm=(320.0, 320.0, 64.0),
    n_coils=5,
    n_spokes=34,
    frame_starts_s=(0.0,),
)
exam = simulate_breast_exam(protocol, seed=5)
stages = build_pipeline(
    exam.scan, resolve("recon-radial", settings=["coils.calibration_frame=0"]).config
).pipeline.stages
before = Pipeline(
    *takewhile(lambda stage: not isinstance(stage, CombineSpokes), stages),
    source=[Acquisition],
)
readouts = [i for a in exam.acquisitions for i in before.push(a) if isinstance(i, Readout)]
sampling = Sampling(exam.scan, protocol.n_spokes, protocol.n_partitions, 1, "polar")
to_z = sampling.partition_to_z()
weights = {r.key[0]: sampling.weights(r)[0] for r in readouts}

calibration = Calibration(EspiritSettings(24, 6, 0.02, 0.8, 64, 100), sampling.shape, to_z)
for r in readouts:
    calibration.add(r.data, r.trajectory, weights[r.key[0]], r.partition)
maps, _ = calibration.maps()

# %%
# Spoke by spoke: filtered, smeared over the plane, times conjugate maps, summed over
# coils. What is held is one complex volume.

total = SpokeSum(maps, to_z)
spokes = []
for spoke in range(protocol.n_spokes):
    of_spoke = sorted((r for r in readouts if r.key[0] == spoke), key=lambda r: r.partition)
    samples, trajectory = np.stack([r.data for r in of_spoke]), of_spoke[0].trajectory
    total.add(samples, trajectory, weights[spoke])
    spokes.append((samples, trajectory, weights[spoke]))

# %%
# All at once: the exact adjoint of every coil, then the sum over coils.

nz, ny, nx = sampling.shape
samples = np.stack(
    [s * w for s, _, w in spokes], axis=2
)  # (partitions, coils, spokes, samples)
in_z = np.einsum("zp,pcsn->zcsn", to_z, samples).reshape(nz, protocol.n_coils, -1)
turns_y, turns_x = (
    2 * np.pi * np.stack([t[:, axis] for _, t, _ in spokes]).ravel().astype(float) / n
    for axis, n in ((1, ny), (0, nx))
)
coil_images = finufft.nufft2d1(
    turns_y,
    turns_x,
    in_z.reshape(-1, in_z.shape[-1]).astype(complex),
    (ny, nx),
    eps=1e-9,
    isign=1,
).reshape(nz, protocol.n_coils, ny, nx) / np.sqrt(ny * nx)
batch = np.einsum("czyx,zcyx->zyx", maps.full().conj(), coil_images)

# %%
# They are the same image. The difference, five thousand times enlarged, comes from
# reading the projections by linear interpolation.

zero_wait = total.image()
error = np.linalg.norm(zero_wait - batch) / np.linalg.norm(batch)
z = nz // 2
white = np.abs(batch[z]).max()
figure, axes = plt.subplots(1, 3, figsize=(8, 2.9))
for axis, shown, name in (
    (axes[0], zero_wait[z], "spoke by spoke"),
    (axes[1], batch[z], "all at once, exact"),
    (axes[2], 5000 * (zero_wait - batch)[z], "5000 x difference"),
):
    axis.imshow(np.abs(shown), vmin=0, vmax=white)
    axis.set(title=name, xticks=[], yticks=[])
plt.show()
print(f"relative difference {error:.1e}")
assert error < 1e-3

# %%
# The order does not matter: a sum does not care. That is why readouts may come in any
# order.

shuffled = SpokeSum(maps, to_z)
for i in np.random.default_rng(0).permutation(len(spokes)):
    shuffled.add(*spokes[i])
assert np.allclose(shuffled.image(), zero_wait, rtol=1e-3, atol=1e-5 * white)
