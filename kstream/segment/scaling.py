"""The scale of k-space samples on their way into a network: the same function in training and in a stream."""

from __future__ import annotations

import math

import numpy as np

from ..types import Float


def sample_scale(values: Float) -> float:
    """Root mean square of complex samples that are stored as real and imaginary parts; 1 if all are zero.

    Samples over this number have no unit, and a receiver's gain plays no part any more. The rms of a fully sampled
    k-space is that of its image (Parseval), so values lie near those of paper 001, whose images reach to sqrt 2.

    Parameters
    ----------
    values : all samples of a slice (DiSK) or of an examination (k-MTR) so far, in any shape.
    """
    mean = float(np.mean(np.square(values, dtype=np.float64))) if values.size else 0.0
    return math.sqrt(2.0 * mean) or 1.0


def scaled_samples(values: Float) -> Float:
    """Samples over their `sample_scale`."""
    return np.asarray(values / np.float32(sample_scale(values)), np.float32)
