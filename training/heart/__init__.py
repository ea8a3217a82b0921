"""The heart.

``task`` with ``tasks`` (one for each method), ``experiment``, ``data``, ``losses``, ``metrics``, ``nnunet``.
"""
