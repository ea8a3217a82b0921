"""A model worker whose model does nothing: what is left is the way there and back."""

from __future__ import annotations

import sys

import numpy as np

from kstream.engines.array_engine import ArrayEngine
from kstream.errors import ModelError
from kstream.segment import ModelInfo, Segmentation
from kstream.serve.worker import WorkerOptions, serve_models
from kstream.types import Complex, LabelTable

INFO = ModelInfo("idle", LabelTable(("background", "lesion"), ((0, 0, 0), (255, 0, 0))), 16, 8)


class Idle:
    """Gives background everywhere."""

    info = INFO

    def segment(self, difference: Complex) -> Segmentation:
        return Segmentation(np.zeros(difference.shape, np.uint8))


class Source:
    """Where the worker gets it from."""

    def segmenter(self, model: str) -> Idle:
        return Idle()

    def array_engine(self, model: str) -> ArrayEngine:
        raise ModelError(f"the idle worker has no {model}")

    def takes_arrays(self, model: str) -> bool:
        return False

    def prove(self, model: str) -> None:
        return None


if __name__ == "__main__":  # python -m kstream.benchmarks.idle_worker --address ipc://FILE --owned ...
    address = sys.argv[sys.argv.index("--address") + 1]
    sys.exit(serve_models(WorkerOptions(address, is_owned=True), Source()))
