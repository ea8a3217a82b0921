"""Takes k-space of frames, gives what an image network sees: folding of time, and the choice of image channels."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from .fourier import channels_to_image, magnitude

ImageForm = Literal["complex", "magnitude"]


def image_channels(form: ImageForm) -> int:
    """Channels of `to_frames`.

    Raises
    ------
    ValueError : for another form.
    """
    if form not in ("complex", "magnitude"):
        raise ValueError(f"image is complex or magnitude, not {form!r}")
    return 2 if form == "complex" else 1


def to_frames(kspace: Tensor, form: ImageForm) -> Tensor:
    """Zero-filled images of k-space, real and imaginary part or magnitude.

    Parameters
    ----------
    kspace : ``(batch, 2, y, x)`` or ``(batch, 2, time, y, x)``; y and x are centred Fourier axes.

    Returns
    -------
    ``(batch, 2, ...)`` for ``complex``, ``(batch, 1, ...)`` for ``magnitude``; the other axes as they were.
    """
    image = channels_to_image(kspace)
    return image if form == "complex" else magnitude(image)


def sampled(kspace: Tensor) -> Tensor:
    """Which lines were measured: ``(batch, 1, ..., y, 1)``, 1 for a line with any sample that is not exactly 0."""
    return (kspace != 0).any(dim=1, keepdim=True).any(dim=-1, keepdim=True).to(kspace.dtype)


def fold_slices(kspace: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, int | None]:
    """K-space and mask of single slices, as networks of two inputs take them.

    Parameters
    ----------
    kspace : ``(batch, 2, y, x)``, or ``(batch, 2, z, y, x)`` whose slices become a longer batch.
    mask : ``(batch, 1, ...)`` that fits it, 1 where something was measured; None: what `sampled` finds.

    Returns
    -------
    K-space ``(slices, 2, y, x)``, mask ``(slices, 1, y, x)`` (or of one column), and what `unfold_time` needs.
    """
    folded, n_slices = fold_time(kspace)
    return folded, fold_time(sampled(kspace) if mask is None else mask)[0], n_slices


def fold_time(frames: Tensor) -> tuple[Tensor, int | None]:
    """``(batch, channels, time, y, x)`` to ``(batch * time, channels, y, x)`` and the number of frames.

    Without a time axis the frames stay as they are, and the number is None.
    """
    if frames.ndim == 4:
        return frames, None
    return frames.movedim(2, 1).flatten(0, 1), int(frames.shape[2])


def unfold_time(frames: Tensor, n_frames: int | None) -> Tensor:
    """The inverse of `fold_time`."""
    return frames if n_frames is None else frames.reshape(-1, n_frames, *frames.shape[1:]).movedim(1, 2)
