"""Breast lesions.

``task`` (for the loop), ``data`` and ``variants`` (exams, and how they are undersampled: ``undersampling`` and
``radial``), ``augment``, ``losses``, ``evaluate``, ``export``; the study: ``study``, ``scenarios``, ``study_report``,
``figures``, ``pictures``.
"""
