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
    matrix: Annotated[int, typer.Option(min=4, max=1024, help="voxels along x and y")] = 128,
    slices: Annotated[int, typer.Option(min=1, max=512, help="encoded partitions and reconstructed slices")] = 32,
    partitions: Annotated[
        int, typer.Option(min=0, help="acquired kz planes, fewer than slices for partial Fourier; 0: three quarters")
    ] = 0,
    spokes: Annotated[int, typer.Option(min=1, max=10_000, help="spokes per frame")] = 55,
    coils: Annotated[int, typer.Option(min=1, max=256, help="receive coils")] = 8,
    lesions: Annotated[Lesions, typer.Option(help="malignant lesions")] = Lesions.random,
    snr: Annotated[float, typer.Option(min=0, help="tissue over noise before contrast; 0: no noise")] = 25.0,
    trajectory: Annotated[Trajectory, typer.Option(help="what acquisitions carry")] = Trajectory.present,
    framing: Annotated[Framing, typer.Option(help="counter that tells frames apart")] = Framing.global_,
    delay_samples: Annotated[float, typer.Option(min=-8, max=8, help="gradient delay along x and y, in samples")] = 0.0,
    frame_starts: Annotated[
        str, typer.Option(help="when each frame begins, in s; the contrast agent comes at 22 to 30 s")
    ] = "0,75,150",
    json: Annotated[bool, typer.Option("--json", help="what was made, as JSON")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress")] = False,
) -> None:
    """Simulate a golden-angle stack-of-stars breast DCE scan: pre, first post and second post contrast.

    Field of view 320 x 320 x 128 mm, TR 6 ms, so that a frame lasts spokes x acquired planes x 6 ms.
    """
    from ..errors import ConfigError
    from ..simulate.exam import save_exam, simulate_breast_exam
    from ..simulate.protocol import BreastProtocol
    from .progress import working

    if partitions > slices:
        raise ConfigError(f"{partitions} acquired planes are more than {slices} slices", hint=f"--partitions {slices}")
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
        frame_starts_s=_times(frame_starts),
    )
    with working(f"simulating {protocol.n_frames} frames", quiet or json):
        exam = simulate_breast_exam(protocol, seed)
        save_exam(exam, output)
    if json:
        from .tables import print_json

        made = {"recording": str(output), "acquisitions": len(exam.acquisitions)}
        truth = {"truth_labels": str(output.with_suffix(".truth.nii.gz")), "truth": exam.truth()}
        print_json(made | truth)
        return
    print(f"{output}: {len(exam.acquisitions)} acquisitions, {len(exam.lesions)} lesions, seed {seed}")


def _times(text: str) -> tuple[float, ...]:
    """Times in s, separated by commas."""
    from ..errors import ConfigError

    try:
        times_s = tuple(float(part) for part in text.split(","))
    except ValueError:
        times_s = ()
    if not times_s or not all(0 <= time < 86_400 for time in times_s):  # NaN is not in any range
        raise ConfigError(
            f"cannot read times from {text[:80]!r}", where="--frame-starts", hint="--frame-starts 0,40,80"
        )
    return times_s
