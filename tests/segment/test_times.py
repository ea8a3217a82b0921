"""Where the time of a volume went is told from the network's process to the session's summary."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from kstream.recon.fourier import to_kspace
from kstream.segment import STEPS, LocalSegmenter, Segment, Segmentation
from kstream.serve.worker_wire import read_seconds
from kstream.serve.workers import in_proportion
from kstream.stream import Pipeline
from kstream.types import Difference

from .test_stage import GEOMETRY, INFO, Threshold


def difference() -> Difference:
    truth = np.zeros((9, 7, 11), np.complex64)
    return Difference(to_kspace(truth), 1.0, 2, 0, 0, 0, GEOMETRY)


def test_a_pipeline_lists_the_parts_of_its_network_step() -> None:
    pipeline = Pipeline(Segment(LocalSegmenter(Threshold(), INFO)), source=[Difference])
    pipeline.push(difference())
    assert [t.name for t in pipeline.parts] == ["Segment", *(f"Segment: {step}" for step in STEPS)]
    total, *parts = (t.durations.total_ns for t in pipeline.parts)
    assert all(t.durations.n == 1 for t in pipeline.parts)
    assert 0 < sum(parts) <= total


def test_a_segmenter_that_tells_no_times_is_listed_with_none() -> None:
    class Silent(LocalSegmenter):
        def segment(self, difference: np.ndarray) -> Segmentation:
            return Segmentation(super().segment(difference).labels)

    pipeline = Pipeline(Segment(Silent(Threshold(), INFO)), source=[Difference])
    pipeline.push(difference())
    assert [t.durations.total_ns for t in pipeline.parts[1:]] == [0, 0, 0]


@pytest.mark.parametrize("odd", [math.nan, math.inf, -1.0, 1e300, "2", None, [1]])
def test_times_of_a_worker_are_numbers_of_steps_or_nothing(odd: object) -> None:
    told = json.loads(json.dumps({"network": 1.5, "vote": odd, "else": 2.0}))
    assert read_seconds({"seconds": told}) == {"network": 1.5}
    assert read_seconds({"seconds": odd}) == read_seconds({}) == {}


def test_a_worker_has_longer_for_a_volume_that_is_larger() -> None:
    assert in_proportion(120, (32, 128, 128)) == in_proportion(120, ()) == 120
    assert in_proportion(120, (192, 320, 320)) == pytest.approx(120 * 192 * 320 * 320 / 2**22)
