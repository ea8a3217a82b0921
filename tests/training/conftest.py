from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kstream.recon.fourier import to_kspace
from kstream.training.breast.data import Exam
from kstream.training.experiment import Experiment

SHAPE = (9, 14, 18)


def make_exam(seed: int, has_lesion: bool = True) -> Exam:
    """Noise, a long dim bar that is no lesion, and a bright ball that is one; the second frame is brighter."""
    rng = np.random.default_rng(seed)
    z, y, x = np.indices(SHAPE)
    cz, cy, cx = (int(rng.integers(3, n - 3)) for n in SHAPE)
    ball = ((z - cz) ** 2 + (y - cy) ** 2 + (x - cx) ** 2 <= 2.2**2) & has_lesion
    bar = np.abs(y - int(rng.integers(2, SHAPE[1] - 2))) < 1
    noise = rng.standard_normal((*SHAPE, 2)).view(np.complex128)[..., 0]
    image = 3.0 * ball + 0.8 * (bar & ~ball) + 0.2 * noise
    frames = np.stack([0.6 * image, image]).astype(np.complex64)
    return Exam(seed, to_kspace(frames), (1, 2), ball.astype(np.uint8), (2.0, 2.5, 4.0))


@pytest.fixture
def exams() -> list[Exam]:
    return [make_exam(seed, has_lesion=seed != 3) for seed in range(4)]


@pytest.fixture
def new_exam() -> Callable[..., Exam]:
    return make_exam


@pytest.fixture
def new_experiment() -> Callable[..., Experiment]:
    def make(**schedule: Any) -> Experiment:
        return Experiment.model_validate(
            {
                "name": "toy",
                "description": "balls in noise",
                "seed": 5,
                "cohorts": {"train": {"seeds": "0-3"}, "validation": {"seeds": "7"}, "test": {"seeds": "8, 9"}},
                "network": {
                    "architecture": "breast-hybrid",
                    "arguments": {
                        "k_channels": [4, 6],
                        "n_features": 2,
                        "image_channels": [6, 8],
                        "k_residual": True,
                        "bridge_magnitude": True,
                    },
                    "patch_depth": 4,
                    "patch_stride": 3,
                },
                "augment": {"other_frame_probability": 0.5, "scale": 1.1, "shift_voxels": 2},
                "schedule": {"steps": 60, "learning_rate": 1e-2, "validate_every": 30, "log_every": 10, **schedule},
            }
        )

    return make
