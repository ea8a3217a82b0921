"""``kstream simulate``: one breast DCE scan as an ISMRMRD recording, with its truth beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    output: Annotated[Path, typer.Argument(help="recording to write; the truth goes beside it")] = Path("scan.h5"),
    seed: Annotated[int, typer.Option(help="decides anatomy, lesions, coils and noise")] = 1,
    matrix: Annotated[int, typer.Option(help="voxels along x and y")] = 128,
    slices: Annotated[int, typer.Option(help="reconstructed slices")] = 32,
    partitions: Annotated[int, typer.Option(help="acquired kz planes (fewer than slices: partial Fourier)")] = 24,
    spokes: Annotated[int, typer.Option(help="spokes per frame")] = 55,
    coils: Annotated[int, typer.Option(help="receive coils")] = 8,
    lesions: Annotated[str, typer.Option(help="number of lesions 0..3, or random")] = "random",
    trajectory: Annotated[str, typer.Option(help="present, absent, or user_float (angle only)")] = "present",
    framing: Annotated[str, typer.Option(help="spoke counter: global, or by repetition")] = "global",
    delay_samples: Annotated[float, typer.Option(help="gradient delay along x and y, in samples")] = 0.0,
) -> None:
    """Simulate a golden-angle stack-of-stars breast DCE scan."""
    from ..simulate.exam import save_exam, simulate_breast_exam
    from ..simulate.scanner import BreastProtocol

    protocol = BreastProtocol.model_validate(
        {
            "matrix": matrix,
            "n_slices": slices,
            "n_partitions": partitions,
            "spokes_per_frame": spokes,
            "n_coils": coils,
            "n_lesions": lesions if lesions == "random" else int(lesions),
            "trajectory_mode": trajectory,
            "framing": framing,
            "gradient_delay_samples": (delay_samples, delay_samples),
        }
    )
    exam = simulate_breast_exam(protocol, seed)
    save_exam(exam, output)
    print(f"{output}: {len(exam.acquisitions)} acquisitions, {len(exam.lesions)} lesions, seed {seed}")
