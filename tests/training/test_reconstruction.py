from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kstream.errors import ConfigError
from kstream.models.fourier import as_complex, to_image
from kstream.models.reconstruct import ReconstructUNet
from kstream.training.breast.data import Exam
from kstream.training.breast.task import breast_stages, load_best
from kstream.training.experiment import Experiment, NetworkConfig, ReconstructionConfig
from kstream.training.fit import BEST, fit_stages, load_weights


def test_reconstruction_scales_with_its_input_and_learns() -> None:
    torch.manual_seed(0)
    network = ReconstructUNet(2, 4, (4, 6))
    kspace = torch.randn((2, 2, 3, 6, 10))
    kspace[..., [1, 4]] = 0
    image = network.reconstruct(kspace)
    torch.testing.assert_close(network.reconstruct(kspace * 30), image * 30, atol=1e-3, rtol=1e-3)
    assert (image - to_image(as_complex(kspace))).abs().max() > 1e-2
    torch.autograd.backward(network(kspace).square().mean())
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_the_reconstruction_is_trained_first_and_then_left_alone(
    tmp_path: Path, exams: list[Exam], new_exam: Callable[..., Exam], new_experiment: Callable[..., Experiment]
) -> None:
    experiment = new_experiment(steps=4, validate_every=4)
    network = NetworkConfig(
        architecture="breast-reconstruct",
        arguments={"n_blocks": 1, "width": 4, "channels": [4, 6]},
        patch_depth=4,
        patch_stride=3,
    )
    lines = experiment.augment.model_copy(update={"lines": "wide", "lines_probability": 1.0})
    experiment = experiment.model_copy(
        update={"network": network, "reconstruction": ReconstructionConfig(steps=30), "augment": lines}
    )
    records: list[dict[str, object]] = []
    fit_stages(breast_stages(experiment, exams, [new_exam(7)]), tmp_path, records.append)
    errors = [r["validation"]["relative_error"] for r in records if "relative_error" in r.get("validation", {})]  # type: ignore[index, operator, attr-defined]
    assert len(errors) >= 2
    assert errors[-1] < errors[0]
    first = load_weights(ReconstructUNet(1, 4, (4, 6)), tmp_path / "reconstruct" / BEST).state_dict()
    second = load_best(experiment, tmp_path).state_dict()
    for key in first:
        assert torch.equal(first[key], second[key]) == key.startswith("blocks"), key
    hybrid = new_experiment().model_copy(update={"reconstruction": ReconstructionConfig(steps=1)})
    with pytest.raises(ConfigError, match="does not reconstruct"):
        breast_stages(hybrid, exams, exams)
