"""Damages MRD streams where it hurts, and watches what the codec, the session rules and the parsers make of them.

Run a million cases with ``python -m tests.fuzz --cases 1000000 --seed 1 --processes 2``.
"""
