"""``kstream package``: what puts kstream on a scanner."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from . import examples

app = typer.Typer(no_args_is_help=True, help="Packages for scanners.", rich_markup_mode=None)


@app.callback()
def package() -> None:
    """Write packages for scanners."""


@app.command("openrecon", epilog=examples.of("package openrecon"))
def openrecon(
    name: Annotated[str, typer.Option(help="what the operator reads")],
    vendor: Annotated[str, typer.Option(help="letters and digits")],
    version: Annotated[str, typer.Option(help="X.Y.Z, three numbers")],
    output: Annotated[Path, typer.Option(help="folder for what is written")],
    identifier: Annotated[
        str, typer.Option("--id", help="letters and digits, the same for all versions; default: those of --name")
    ] = "",
    preset: Annotated[
        list[str] | None, typer.Option(help="preset to choose from, may be repeated; the first is the default")
    ] = None,
    parameter: Annotated[
        list[str] | None, typer.Option(help="section.key for the operator, may be repeated [default: a safe few]")
    ] = None,
    image: Annotated[Path | None, typer.Option(help="tar archive of the built image; then the package is made")] = None,
    generation: Annotated[Literal["va60", "va70"], typer.Option(help="va60: up to VA61; va70: from VA70 on")] = "va60",
    base: Annotated[str, typer.Option(help="name of the server's image; default: kstream:VERSION")] = "",
    memory_mib: Annotated[int, typer.Option(min=1, help="memory that the scanner must have for it")] = 16384,
    cores: Annotated[int, typer.Option(min=1, help="processor cores that the scanner must have for it")] = 4,
    gpu: Annotated[bool, typer.Option("--gpu", help="use a GPU if there is one; the image needs torch for it")] = False,
    address: Annotated[str, typer.Option(help="address of the vendor")] = "",
) -> None:
    """Make an OpenRecon package, in two steps.

    Without --image: specification, manual, and the container file of the image. With --image: the archive to install.
    """
    from importlib.metadata import version as version_of

    from ..deploy.openrecon import Application, identifier_of
    from ..deploy.package import write_package
    from ..deploy.ui import default_settings, ui_parameters

    presets = tuple(preset or ("breast-dce",))
    settings = tuple(parameter) if parameter else default_settings(presets)
    application = Application(
        name=name,
        id=identifier or identifier_of(name),
        vendor=vendor,
        version=version,
        presets=presets,
        parameters=ui_parameters(presets, settings),
        memory_mib=memory_mib,
        n_cores=cores,
        uses_gpu=gpu,
        address=address,
    )
    made = write_package(output, application, generation, base or f"kstream:{version_of('kstream')}", image)
    for path in (made.specification, made.manual, made.containerfile, made.archive):
        if path is not None:
            print(path)
    if made.archive is None:
        tag = f"{application.id.lower()}:{application.version}"
        print("\nnext, where there is a container engine, and then this command again with --image IMAGE.tar:")
        print(f"  podman build --format docker --platform linux/amd64 --file {made.containerfile} --tag {tag} {output}")
        print(f"  podman save --format docker-archive --output IMAGE.tar {tag}")
