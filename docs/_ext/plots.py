"""How the pictures of the gallery look: grey on near black, so that they suit a light page and a dark one."""

from __future__ import annotations

from typing import Any

PAPER, INK, MUTED = "#0b0d10", "#e8ebf0", "#8b93a0"


def style(gallery_conf: dict[str, Any], script: str) -> None:
    """Called before each script of the gallery."""
    import matplotlib as mpl
    from cycler import cycler

    mpl.use("agg")
    dark = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
    light = ("text.color", "axes.labelcolor", "axes.titlecolor")
    mpl.rcParams.update(dict.fromkeys(dark, PAPER) | dict.fromkeys(light, INK))
    mpl.rcParams.update(dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), MUTED))
    mpl.rcParams.update(
        {
            "axes.prop_cycle": cycler(color=["#4cc9f0", "#ff8fa3", "#ffd166", "#80ed99", "#c77dff", "#f4a261"]),
            "axes.titlesize": 10,
            "figure.constrained_layout.use": True,
            "figure.dpi": 110,
            "image.cmap": "gray",
            "legend.frameon": False,
            "lines.linewidth": 1.4,
        }
    )
