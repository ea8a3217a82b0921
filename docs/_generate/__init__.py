"""Pieces of the reference, made from the code when the site is built; each module has ``page() -> str``."""
