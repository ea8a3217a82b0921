"""Breast lesions.

``task`` (for the loop), ``data`` and ``variants`` (exams, and how they are undersampled: ``undersampling`` and
``radial``), ``augment``, ``losses``, ``evaluate``, ``export``; ``recipe`` (for the commands); the study: ``scenarios``,
``study_report``, ``figures``, ``pictures``.
"""
