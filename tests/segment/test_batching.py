from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

import numpy as np
import pytest

from kstream.engines.fallback import FallbackEngine
from kstream.errors import ModelError
from kstream.recon.fourier import to_image
from kstream.segment.batching import Batching
from kstream.segment.patches import Votes, classes_of, majority_vote, patch_starts
from kstream.segment.volume import Spent, cut_batch, segment_volume
from kstream.stream.runners import ThreadCrew

SPACE = (4, 7, 11)


class Gpu:
    """An engine whose runs cost `start_s` and `patch_s` for each patch; from `odd` patches at once its bits change."""

    name, precision = "torch-cuda", "fp32"

    def __init__(self, start_s: float = 0.0, patch_s: float = 0.0, odd: int = 99, too_many: int = 99) -> None:
        self.start_s, self.patch_s, self.odd, self.too_many = start_s, patch_s, odd, too_many
        self.sizes: list[int] = []
        self.now_s = 0.0

    def clock(self) -> float:
        return self.now_s

    def run(self, batch: np.ndarray) -> np.ndarray:
        self.sizes.append(len(batch))
        if len(batch) >= self.too_many:
            raise RuntimeError("out of memory")
        self.now_s += self.start_s + self.patch_s * len(batch)
        image = np.abs(to_image(batch[:, 0] + 1j * batch[:, 1]))
        logits = np.stack([np.full_like(image, 0.5), image, 0.8 * image[:, ::-1]], axis=1)
        return np.nextafter(logits, np.float32(9)) if len(batch) >= self.odd else logits

    def describe(self) -> dict[str, str]:
        return {"engine": self.name}


def volume(n_slices: int = 29) -> np.ndarray:
    rng = np.random.default_rng(n_slices)
    parts = rng.standard_normal((n_slices, *SPACE[1:], 2)).astype(np.float32)
    return parts.view(np.complex64)[..., 0]


def labels_of(engine: Gpu, batching: Batching | None = None, crew: ThreadCrew | None = None) -> np.ndarray:
    return segment_volume(volume(), engine, 4, 2, crew, batching)


def test_a_faster_batch_is_found_beside_the_first_volume_and_used_for_the_next() -> None:
    engine = Gpu(start_s=2e-3)
    batching = Batching(engine, clock=engine.clock)
    expected = labels_of(Gpu())
    np.testing.assert_array_equal(labels_of(engine, batching), expected)
    assert batching.found == {SPACE: 4}
    engine.sizes.clear()
    np.testing.assert_array_equal(labels_of(engine, batching), expected)
    assert engine.sizes == [4, 4, 4, 2]
    assert len(patch_starts(29, 4, 2)) == sum(engine.sizes)


def test_a_batch_that_is_not_faster_is_not_used() -> None:
    engine = Gpu(patch_s=2e-3)
    batching = Batching(engine, clock=engine.clock)
    labels_of(engine, batching)
    assert batching.found == {SPACE: 1}


@pytest.mark.parametrize(("odd", "size"), [(2, 1), (3, 2)])
def test_a_batch_that_changes_a_bit_is_never_used(odd: int, size: int) -> None:
    engine = Gpu(start_s=2e-3, odd=odd)
    batching = Batching(engine, clock=engine.clock)
    np.testing.assert_array_equal(labels_of(engine, batching), labels_of(Gpu()))
    assert batching.found == {SPACE: size}


def test_memory_that_does_not_suffice_for_a_trial_ends_it() -> None:
    engine = Gpu(start_s=2e-3, too_many=4)
    batching = Batching(engine, clock=engine.clock)
    np.testing.assert_array_equal(labels_of(engine, batching), labels_of(Gpu()))
    assert batching.found == {SPACE: 2}


def test_memory_that_no_longer_suffices_goes_back_to_one_patch() -> None:
    engine = Gpu(too_many=2)
    batching = Batching(engine, clock=engine.clock)
    batching.found[SPACE] = 4
    np.testing.assert_array_equal(labels_of(engine, batching), labels_of(Gpu()))
    assert batching.found == {SPACE: 1}
    assert engine.sizes[0] == 4


def test_a_trial_that_is_too_large_for_the_gpu_does_not_end_in_the_cpu() -> None:
    gpu, cpu = Gpu(start_s=2e-3, too_many=2), Gpu()
    cpu.name = "torch-cpu"
    engine = FallbackEngine([lambda: gpu, lambda: cpu])
    batching = Batching(engine, clock=gpu.clock)
    for expected in (None, 4):  # in a trial, and where it had sufficed before
        if expected:
            batching.found[SPACE] = expected
        np.testing.assert_array_equal(segment_volume(volume(), engine, 4, 2, None, batching), labels_of(Gpu()))
        assert batching.found == {SPACE: 1}
    assert (engine.name, cpu.sizes) == ("torch-cuda", [])
    assert 4 in gpu.sizes
    gpu.too_many = 1
    np.testing.assert_array_equal(segment_volume(volume(), engine, 4, 2, None, batching), labels_of(Gpu()))
    assert engine.name == "torch-cpu"


def test_memory_that_does_not_suffice_for_one_patch_is_a_model_error() -> None:
    with pytest.raises(ModelError, match="out of memory"):
        labels_of(Gpu(too_many=1), Batching(Gpu(too_many=1)))


def test_on_a_cpu_nothing_is_tried_and_a_limit_is_kept() -> None:
    engine = Gpu(start_s=1e-3)
    engine.name = "torch-cpu"
    labels_of(engine, Batching(engine, clock=engine.clock))
    assert set(engine.sizes) == {1}
    limited = Gpu(start_s=2e-3)
    batching = Batching(limited, largest=2, clock=limited.clock)
    labels_of(limited, batching)
    assert batching.found == {SPACE: 2}


def test_threads_change_nothing_and_every_step_is_timed() -> None:
    crew, spent = ThreadCrew(1), Spent()
    found = segment_volume(volume(), Gpu(patch_s=1e-3), 4, 2, crew, None, spent)
    crew.close()
    np.testing.assert_array_equal(found, labels_of(Gpu()))
    assert spent.n_runs == spent.n_patches == len(patch_starts(29, 4, 2))
    assert all(seconds > 0 for seconds in spent.seconds.values())


def test_the_next_patch_is_cut_and_votes_are_counted_while_one_runs() -> None:
    """The engine waits, in its second run, for the vote of the first patch and the cut of the third."""
    crew, spent = ThreadCrew(1), Spent()

    class Waiting(Gpu):
        def run(self, batch: np.ndarray) -> np.ndarray:
            deadline = time.perf_counter() + 20
            while len(self.sizes) == 1 and not spent.seconds["vote"]:
                assert time.perf_counter() < deadline, "nobody works beside the engine"
            return super().run(batch)

    segment_volume(volume(), Waiting(), 4, 2, crew, None, spent)
    crew.close()


def test_an_error_of_a_late_batch_is_raised_with_threads_too() -> None:
    class Broken(Gpu):
        def run(self, batch: np.ndarray) -> np.ndarray:
            logits = super().run(batch)
            return logits * np.nan if len(self.sizes) == len(patch_starts(29, 4, 2)) else logits

    crew = ThreadCrew(1)
    with pytest.raises(ModelError, match="not finite"):
        labels_of(Broken(), crew=crew)
    crew.close()


def test_a_batch_holds_the_patches_and_repeats_the_last_slice() -> None:
    kspace = volume(5)
    batch = cut_batch(kspace, (0, 2), 4)
    assert batch.dtype == np.float32
    for patch, indices in zip(batch, ([0, 1, 2, 3], [2, 3, 4, 4]), strict=True):
        np.testing.assert_array_equal(patch[0] + 1j * patch[1], kspace[indices])


@pytest.mark.parametrize("n_classes", [2, 3, 5])
def test_classes_are_those_of_argmax_also_among_equals(n_classes: int) -> None:
    logits = np.random.default_rng(0).integers(-2, 3, (n_classes, 3, 5, 7)).astype(np.float32)
    labels = classes_of(logits)
    np.testing.assert_array_equal(labels, logits.argmax(axis=0))
    assert labels.dtype == np.uint8


def counted(predictions: Sequence[tuple[int, np.ndarray]], shape: tuple[int, int, int]) -> np.ndarray:
    """The rule, voxel by voxel."""
    out = np.zeros(shape, np.uint8)
    for z, y, x in itertools.product(*map(range, shape)):
        votes = [int(labels[z - start, y, x]) for start, labels in predictions if start <= z < start + len(labels)]
        winners = [index for index in set(votes) if 2 * votes.count(index) > len(votes)]
        out[z, y, x] = winners[0] if winners else 0
    return out


@pytest.mark.parametrize(("n_slices", "depth", "stride"), [(13, 5, 2), (9, 4, 4), (11, 5, 3), (3, 5, 2), (12, 6, 1)])
def test_votes_that_are_settled_on_the_way_are_those_counted_at_the_end(n_slices: int, depth: int, stride: int) -> None:
    rng = np.random.default_rng(n_slices)
    starts = patch_starts(n_slices, depth, stride)
    predictions = [(start, rng.integers(0, 3, (depth, 2, 3), np.uint8)) for start in starts]
    shape = (n_slices, 2, 3)
    np.testing.assert_array_equal(majority_vote(predictions, shape), counted(predictions, shape))


def test_slices_are_settled_when_their_last_patch_has_come() -> None:
    votes = Votes((0, 2, 4), (8, 1, 1))
    ones = np.ones((4, 1, 1), np.uint8)
    votes.add(ones)
    assert votes.result().ravel().tolist() == [1, 1, 0, 0, 0, 0, 0, 0]
    votes.add(ones)
    assert votes.result().ravel().tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    votes.add(ones)
    assert votes.result().all()
