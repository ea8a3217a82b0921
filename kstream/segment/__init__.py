"""Takes contrast differences in k-space, gives label maps: patches, an engine, a strict majority vote."""

from .stage import Segment, segment_volume

__all__ = ["Segment", "segment_volume"]
