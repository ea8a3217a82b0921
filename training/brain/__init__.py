"""Brain tissues.

``task`` (for the loop), ``experiment``, ``heads`` (data), ``losses``, ``recipe`` (for the commands), ``export``; the
study: ``scenarios``, ``study_report``, ``published`` (the paper's numbers).
"""
