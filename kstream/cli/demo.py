"""``kstream demo``: the whole journey on one simulated scan, through a real server and a real socket."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    output: Annotated[Path, typer.Option(help="folder for everything that the demo makes")] = Path("demo-run"),
    seed: Annotated[int, typer.Option(min=0, help="which simulated patient")] = 7,
    preset: Annotated[str, typer.Option(help="preset that the scanner asks for")] = "breast-dce",
    matrix: Annotated[int, typer.Option(min=16, help="voxels along x and y")] = 128,
    spokes: Annotated[int, typer.Option(min=8, help="spokes per frame")] = 55,
    speed: Annotated[float, typer.Option(min=0, help="replay faster than the scanner by this; 0: at once")] = 12.0,
    quiet: Annotated[bool, typer.Option(help="no progress bar")] = False,
) -> None:
    """Simulate a breast DCE scan, serve, replay it through the socket, and show what came back."""
    from ..errors import KstreamError
    from ..mrd.recording import Recording
    from ..serve.replay import replay
    from ..simulate.breast.exam import save_exam, simulate_breast_exam
    from ..simulate.breast.protocol import BreastProtocol
    from .own_server import own_server
    from .progress import ReplayProgress, working
    from .results import write_results

    output.mkdir(parents=True, exist_ok=True)
    recording = output / "scan.h5"
    images = output / "images.h5"
    with own_server(output / "server.log") as (port, _):  # first: it loads its model while the scan is simulated
        with working("simulating one breast DCE scan", quiet):
            exam = simulate_breast_exam(BreastProtocol(matrix=matrix, n_spokes=spokes, n_lesions=2), seed)
            save_exam(exam, recording)
        with Recording(recording) as source:
            n_acquisitions = source.n_acquisitions
        with ReplayProgress(n_acquisitions, quiet=quiet) as bar:
            result = replay(
                recording, port=port, preset=preset, output=images, speed=speed, progress=bar.sent, on_text=bar.text
            )
    if result.errors:
        raise KstreamError(f"the server told an error: {result.errors[0]}", where=str(output / "server.log"))
    with working("drawing pictures and the report", quiet):
        title = f"Simulated breast DCE scan, seed {seed}"
        info = write_results(output, recording, result, title=title, images=images)
    print(f"{info.summary()}, look at {output / 'report.html'}")
    raise typer.Exit(0 if info.images_sent else 1)
