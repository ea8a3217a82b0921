"""What a container image in a tar archive says about itself; both layouts are read, nothing is unpacked.

Docker V2 (``docker save`` of Engine 24 and before, ``podman save``, skopeo's ``docker-archive``) has a
``manifest.json``; OCI has ``oci-layout`` and ``index.json``. Docker Engine 25 and later write both into one file, and
scanners of the VA60 generation cannot read that.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError

MAX_JSON_BYTES = 16 << 20


@dataclass(frozen=True)
class ImageArchive:
    """One image in a tar archive.

    Parameters
    ----------
    config_sha256 : of the image's configuration, which both layouts share; scanners check it at run time.
    platform : such as ``linux/amd64``.
    user : who it runs as; empty for root.
    has_oci_layout : True also if the other layout is there as well.
    """

    path: Path
    config_sha256: str
    platform: str
    user: str
    labels: Mapping[str, str]
    has_oci_layout: bool


def read_image(path: Path) -> ImageArchive:
    """Read an archive's manifests and configuration.

    Raises
    ------
    ConfigError : no such file, not an uncompressed tar archive, no image in it or several, or one that is damaged.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            names = set(archive.getnames())
            has_oci_layout = "oci-layout" in names
            if "manifest.json" in names:
                data = _docker_config(archive)
            elif has_oci_layout:
                data = _oci_config(archive)
            else:
                raise ConfigError(
                    "the archive holds no image", hint="docker save, podman save or skopeo copy write one"
                )
        return _described(path, data, has_oci_layout)
    except OSError as error:
        raise ConfigError(
            f"cannot read the image: {error.strerror or error}",
            where=str(path),
            hint="docker save --output IMAGE.tar NAME",
        ) from error
    except tarfile.TarError as error:
        raise ConfigError(
            f"the image is not a tar archive: {error}",
            where=str(path),
            likely="it is compressed, or its writing was cut off",
            hint="docker save --output IMAGE.tar NAME",
        ) from error
    except ConfigError as error:
        raise error.at(str(path)) from error
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ConfigError(f"the image's manifest is damaged: {error!r}", where=str(path)) from error


def _described(path: Path, data: bytes, has_oci_layout: bool) -> ImageArchive:
    config = json.loads(data)
    inner = config.get("config") or {}
    return ImageArchive(
        path,
        hashlib.sha256(data).hexdigest(),
        f"{config['os']}/{config['architecture']}",
        str(inner.get("User") or ""),
        {str(key): str(value) for key, value in (inner.get("Labels") or {}).items()},
        has_oci_layout,
    )


def _docker_config(archive: tarfile.TarFile) -> bytes:
    images = json.loads(_read(archive, "manifest.json"))
    if len(images) != 1:
        raise ConfigError(f"the archive holds {len(images)} images, expected one", hint="save one image by its name")
    for layer in images[0]["Layers"]:
        _member(archive, layer)
    return _read(archive, images[0]["Config"])


def _oci_config(archive: tarfile.TarFile) -> bytes:
    found = json.loads(_read(archive, "index.json"))
    while "manifests" in found:  # an index may list another index
        images = [m for m in found["manifests"] if m.get("platform", {}).get("os") != "unknown"]  # attestations
        if len(images) != 1:
            raise ConfigError(
                f"the archive holds {len(images)} images, expected one", hint="export one platform: linux/amd64"
            )
        found = json.loads(_blob(archive, images[0]["digest"]))
    for layer in found["layers"]:
        _member(archive, "blobs/" + layer["digest"].replace(":", "/"))
    return _blob(archive, found["config"]["digest"])


def _blob(archive: tarfile.TarFile, digest: str) -> bytes:
    data = _read(archive, "blobs/" + digest.replace(":", "/"))
    if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
        raise ConfigError(f"{digest[:19]} is not what it says", likely="the archive is damaged", hint="save it again")
    return data


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    member = _member(archive, name)
    if member.size > MAX_JSON_BYTES:
        raise ConfigError(f"{name} has {member.size} bytes", likely="this is no image", hint="save it again")
    file = archive.extractfile(member)
    if file is None:
        raise ConfigError(f"{name} is not a file in the archive", hint="save it again")
    return file.read()


def _member(archive: tarfile.TarFile, name: str) -> tarfile.TarInfo:
    try:
        return archive.getmember(name)
    except KeyError:
        raise ConfigError(
            f"{name} is missing in the archive", likely="its writing was cut off", hint="save it again"
        ) from None
