"""Breast DCE.

`exam` (the whole), `protocol`, `anatomy` and `lesions` (what lies in the scanner), `kinetics` (how it enhances),
`scanner` (how it is sampled), `acquisitions` (what is written).
"""
