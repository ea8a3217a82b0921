"""Other reconstructions of the same scan, by name: ``radial-SCHEME-FACTOR`` and ``cg-sense-SCHEME-FACTOR``.

``radial-uniform-4`` keeps every fourth spoke and goes through the preset's own reconstruction, ``cg-sense-uniform-4``
solves for the image with coil maps and the trajectory: what a reconstruct-then-segment baseline gets.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import ConfigError
from ...types import Acquisition, Scan
from .radial import drop_spokes
from .undersampling import Scheme, kept_spokes

CG_SENSE = ("iterative.method=cg-sense",)
SCHEMES: tuple[Scheme, ...] = ("uniform", "contiguous", "random")


@dataclass(frozen=True)
class Variant:
    """Spokes that are kept, and settings of the pipeline that reconstructs them."""

    scheme: Scheme
    factor: float
    settings: tuple[str, ...] = ()

    def of(
        self, scan: Scan, acquisitions: Sequence[Acquisition], n_spokes: int, seed: int
    ) -> tuple[Scan, list[Acquisition], tuple[str, ...]]:
        """The scan with fewer spokes, and the settings to reconstruct it with; `seed` decides the random scheme."""
        kept = kept_spokes(n_spokes, self.factor, self.scheme, seed)
        return (*drop_spokes(scan, acquisitions, kept, n_spokes), self.settings)


def parse(name: str) -> Variant:
    """The variant of a name.

    Raises
    ------
    ConfigError : if there is none.
    """
    found = re.fullmatch(r"(radial|cg-sense)-(uniform|contiguous|random)-(\d+(?:\.\d+)?)", name)
    if found is None or float(found[3]) < 1:
        raise ConfigError(
            f"unknown variant {name!r}",
            where="data.variants",
            hint="radial-SCHEME-FACTOR or cg-sense-SCHEME-FACTOR; schemes: " + ", ".join(SCHEMES),
        )
    scheme = next(scheme for scheme in SCHEMES if scheme == found[2])
    return Variant(scheme, float(found[3]), CG_SENSE if found[1] == "cg-sense" else ())
