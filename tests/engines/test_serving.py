"""Engines behind the worker and the session: what a client is told when one fails, and what images carry."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kstream.config import SegmentConfig
from kstream.engines import calibrate
from kstream.engines.fallback import FallbackEngine
from kstream.engines.gate import ProvenEngine
from kstream.engines.torch_engine import TorchEngine
from kstream.models.bundle import Bundle
from kstream.mrd.images import label_images
from kstream.segment import LocalSegmenter, Segment
from kstream.serve.workers import COMMAND, ModelWorkers, WorkerSettings
from kstream.types import Difference, Geometry, LabelMap, Notice, Scan
from tests.engines.toys import toy

SHAPE = (5, 12, 10)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return toy(tmp_path / "toy")


def difference() -> Difference:
    rng = np.random.default_rng(7)
    data = (rng.standard_normal(SHAPE) + 1j * rng.standard_normal(SHAPE)).astype(np.complex64)
    return Difference(data, 1.0, 2, 0, 0, 0, Geometry((10, 12, 5), (100.0, 120.0, 50.0)))


class Spoilt(TorchEngine):
    """The real engine, until something happens to its device."""

    trouble: Exception | float | None = None

    def run(self, batch: np.ndarray) -> np.ndarray:
        if isinstance(self.trouble, Exception):
            raise self.trouble
        logits = super().run(batch)
        return logits if self.trouble is None else np.full_like(logits, self.trouble)


def spoilt(bundle: Bundle) -> tuple[Spoilt, ProvenEngine]:
    engine = Spoilt(bundle.build(), {"model": "toy"})
    return engine, ProvenEngine(engine, *bundle.example())


def push(engine: Any, bundle: Bundle) -> list[Any]:
    return Segment(LocalSegmenter(engine, bundle.info), (), "images").push(difference())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_told_and_never_an_empty_mask(bundle: Bundle, value: float) -> None:
    engine, proven = spoilt(bundle)
    engine.trouble = value
    (notice,) = push(proven, bundle)
    assert isinstance(notice, Notice)
    assert notice.level == "error"
    assert "not finite" in notice.text


@pytest.mark.parametrize("trouble", [RuntimeError("out of memory"), MemoryError("out of memory")])
def test_out_of_memory_in_mid_scan_goes_on_with_the_next_engine_and_says_so(bundle: Bundle, trouble: Exception) -> None:
    first, proven = spoilt(bundle)
    second = ProvenEngine(TorchEngine(bundle.build(), {"model": "toy"}), *bundle.example())
    engine = FallbackEngine([lambda: proven, lambda: second])
    assert [type(item) for item in push(engine, bundle)] == [LabelMap]
    first.trouble = trouble
    notice, labels = push(engine, bundle)
    assert (notice.level, "out of memory" in notice.text) == ("warning", True)
    assert "out of memory" in labels.provenance["fallback"]


def test_a_failure_of_the_last_engine_is_an_error(bundle: Bundle) -> None:
    engine, proven = spoilt(bundle)
    engine.trouble = RuntimeError("out of memory")
    (notice,) = push(FallbackEngine([lambda: proven]), bundle)
    assert (notice.level, "out of memory" in notice.text) == ("error", True)


def test_a_worker_falls_back_to_the_next_engine_tells_the_client_and_images_carry_it(bundle: Bundle) -> None:
    """The real worker process: TensorRT cannot be had here, torch can."""
    pytest.importorskip("zmq")
    settings = WorkerSettings(n_processes=1, command=COMMAND, engine="tensorrt,torch", precision="fp32")
    workers = ModelWorkers(settings)
    workers.start()
    try:
        segment = workers.segment_stage(SegmentConfig(model=str(bundle.folder), frames=(), on_failure="stop"))
        assert segment is not None
        made = segment.push(difference())
    finally:
        workers.stop()
    if "tensorrt" in sys.modules:
        pytest.skip("TensorRT is here")
    (notice,) = (item for item in made if isinstance(item, Notice))
    (labels,) = (item for item in made if isinstance(item, LabelMap))
    assert "segmented on torch-cpu, because" in notice.text
    assert labels.provenance["engine"] == "torch-cpu"
    assert labels.provenance["precision"] == "fp32"
    assert labels.provenance["sha256"] == bundle.info.sha256
    assert "tensorrt" in labels.provenance["fallback"]


def test_label_images_name_engine_precision_and_hash(bundle: Bundle) -> None:
    engine = calibrate.load_torch(bundle, "cpu", "fp32")
    (labels,) = push(engine, bundle)
    scan = Scan((10, 12, 5), (10, 12, 5), (100.0, 120.0, 50.0), (100.0, 120.0, 50.0), "radial")
    meta = label_images(labels, scan, 2)[0].meta
    assert meta["kstream_engine"] == "torch-cpu"
    assert meta["kstream_precision"] == "fp32"
    assert meta["kstream_sha256"] == bundle.info.sha256
