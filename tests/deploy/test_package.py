"""Packages of both generations, from images as container engines save them."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pypdf
import pytest

from kstream.deploy.image import read_image
from kstream.deploy.manual import write_manual
from kstream.deploy.openrecon import LABEL, RESEARCH, from_label, to_label
from kstream.deploy.package import container_file, properties, write_package
from kstream.deploy.ui import DEFAULT_SETTINGS
from kstream.errors import ConfigError
from tests.deploy.conftest import ImageWriter
from tests.deploy.openrecon_rules import problems
from tests.deploy.test_openrecon import application

NAME = "OpenRecon_Lab_BreastDCE_V1.20.3"
KSTREAM = [sys.executable, "-m", "kstream"]
OPTIONS = ["--name", "Breast DCE", "--vendor", "Lab", "--version", "1.20.3"]


def labelled(images: ImageWriter, **changes: Any) -> bytes:
    return images.config({LABEL: to_label(application(**changes).specification())})


# ---- the two archives ----


def test_va60_archive_has_image_and_manual_under_its_own_name(tmp_path: Path, images: ImageWriter) -> None:
    image = images.docker(labelled(images))
    made = write_package(tmp_path / "out", application(), "va60", "kstream:0.1.0", image)
    assert made.archive == tmp_path / "out" / f"{NAME}.zip"
    with zipfile.ZipFile(made.archive) as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == [f"{NAME}.pdf", f"{NAME}.tar"]
        assert {entry.compress_type for entry in archive.infolist()} <= {zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED}
        assert archive.read(f"{NAME}.tar") == image.read_bytes()
        assert archive.read(f"{NAME}.pdf") == made.manual.read_bytes()
    assert not list((tmp_path / "out").glob("*.partial"))


@pytest.mark.parametrize("kind", ["docker", "oci", "both"])
def test_va70_archive_has_its_four_files_and_the_images_digest(tmp_path: Path, images: ImageWriter, kind: str) -> None:
    config = images.config()
    image = images.docker(config) if kind == "docker" else images.oci(config, with_docker=kind == "both")
    made = write_package(tmp_path / "out", application(), "va70", "kstream:0.1.0", image)
    assert made.archive == tmp_path / "out" / f"{NAME}.OpenReconPackage.zip"
    with zipfile.ZipFile(made.archive) as archive:
        assert sorted(archive.namelist()) == ["ApplSpec.json", "Container.tar", "Manual.pdf", "Properties.json"]
        specification = json.loads(archive.read("ApplSpec.json"))
        told = json.loads(archive.read("Properties.json"))
        assert archive.read("Container.tar") == image.read_bytes()
        assert archive.read("Manual.pdf").startswith(b"%PDF-")
    assert specification == application().specification()
    assert problems(specification) == []
    assert told["image_digest"] == hashlib.sha256(config).hexdigest()
    assert told["package_format"] == "Alpaca"
    assert re.fullmatch(r"local/[a-z0-9]+:latest", told["image_name"])
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", told["application_guid"])


def test_identity_is_that_of_vendor_id_and_version() -> None:
    guid = properties(application(), "0")["application_guid"]
    assert properties(application(name="Another name"), "1")["application_guid"] == guid
    for change in ({"vendor": "Other"}, {"id": "Other"}, {"version": "1.20.4"}):
        assert properties(application(**change), "0")["application_guid"] != guid


def test_same_input_gives_the_same_archive(tmp_path: Path, images: ImageWriter) -> None:
    image = images.docker(images.config())
    made = [write_package(tmp_path / n, application(), "va70", "kstream:0.1.0", image).archive for n in ("a", "b")]
    assert made[0] is not None
    assert made[1] is not None
    assert made[0].read_bytes() == made[1].read_bytes()


def test_label_may_be_of_another_day_and_the_label_counts(tmp_path: Path, images: ImageWriter) -> None:
    import datetime

    image = images.docker(labelled(images, manufactured=datetime.date(2026, 1, 2)))
    made = write_package(tmp_path, application(), "va60", "kstream:0.1.0", image)
    written = json.loads(made.specification.read_text("utf-8"))
    assert written["general"]["regulatory_information"]["manufacture_date"] == "2026/01/02"


# ---- the container file ----


def test_container_file_of_va60_carries_the_label_and_that_of_va70_does_not() -> None:
    lines = container_file(application(), "va60", "registry.example/kstream:0.1.0").splitlines()
    assert lines[1] == "FROM registry.example/kstream:0.1.0"
    key, value = re.fullmatch(r'LABEL "(.*)"="([A-Za-z0-9+/=]*)"', lines[2]).groups()  # type: ignore[union-attr]
    assert key == "com.siemens-healthineers.magneticresonance.openrecon.metadata:1.1.0"
    assert from_label(value) == application().specification()
    assert "LABEL" not in container_file(application(), "va70", "kstream:0.1.0")


def test_container_starts_with_the_packages_preset_because_scanners_name_none() -> None:
    text = container_file(application("recon-radial", "breast-dce", settings=()), "va70", "kstream:0.1.0")
    command = json.loads(text.splitlines()[-1].removeprefix("CMD "))
    assert command[command.index("--default-preset") + 1] == "recon-radial"
    assert command[command.index("--host") + 1] == "0.0.0.0"
    assert "--device" not in command
    assert '"cuda,cpu"' in container_file(application(uses_gpu=True), "va70", "kstream:0.1.0")


@pytest.mark.parametrize("base", ["", "kstream:1\nRUN rm", "a b"])
def test_base_that_is_no_image_name_is_refused(base: str) -> None:
    with pytest.raises(ConfigError, match="not the name of an image"):
        container_file(application(), "va60", base)


# ---- the manual ----


def test_manual_is_a_pdf_that_can_be_searched(tmp_path: Path) -> None:
    write_manual(tmp_path / "a.pdf", application())
    write_manual(tmp_path / "b.pdf", application())
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()
    text = " ".join(" ".join(page.extract_text() for page in pypdf.PdfReader(tmp_path / "a.pdf").pages).split())
    assert RESEARCH in text
    assert "Version 1.20.3, Lab, 2026-03-09" in text
    for parameter in application().parameters:
        assert f"{parameter.id} {parameter.kind} {parameter.default}" in text
        assert parameter.information in text


def test_manual_with_all_that_fits_goes_on_to_a_second_page(tmp_path: Path) -> None:
    more = ("trajectory.angle_units", "trajectory.units", "coils.calibration_spokes")
    write_manual(tmp_path / "many.pdf", application(settings=DEFAULT_SETTINGS + more))
    pages = pypdf.PdfReader(tmp_path / "many.pdf").pages
    assert len(pages) == 2
    assert "When no images come" in pages[-1].extract_text()
    for page in pages:
        assert page.mediabox.width == pytest.approx(595, abs=1)
        assert page.mediabox.height == pytest.approx(842, abs=1)


# ---- images that a scanner would refuse ----


@pytest.mark.parametrize(
    ("generation", "kind", "expected"),
    [
        ("va60", "no label", "lacks the label"),
        ("va60", "another version", "general.version is '1.20.4', expected '1.20.3'"),
        ("va60", "another parameter", "describes another application"),
        ("va60", "arm", "linux/arm64"),
        ("va60", "oci", "OCI layout"),
        ("va60", "both", "OCI layout"),
        ("va70", "label", "carries the label"),
        ("va70", "arm", "linux/arm64"),
    ],
)
def test_image_that_the_scanner_would_refuse_is_refused(
    tmp_path: Path, images: ImageWriter, generation: Any, kind: str, expected: str
) -> None:
    config = {
        "no label": lambda: images.config(),
        "another version": lambda: labelled(images, version="1.20.4"),
        "another parameter": lambda: images.config(
            {LABEL: to_label(application(settings=("coils.method",)).specification())}
        ),
        "arm": lambda: images.config(architecture="arm64"),
    }.get(kind, lambda: labelled(images))()
    image = images.oci(config, with_docker=kind == "both") if kind in ("oci", "both") else images.docker(config)
    with pytest.raises(ConfigError) as error:
        write_package(tmp_path / "out", application(), generation, "kstream:0.1.0", image)
    assert expected in error.value.what
    assert str(image) in error.value.where
    assert error.value.hint
    assert not (tmp_path / "out").exists()


def test_package_is_never_overwritten(tmp_path: Path, images: ImageWriter) -> None:
    image = images.docker(images.config())
    write_package(tmp_path, application(), "va70", "kstream:0.1.0", image)
    with pytest.raises(ConfigError, match="there already"):
        write_package(tmp_path, application(), "va70", "kstream:0.1.0", image)


def test_image_is_found_among_attestations(images: ImageWriter) -> None:
    config = images.config({"a": "b"})
    found = read_image(images.oci(config, with_attestation=True))
    assert found.config_sha256 == hashlib.sha256(config).hexdigest()
    assert found.labels == {"a": "b"}
    assert found.user == "10001"
    assert found.has_oci_layout


def test_files_that_are_no_image_are_told_apart(tmp_path: Path, images: ImageWriter) -> None:
    import tarfile

    good = images.docker(images.config())
    cut, compressed, empty, other = (tmp_path / name for name in ("cut.tar", "image.tgz", "empty.tar", "other.tar"))
    cut.write_bytes(good.read_bytes()[:700])
    with tarfile.open(compressed, "w:gz") as archive:
        archive.add(good)
    tarfile.open(empty, "w").close()
    with tarfile.open(other, "w") as archive:
        archive.add(good, "some.tar")
    for path, expected in (
        (tmp_path / "missing.tar", "No such file"),
        (tmp_path, "directory"),
        (cut, "not a tar archive|missing|holds no image"),
        (compressed, "not a tar archive"),
        (empty, "holds no image"),
        (other, "holds no image"),
        (images.docker(images.config(), name="two.tar", n_images=2), "2 images"),
        (images.docker(images.config(), name="part.tar", with_layer=False), "layer.tar is missing"),
        (images.docker(b"{}", name="bare.tar"), "manifest is damaged"),
        (images.docker(b"[]", name="list.tar"), "manifest is damaged"),
        (images.docker(b"\xff", name="bytes.tar"), "manifest is damaged"),
    ):
        with pytest.raises(ConfigError, match=expected) as error:
            read_image(path)
        assert str(path) in error.value.where


def test_blob_that_was_changed_is_noticed(images: ImageWriter) -> None:
    path = images.oci(images.config({"a": "good"}))
    path.write_bytes(path.read_bytes().replace(b'"good"', b'"evil"'))
    with pytest.raises(ConfigError, match="not what it says"):
        read_image(path)


# ---- the command ----


def kstream(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*KSTREAM, *arguments], capture_output=True, text=True, check=False, timeout=60)


def test_command_makes_a_package_in_two_steps(tmp_path: Path, images: ImageWriter) -> None:
    first = kstream("package", "openrecon", *OPTIONS, "--output", str(tmp_path), "--parameter", "coils.method")
    assert first.returncode == 0, first.stderr
    assert "podman build --format docker" in first.stdout
    built = (tmp_path / f"{NAME}.Containerfile").read_text()
    label = re.search(r'="([A-Za-z0-9+/=]+)"', built).group(1)  # type: ignore[union-attr]
    image = str(images.docker(images.config({LABEL: label})))
    more = ["--output", str(tmp_path), "--parameter", "coils.method", "--image", image]
    second = kstream("package", "openrecon", *OPTIONS, *more)
    assert second.returncode == 0, second.stderr
    assert second.stdout.splitlines()[-1] == str(tmp_path / f"{NAME}.zip")
    assert zipfile.is_zipfile(tmp_path / f"{NAME}.zip")
    changed = kstream("package", "openrecon", *OPTIONS, *more, "--cores", "5", "--id", "Other")
    assert changed.returncode == 2
    assert changed.stderr.startswith("error: the image's label describes another application")


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--version", "one"], "version 'one' is not possible"),
        (["--vendor", "My Lab"], "vendor 'My Lab' is not possible"),
        (["--name", "???"], "name '???' is not possible"),
        (["--id", "a-b"], "id 'a-b' is not possible"),
        (["--preset", "nosuch"], "there is no preset 'nosuch'"),
        (["--image", "missing.tar"], "cannot read the image: No such file"),
    ],
)
def test_command_refuses_bad_input_with_code_2_and_writes_nothing(
    tmp_path: Path, more: list[str], expected: str
) -> None:
    from typer.testing import CliRunner

    from kstream.cli import app

    found = CliRunner().invoke(app, ["package", "openrecon", *OPTIONS, "--output", str(tmp_path / "out"), *more])
    assert isinstance(found.exception, ConfigError)
    assert found.exception.exit_code == 2
    assert expected in str(found.exception)
    assert not (tmp_path / "out").exists()
