"""placeholder until written"""


def command() -> None:
    """Demo."""
