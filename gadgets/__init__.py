"""Takes a connection from Gadgetron, gives images: the callables that Gadgetron launches in its own chain.

::

    segment           acquisitions, buckets or buffers -> magnitude images and label images
    reconstruct       acquisitions, buckets or buffers -> magnitude images
    segment_images    arrays of complex images         -> the arrays as they are, and label images

Ready configurations are in ``config/``, how to install them in ``docs/gadgetron.md``.
"""

from .targets import reconstruct, segment, segment_images

__all__ = ["reconstruct", "segment", "segment_images"]
