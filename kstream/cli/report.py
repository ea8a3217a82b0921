"""``kstream report``: the report of a run, made again from what the run left in its folder."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .report_files import SERIES, Found, bundle_of, first, remove_overlays, series_setting, slice_of, told, truth_volume

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..mrd.messages import Image
    from ..output.runinfo import ModelUsed, RunInfo
    from ..types import Notice
    from .stacks import Volume

MAX_SLICES = 8
"""Slices with a picture of their own in the report; every slice with a lesion has one in the folder."""


def command(
    run: Annotated[Path, typer.Argument(help="folder of `kstream demo` or `kstream replay --results`")],
    recording: Annotated[
        Path | None, typer.Option(help="raw data [default: by its name, in the folder or beside it]")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="returned images [default: images.h5 or RECORDING.images.h5]")
    ] = None,
    truth: Annotated[
        Path | None, typer.Option(help="ground truth, NIfTI [default: RECORDING.truth.nii.gz, if there]")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="the account of the run as JSON, as in run.json")] = False,
) -> None:
    """Write report.html (one file that loads nothing from elsewhere) and pictures of a run; volumes in ml, times in ms.

    Works from run.json, and with the images that came back it measures volume and enhancement of each lesion.
    """
    from ..errors import RecordingError

    for given in (recording, images, truth):
        if given is not None and not given.is_file():
            raise RecordingError("there is no such file", where=str(given))
    info = rebuild(run, recording=recording, images=images, truth=truth)
    print(info.to_json() if json else f"{info.summary()}, look at {run / 'report.html'}", end="" if json else "\n")


def rebuild(
    folder: Path,
    *,
    recording: Path | None = None,
    images: Path | None = None,
    truth: Path | None = None,
) -> RunInfo:
    """Write ``report.html`` and a more complete ``run.json`` of a run.

    Parameters
    ----------
    folder : holds ``run.json``.
    recording, images, truth : where they are not where a run leaves them.

    Raises
    ------
    RecordingError : no ``run.json``, or a damaged file.
    """
    from ..errors import ScanError
    from ..output.report import write_report
    from ..types import Notice

    info = _read(folder)
    recording = recording or first(folder / info.recording, folder.parent / info.recording)
    stem = Path(info.recording).stem
    candidates = (folder / "images.h5", folder / f"{stem}.images.h5", folder.parent / f"{stem}.images.h5")
    beside = (recording or folder / info.recording).with_suffix(".truth.nii.gz")
    found = Found(recording, images or first(*candidates), truth or first(beside))
    info = told(info, _checked(info, found)).model_copy(update={"model": _with_card(info)})
    if found.images is not None and info.images_sent:
        try:
            info = _measured(folder, info, found)
        except ScanError as error:
            remove_overlays(folder, keep=set())
            for name in ("overview.png", "volume.gif"):
                (folder / name).unlink(missing_ok=True)
            info = told(info, [Notice("warning", f"nothing is drawn or measured on a volume: {error.what}")])
    target = folder / "run.json"
    partial = folder / "run.json.part"
    partial.write_text(info.to_json(), encoding="utf-8")
    partial.replace(target)
    write_report(folder / "report.html", info, _pictures_of(folder, info))
    return info


def _read(folder: Path) -> RunInfo:
    from ..errors import RecordingError
    from ..output.runinfo import RunInfo

    path = folder / "run.json"
    try:
        return RunInfo.from_json(path.read_bytes())
    except OSError as error:
        raise RecordingError(
            f"no account of a run: {error.strerror}", where=str(path), hint="kstream replay scan.h5 --results FOLDER"
        ) from error
    except RecordingError as error:
        raise error.at(str(path)) from None


def _checked(info: RunInfo, found: Found) -> list[Notice]:
    """What is wrong with, or missing from, the files of a run."""
    from ..output.runinfo import file_sha256
    from ..types import Notice

    notices = []
    is_other = found.recording is not None and info.recording_sha256 not in ("", file_sha256(found.recording))
    if is_other:
        notices.append(Notice("warning", f"{info.recording} has changed since this run: its checksum is another one"))
    if found.images is None and info.images_sent:
        notices.append(Notice("info", "the images that came back were not found: no enhancement of lesions"))
    return notices


def _with_card(info: RunInfo) -> ModelUsed | None:
    """The model with the text of its card, if its bundle is here and still the same."""
    from ..models.bundle import CARD

    if info.model is None or info.model.readme or (bundle := bundle_of(info)) is None:
        return info.model
    try:
        readme = (bundle.folder / CARD).read_text(encoding="utf-8")
    except OSError:
        return info.model
    about = f"{bundle.info.description} {bundle.info.intended_use}"
    return info.model.model_copy(update={"readme": readme, "card": info.model.card or about})


def _measured(folder: Path, info: RunInfo, found: Found) -> RunInfo:
    """The account with what the returned images say: lesions, times of frames, agreement; draws pictures."""
    from ..mrd.recording import read_images
    from ..output.lesions import describe_lesions
    from ..types import Notice
    from .stacks import newest_volume, volumes

    if found.images is None:
        return info
    series = read_images(found.images)
    n_images = sum(len(images) for images in series.values())
    if n_images != info.images_sent:
        what = f"{found.images.name} has {n_images} images, but this run gave {info.images_sent}: it is left out"
        return told(info, [Notice("warning", what)])
    magnitude_series, label_series = (series_setting(info, f"images.{kind}_series", n) for kind, n in SERIES)
    if info.findings and label_series in series:
        from .report_cine import measured as cine_measured

        return cine_measured(folder, info, found, series[label_series])
    if magnitude_series not in series:
        return info
    frames = list(volumes(series[magnitude_series]).values())
    times_s = _times_s(series[magnitude_series], found.recording)
    labels = newest_volume(series[label_series]) if label_series in series else None
    if labels is None or labels.table is None:
        _draw_magnitude(folder, frames[-1])
        return info.model_copy(update={"frame_times_s": times_s})
    truth, problem = truth_volume(found.truth, labels)
    if len(labels.table.names) > 2:
        from .report_classes import measured as classes_measured

        info = told(info, [Notice("warning", problem)] if problem else [])
        return classes_measured(folder, info, frames[-1], labels, truth)
    _draw_labels(folder, frames[-1], labels, truth)
    same_grid = all(frame.data.shape == labels.data.shape for frame in frames)
    magnitudes = [frame.magnitude for frame in frames] if same_grid else []
    update: dict[str, Any] = {
        "frame_times_s": times_s,
        "lesions": describe_lesions(labels.data, magnitudes, labels.geometry, labels.table, truth),
    }
    if truth is not None:
        update |= _agreement(labels, truth)
    return told(info, [Notice("warning", problem)] if problem else []).model_copy(update=update)


def _agreement(labels: Volume, truth: NDArray[np.uint8]) -> dict[str, Any]:
    """Dice of everything and of each lesion, and what was found where nothing is."""
    import numpy as np

    from ..output.runinfo import Score
    from ..segment.metrics import dice, false_positive_voxels, lesion_scores

    predicted = labels.data.astype(np.uint8)
    voxel_ml = float(np.prod(labels.geometry.voxel_size_mm)) / 1000
    overall = dice(predicted, truth)
    scores = [
        Score(name=f"lesion {i}", dice=s.dice, volume_ml=s.n_predicted * voxel_ml, truth_ml=s.n_truth * voxel_ml)
        for i, s in enumerate(lesion_scores(predicted, truth), start=1)
    ]
    return {
        "scores": tuple(scores),
        "dice": None if np.isnan(overall) else overall,
        "false_positive_ml": false_positive_voxels(predicted, truth) * voxel_ml,
    }


def _times_s(images: list[Image], recording: Path | None) -> tuple[float, ...]:
    """Beginning of each frame after the first; empty if the sender's clock or its tick is not known."""
    from ..mrd.images import frame_of
    from ..mrd.recovering import open_recording

    if recording is None:
        return ()
    with open_recording(recording) as source:
        tick_ms = source.scan.user_parameters.get("time_stamp_tick_ms")
    stamps = {frame_of(image): int(image.header["acquisition_time_stamp"]) for image in images}
    ticks = [stamps[frame] - stamps[min(stamps)] for frame in sorted(stamps)]
    is_rising = all(after > before for before, after in pairwise(ticks))
    if not isinstance(tick_ms, int | float) or not 0 < tick_ms < 1e6 or not is_rising:
        return ()
    return tuple(tick * tick_ms / 1000 for tick in ticks)


def _draw_magnitude(folder: Path, volume: Volume) -> None:
    from ..output.overlay import magnitude_gif, magnitude_png

    remove_overlays(folder, keep=set())
    magnitude_png(folder / "overview.png", volume.magnitude, volume.geometry, title="Magnitude, last frame")
    magnitude_gif(folder / "volume.gif", volume.magnitude, volume.geometry, title="Magnitude, last frame")


def _draw_labels(folder: Path, magnitude: Volume, labels: Volume, truth: NDArray[np.uint8] | None) -> None:
    """A picture of every slice with a lesion (found or true), a montage and a film."""
    import numpy as np

    from ..output.overlay import montage_png, overlay_gif, overlay_png

    if labels.table is None:
        return
    place, table, shown = magnitude.geometry, labels.table, magnitude.magnitude
    marked = labels.data > 0 if truth is None else (labels.data > 0) | (truth > 0)
    slices = [int(z) for z in np.flatnonzero(marked.any(axis=(1, 2)))]
    remove_overlays(folder, keep={z + 1 for z in slices})
    montage_png(folder / "overview.png", shown, labels.data, truth, table, place)
    overlay_gif(folder / "volume.gif", shown, labels.data, truth, table, place)
    window = (0.0, float(np.percentile(shown, 99.8)))
    for z in slices:
        path = folder / f"overlay_z{z + 1:02d}.png"
        true = None if truth is None else truth[z]
        overlay_png(path, shown[z], labels.data[z], true, table, place, z=z, window=window)


def _pictures_of(folder: Path, info: RunInfo) -> list[tuple[str, bytes]]:
    """Caption and content of the pictures in the folder: overview, film, and the slices that matter most."""
    if info.findings:
        named = [
            ("beating.gif", "the heartbeat: an image of the lines of each frame alone, the labels, the truth"),
            ("overview.png", "the frames with the largest and the smallest left ventricle"),
        ]
        return [(caption, (folder / name).read_bytes()) for name, caption in named if (folder / name).is_file()]
    numbers = {path: slice_of(path) for path in sorted(folder.glob("overlay_z*.png")) if slice_of(path)}
    slices = list(numbers)
    if info.classes:
        overview, chosen = "evenly spaced slices", slices[:: -(-len(slices) // MAX_SLICES) or 1]
    else:
        overview = "the slices with the largest lesions" if slices else "evenly spaced slices, no label map"
        largest = [lesion.largest_slice for lesion in info.lesions]
        slices.sort(key=lambda path: largest.index(numbers[path]) if numbers[path] in largest else len(largest))
        chosen = sorted(slices[:MAX_SLICES])
    n_more = len(slices) - len(chosen)
    pictures = [(folder / "overview.png", overview + (f"; {n_more} more in the folder" if n_more > 0 else ""))]
    pictures += [(path, f"slice {numbers[path]}") for path in chosen]
    pictures.append((folder / "volume.gif", "through the volume"))
    return [(caption, path.read_bytes()) for path, caption in pictures if path.is_file()]
