"""Takes public data sets as they are published, gives exams of the one cache format (see `data`).

``fastmri_breast`` (acquired radial k-space, and its synthetic control), ``mama_mia`` (images). None downloads anything.
"""
