from pathlib import Path

import numpy as np
import pytest
import torch

from kstream.config import SegmentConfig
from kstream.errors import ModelError
from kstream.models.bundle import BundleInfo, save_bundle
from kstream.models.registry import build
from kstream.serve.store import ModelStore
from kstream.types import LabelTable

ARGUMENTS = {"channels": [4, 6], "n_classes": 2}


def bundle(folder: Path, scale: float) -> Path:
    """A tiny bundle whose example's logits are the network's, times `scale`."""
    torch.manual_seed(0)
    network = build("breast-complex", ARGUMENTS)
    kspace = np.random.default_rng(0).standard_normal((1, 2, 3, 5, 7)).astype(np.float32)
    with torch.inference_mode():
        logits = network(torch.from_numpy(kspace)).numpy() * scale
    table = LabelTable(("background", "lesion"), ((0, 0, 0), (255, 64, 64)))
    info = BundleInfo("toy", "for tests", "breast-complex", ARGUMENTS, table, patch_depth=4, patch_stride=3)
    state = {key: value.numpy() for key, value in network.state_dict().items()}
    return save_bundle(folder, info, state, (kspace, logits.astype(np.float32)), "# toy\n").folder


def test_model_is_loaded_once_and_shared(tmp_path: Path) -> None:
    store = ModelStore()
    config = SegmentConfig(model=str(bundle(tmp_path / "toy", 1.0)), frames=(), on_failure="stop")
    first, second = store.segment_stage(config), store.segment_stage(config)
    assert first is not None
    assert second is not None
    assert first._segmenter is second._segmenter
    assert store.segment_stage(SegmentConfig(model="", frames=(), on_failure="stop")) is None


def test_engine_that_does_not_reproduce_the_example_is_refused(tmp_path: Path) -> None:
    config = SegmentConfig(model=str(bundle(tmp_path / "toy", 1.01)), frames=(), on_failure="stop")
    with pytest.raises(ModelError, match="does not reproduce its example"):
        ModelStore().segment_stage(config)


def test_missing_model_names_what_is_shipped() -> None:
    with pytest.raises(ModelError, match="no model bundle 'no-such'"):
        ModelStore().segment_stage(SegmentConfig(model="no-such", frames=(), on_failure="stop"))


def test_with_images_wanted_a_missing_model_is_a_stage_that_says_so() -> None:
    stage = ModelStore().segment_stage(SegmentConfig(model="no-such", frames=(), on_failure="images"))
    assert stage is not None
    assert "no model bundle 'no-such'" in str(stage.failure)


@pytest.mark.parametrize("name", ["weights.safetensors", "example.safetensors", "model.json"])
@pytest.mark.parametrize("damage", ["cut", "gone", "noise"])
def test_fault_34_a_damaged_bundle_is_a_model_error(tmp_path: Path, name: str, damage: str) -> None:
    folder = bundle(tmp_path / "toy", 1.0)
    file = folder / name
    match damage:
        case "cut":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        case "gone":
            file.unlink()
        case "noise":
            file.write_bytes(np.random.default_rng(0).bytes(file.stat().st_size))
    with pytest.raises(ModelError):
        ModelStore().segment_stage(SegmentConfig(model=str(folder), frames=(), on_failure="stop"))
