"""Subjects of public data for the heart's task: their views, frames and pixels fitted to an experiment's protocol.

K-space is made from magnitudes with a synthetic phase, as papers 001 and 003 do; no scanner measured it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ConfigError, ScanError
from ...output.phenotypes import DISEASES, PHENOTYPES
from ...simulate.heart.protocol import CineProtocol
from ..readers.cine import CineStudy, CineView, synthetic_kspace_images
from ..readers.cine_cache import cached_subjects, load_study
from .data import Subject


def load_real(dataset: str, numbers: tuple[int, ...], protocol: CineProtocol, cache: Path) -> list[Subject]:
    """Subjects by their numbers among those of the cache.

    Raises
    ------
    ConfigError : a number that the cache does not have.
    ScanError : a subject that lacks views or labelled frames of the protocol.
    """
    paths = cached_subjects(dataset, cache)
    if wrong := [number for number in numbers if not 1 <= number <= len(paths)]:
        raise ConfigError(
            f"the cache has {len(paths)} subjects of {dataset}, and no number {wrong[0]}",
            where=str(cache / dataset),
            hint=f"python -m kstream.training read {dataset} FOLDER --cache {cache}",
        )
    return [real_subject(load_study(paths[number - 1]), protocol, number) for number in numbers]


def real_subject(study: CineStudy, protocol: CineProtocol, number: int) -> Subject:
    """A subject in the views, frames and pixels of a protocol.

    Of the short axes, as many as the protocol has, evenly from base to apex; labelled frames at even distances; the
    middle of each image, cut or filled up with zeros. Phenotypes and diseases of files are not known (NaN, False).

    Raises
    ------
    ScanError : views or labelled frames are missing.
    """
    rng = np.random.default_rng([number, 80])
    views = _chosen(study, protocol)
    images, labels = [], []
    for view in views:
        if view.labels is None or len(view.labelled_frames) < protocol.n_frames:
            raise ScanError(
                f"view {view.name} has {len(view.labelled_frames)} labelled frames, expected {protocol.n_frames}",
                where=study.subject,
                hint="a smaller data.protocol.n_frames; ACDC has 2",
            )
        places = np.linspace(0, len(view.labelled_frames), protocol.n_frames, endpoint=False).astype(int)
        frames = np.array(view.labelled_frames)[places]
        images.append(_fitted(synthetic_kspace_images(view, rng)[frames], protocol.matrix))
        labels.append(_fitted(view.labels[frames], protocol.matrix))
    unknown = np.full(len(PHENOTYPES), np.nan, np.float32)
    return Subject(number, np.stack(images), np.stack(labels), unknown, np.zeros(len(DISEASES), np.bool_))


def _chosen(study: CineStudy, protocol: CineProtocol) -> list[CineView]:
    by_name = {view.name: view for view in study.views}
    short = [view for view in study.views if view.name.startswith("sax")]
    wanted = [name for name in protocol.views if not name.startswith("sax")]
    if missing := [name for name in wanted if name not in by_name]:
        raise ScanError(f"the subject has no view {', '.join(missing)}", where=study.subject)
    if len(short) < protocol.n_short_axis:
        raise ScanError(f"{len(short)} short axes, expected {protocol.n_short_axis}", where=study.subject)
    n = protocol.n_short_axis
    picked = [short[int((i + 0.5) * len(short) / n)] for i in range(n)]
    return [*(by_name[name] for name in wanted), *picked]


def _fitted(frames: NDArray[Any], n: int) -> NDArray[Any]:
    """The middle ``n x n`` pixels of ``(frames, y, x)``, zeros where there are none."""
    out = np.zeros((len(frames), n, n), frames.dtype)
    height, width = frames.shape[1:]
    rows, columns = min(height, n), min(width, n)
    y, x = (height - rows) // 2, (width - columns) // 2
    v, u = (n - rows) // 2, (n - columns) // 2
    out[:, v : v + rows, u : u + columns] = frames[:, y : y + rows, x : x + columns]
    return out
