"""The normal brain as BrainWeb distributes it, and how much a simulated head is like it; needs the data."""

from pathlib import Path

import numpy as np
import pytest

from kstream.simulate.brain.brainweb import read_brainweb
from kstream.simulate.brain.head import Head, Tissue
from kstream.simulate.brain.protocol import BrainProtocol
from kstream.types import Geometry

PHANTOM = Path(__file__).parents[3] / "shared" / "data" / "real" / "labelled" / "brain" / "brainweb_crisp_1mm.rawb.bz2"
pytestmark = pytest.mark.skipif(not PHANTOM.is_file(), reason="needs BrainWeb's normal brain beside the checkout")


def stack() -> Geometry:
    """Every fourth slice of the default protocol, at 3 mm."""
    full = BrainProtocol().geometry
    return Geometry((60, 72, 14), (180.0, 216.0, 56.0), full.position_mm)


def test_the_phantom_lies_where_a_head_lies() -> None:
    found = read_brainweb(PHANTOM)
    tissues = found.labels(stack())
    ours = Head(3).labels(stack())
    brain = [(t >= 1) & (t <= 3) for t in (tissues, ours)]
    assert 2 * (brain[0] & brain[1]).sum() / (brain[0].sum() + brain[1].sum()) > 0.9
    forehead, neck = tissues[5, :10], tissues[5, -10:]
    assert (forehead > 0).any()
    assert (neck > 0).any()
    ventricle = found.labels(Geometry((30, 40, 1), (30.0, 40.0, 1.0), (0.0, -10.0, 8.0)))
    assert (ventricle == Tissue.CSF).mean() > 0.15


def test_a_simulated_head_has_the_tissue_shares_of_the_phantom() -> None:
    counts = [
        np.bincount(head.labels(stack()).reshape(-1), minlength=12)[1:4]
        for head in (read_brainweb(PHANTOM), *(Head(seed) for seed in range(3)))
    ]
    shares = np.array([c / c.sum() for c in counts])
    assert np.abs(shares[1:].mean(axis=0) - shares[0]).max() < 0.06
