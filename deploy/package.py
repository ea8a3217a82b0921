"""Packages for OpenRecon: what an image is built from, and with the image the archive that a scanner installs.

Two generations differ. Up to VA61 the specification is a label of the image, and the archive holds image and manual
under the archive's own name. From VA70 on the specification is a file beside the image, which must not carry the label,
and a fourth file names the image's digest.
"""

from __future__ import annotations

import json
import uuid
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import ConfigError
from .image import ImageArchive, read_image
from .manual import write_manual
from .openrecon import LABEL, Application, from_label, to_label, to_text

Generation = Literal["va60", "va70"]
PLATFORM = "linux/amd64"
MAX_LINE = 60_000
"""Builders read a container file by lines of at most 64 KiB."""

_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Package:
    """What was written.

    Parameters
    ----------
    specification, manual, containerfile : the parts.
    archive : what the scanner installs; None without an image.
    """

    specification: Path
    manual: Path
    containerfile: Path
    archive: Path | None


def write_package(
    folder: Path, application: Application, generation: Generation, base: str, image: Path | None = None
) -> Package:
    """Write specification, manual and container file; with an image also the archive.

    Parameters
    ----------
    folder : made if it is not there.
    base : name of the server's image, on which that of the package is built.
    image : tar archive with the image that was built from the container file.

    Raises
    ------
    ConfigError : the image is not what this generation takes, or the archive is there already.
    OSError : a file cannot be written.
    """
    specification = application.specification()
    archive = folder / (application.file_name + (".zip" if generation == "va60" else ".OpenReconPackage.zip"))
    found: ImageArchive | None = None
    if image is not None:
        if archive.exists():
            raise ConfigError("the package is there already", where=str(archive), hint="another --version or --output")
        found = read_image(image)
        _check_image(found, specification, generation)
        if generation == "va60":  # the label is what the scanner reads: its date counts
            specification = from_label(found.labels[LABEL])
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / application.file_name
    package = Package(
        specification=Path(f"{stem}.json"),
        manual=Path(f"{stem}.pdf"),
        containerfile=Path(f"{stem}.Containerfile"),
        archive=archive if found is not None else None,
    )
    package.specification.write_text(to_text(specification), "utf-8")
    package.containerfile.write_text(container_file(application, generation, base), "utf-8")
    write_manual(package.manual, application)
    if found is not None:
        contents: dict[str, Path | str]
        if generation == "va60":
            contents = {f"{application.file_name}.tar": found.path, f"{application.file_name}.pdf": package.manual}
        else:
            contents = {
                "ApplSpec.json": package.specification,
                "Container.tar": found.path,
                "Manual.pdf": package.manual,
                "Properties.json": json.dumps(properties(application, found.config_sha256), indent=2) + "\n",
            }
        _write_archive(archive, contents)
    return package


def container_file(application: Application, generation: Generation, base: str) -> str:
    """The few lines that make the server's image one of OpenRecon.

    A scanner's configuration message names no preset of ours (it says ``openrecon``), hence ``--default-preset``.

    Raises
    ------
    ConfigError : the specification is too long for a label, or `base` is no name of an image.
    """
    if not base or any(not character.isprintable() or character.isspace() for character in base):
        raise ConfigError(f"{base[:80]!r} is not the name of an image", where="--base", hint="kstream:0.1.0")
    command = ["--host", "0.0.0.0", "--default-preset", application.presets[0], "--warm-up", application.presets[0]]
    command += ["--device", "cuda,cpu"] if application.uses_gpu else []
    lines = [
        f"# {application.name} {application.version} for OpenRecon, {generation}.",
        f"FROM {base}",
    ]
    if generation == "va60":
        lines.append(f'LABEL "{LABEL}"="{to_label(application.specification())}"')
    lines.append(f"CMD {json.dumps(command)}")
    if max(map(len, lines)) > MAX_LINE:
        raise ConfigError("the specification is too long for a label", hint="fewer presets and parameters")
    return "\n".join(lines) + "\n"


def properties(application: Application, config_sha256: str) -> dict[str, str]:
    """``Properties.json`` of a VA70 package: the identity is that of vendor, id and version."""
    identity = f"{application.vendor}/{application.id}/{application.version}"
    return {
        "package_format": "Alpaca",
        "application_guid": str(uuid.uuid5(uuid.NAMESPACE_URL, f"openrecon:{identity}")),
        "image_name": f"local/{application.id.lower()}:latest",
        "execution_location": "local",
        "persistence": "permanent",
        "image_digest": config_sha256,
    }


def _check_image(image: ImageArchive, specification: Mapping[str, Any], generation: Generation) -> None:
    """Refuse what a scanner would refuse, mostly without a word."""
    where = str(image.path)
    if image.platform != PLATFORM:
        raise ConfigError(
            f"the image is for {image.platform}, scanners run {PLATFORM}",
            where=where,
            hint=f"docker build --platform {PLATFORM}",
        )
    if generation == "va70":
        if LABEL in image.labels:
            raise ConfigError(
                "the image carries the label of the VA60 generation",
                where=where,
                likely="it was built from the container file for va60",
                hint="build it from the container file that --generation va70 writes, or package for va60",
            )
        return
    if image.has_oci_layout:
        raise ConfigError(
            "the archive has an OCI layout, which scanners of the VA60 generation cannot read",
            where=where,
            likely="docker save of Docker Engine 25 or later wrote it",
            hint="podman save --format docker-archive, skopeo copy ... docker-archive:IMAGE.tar, or Docker Engine 24",
        )
    if LABEL not in image.labels:
        raise ConfigError(
            "the image lacks the label with the specification",
            where=where,
            hint="build it from the container file that this command writes without --image",
        )
    found = from_label(image.labels[LABEL])
    if _without_date(found) != _without_date(specification):
        raise ConfigError(
            f"the image's label describes another application: {_difference(found, specification)}",
            where=where,
            likely="it was built before an option changed",
            hint="run this without --image, build again, save again",
        )


def _without_date(specification: Mapping[str, Any]) -> dict[str, Any]:
    """The specification may have been labelled on another day."""
    plain: dict[str, Any] = json.loads(json.dumps(specification))
    general = plain.get("general")
    regulatory = general.get("regulatory_information") if isinstance(general, dict) else None
    if isinstance(regulatory, dict):
        regulatory.pop("manufacture_date", None)
    return plain


def _difference(found: Any, expected: Any, place: str = "") -> str:
    """The first place in which two JSON values differ."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in [*expected, *(key for key in found if key not in expected)]:
            if key == "manufacture_date":
                continue
            if key not in found or key not in expected:
                return f"{place}{key} is {'missing' if key not in found else 'not expected'}"
            if deeper := _difference(found[key], expected[key], f"{place}{key}."):
                return deeper
        return ""
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        parts = (_difference(a, b, f"{place}{i}.") for i, (a, b) in enumerate(zip(found, expected, strict=True)))
        return next((part for part in parts if part), "")
    return "" if found == expected else f"{place[:-1]} is {str(found)[:60]!r}, expected {str(expected)[:60]!r}"


def _write_archive(path: Path, contents: Mapping[str, Path | str]) -> None:
    """A plain deflated zip of fixed dates, under its own name only once it is whole."""
    partial = path.with_name(path.name + ".partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, source in contents.items():
                entry = zipfile.ZipInfo(name, _EPOCH)
                entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
                if isinstance(source, str):
                    archive.writestr(entry, source)
                    continue
                entry.file_size = source.stat().st_size  # tells zipfile whether it needs 64 bits
                with source.open("rb") as file, archive.open(entry, "w") as out:
                    while block := file.read(1 << 20):
                        out.write(block)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
