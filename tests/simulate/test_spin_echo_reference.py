"""The spin-echo signal against an independent simulator (phase distribution graphs of MRzero), on one slice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kstream.recon.fourier import to_image
from kstream.simulate.brain.head import Head, Tissue
from kstream.simulate.brain.lines import LineReadout
from kstream.simulate.brain.spin_echo import relaxation
from kstream.types import Geometry

mr0: Any = pytest.importorskip("MRzeroCore")

NX, NY, FOV_MM = 20, 24, (200.0, 240.0)
TE_S, TR_S = 0.08, 3.0
READ_S = 1e-3


def slice_of_a_head() -> np.ndarray[Any, Any]:
    geometry = Geometry((NX, NY, 1), (*FOV_MM, 5.0), (0.0, 0.0, 12.0))
    return Head(3).labels(geometry)[0]


def phantom(labels: np.ndarray[Any, Any]) -> Any:
    """One voxel of the simulator for each voxel of the slice, at rest, in a perfect field."""
    made = relaxation("brainweb-1")

    def grid(values: np.ndarray[Any, Any]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values[labels].T.astype(np.float32)))[:, :, None]

    density = made.density.copy()
    density[Tissue.BACKGROUND] = 0
    ones = torch.ones(NX, NY, 1)
    step = [size * 1e-3 / n for size, n in zip(FOV_MM, (NX, NY), strict=True)]
    affine = torch.diag(torch.tensor([step[0], step[1], 5e-3]) * 1e3)
    affine = torch.cat((affine, torch.tensor([[-NX // 2 * step[0]], [-NY // 2 * step[1]], [0.0]]) * 1e3), dim=1)
    return mr0.VoxelGridPhantom(
        PD=grid(density),
        T1=grid(made.t1_ms) * 1e-3,
        T2=grid(made.t2_ms) * 1e-3,
        T2dash=1e6 * ones,
        D=0 * ones,
        B0=0 * ones,
        B1=ones[None].to(torch.complex64),
        coil_sens=ones[None].to(torch.complex64),
        affine=affine,
    ).build(voxel_shape="point")


def sequence() -> Any:
    """Spin echoes, one line each, and one echo without readout that brings the steady state."""
    seq = mr0.Sequence(normalized_grads=False)
    step = [1e3 / size for size in FOV_MM]  # of k, in 1/m
    for line in (None, *(np.arange(NY) - NY // 2)):
        excite = seq.new_rep(2)
        excite.pulse.usage = mr0.PulseUsage.EXCIT
        excite.pulse.angle, excite.pulse.phase = np.pi / 2, np.pi / 2
        excite.event_time[:] = torch.tensor([READ_S, TE_S / 2 - READ_S])
        excite.gradm[0, 0] = NX // 2 * step[0]  # refocused: the readout begins at -n/2
        refocus = seq.new_rep(NX + 2)
        refocus.pulse.usage = mr0.PulseUsage.REFOC
        refocus.pulse.angle = np.pi
        dwell = READ_S / NX
        refocus.event_time[0] = TE_S / 2 - NX // 2 * dwell - dwell
        refocus.event_time[1:-1] = dwell
        refocus.event_time[-1] = TR_S - TE_S - (NX - NX // 2 - 1) * dwell
        refocus.gradm[0, 1] = 0.0 if line is None else float(line) * step[1]
        refocus.gradm[2:-1, 0] = step[0]
        refocus.gradm[-1, 0] = 3 * NX * step[0]  # spoiler
        if line is not None:
            refocus.adc_usage[1:-1] = 1
    return seq


def test_a_slice_has_the_kspace_that_an_independent_simulator_gives() -> None:
    labels = slice_of_a_head()
    assert {Tissue.CSF, Tissue.GREY, Tissue.WHITE, Tissue.FAT} <= set(np.unique(labels))
    data, seq = phantom(labels), sequence()
    graph = mr0.compute_graph(seq, data, 400, 1e-5)
    signal = mr0.execute_graph(graph, seq, data, print_progress=False).numpy().reshape(NY, NX)
    values = relaxation("brainweb-1").signal(1e3 * TE_S, 1e3 * TR_S)
    values[Tissue.BACKGROUND] = 0
    ours = LineReadout((NX, NY), (1, 1), 1, 50.0).sample(values[labels].astype(np.complex64))
    reference, image = (np.abs(to_image(k.astype(np.complex64))) for k in (signal / np.sqrt(signal.size), ours))
    assert np.abs(reference - image).max() < 0.005 * image.max()
