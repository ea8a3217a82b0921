"""Takes a seed, gives one person's heart in numbers: size, function, and the three diseases that follow from them.

Means and spreads follow the reference values of UK Biobank (Petersen et al., J Cardiovasc Magn Reson 19:18 (2017)),
rounded. Everything is log-normal or normal around the mean of the sex, scaled by body surface.

Diseases follow a liability-threshold model. A liability is ``sqrt(h) s + sqrt(1 - h) e``: `s` is a standardised sum of
traits of the three-dimensional heart (`disease_scores`), `e` standard normal and seen in no image, and the label is a
liability above the threshold that gives the prevalence of paper 003, table 2. A classifier of perfect sight therefore
reaches a known area under the curve, which is less than 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from scipy.stats import norm

from ...output.phenotypes import DISEASES, PHENOTYPES

PREVALENCE: Mapping[str, float] = MappingProxyType(dict(zip(DISEASES, (0.074, 0.258, 0.208), strict=True)))
EXPLAINED: Mapping[str, float] = MappingProxyType(dict(zip(DISEASES, (0.5, 0.3, 0.4), strict=True)))
"""Part `h` of the variance of each liability that the heart explains."""

_BY_SEX = {  # means: male, female
    "bsa_m2": (2.0, 1.75),
    "edv_index_ml": (83.0, 73.0),
    "ef": (0.58, 0.61),
    "mass_index_g": (55.0, 44.0),
    "rv_edv_index_ml": (91.0, 79.0),
}
_SPREAD = {"edv": 0.14, "mass": 0.13, "ef": 0.05, "atrium": 0.20, "atrial_ef": 0.06, "heart_rate": 0.14}


@dataclass(frozen=True)
class HeartSubject:
    """One person's heart; volumes of blood are those of the three-dimensional model at its end-diastole and -systole.

    Parameters
    ----------
    is_male, bsa_m2 : sex and body surface.
    heart_rate_bpm : beats per minute.
    lv_edv_ml, lv_esv_ml, lv_mass_g : left ventricle; the mass is that of its wall.
    rv_edv_ml, rv_esv_ml : right ventricle.
    la_max_ml, la_min_ml, ra_max_ml, ra_min_ml : atria.
    longitudinal_shortening : part of its length by which the left ventricle shortens.
    hypokinesia : 0 for a wall that moves alike everywhere, 1 for a territory that hardly moves in.
    territory_rad : where that territory lies, counted from the septum towards anterior.
    residuals : standard normal part of each disease's liability that is not in the heart.
    """

    is_male: bool
    bsa_m2: float
    heart_rate_bpm: float
    lv_edv_ml: float
    lv_esv_ml: float
    lv_mass_g: float
    rv_edv_ml: float
    rv_esv_ml: float
    la_max_ml: float
    la_min_ml: float
    ra_max_ml: float
    ra_min_ml: float
    longitudinal_shortening: float
    hypokinesia: float
    territory_rad: float
    residuals: tuple[float, float, float]

    def phenotypes(self) -> dict[str, float]:
        """The eighteen phenotypes of the three-dimensional heart, by the names in `PHENOTYPES`."""
        pairs = (
            (self.lv_edv_ml, self.lv_esv_ml),
            (self.rv_edv_ml, self.rv_esv_ml),
            (self.la_max_ml, self.la_min_ml),
            (self.ra_max_ml, self.ra_min_ml),
        )
        lv, rv, la, ra = ((large, small, large - small, 100 * (1 - small / large)) for large, small in pairs)
        output = lv[2] * self.heart_rate_bpm / 1000
        values = (*lv, output, self.lv_mass_g, *rv, *la, *ra)
        return dict(zip(PHENOTYPES, values, strict=True))

    def liabilities(self) -> dict[str, float]:
        """Standard normal liability of each disease."""
        return {
            name: float(np.sqrt(EXPLAINED[name]) * score + np.sqrt(1 - EXPLAINED[name]) * residual)
            for (name, score), residual in zip(disease_scores(self).items(), self.residuals, strict=True)
        }

    def diseases(self) -> dict[str, bool]:
        """Which diseases this person has."""
        return {name: value > float(norm.isf(PREVALENCE[name])) for name, value in self.liabilities().items()}


def disease_scores(subject: HeartSubject) -> dict[str, float]:
    """What the heart says about each disease, of zero mean and unit variance over the population.

    ===================== =====================================================================================
    coronary disease      hypokinesia of a territory (0.8), low ejection fraction (0.6)
    high blood pressure   thick wall: mass for size (0.8), fast heart (0.6)
    hypertension          thick wall (0.7), large left atrium for size (0.6), little shortening (0.39)
    ===================== =====================================================================================
    """
    z = _standardised(subject)
    return {
        "coronary_artery_disease": 0.8 * z["hypokinesia"] - 0.6 * z["ef"],
        "high_blood_pressure": 0.8 * z["mass"] + 0.6 * z["heart_rate"],
        "hypertension": 0.7 * z["mass"] + 0.6 * z["atrium"] - 0.3873 * z["shortening"],
    }


def _standardised(subject: HeartSubject) -> dict[str, float]:
    """Traits as standard normal numbers: how far this heart is from the mean of its sex and size."""
    ef = 1 - subject.lv_esv_ml / subject.lv_edv_ml
    means = {name: values[0 if subject.is_male else 1] for name, values in _BY_SEX.items()}
    edv_z = np.log(subject.lv_edv_ml / subject.bsa_m2 / means["edv_index_ml"]) / _SPREAD["edv"]
    mass_log = np.log(subject.lv_mass_g / subject.bsa_m2 / means["mass_index_g"])
    atrium_log = np.log(subject.la_max_ml / subject.bsa_m2 / 38.0)
    return {
        "hypokinesia": float(norm.ppf(np.clip(subject.hypokinesia, 1e-6, 1 - 1e-6))),
        "ef": (ef - means["ef"]) / _SPREAD["ef"],
        "mass": float(mass_log - 0.05 * edv_z) / _SPREAD["mass"],
        "heart_rate": float(np.log(subject.heart_rate_bpm / 62.0)) / _SPREAD["heart_rate"],
        "atrium": float(atrium_log - 0.05 * edv_z) / _SPREAD["atrium"],
        "shortening": (subject.longitudinal_shortening - 0.16) / 0.018,
    }


def draw_subject(rng: np.random.Generator) -> HeartSubject:
    """One person of the population."""
    is_male = bool(rng.random() < 0.48)
    means = {name: values[0 if is_male else 1] for name, values in _BY_SEX.items()}
    bsa = means["bsa_m2"] * float(np.exp(0.08 * _bounded(rng)))
    edv_z, mass_z, ef_z, la_z, ra_z, rv_z = (_bounded(rng) for _ in range(6))
    edv = means["edv_index_ml"] * bsa * float(np.exp(_SPREAD["edv"] * edv_z))
    mass = means["mass_index_g"] * bsa * float(np.exp(_SPREAD["mass"] * mass_z + 0.05 * edv_z))
    stroke = edv * (means["ef"] + _SPREAD["ef"] * ef_z)
    rv_edv = max(means["rv_edv_index_ml"] * bsa * float(np.exp(0.11 * edv_z + 0.09 * rv_z)), 1.45 * stroke)
    rv_stroke = min(stroke * float(np.exp(0.05 * _bounded(rng))), 0.72 * rv_edv)
    la_max = 38.0 * bsa * float(np.exp(_SPREAD["atrium"] * la_z + 0.05 * edv_z))
    ra_max = 43.0 * bsa * float(np.exp(_SPREAD["atrium"] * (0.5 * la_z + 0.85 * ra_z) + 0.05 * edv_z))
    la_ef, ra_ef = 0.60 + _SPREAD["atrial_ef"] * _bounded(rng), 0.46 + _SPREAD["atrial_ef"] * _bounded(rng)
    return HeartSubject(
        is_male=is_male,
        bsa_m2=bsa,
        heart_rate_bpm=62.0 * float(np.exp(_SPREAD["heart_rate"] * _bounded(rng))),
        lv_edv_ml=edv,
        lv_esv_ml=edv - stroke,
        lv_mass_g=mass,
        rv_edv_ml=rv_edv,
        rv_esv_ml=rv_edv - rv_stroke,
        la_max_ml=la_max,
        la_min_ml=la_max * (1 - la_ef),
        ra_max_ml=ra_max,
        ra_min_ml=ra_max * (1 - ra_ef),
        longitudinal_shortening=0.16 + 0.018 * _bounded(rng),
        hypokinesia=float(norm.cdf(rng.standard_normal())),
        territory_rad=float(rng.uniform(-np.pi, np.pi)),
        residuals=(float(rng.standard_normal()), float(rng.standard_normal()), float(rng.standard_normal())),
    )


def _bounded(rng: np.random.Generator) -> float:
    """A standard normal number; beyond three it is three, so that every heart can be built."""
    return float(np.clip(rng.standard_normal(), -3.0, 3.0))
