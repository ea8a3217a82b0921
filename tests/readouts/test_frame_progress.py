"""Open frames are announced at the wanted numbers of readouts, and only then."""

from kstream.readouts.framing import FramePlan, FrameReadouts
from kstream.readouts.routing import LostReadout
from kstream.readouts.trajectory import PlacedAcquisition
from kstream.simulate.brain.exam import simulate_brain_exam
from kstream.simulate.brain.protocol import BrainProtocol
from kstream.stream.telemetry import Counters
from kstream.types import AcquisitionFlag, FrameEnd, FrameProgress, MissingReadout

PROTOCOL = BrainProtocol(matrix=(15, 20), n_slices=2, voxel_mm=(12.0, 12.0, 20.0), n_centre=3, fraction=0.4, noise=0.0)


def test_open_frames_are_announced_with_their_place() -> None:
    exam = simulate_brain_exam(PROTOCOL, 1)
    plan = FramePlan.of(exam.scan, "auto", 0, 0)
    assert plan.n_expected == 8
    stage = FrameReadouts(exam.scan, plan, Counters(), early=(3, 8, 11))
    lines = [a for a in exam.acquisitions if not a.has(AcquisitionFlag.IS_NOISE_MEASUREMENT)]
    made = [stage.push(PlacedAcquisition(a, a.trajectory)) for a in lines]
    told = [(index, item) for index, items in enumerate(made) for item in items if isinstance(item, FrameProgress)]
    assert [index for index, _ in told] == [4, 5]  # the third line of either slice; the eighth is the end, not progress
    for (_, progress), slice_ in zip(told, (0, 1), strict=True):
        so_far = progress.so_far
        assert (so_far.slice, so_far.n_readouts, so_far.n_expected) == (slice_, 3, 8)
        assert so_far.geometry.position_mm[2] == exam.geometry.slice_position_mm(slice_)[2]
    assert sum(isinstance(item, FrameEnd) for items in made for item in items) == 2


def test_lost_readout_announces_nothing_but_itself() -> None:
    exam = simulate_brain_exam(PROTOCOL, 1)
    stage = FrameReadouts(exam.scan, FramePlan.of(exam.scan, "auto", 0, 0), Counters(), early=(0, 3))
    lines = [a for a in exam.acquisitions if not a.has(AcquisitionFlag.IS_NOISE_MEASUREMENT)]
    lines = [a for a in lines if a.counter("slice") == 0]
    assert [type(item) for item in stage.push(LostReadout(lines[7]))] == [MissingReadout]
    made = [item for a in lines[:3] for item in stage.push(PlacedAcquisition(a, a.trajectory))]
    made += stage.push(LostReadout(lines[3]))
    assert sum(isinstance(item, FrameProgress) for item in made) == 1
    assert isinstance(made[-1], MissingReadout)
    assert made[-1].key[0] == lines[3].counter("kspace_encode_step_1") - exam.scan.limit("kspace_encode_step_1").minimum
