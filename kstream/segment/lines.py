"""From the phase-encode lines of all slices to labels, phenotypes and class probabilities (k-MTR, paper 003)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import CineConfig
from ..errors import ConfigError, ModelError, ScanError, ShapeError
from ..output.phenotypes import PHENOTYPES
from ..types import Complex, Findings, Float, FrameEnd, Geometry, LabelMap, Notice, Readout
from .cine import CineModel, CinePlan, Heart, KeptSamples, disease_probabilities, findings, no_signal, with_findings
from .scaling import scaled_samples


def line_place(trajectory: Float, frame: int, number: int, plane: tuple[int, int]) -> tuple[int, int, int]:
    """Slice, frame and line number of a Cartesian line.

    Raises
    ------
    ScanError : the readout is no line along x on the grid.
    ShapeError : it has another number of samples than the images have columns.
    """
    ny, nx = plane
    if len(trajectory) != nx:
        raise ShapeError(
            f"the line has {len(trajectory)} samples, and the model takes {nx}",
            likely="an asymmetric echo, or oversampling along x that was not removed",
            hint="--set readouts.remove_oversampling=true",
        )
    ky = float(trajectory[0, 1]) + ny // 2
    if float(np.ptp(trajectory[:, 1])) > 1e-3 or abs(ky - round(ky)) > 1e-2 or not 0 <= round(ky) < ny:
        raise ScanError(
            "the model takes Cartesian lines along x, and this readout is none",
            likely="a radial scan",
            hint="a model that takes samples anywhere: preset cine-disk",
        )
    if float(np.abs(trajectory[:, 0] - (np.arange(nx) - nx // 2)).max()) > 1e-2:
        raise ScanError(
            "the samples of this line do not lie on the grid along x",
            likely="a readout that runs backwards, or was sampled on a ramp",
            hint="a model that takes samples anywhere: preset cine-disk",
        )
    return number, frame, round(ky)


def line_values(samples: Complex) -> Float:
    """One line as the network wants it: real parts, then imaginary parts, float32 ``(2 * samples,)``."""
    return np.concatenate((samples.real, samples.imag)).astype(np.float32)


@dataclass
class _Lines:
    """Lines of all slices, and what is known of each slice: place, frames that are over, frames that have any signal.

    A line that is measured again counts with its mean.
    """

    sums: dict[tuple[int, ...], Float] = field(default_factory=dict)
    counts: dict[tuple[int, ...], int] = field(default_factory=dict)
    geometries: dict[int, Geometry] = field(default_factory=dict)
    ended: dict[int, set[int]] = field(default_factory=dict)
    with_signal: dict[int, set[int]] = field(default_factory=dict)
    n_received: int = 0
    received_ns: int = 0

    def add(self, place: tuple[int, ...], values: Float) -> bool:
        """Take a line; whether it is the first at its place."""
        self.n_received += 1
        is_new = place not in self.sums
        self.sums[place] = values if is_new else self.sums[place] + values
        self.counts[place] = self.counts.get(place, 0) + 1
        if values.any():
            self.with_signal.setdefault(place[0], set()).add(place[1])
        return is_new

    def arrays(self) -> tuple[Float, Float]:
        """Places ``(n, 3)`` and values ``(n, 2 nx)`` of all slices that have any signal."""
        places = [place for place in self.sums if place[0] in self.with_signal]
        counts = np.array([self.counts[place] for place in places], np.float32)
        return np.array(places, np.float32), np.stack([self.sums[place] for place in places]) / counts[:, None]


@dataclass(frozen=True)
class LineAnalysis:
    """What the network gave for a set of lines.

    Parameters
    ----------
    labels : uint8 ``(slices, frames, y, x)``.
    phenotypes, disease_logits : ``(18,)`` and ``(3,)``; None if the network has no such head.
    """

    labels: NDArray[np.uint8]
    phenotypes: Float | None
    disease_logits: Float | None


def analyse_lines(model: CineModel, places: Float, values: Float, plan: CinePlan) -> LineAnalysis:
    """Run the network on lines ``(n, 3)`` and ``(n, 2 nx)`` of one subject; the scale of the values does not matter.

    Raises
    ------
    ModelError : the network fails, or was made for a scan of another size.
    """
    given = scaled_samples(values)[None], places[None]
    outputs = dict(zip(model.outputs, model.engine.run_arrays(given), strict=True))
    expected = (1, plan.n_slices, len(model.labels.names), plan.n_frames, *plan.plane)
    logits = outputs.get("segmentation")
    if logits is None or logits.shape != expected:
        raise ModelError(
            f"the model gave {None if logits is None else logits.shape}, expected {expected}",
            likely="it was trained for another number of views, frames or voxels",
            hint="kstream models show",
        )
    regression, classes = outputs.get("regression"), outputs.get("classification")
    return LineAnalysis(
        logits[0].argmax(axis=1).astype(np.uint8),
        None if regression is None else regression[0],
        None if classes is None else classes[0],
    )


def check_fit(model: CineModel, plan: CinePlan) -> None:
    """Refuse a scan that the network was not built for, before k-space comes.

    Raises
    ------
    ConfigError : another number of slices, frames, pixels, or long-axis views.
    """
    arguments = model.arguments
    wanted = {"n_slices": arguments["n_slices"], "n_frames": arguments["n_frames"], "plane": tuple(arguments["plane"])}
    found = {"n_slices": plan.n_slices, "n_frames": plan.n_frames, "plane": plan.plane}
    if plan.views:
        n_long = int(arguments["n_long_axis"])
        wanted["views"] = " ".join("long" if n < n_long else "sax" for n in range(plan.n_slices))
        found["views"] = " ".join("sax" if view.startswith("sax") else "long" for view in plan.views)
    wrong = [name for name in wanted if wanted[name] != found[name]]
    if wrong:
        raise ConfigError(
            f"the model {model.name} does not fit the scan: "
            + "; ".join(f"{name} is {found[name]}, expected {wanted[name]}" for name in wrong),
            where="cine.model",
            likely="it was trained for another protocol",
            hint="kstream models show; preset cine-disk takes any number of slices and frames",
        )


class AnalyseLines:
    """Stage: collect Cartesian lines, label a frame again and again while they come, and tell everything at the end.

    Every run uses all lines of all slices so far: the encoder takes any number of them. A line that is measured again
    is averaged. A slice without any signal has no labels, and that is an error; phenotypes and probabilities that the
    network gives by itself are told only if every slice has come with a signal.

    Parameters
    ----------
    model : a network of kind ``lines``.
    plan : sizes of the scan.
    config : when to update.

    Raises
    ------
    ConfigError : the network was built for another scan (`check_fit`).
    """

    takes = (Readout, FrameEnd)
    gives = (LabelMap, FrameEnd, Findings, Notice)

    def __init__(self, model: CineModel, plan: CinePlan, config: CineConfig) -> None:
        check_fit(model, plan)
        self._model, self._plan, self._config = model, plan, config
        self._lines, self._kept = _Lines(), KeptSamples()
        self._is_over = False

    def push(self, item: Readout | FrameEnd) -> list[Any]:
        lines = self._lines
        lines.received_ns = item.received_ns
        if isinstance(item, FrameEnd):
            return self._frame_ended(item)
        if item.data.shape[0] != 1:
            raise ShapeError(
                f"the model takes lines of one coil, not of {item.data.shape[0]}", hint="--set coils.compress=1"
            )
        place, values = line_place(item.trajectory, item.frame, item.slice, self._plan.plane), line_values(item.data[0])
        if lines.add(place, values):
            self._kept.add(values.nbytes)
        if item.geometry is not None:
            lines.geometries[item.slice] = item.geometry
        due = self._config.update == "lines" and lines.n_received % self._config.update_lines == 0
        return self._update(item.frame, item.slice) if due else []

    def finish(self) -> list[Any]:
        """What is left of a scan that ended early: everything from the lines that came."""
        return self._final() if self._lines.sums and not self._is_over else []

    def _frame_ended(self, end: FrameEnd) -> list[Any]:
        lines = self._lines
        lines.geometries[end.slice] = end.geometry
        lines.ended.setdefault(end.slice, set()).add(end.frame)
        n_ended = sum(len(frames) for frames in lines.ended.values())
        if n_ended == self._plan.n_slices * self._plan.n_frames:
            return [end, *self._final()]
        return [end, *(self._update(end.frame, end.slice) if self._config.update == "frame" else [])]

    def _update(self, frame: int, number: int) -> list[LabelMap]:
        if number not in self._lines.with_signal:
            return []
        made = analyse_lines(self._model, *self._lines.arrays(), self._plan)
        return [self._map(made.labels[number, frame], frame, number, is_final=False)]

    def _final(self) -> list[Any]:
        self._is_over = True
        lines, plan = self._lines, self._plan
        numbers = sorted(lines.with_signal.keys() & lines.geometries.keys())
        notices = [no_signal(number) for number in sorted(lines.geometries) if number not in numbers]
        if not numbers:
            return notices
        made = analyse_lines(self._model, *lines.arrays(), plan)
        heart = Heart(plan, self._model.labels)
        for number in numbers:
            heart.add(number, made.labels[number], lines.geometries[number])
        predicted, chances = _of_the_heart(made)
        if not heart.is_whole and (predicted or chances):
            predicted, chances = (found and dict.fromkeys(found) for found in (predicted, chances))
            notices.append(_withheld(len(numbers), plan.n_slices))
        frames = sum(map(len, lines.with_signal.values())), plan.n_slices * plan.n_frames
        told = findings(self._model, frames, heart.phenotypes(), predicted, chances, lines.received_ns)
        maps = [
            self._map(made.labels[number, frame], frame, number, is_final=True)
            for number in numbers
            for frame in range(plan.n_frames)
        ]
        return [*notices, *with_findings(maps, told), told]

    def _map(self, labels: NDArray[np.uint8], frame: int, number: int, is_final: bool) -> LabelMap:
        lines = self._lines
        provenance = {**self._model.provenance(), "lines": str(lines.n_received)}
        return LabelMap(
            labels[None], self._model.labels, frame, number, lines.received_ns, lines.geometries[number], provenance,
            is_final,
        )  # fmt: skip


def _of_the_heart(made: LineAnalysis) -> tuple[Mapping[str, float | None] | None, Mapping[str, float | None] | None]:
    """Phenotypes and probabilities by name; None if the network has no such head."""
    predicted: dict[str, float | None] | None = None
    if made.phenotypes is not None:
        predicted = {n: round(float(v), 2) for n, v in zip(PHENOTYPES, made.phenotypes, strict=True)}
    return predicted, None if made.disease_logits is None else disease_probabilities(made.disease_logits)


def _withheld(n_slices: int, n_planned: int) -> Notice:
    """Why the network's own phenotypes and probabilities are not told."""
    came = f"{n_slices} of {n_planned} slices have come with a signal"
    return Notice("warning", f"{came}: phenotypes and probabilities of the network need all, and are not told")
