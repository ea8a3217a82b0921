"""Takes acquisitions in any order, gives readouts that know their place in k-space and their frame."""
