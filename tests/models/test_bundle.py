from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from kstream.errors import ModelError
from kstream.models.bundle import Bundle, BundleInfo, save_bundle, shipped
from kstream.models.registry import build
from kstream.types import LabelTable

ARGUMENTS = {"channels": [4, 6], "n_classes": 2}
INFO = BundleInfo(
    name="toy",
    description="for tests",
    architecture="breast-complex",
    arguments=ARGUMENTS,
    labels=LabelTable(("background", "lesion"), ((0, 0, 0), (255, 64, 64))),
    patch_depth=4,
    patch_stride=3,
    training={"seed": 5},
    metrics={"test": {"mean_dice": 0.5}},
)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    torch.manual_seed(0)
    network = build("breast-complex", ARGUMENTS)
    kspace = np.random.default_rng(0).standard_normal((1, 2, 3, 5, 7)).astype(np.float32)
    with torch.inference_mode():
        logits = network(torch.from_numpy(kspace)).numpy()
    state = {key: value.numpy() for key, value in network.state_dict().items()}
    return save_bundle(tmp_path / "toy", INFO, state, (kspace, logits), "# toy\n")


def edit(bundle: Bundle, **changes: object) -> None:
    path = bundle.folder / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_bundle_comes_back_as_it_was_saved(bundle: Bundle) -> None:
    loaded = Bundle.load(bundle.folder)
    assert loaded == bundle
    assert {**vars(loaded.info), "sha256": ""} == vars(INFO)
    kspace, logits = loaded.example()
    with torch.inference_mode():
        again = loaded.build()(torch.from_numpy(kspace)).numpy()
    np.testing.assert_allclose(again, logits, atol=1e-6)


def test_description_says_axes_units_labels_and_use(bundle: Bundle) -> None:
    plain = json.loads((bundle.folder / "model.json").read_text())
    assert plain["inputs"][0]["axes"] == ["batch", "real_imag", "z", "y", "x"]
    assert plain["labels"][1] == {"name": "lesion", "colour": [255, 64, 64]}
    assert "Research use only" in plain["intended_use"]


def test_changed_weights_are_refused(bundle: Bundle) -> None:
    path = bundle.folder / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match="damaged"):
        Bundle.load(bundle.folder)


def test_missing_weights_are_refused(bundle: Bundle) -> None:
    (bundle.folder / "weights.safetensors").unlink()
    with pytest.raises(ModelError, match="without weights"):
        Bundle.load(bundle.folder)


def test_a_missing_bundle_names_the_shipped_ones() -> None:
    with pytest.raises(ModelError, match="no model bundle 'nowhere'") as caught:
        Bundle.load("nowhere")
    assert all(name in caught.value.hint for name in shipped())


def test_an_unknown_architecture_is_refused(bundle: Bundle) -> None:
    edit(bundle, architecture={"name": "of-tomorrow", "arguments": {}})
    with pytest.raises(ModelError, match="unknown architecture 'of-tomorrow'"):
        Bundle.load(bundle.folder)


def test_weights_of_another_architecture_are_refused(bundle: Bundle) -> None:
    edit(bundle, architecture={"name": "breast-magnitude", "arguments": ARGUMENTS})
    with pytest.raises(ModelError, match="do not fit architecture breast-magnitude"):
        Bundle.load(bundle.folder).build()


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "cannot be read"), ("{}", "cannot be read"), ("[]", "cannot be read"), ('{"format": 99}', "format 99")],
)
def test_a_damaged_description_is_refused(bundle: Bundle, text: str, message: str) -> None:
    (bundle.folder / "model.json").write_text(text)
    with pytest.raises(ModelError, match=message):
        Bundle.load(bundle.folder)


@pytest.mark.parametrize("content", [None, b"not tensors"])
def test_a_missing_or_damaged_example_is_refused(bundle: Bundle, content: bytes | None) -> None:
    path = bundle.folder / "example.safetensors"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match="no readable example"):
        bundle.example()


@pytest.mark.parametrize("name", shipped())
def test_shipped_bundles_reproduce_their_example(name: str) -> None:
    loaded = Bundle.load(name)
    inputs, outputs = loaded.tensors()
    with torch.inference_mode():
        made = loaded.build()(*(torch.from_numpy(array) for array in inputs))
    for again, expected in zip(made if isinstance(made, tuple) else (made,), outputs, strict=True):
        assert np.sqrt(np.mean((again.numpy() - expected) ** 2)) < 1e-3 * np.sqrt(np.mean(expected**2))
    assert loaded.info.name == name
