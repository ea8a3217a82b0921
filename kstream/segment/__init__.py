"""Takes contrast differences in k-space, gives label maps: patches, an engine, a strict majority vote."""

from .segmenter import LocalSegmenter, MissingModel, ModelInfo, Segmentation, Segmenter
from .stage import Segment
from .volume import STEPS, segment_volume

__all__ = [
    "STEPS",
    "LocalSegmenter",
    "MissingModel",
    "ModelInfo",
    "Segment",
    "Segmentation",
    "Segmenter",
    "segment_volume",
]
