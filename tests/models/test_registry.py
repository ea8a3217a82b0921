from __future__ import annotations

import subprocess
import sys

import pytest

from kstream.errors import ModelError
from kstream.models.registry import ARCHITECTURES, architecture, build, cost

# Paper 000, Table S1: parameters; multiply-accumulates are those of the convolutions, for a 24x320x320 patch.
PAPER = {
    "breast-magnitude": (2_669_228, 32.005),
    "breast-complex": (2_670_524, 32.403),
    "breast-native": (2_670_524, 32.403),
    "breast-native-per-class": (2_673_448 + 4, 34.001),
    "breast-hybrid": (2_245_756, 278.144),
}


def test_the_table_covers_the_breast_networks_of_the_paper() -> None:
    assert set(PAPER) == {name for name in ARCHITECTURES if name.startswith("breast-")} - {
        "breast-gate",
        "breast-reconstruct",
    }


@pytest.mark.parametrize("name", PAPER)
def test_parameters_and_work_are_those_of_the_paper(name: str) -> None:
    counted = cost(name)
    parameters, giga_macs = PAPER[name]
    assert counted.parameters == parameters
    assert counted.macs / 1e9 == pytest.approx(giga_macs, abs=5e-4)


def test_work_scales_with_voxels_and_batch() -> None:
    small = cost("breast-hybrid", inputs=((1, 2, 8, 32, 40),))
    assert cost("breast-hybrid", inputs=((3, 2, 16, 64, 40),)).macs == 12 * small.macs


def test_looking_up_names_and_bundles_does_not_import_torch() -> None:
    code = (
        "import sys; from kstream.models import registry, bundle; registry.architecture('breast-hybrid');"
        "bundle.shipped(); import kstream.engines, kstream.segment; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_declared_arguments_are_all_that_the_class_takes(name: str) -> None:
    import importlib
    import inspect

    entry = architecture(name)
    module, _, attribute = entry.target.partition(":")
    signature = inspect.signature(getattr(importlib.import_module(module), attribute))
    assert set(signature.parameters) == set(entry.arguments)


def test_unknown_architectures_and_arguments_are_named() -> None:
    with pytest.raises(ModelError, match="unknown architecture 'brest-hybrid'"):
        build("brest-hybrid")
    with pytest.raises(ModelError, match="no argument widths"):
        build("breast-hybrid", {"widths": 3})
    with pytest.raises(ModelError, match="refuses its arguments"):
        build("breast-native", {"form": "sideways"})
