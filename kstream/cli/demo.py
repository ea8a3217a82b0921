"""``kstream demo``: the whole journey on one simulated scan, through a real server and a real socket."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .simulate import Case


def command(
    case: Annotated[Case, typer.Option(help="what is scanned")] = Case.breast,
    output: Annotated[
        Path | None, typer.Option(help="folder for everything that the demo makes [demo-run; others: demo-run-CASE]")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="which simulated patient [7; brain, heart: 9007]")] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="preset that the scanner asks for [breast-dce; brain-seranet; cine-kmtr, or cine-disk]"),
    ] = None,
    model: Annotated[str, typer.Option(help="name or folder of a model bundle, in place of the preset's")] = "",
    matrix: Annotated[
        int | None, typer.Option(min=16, help="voxels along x and y [128; heart: as the model was trained]")
    ] = None,
    spokes: Annotated[int | None, typer.Option(min=8, help="breast: spokes per frame [55]")] = None,
    acceleration: Annotated[
        float | None, typer.Option(min=1, help="heart: lines over acquired lines [as the model was trained]")
    ] = None,
    speed: Annotated[
        float | None,
        typer.Option(min=0, help="replay faster than the scanner by this; 0: at once [12; brain: 150; heart: 4]"),
    ] = None,
    quiet: Annotated[bool, typer.Option(help="no progress bar")] = False,
) -> None:
    """Simulate a scan, serve, replay it through the socket, and show what came back beside the truth.

    Breast DCE; a head, in a spin echo with lines left out; or a beating heart in cine. Heads and hearts are scanned as
    the model was trained, and are by default of a person that it has not seen.
    """
    from ..errors import KstreamError
    from ..mrd.recording import Recording
    from ..serve.replay import replay
    from .demo_cases import SCENES
    from .own_server import own_server, wait_for_worker
    from .progress import ReplayProgress, working
    from .results import write_results

    given = {"preset": preset, "seed": seed, "matrix": matrix, "spokes": spokes, "acceleration": acceleration}
    scene = SCENES[case]({name: value for name, value in given.items() if value is not None}, model)
    output = output or Path("demo-run" if case is Case.breast else f"demo-run-{case.value}")
    output.mkdir(parents=True, exist_ok=True)
    recording, images, log = output / "scan.h5", output / "images.h5", output / "server.log"
    with own_server(log, *scene.server_options) as (port, _):  # first: it loads its model while the scan is simulated
        with working(f"simulating {scene.what}", quiet):
            scene.simulate(recording)
            if scene.waits:
                wait_for_worker(log)
        with Recording(recording) as source:
            n_acquisitions = source.n_acquisitions
        with ReplayProgress(n_acquisitions, quiet=quiet) as bar:
            result = replay(
                recording,
                port=port,
                preset=scene.preset,
                output=images,
                speed=scene.speed if speed is None else speed,
                progress=bar.sent,
                on_text=bar.text,
            )
    if result.errors:
        raise KstreamError(f"the server told an error: {result.errors[0]}", where=str(log))
    with working("drawing pictures and the report", quiet):
        info = write_results(output, recording, result, title=scene.title, images=images)
    print(f"{info.summary()}, look at {output / 'report.html'}")
    raise typer.Exit(0 if info.images_sent else 1)
