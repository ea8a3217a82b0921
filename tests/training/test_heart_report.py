"""The heart's report: tables from rows of scores, curves, and t-SNE that keeps groups apart."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

from kstream.errors import ShapeError
from kstream.output.phenotypes import DISEASES, PHENOTYPES
from kstream.training.heart.published import PHENOTYPES_003
from kstream.training.heart.study_report import draw_latent, report
from kstream.training.heart.tsne import neighbour_probabilities, tsne
from kstream.training.study import Study

STUDIES = sorted((Path(__file__).parents[2] / "training" / "studies").glob("heart-*.toml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_study_files_are_valid_and_have_a_hundred_test_subjects(path: Path, tmp_path: Path) -> None:
    study = Study(path, tmp_path)
    assert len(study.first.experiment.cohorts[study.evaluation.cohort].seeds) >= 100
    for run in study.runs(seeds=study.file.seeds[:1]):
        assert run.recipe.facts()["method"] == run.experiment.method


def rows_of(arm: str, error: float) -> list[dict[str, str]]:
    """Two seeds of eleven subjects in four scenarios; phenotypes are wrong by 0.5 to 1.5 times `error`."""
    rows = []
    for seed in (1, 2):
        for subject in range(11):
            for scenario in ("lines-4", "lines-16", "moved-4", "moved-16"):
                row: dict[str, str] = {"model": arm, "fold": str(seed), "subject": str(subject), "scenario": scenario}
                row |= {"dice": f"{0.9 - error / 10}", "hausdorff_px": f"{1 + error}", "dice_LV_cavity": "0.8"}
                row |= {"hausdorff_LV_cavity_px": "3.5", "psnr_db": f"{30 - error}"}
                off = error * (0.5 + subject / 10)
                row |= {f"found_{name}": f"{100 + subject + off}" for name in PHENOTYPES}
                row |= {f"true_{name}": f"{100 + subject}" for name in PHENOTYPES}
                row |= {f"chance_{name}": f"{subject / 10}" for name in DISEASES}
                row |= {f"true_{name}": str(float(subject > 6)) for name in DISEASES}
                rows.append(row)
    return rows


def test_tables_hold_our_numbers_beside_the_papers(tmp_path: Path) -> None:
    mpl.use("Agg")
    tables, figures = report([*rows_of("kmtr", 1.0), *rows_of("mae", 2.0)], tmp_path)
    first = tables["Mean absolute error of phenotypes (spread)"][0]
    assert (first["kmtr"], first["mae"]) == ("1.00 (0.32)", "2.00 (0.63)")
    assert (first["paper: k-MTR"], first["paper: mean guess"]) == ("8.15 (11.11)", "25.01 (20.49)")
    tests = tables["Phenotypes: absolute errors compared"]
    assert {row["wins/losses"] for row in tests} == {"11/0"}  # the smaller error wins
    assert len(tests) == len(PHENOTYPES)
    ratio = tables["Phenotypes: error over that of the mean [95 % bootstrap interval]"][0]
    assert ratio["kmtr"].startswith(f"{11 / 30:.3f} [")  # the truth is 100 to 110, 30 / 11 from its mean
    assert ratio["mae"].startswith(f"{22 / 30:.3f} [")
    diseases = tables["Diseases (AUC, average precision, F1)"]
    assert {row["AUC"] for row in diseases if row["arm"] == "kmtr"} == {"1.000"}
    assert {row["arm"] for row in diseases} >= {"kmtr", "mae", "paper: k-MTR"}
    dice = {row["scenario"]: row for row in tables["Dice and Hausdorff distance beside paper 001"]}
    assert dice["lines-16"]["kmtr"] == "0.800 (0.000); 2.00 (0.00)"
    assert dice["lines-16"]["paper: DiSK"].startswith("0.903")
    assert dice["moved-16"]["paper: DiSK"] == "-"
    assert tables["Dice by class"][0] == {"arm": "kmtr", "scenario": "lines-4", "LV_cavity": "0.800 (0.000)"}
    assert [path.stem for path in figures] == ["dice-lines", "dice-moved", "hausdorff_px-lines", "hausdorff_px-moved"]
    assert all(path.stat().st_size > 1000 for path in figures)


def test_errors_of_two_seeds_do_not_cancel(tmp_path: Path) -> None:
    """The mean of two networks' errors is not the error of their mean, which would be an ensemble's."""
    mpl.use("Agg")
    rows = [*rows_of("kmtr", 1.0), *rows_of("mae", 2.0)]
    opposite = [
        row | ({f"found_{n}": f"{2 * float(row[f'true_{n}']) - float(row[f'found_{n}'])}" for n in PHENOTYPES}
               | {f"chance_{n}": f"{1 - float(row[f'chance_{n}'])}" for n in DISEASES} if row["fold"] == "2" else {})
        for row in rows
    ]  # fmt: skip
    tables, again = report(rows, tmp_path)[0], report(opposite, tmp_path)[0]
    names = "Mean absolute error of phenotypes (spread)", "Phenotypes: absolute errors compared"
    for name in (*names, "Phenotypes: error over that of the mean [95 % bootstrap interval]"):
        assert tables[name] == again[name]
    diseases = again["Diseases (AUC, average precision, F1)"]
    assert {row["AUC"] for row in diseases if row["arm"] == "kmtr"} == {"0.500"}  # of 1 and 0


def test_a_study_of_one_acceleration_is_not_that_of_paper_001(tmp_path: Path) -> None:
    mpl.use("Agg")
    rows = [row for row in rows_of("kmtr", 1.0) if row["scenario"] != "lines-16"]
    assert "Dice and Hausdorff distance beside paper 001" not in report(rows, tmp_path)[0]


def test_arms_without_an_answer_have_no_place_in_its_table(tmp_path: Path) -> None:
    mpl.use("Agg")
    plain = ("model", "fold", "subject", "scenario", "dice", "hausdorff_px")
    rows = [{key: row[key] for key in plain} for row in rows_of("disk", 1.0)]
    tables, _ = report(rows, tmp_path)
    assert set(tables) == {"Dice and Hausdorff distance beside paper 001"}


def test_published_tables_name_the_phenotypes() -> None:
    assert tuple(PHENOTYPES_003) == PHENOTYPES


def test_neighbours_have_the_perplexity_that_was_asked_for() -> None:
    points = np.random.default_rng(1).standard_normal((31, 7)) ** 3
    near = neighbour_probabilities(points, 6.0)
    assert near.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(near, near.T)
    assert not near.diagonal().any()
    even = neighbour_probabilities(np.eye(9), 6.0)  # all at the same distance
    np.testing.assert_allclose(even[~np.eye(9, dtype=bool)], 1 / 72, rtol=1e-6)


def test_tsne_keeps_groups_apart_and_neighbours_together(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    groups = np.repeat(np.arange(3), 20)
    points = 6.0 * np.eye(3, 9)[groups] + rng.standard_normal((60, 9))
    places = tsne(points, perplexity=8, steps=300)
    distance = np.linalg.norm(places[:, None] - places, axis=-1) + 1e9 * np.eye(60)
    assert (groups[distance.argmin(axis=1)] == groups).mean() > 0.95
    np.testing.assert_allclose(places.mean(axis=0), 0, atol=1e-9)
    mpl.use("Agg")
    path = draw_latent(places, rng.random((60, 18)), tmp_path / "latent.png", "kmtr")
    assert path.stat().st_size > 1000
    with pytest.raises(ShapeError):
        tsne(points[:4])
