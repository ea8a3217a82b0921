"""Takes nothing, gives what each tissue of the breast phantom is made of at 3 T."""

from __future__ import annotations

from dataclasses import dataclass

PARAMETERS = ("t1_ms", "t2_star_ms", "proton_density", "ktrans_per_min", "ve", "vp", "fat_fraction")


@dataclass(frozen=True)
class Tissue:
    """What a voxel is made of; relaxation at 3 T.

    Parameters
    ----------
    t1_ms, t2_star_ms : relaxation times of the water.
    proton_density : relative to water.
    ktrans_per_min, ve, vp : extended Tofts parameters.
    fat_fraction : part of the signal that fat suppression acts on.
    """

    t1_ms: float
    t2_star_ms: float
    proton_density: float
    ktrans_per_min: float = 0.0
    ve: float = 0.3
    vp: float = 0.0
    fat_fraction: float = 0.0


# T1 and T2* at 3 T after Rakow-Penner et al., JMRI 23:87 (2006), and Stanisz et al., MRM 54:507 (2005); rounded.
FAT = Tissue(t1_ms=380, t2_star_ms=30, proton_density=0.90, fat_fraction=0.97)
SKIN = Tissue(t1_ms=1050, t2_star_ms=15, proton_density=0.70, ktrans_per_min=0.05, ve=0.30, vp=0.02)
GLAND = Tissue(t1_ms=1400, t2_star_ms=35, proton_density=0.85, ktrans_per_min=0.02, ve=0.35, vp=0.01, fat_fraction=0.05)
NIPPLE = Tissue(t1_ms=1200, t2_star_ms=30, proton_density=0.85, ktrans_per_min=0.20, ve=0.35, vp=0.04)
MUSCLE = Tissue(t1_ms=1400, t2_star_ms=28, proton_density=0.80, ktrans_per_min=0.04, ve=0.12, vp=0.02)
BONE = Tissue(t1_ms=900, t2_star_ms=8, proton_density=0.45, ktrans_per_min=0.02, ve=0.20, vp=0.01, fat_fraction=0.5)
LUNG = Tissue(t1_ms=1200, t2_star_ms=1.5, proton_density=0.20, vp=0.08)
BLOOD = Tissue(t1_ms=1850, t2_star_ms=40, proton_density=0.90, vp=0.58)
VESSEL = Tissue(t1_ms=1700, t2_star_ms=35, proton_density=0.90, ktrans_per_min=0.10, ve=0.20, vp=0.45)
MYOCARDIUM = Tissue(t1_ms=1200, t2_star_ms=30, proton_density=0.80, ktrans_per_min=0.50, ve=0.22, vp=0.08)
LIVER = Tissue(t1_ms=800, t2_star_ms=20, proton_density=0.75, ktrans_per_min=0.35, ve=0.22, vp=0.12)
CYST = Tissue(t1_ms=3000, t2_star_ms=60, proton_density=1.00)
