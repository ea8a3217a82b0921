from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

LAYER = b"a layer"


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))


class ImageWriter:
    """Writes archives as container engines do, from a configuration."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def config(self, labels: dict[str, str] | None = None, architecture: str = "amd64") -> bytes:
        inner = {"Labels": labels, "User": "10001", "Entrypoint": ["kstream", "serve"]}
        return json.dumps({"architecture": architecture, "os": "linux", "config": inner}).encode()

    def docker(self, config: bytes, *, name: str = "image.tar", n_images: int = 1, with_layer: bool = True) -> Path:
        """Docker V2, as Engine 24 and podman write it."""
        digest = hashlib.sha256(config).hexdigest()
        entry = {"Config": f"{digest}.json", "RepoTags": ["kstream:test"], "Layers": ["abc/layer.tar"]}
        path = self._folder / name
        with tarfile.open(path, "w") as archive:
            add(archive, f"{digest}.json", config)
            if with_layer:
                add(archive, "abc/layer.tar", LAYER)
            add(archive, "manifest.json", json.dumps([entry] * n_images).encode())
        return path

    def oci(self, config: bytes, *, with_docker: bool = False, with_attestation: bool = False) -> Path:
        """OCI layout, as buildx writes it; with a `manifest.json` too, as docker save does since Engine 25."""
        path = self._folder / "oci.tar"
        with tarfile.open(path, "w") as archive:
            add(archive, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
            layer = self._blob(archive, LAYER)
            told = {"config": {"digest": self._blob(archive, config)}, "layers": [{"digest": layer}]}
            images: list[dict[str, Any]] = [{"digest": self._blob(archive, json.dumps(told).encode())}]
            if with_attestation:
                images.append({"digest": layer, "platform": {"os": "unknown", "architecture": "unknown"}})
                nested = self._blob(archive, json.dumps({"manifests": images}).encode())
                images = [{"digest": nested}]
            add(archive, "index.json", json.dumps({"manifests": images}).encode())
            if with_docker:
                name = f"blobs/sha256/{hashlib.sha256(config).hexdigest()}"
                layers = [layer.replace("sha256:", "blobs/sha256/")]
                add(archive, "manifest.json", json.dumps([{"Config": name, "Layers": layers}]).encode())
        return path

    @staticmethod
    def _blob(archive: tarfile.TarFile, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        add(archive, f"blobs/sha256/{digest}", data)
        return f"sha256:{digest}"


@pytest.fixture
def images(tmp_path: Path) -> ImageWriter:
    return ImageWriter(tmp_path)
