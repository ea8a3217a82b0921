"""Heart, cine.

`exam` (the whole), `protocol`, `subject` and `cycle` (who it is and how it beats), `anatomy`, `chest` and `tissue`,
`views` and `images` (what a plane shows), `lines` (what is measured), `scanner`, `acquisitions`; `dataset` gives
training images without acquisitions.
"""
