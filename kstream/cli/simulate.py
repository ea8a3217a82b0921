"""``kstream simulate``: one breast DCE scan as an ISMRMRD recording, with its truth beside it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


class Trajectory(StrEnum):
    """What the acquisitions say about their trajectory."""

    present = "present"
    absent = "absent"
    user_float = "user_float"


class Framing(StrEnum):
    """Which counter tells frames apart."""

    global_ = "global"
    repetition = "repetition"


class Lesions(StrEnum):
    """Number of malignant lesions."""

    none = "0"
    one = "1"
    two = "2"
    three = "3"
    random = "random"


def command(
    output: Annotated[Path, typer.Argument(help="recording to write; the truth goes beside it")] = Path("scan.h5"),
    seed: Annotated[int, typer.Option(min=0, help="decides anatomy, lesions, coils and noise")] = 1,
    matrix: Annotated[int, typer.Option(min=4, help="voxels along x and y")] = 128,
    slices: Annotated[int, typer.Option(min=1, help="encoded partitions and reconstructed slices")] = 32,
    partitions: Annotated[
        int, typer.Option(help="acquired kz planes, fewer than slices for partial Fourier; 0: three quarters")
    ] = 0,
    spokes: Annotated[int, typer.Option(min=1, help="spokes per frame")] = 55,
    coils: Annotated[int, typer.Option(min=1, help="receive coils")] = 8,
    lesions: Annotated[Lesions, typer.Option(help="malignant lesions")] = Lesions.random,
    snr: Annotated[float, typer.Option(min=0, help="tissue over noise before contrast; 0: no noise")] = 25.0,
    trajectory: Annotated[Trajectory, typer.Option(help="what acquisitions carry")] = Trajectory.present,
    framing: Annotated[Framing, typer.Option(help="counter that tells frames apart")] = Framing.global_,
    delay_samples: Annotated[float, typer.Option(help="gradient delay along x and y, in samples")] = 0.0,
) -> None:
    """Simulate a golden-angle stack-of-stars breast DCE scan: pre, first post and second post contrast."""
    from ..simulate.exam import save_exam, simulate_breast_exam
    from ..simulate.protocol import BreastProtocol

    n_lesions: Any = "random" if lesions is Lesions.random else int(lesions)
    protocol = BreastProtocol(
        matrix=matrix,
        n_slices=slices,
        partial_fourier=partitions / slices if partitions else 0.75,
        n_spokes=spokes,
        n_coils=coils,
        n_lesions=n_lesions,
        snr=snr,
        trajectory=trajectory.value,
        framing=framing.value,
        gradient_delays_samples=(delay_samples, delay_samples, 0.0),
    )
    exam = simulate_breast_exam(protocol, seed)
    save_exam(exam, output)
    print(f"{output}: {len(exam.acquisitions)} acquisitions, {len(exam.lesions)} lesions, seed {seed}")
