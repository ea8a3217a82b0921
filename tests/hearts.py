"""Small hearts for tests: a cine examination of seconds, and bundles of networks that nobody trained."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from kstream.models.bundle import Bundle, BundleInfo, TensorSpec, save_array_bundle
from kstream.models.registry import build
from kstream.output.phenotypes import HEART_LABELS
from kstream.serve.server import MrdServer
from kstream.serve.settings import ServerSettings
from kstream.serve.store import ModelStore
from kstream.simulate.heart.protocol import CineProtocol

SMALL = CineProtocol(
    matrix=24, n_frames=5, n_short_axis=2, n_long_axis=1, acceleration=3.0, density="normal", n_coils=1, snr=0.0,
    through_samples=1, oversampling=1,
)  # fmt: skip

DISK = {"width": 32, "n_latents": 9, "n_layers": 2, "n_classes": 6, "compand": 0.5, "query_chunk": 333}

KMTR = {
    "heads": ["segmentation", "regression", "classification"],
    "n_slices": 3,
    "n_long_axis": 1,
    "n_frames": 5,
    "plane": [24, 24],
    "width": 35,
    "n_layers": 2,
    "segmentation_width": 12,
    "feature_size": 2,
    "compand": 0.5,
}


def kmtr_bundle(folder: Path, compand: float = 0.5) -> Bundle:
    """An untrained k-MTR of three heads as a bundle."""
    torch.manual_seed(7)
    arguments = {**KMTR, "compand": compand}
    network = build("kmtr", arguments).eval()
    network.get_buffer("phenotype_mean").copy_(torch.arange(18.0) + 50)
    rng = np.random.default_rng(8)
    places = np.stack([rng.integers(0, n, 9) for n in (3, 5, 24)], axis=-1)[None].astype(np.float32)
    example = {"values": rng.standard_normal((1, 9, 48), np.float32), "places": places}
    with torch.inference_mode():
        made = network(*(torch.from_numpy(a) for a in example.values()))
    outputs = dict(zip(KMTR["heads"], (m.numpy() for m in made), strict=True))  # type: ignore[call-overload]
    info = BundleInfo(
        name="kmtr-test",
        description="untrained",
        architecture="kmtr",
        arguments=arguments,
        labels=HEART_LABELS,
        patch_depth=1,
        patch_stride=1,
        inputs=tuple(TensorSpec(name, ("batch", "line", "part"), "float32", "1", name) for name in example),
        outputs=tuple(TensorSpec(name, ("batch", "rest"), "float32", "1", name) for name in outputs),
    )
    state = {key: value.numpy() for key, value in network.state_dict().items()}
    return save_array_bundle(folder, info, state, {**example, **outputs}, "# untrained\n")


def disk_bundle(folder: Path, compand: float = 0.5, located: tuple[int, ...] = ()) -> Bundle:
    """An untrained DiSK as a bundle."""
    torch.manual_seed(5)
    arguments = {**DISK, "compand": compand, "located": located, "plane": (24, 24)}
    network = build("disk", arguments).eval()
    rng = np.random.default_rng(6)
    example = {
        "coordinates": rng.random((1, 11, 3), np.float32),
        "values": rng.standard_normal((1, 11, 2), np.float32),
        "queries": rng.random((1, 7, 3), np.float32),
    }
    with torch.inference_mode():
        logits = network(*(torch.from_numpy(a) for a in example.values())).numpy()
    info = BundleInfo(
        name="disk-test",
        description="untrained",
        architecture="disk",
        arguments=arguments,
        labels=HEART_LABELS,
        patch_depth=1,
        patch_stride=1,
        inputs=tuple(TensorSpec(name, ("batch", "sample", "part"), "float32", "1", name) for name in example),
        outputs=(TensorSpec("logits", ("batch", "class", "query"), "float32", "1", "class scores"),),
    )
    state = {key: value.numpy() for key, value in network.state_dict().items()}
    return save_array_bundle(folder, info, state, {**example, "logits": logits}, "# untrained\n")


@contextlib.contextmanager
def serving(bundle: Bundle) -> Iterator[int]:
    """Port of a server that uses a bundle for cine scans, in float32: bfloat16 tells sums in another order apart."""
    settings = ServerSettings(settings=(f"cine.model={bundle.folder}",))
    server = MrdServer(port=0, settings=settings, models=ModelStore(precision="fp32"))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.port
    finally:
        server.stop()
        thread.join(10)
