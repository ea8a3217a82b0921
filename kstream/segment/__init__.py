"""Takes contrast differences in k-space, gives label maps: patches, an engine, a strict majority vote."""

from .segmenter import LocalSegmenter, MissingModel, ModelInfo, Segmentation, Segmenter
from .stage import Segment
from .volume import segment_volume

__all__ = [
    "LocalSegmenter",
    "MissingModel",
    "ModelInfo",
    "Segment",
    "Segmentation",
    "Segmenter",
    "segment_volume",
]
