"""From k-space samples in any order to labels of every frame of a cine slice (DiSK, paper 001)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import CineConfig
from ..errors import ConfigError, ModelError, ShapeError
from ..types import Complex, Findings, Float, FrameEnd, Geometry, LabelMap, Notice, Readout
from .cine import CineModel, CinePlan, Heart, KeptSamples, findings, no_signal, with_findings
from .scaling import scaled_samples

Labels = NDArray[np.uint8]

MAX_QUERIES = 2**20
"""Pixels that the network is asked for at once: 64 frames of 128 x 128, 16 MiB of logits of four classes."""


def sample_coordinates(trajectory: Float, frame: int, n_frames: int, plane: tuple[int, int]) -> Float:
    """Where samples lie, as the network wants it: float32 ``(samples, yxt)``, index over size, in ``[0, 1)``.

    Parameters
    ----------
    trajectory : ``(samples, xyz)`` in cycles per field of view; sample 0 of a Cartesian line is at ``-n // 2``.
    plane : ``(y, x)`` of the images.
    """
    ny, nx = plane
    coordinates = np.empty((len(trajectory), 3), np.float32)
    coordinates[:, 0] = (trajectory[:, 1] + ny // 2) / ny
    coordinates[:, 1] = (trajectory[:, 0] + nx // 2) / nx
    coordinates[:, 2] = frame / n_frames
    return coordinates


def frame_queries(
    frames: NDArray[np.integer], n_frames: int, plane: tuple[int, int], only: slice = slice(None)
) -> Float:
    """Coordinates of every pixel of some frames: float32 ``(frames * y * x, yxt)``.

    Parameters
    ----------
    only : a part of these pixels, counted frame by frame and row by row.
    """
    ny, nx = plane
    pixels = np.arange(*only.indices(len(frames) * ny * nx))
    frame, y, x = np.unravel_index(pixels, (len(frames), ny, nx))
    return np.stack([part.astype(np.float32) for part in (y / ny, x / nx, frames[frame] / n_frames)], axis=-1)


def real_values(samples: Complex) -> Float:
    """Real and imaginary part: float32 ``(samples, 2)``."""
    return np.stack((samples.real, samples.imag), axis=-1).astype(np.float32)


def label_frames(
    model: CineModel, coordinates: Float, values: Float, frames: NDArray[np.integer], plan: CinePlan
) -> Labels:
    """Labels of some frames from the samples of their slice: uint8 ``(frames, y, x)``.

    The network is asked for at most `MAX_QUERIES` pixels at a time, so that memory does not grow with the frames.

    Parameters
    ----------
    coordinates, values : `sample_coordinates` and `real_values` of all samples; their scale does not matter.

    Raises
    ------
    ModelError : the network fails, or gives something else than logits ``(1, classes, queries)``.
    """
    labels, values = np.empty((len(frames), *plan.plane), np.uint8), scaled_samples(values)
    for begin in range(0, labels.size, MAX_QUERIES):
        only = slice(begin, begin + MAX_QUERIES)
        queries = frame_queries(frames, plan.n_frames, plan.plane, only)
        logits, *_ = model.engine.run_arrays((coordinates[None], values[None], queries[None]))
        if logits.shape != (1, len(model.labels.names), len(queries)):
            raise ModelError(
                f"the model gave {logits.shape}, expected (1, {len(model.labels.names)}, {len(queries)})",
                likely="a bundle of another kind",
            )
        labels.reshape(-1)[only] = logits[0].argmax(axis=0)
    return labels


def check_plane(model: CineModel, plan: CinePlan) -> None:
    """Latents with places count cycles per field of view, so they fit one matrix only.

    Raises
    ------
    ConfigError : the scan has another.
    """
    expected = tuple(model.arguments["plane"])
    if model.arguments["located"] and expected != plan.plane:
        raise ConfigError(
            f"the model {model.name} does not fit the scan: plane is {plan.plane}, expected {expected}",
            where="cine.model",
            likely="it was trained for another protocol",
            hint="train one for this matrix: kstream train, data.protocol.matrix",
        )


@dataclass
class _Slice:
    """Samples of a slice, which of its frames are over, and which have any signal."""

    coordinates: list[Float] = field(default_factory=list)
    values: list[Float] = field(default_factory=list)
    ended: set[int] = field(default_factory=set)
    with_signal: set[int] = field(default_factory=set)
    geometry: Geometry | None = None
    n_readouts: int = 0
    n_bytes: int = 0
    received_ns: int = 0


class SegmentPoints:
    """Stage: collect the samples of each slice, label a frame again and again while they come, and all at the end.

    Updates use all samples of the slice so far, whatever frame they belong to, and label the frame of the latest one.
    When the last frame of a slice is over, all its frames are labelled from all samples (final labels); when the last
    slice is over, its labels carry the findings, which also go out by themselves. A slice without any signal has no
    labels, and that is an error.

    Parameters
    ----------
    model : a network of kind ``points``.
    plan : sizes of the scan.
    config : when to update.

    Raises
    ------
    ConfigError : see `check_plane`.
    """

    takes = (Readout, FrameEnd)
    gives = (LabelMap, FrameEnd, Findings, Notice)

    def __init__(self, model: CineModel, plan: CinePlan, config: CineConfig) -> None:
        check_plane(model, plan)
        self._model, self._plan, self._config = model, plan, config
        self._slices: dict[int, _Slice] = {}
        self._heart = Heart(plan, model.labels)
        self._kept = KeptSamples()
        self._last_ns = self._n_with_signal = 0
        self._has_told = False

    def push(self, item: Readout | FrameEnd) -> list[Any]:
        state = self._slices.setdefault(item.slice, _Slice())
        state.received_ns = self._last_ns = item.received_ns
        if isinstance(item, FrameEnd):
            return self._frame_ended(item, state)
        if item.data.shape[0] != 1:
            raise ShapeError(
                f"the model takes samples of one coil, not of {item.data.shape[0]}", hint="--set coils.compress=1"
            )
        plan = self._plan
        coordinates = sample_coordinates(item.trajectory, item.frame, plan.n_frames, plan.plane)
        values = real_values(item.data[0])
        self._kept.add(coordinates.nbytes + values.nbytes)
        state.n_bytes += coordinates.nbytes + values.nbytes
        state.coordinates.append(coordinates)
        state.values.append(values)
        state.geometry = item.geometry or state.geometry
        if values.any():
            state.with_signal.add(item.frame)
        state.n_readouts += 1
        due = self._config.update == "lines" and state.n_readouts % self._config.update_lines == 0
        return self._update(item.frame, item.slice, state) if due else []

    def finish(self) -> list[Any]:
        """What is left of a scan that ended early: labels of slices that lack frames, and findings."""
        left: list[Any] = []
        for number in sorted(self._slices):
            left += self._final(number, self._slices[number])
        self._slices.clear()
        return [*left, *self._told()]

    def _frame_ended(self, end: FrameEnd, state: _Slice) -> list[Any]:
        state.geometry = end.geometry
        state.ended.add(end.frame)
        if len(state.ended) == self._plan.n_frames:
            del self._slices[end.slice]
            maps = self._final(end.slice, state)
            self._kept.free(state.n_bytes)
            if not self._heart.is_whole:
                return [end, *maps]
            told = self._told()
            return [end, *with_findings(maps, told[0]), *told]
        return [end, *(self._update(end.frame, end.slice, state) if self._config.update == "frame" else [])]

    def _update(self, frame: int, number: int, state: _Slice) -> list[LabelMap]:
        return self._maps(number, state, np.array([frame]), is_final=False) if state.with_signal else []

    def _final(self, number: int, state: _Slice) -> list[Any]:
        if state.geometry is None or not state.values:
            return []
        self._n_with_signal += len(state.with_signal)
        if not state.with_signal:
            return [no_signal(number)]
        maps = self._maps(number, state, np.arange(self._plan.n_frames), is_final=True)
        self._heart.add(number, np.concatenate([m.labels for m in maps]), state.geometry)
        return maps

    def _maps(self, number: int, state: _Slice, frames: NDArray[np.integer], is_final: bool) -> list[LabelMap]:
        state.coordinates, state.values = [np.concatenate(state.coordinates)], [np.concatenate(state.values)]
        labels = label_frames(self._model, state.coordinates[0], state.values[0], frames, self._plan)
        provenance = {**self._model.provenance(), "samples": str(len(state.values[0]))}
        if state.geometry is None:
            return []
        return [
            LabelMap(
                one[None], self._model.labels, int(frame), number, state.received_ns, state.geometry, provenance,
                is_final,
            )
            for frame, one in zip(frames, labels, strict=True)
        ]  # fmt: skip

    def _told(self) -> list[Findings]:
        """The findings, once, if there are any labels."""
        if self._has_told or not self._n_with_signal:
            return []
        self._has_told = True
        frames = self._n_with_signal, self._plan.n_slices * self._plan.n_frames
        return [findings(self._model, frames, self._heart.phenotypes(), None, None, self._last_ns)]
