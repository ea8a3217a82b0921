"""``kstream simulate``: one scan as an ISMRMRD recording, with its truth beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


class Case(StrEnum):
    """What is scanned; the keys of `CASES`."""

    breast = "breast"
    brain = "brain"
    heart = "heart"


class Trajectory(StrEnum):
    """What the acquisitions say about their trajectory."""

    present = "present"
    absent = "absent"
    user_float = "user_float"


class Framing(StrEnum):
    """Which counter tells frames apart."""

    global_ = "global"
    repetition = "repetition"


class LineDensity(StrEnum):
    """How the lines of a cine scan are chosen."""

    vista = "vista"
    normal = "normal"
    uniform = "uniform"


class CineOrder(StrEnum):
    """Lines of every phase in each heartbeat, or one frame after another."""

    segmented = "segmented"
    frames = "frames"


class Lesions(StrEnum):
    """Number of malignant lesions."""

    none = "0"
    one = "1"
    two = "2"
    three = "3"
    random = "random"


BREAST, BRAIN = "Breast (golden-angle stack of stars, DCE)", "Brain (Cartesian spin echo)"
HEART = "Heart (cine, balanced steady state)"


def command(
    output: Annotated[Path, typer.Argument(help="recording to write; the truth goes beside it")] = Path("scan.h5"),
    case: Annotated[Case, typer.Option(help="what is scanned")] = Case.breast,
    seed: Annotated[int, typer.Option(min=0, help="decides anatomy, lesions, coils and noise")] = 1,
    matrix: Annotated[
        int | None,
        typer.Option(min=4, max=1024, help="voxels along x and y (brain: y, and 5/6 of it x) [128, 216, 128]"),
    ] = None,
    slices: Annotated[
        int | None,
        typer.Option(min=1, max=512, help="reconstructed slices (breast: and encoded partitions) [32, 57, 6]"),
    ] = None,
    coils: Annotated[int | None, typer.Option(min=1, max=256, help="receive coils [8, 1, 4]")] = None,
    partitions: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="acquired kz planes, fewer than slices for partial Fourier; 0: three quarters",
            rich_help_panel=BREAST,
        ),
    ] = None,
    spokes: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="spokes per frame [55]", rich_help_panel=BREAST)
    ] = None,
    lesions: Annotated[Lesions | None, typer.Option(help="malignant lesions [random]", rich_help_panel=BREAST)] = None,
    snr: Annotated[
        float | None,
        typer.Option(min=0, help="tissue over noise (breast: before contrast); 0: no noise [25, -, 30]"),
    ] = None,
    trajectory: Annotated[
        Trajectory | None, typer.Option(help="what acquisitions carry [present]", rich_help_panel=BREAST)
    ] = None,
    framing: Annotated[
        Framing | None, typer.Option(help="counter that tells frames apart [global]", rich_help_panel=BREAST)
    ] = None,
    delay_samples: Annotated[
        float | None,
        typer.Option(min=-8, max=8, help="gradient delay along x and y, in samples [0]", rich_help_panel=BREAST),
    ] = None,
    frame_starts: Annotated[
        str | None,
        typer.Option(
            help="when each frame begins, in s; the contrast agent comes at 22 to 30 s [0,75,150]",
            rich_help_panel=BREAST,
        ),
    ] = None,
    lines: Annotated[
        float | None,
        typer.Option(min=0.01, max=1, help="part of the lines that is acquired [0.3]", rich_help_panel=BRAIN),
    ] = None,
    centre_lines: Annotated[
        int | None,
        typer.Option(min=1, help="lines of the centre that are always acquired [16]", rich_help_panel=BRAIN),
    ] = None,
    noise: Annotated[
        float | None,
        typer.Option(min=0, max=10, help="noise over the signal of white matter; 0: none [0.1]", rich_help_panel=BRAIN),
    ] = None,
    concatenations: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="groups of slices, one after the other; as many as slices: slice after slice [1]",
            rich_help_panel=BRAIN,
        ),
    ] = None,
    b0_hz: Annotated[
        float | None,
        typer.Option(min=0, max=1000, help="off-resonance at the edge of the head [0]", rich_help_panel=BRAIN),
    ] = None,
    t2_star: Annotated[
        bool | None, typer.Option("--t2-star", help="blur by T2* during the readout", rich_help_panel=BRAIN)
    ] = None,
    brainweb: Annotated[
        Path | None,
        typer.Option(
            help="BrainWeb phantom to scan instead of a simulated head (.mnc, .rawb, .raws, .nii; .gz)",
            rich_help_panel=BRAIN,
        ),
    ] = None,
    frames: Annotated[
        int | None, typer.Option(min=1, max=256, help="phases of the heartbeat [50]", rich_help_panel=HEART)
    ] = None,
    long_axes: Annotated[
        int | None,
        typer.Option(min=0, max=3, help="4-, 2-, 3-chamber view, beside the slices [3]", rich_help_panel=HEART),
    ] = None,
    acceleration: Annotated[
        float | None, typer.Option(min=1, max=1024, help="lines over acquired lines [4]", rich_help_panel=HEART)
    ] = None,
    density: Annotated[
        LineDensity | None, typer.Option(help="how lines are chosen [vista]", rich_help_panel=HEART)
    ] = None,
    radial: Annotated[
        bool | None, typer.Option("--radial", help="golden-angle spokes instead of lines", rich_help_panel=HEART)
    ] = None,
    order: Annotated[
        CineOrder | None,
        typer.Option(help="segmented over heartbeats, or a frame in each [segmented]", rich_help_panel=HEART),
    ] = None,
    breath_mm: Annotated[
        float | None, typer.Option(min=0, max=60, help="travel of the diaphragm [0]", rich_help_panel=HEART)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="what was made, as JSON")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress")] = False,
) -> None:
    """Simulate a scan: breast DCE (golden-angle stack of stars), brain (Cartesian spin echo with lines left out), or
    heart (cine).

    Breast: pre, first post and second post contrast; field of view 320 x 320 x 128 mm, TR 6 ms, so that a frame lasts
    spokes x acquired planes x 6 ms. Brain: axial slices of 180 x 216 x 57 mm, TE 80 ms and TR 3 s. Heart: short-axis
    slices and long-axis views of 256 x 256 mm, balanced steady state, TR 2.8 ms.
    """
    given = {
        "matrix": matrix,
        "slices": slices,
        "coils": coils,
        "partitions": partitions,
        "spokes": spokes,
        "lesions": lesions,
        "snr": snr,
        "trajectory": trajectory,
        "framing": framing,
        "delay_samples": delay_samples,
        "frame_starts": frame_starts,
        "lines": lines,
        "centre_lines": centre_lines,
        "noise": noise,
        "concatenations": concatenations,
        "b0_hz": b0_hz,
        "t2_star": t2_star,
        "brainweb": brainweb,
        "frames": frames,
        "long_axes": long_axes,
        "acceleration": acceleration,
        "density": density,
        "radial": radial,
        "order": order,
        "breath_mm": breath_mm,
    }
    made = CASES[case](output, seed, _Options(case, given), quiet or json)
    if json:
        from .tables import print_json

        print_json({"recording": str(output), "acquisitions": made.n_acquisitions, **made.files, "truth": made.truth})
        return
    print(f"{output}: {made.n_acquisitions} acquisitions, {made.summary}, seed {seed}")


@dataclass(frozen=True)
class Made:
    """What a case gives: counts, what is known about the scan, and files beside the recording by name."""

    n_acquisitions: int
    truth: Mapping[str, Any]
    files: Mapping[str, str]
    summary: str


class _Options:
    """Options that were given; a case takes those that it knows and refuses the others."""

    def __init__(self, case: Case, given: Mapping[str, Any]) -> None:
        self._case, self._given = case, {name: value for name, value in given.items() if value is not None}

    def only(self, **defaults: Any) -> dict[str, Any]:
        """The options of a case: those that were given over the defaults.

        Raises
        ------
        ConfigError : an option that this case does not have.
        """
        from ..errors import ConfigError

        if foreign := sorted(set(self._given) - set(defaults)):
            names = ", ".join(f"--{name.replace('_', '-')}" for name in foreign)
            raise ConfigError(f"a scan of the {self._case} has no option {names}", hint="kstream simulate --help")
        return {**defaults, **self._given}


def _breast(output: Path, seed: int, options: _Options, quiet: bool) -> Made:
    from ..errors import ConfigError
    from ..simulate.breast.exam import save_exam, simulate_breast_exam
    from ..simulate.breast.protocol import BreastProtocol
    from .progress import working

    o = options.only(
        matrix=128,
        slices=32,
        partitions=0,
        spokes=55,
        coils=8,
        lesions=Lesions.random,
        snr=25.0,
        trajectory=Trajectory.present,
        framing=Framing.global_,
        delay_samples=0.0,
        frame_starts="0,75,150",
    )
    if o["partitions"] > o["slices"]:
        raise ConfigError(
            f"{o['partitions']} acquired planes are more than {o['slices']} slices", hint=f"--partitions {o['slices']}"
        )
    protocol = BreastProtocol(
        matrix=o["matrix"],
        n_slices=o["slices"],
        partial_fourier=o["partitions"] / o["slices"] if o["partitions"] else 0.75,
        n_spokes=o["spokes"],
        n_coils=o["coils"],
        n_lesions="random" if o["lesions"] is Lesions.random else int(o["lesions"]),
        snr=o["snr"],
        trajectory=o["trajectory"].value,
        framing=o["framing"].value,
        gradient_delays_samples=(o["delay_samples"], o["delay_samples"], 0.0),
        frame_starts_s=_times(o["frame_starts"]),
    )
    with working(f"simulating {protocol.n_frames} frames", quiet):
        exam = simulate_breast_exam(protocol, seed)
        save_exam(exam, output)
    files = {"truth_labels": str(output.with_suffix(".truth.nii.gz"))}
    return Made(len(exam.acquisitions), exam.truth(), files, f"{len(exam.lesions)} lesions")


def _brain(output: Path, seed: int, options: _Options, quiet: bool) -> Made:
    from ..simulate.brain.brainweb import read_brainweb
    from ..simulate.brain.exam import save_brain_exam, simulate_brain_exam
    from ..simulate.brain.protocol import BrainProtocol
    from .progress import working

    o = options.only(
        matrix=216,
        slices=57,
        coils=1,
        lines=0.3,
        centre_lines=16,
        noise=0.1,
        concatenations=1,
        b0_hz=0.0,
        t2_star=False,
        brainweb=None,
    )
    n = o["matrix"]
    protocol = BrainProtocol(
        matrix=(round(n * 5 / 6), n),
        n_slices=o["slices"],
        voxel_mm=(216.0 / n, 216.0 / n, 57.0 / o["slices"]),
        n_coils=o["coils"],
        fraction=o["lines"],
        n_centre=o["centre_lines"],
        noise=o["noise"],
        concatenations=o["concatenations"],
        b0_hz=o["b0_hz"],
        t2_star=o["t2_star"],
    )
    anatomy = read_brainweb(o["brainweb"]) if o["brainweb"] else None
    with working(f"simulating {protocol.n_slices} slices", quiet):
        exam = simulate_brain_exam(protocol, seed, anatomy=anatomy)
        save_brain_exam(exam, output)
    files = {"truth_labels": str(output.with_suffix(".truth.nii.gz"))}
    summary = f"{protocol.n_lines} of {protocol.matrix[1]} lines of {protocol.n_slices} slices"
    return Made(len(exam.acquisitions), exam.truth(), files, summary)


def _heart(output: Path, seed: int, options: _Options, quiet: bool) -> Made:
    from ..simulate.heart.exam import save_cine_exam, simulate_cine_exam
    from ..simulate.heart.protocol import CineProtocol
    from .progress import working

    o = options.only(
        matrix=128,
        slices=6,
        coils=4,
        snr=30.0,
        frames=50,
        long_axes=3,
        acceleration=4.0,
        density=LineDensity.vista,
        radial=False,
        order=CineOrder.segmented,
        breath_mm=0.0,
    )
    protocol = CineProtocol(
        matrix=o["matrix"],
        n_frames=o["frames"],
        n_short_axis=o["slices"],
        n_long_axis=o["long_axes"],
        trajectory="radial" if o["radial"] else "cartesian",
        acceleration=o["acceleration"],
        density=o["density"].value,
        order=o["order"].value,
        n_coils=o["coils"],
        snr=o["snr"],
        breath_mm=o["breath_mm"],
    )
    with working(f"simulating {len(protocol.views)} views of {protocol.n_frames} frames", quiet):
        exam = simulate_cine_exam(protocol, seed)
        save_cine_exam(exam, output)
    files = {"truth_labels": str(output.with_suffix(".truth.npz"))}
    fraction = exam.subject.phenotypes()["LVEF_percent"]
    summary = f"{len(protocol.views)} views, {protocol.n_frames} frames, ejection fraction {fraction:.0f} %"
    return Made(len(exam.acquisitions), exam.truth(), files, summary)


CASES: Mapping[Case, Callable[[Path, int, _Options, bool], Made]] = {
    Case.breast: _breast,
    Case.brain: _brain,
    Case.heart: _heart,
}
"""Who makes a scan of each case."""


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
