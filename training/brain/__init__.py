"""Brain tissues: ``task`` (for the loop), ``experiment``, ``heads`` (data), ``losses``, ``export``."""
