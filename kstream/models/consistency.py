"""Data consistency: what was measured in k-space overrides, or pulls at, what a network made of it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from .fourier import as_channels, as_complex, channels_to_image, to_kspace

ConsistencyForm = Literal["hard", "soft", "learned"]


class DataConsistency(nn.Module):
    """Replace the k-space of an image where it was measured (Schlemper et al., IEEE TMI 2018, equation 6).

    With the measured samples y, the k-space k of the image and the sampled positions m::

        k' = k                          where m = 0
        k' = (k + weight y) / (1 + weight)   where m = 1

    Parameters
    ----------
    form : ``hard`` is the limit of a large weight, ``k' = y``; ``soft`` keeps `weight`; ``learned`` begins with it and
        trains its logarithm, so that it stays positive.
    weight : trust in the measurement; noisy data deserve less.

    Raises
    ------
    ValueError : for another form, or a weight that is not positive.
    """

    def __init__(self, form: ConsistencyForm = "hard", weight: float = 1.0) -> None:
        super().__init__()
        if form not in ("hard", "soft", "learned"):
            raise ValueError(f"consistency is hard, soft or learned, not {form!r}")
        if not weight > 0:
            raise ValueError(f"the weight of measured samples must be positive, not {weight}")
        self._form, self._weight = form, weight
        self.log_weight = nn.Parameter(torch.tensor(float(weight)).log()) if form == "learned" else None

    @property
    def share(self) -> Tensor | float:
        """Part of the difference to the measurement that is taken away: 1 for hard consistency."""
        if self.log_weight is not None:
            return self.log_weight.sigmoid()  # w / (1 + w) of w = exp(log_weight)
        return 1.0 if self._form == "hard" else self._weight / (1 + self._weight)

    def forward(self, image: Tensor, measured: Tensor, mask: Tensor) -> Tensor:
        """The image that agrees with the measurement.

        Parameters
        ----------
        image : ``(batch, 2 n, ..., y, x)``, real and imaginary parts interleaved; so is the result.
        measured : k-space of the same shape, 0 where nothing was measured.
        mask : ``(batch, 1, ..., y, x)``, 1 where something was.
        """
        kspace = as_channels(to_kspace(as_complex(image)))
        return channels_to_image(self.agree(kspace, measured, mask))

    def agree(self, kspace: Tensor, measured: Tensor, mask: Tensor) -> Tensor:
        """Equation 6 itself: the k-space of an image, and what was measured of it."""
        return kspace + mask * self.share * (measured - kspace)
