"""The study of the brain task: from data to the paper's tables, its claims, and what is refused."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from kstream.cli import app
from kstream.errors import ConfigError, RecordingError, ScanError
from kstream.training.brain.published import TABLE_1, TABLE_2, method_of
from kstream.training.brain.scenarios import noise_of
from kstream.training.brain.study_report import Arm, claim_table, claims
from kstream.training.recipes import load_recipe
from kstream.training.scores import arrange, read_rows, write_rows
from kstream.training.study import Study, all_rows
from kstream.training.study_report import study_facts, write_report

STUDIES = Path(__file__).parents[2] / "training" / "studies"

STUDY = """
task = "brain"
name = "tiny"
description = "as small as a study gets"
seeds = [1, 2]

[data]
noise = [0.1, 0.2]
n_centre = 6
protocol = { matrix = [20, 24], voxel_mm = [9.0, 9.0, 8.0], n_slices = 3 }

[cohorts]
train = { seeds = "1-2" }
validation = { seeds = "11" }
paper = { seeds = "21" }
test = { seeds = "31-33" }

[schedule]
steps = 2
batch = 2
validate_every = 2

[evaluation]
paper_cohort = "paper"
scenarios = ["noise-10", "noise-20"]

[arms.attention]
network.architecture = "brain-seranet-2"
network.arguments = { channels = [4, 6], width = 0.1 }

[arms.image]
network.architecture = "brain-seranet-2"
network.arguments = { channels = [4, 6], width = 0.1 }
loss.form = "last+image"

[arms.steps]
network.architecture = "brain-two-step"
network.arguments = { channels = [4, 6], width = 0.1 }

[families.attention]
a = "attention"
b = ["steps", "image"]
scenarios = ["noise-10", "noise-20"]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(STUDY)
    return path


def run(file: Path, *options: str) -> str:
    folders = ["--cache", str(file.parent / "cache"), "--output", str(file.parent / "out")]
    done = CliRunner().invoke(app, ["study", str(file), "--device", "cpu", "--workers", "1", *folders, *options])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def test_a_study_of_the_brain_goes_from_heads_to_the_papers_tables(file: Path) -> None:
    out = file.parent / "out"
    run(file, "--stage", "data", "--stage", "train", "--seed", "1", "--arm", "steps")
    weights = out / "steps-seed1" / "segmentation" / "last.pt"
    before = weights.stat().st_mtime_ns
    assert load_recipe(out / "steps-seed1" / "experiment.toml").name == "tiny-steps-seed1"
    run(file)
    assert weights.stat().st_mtime_ns == before
    with (out / "attention-seed2" / "scores.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert [(row["cohort"], row["subject"], row["scenario"]) for row in rows[:5]] == [
        *(("test", f"head-{seed}", "noise-10") for seed in (31, 32, 33)),
        ("paper", "head-21", "noise-10"),
        ("test", "head-31", "noise-20"),
    ]
    assert {(row["model"], row["fold"]) for row in rows} == {("attention", "2")}
    report = out / "report"
    pictures = {path.name for path in report.glob("*.png")}
    assert pictures == {f"{what}-noise-{n}.png" for what in ("blocks", "example") for n in (10, 20)}
    assert (report / "report.html").read_text().count("data:image/png;base64,") == 4
    text = (report / "tables.md").read_text()
    assert "| cross entropy of the last + l2 of the image | SERANet-2 | image | 10 % |" in text
    assert "| SERANet-2 > Two-step-2 | figure 2 | 20 % | in a figure |" in text
    assert "| SERANet-2, cross entropy of the last > cross entropy of the last + l2 of the image | table 1" in text
    assert "reconstruction 2 x 2, segmentation 2 x 2" in text
    with (report / "table-2.csv").open() as table:
        methods = list(csv.DictReader(table))
    assert [(row["method"], row["noise"]) for row in methods] == [
        ("SERANet-2", "10 %"),
        ("SERANet-2", "20 %"),
        ("Two-step-2", "10 %"),
        ("Two-step-2", "20 %"),
    ]
    assert [row["paper: mean"] for row in methods] == ["0.866", "0.838", "-", "-"]
    dice = arrange([row for row in all_rows(Study(file, out)) if row["cohort"] == "test"], "dice")
    assert methods[0]["mean"].startswith(f"{dice['attention', 'noise-10'].mean():.3f} [")
    families = (report / "comparison-attention.csv").read_text().splitlines()
    assert len(families) == 1 + 4
    page = write_report(Study(file, out)).read_text()  # what a task without a report of its own gets
    assert "4 test subjects; seeds 1, 2." in page
    assert "Mean white_matter" in page
    assert page.count("data:image/png;base64,") == 1
    assert (report / "dice-noise.png").is_file()
    first = [row for row in all_rows(Study(file, out)) if row["fold"] == "1"]
    assert study_facts(Study(file, out), first)[1] == "4 test subjects; seeds 1 (not run: 2)."


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"noise-20"]\n\n[arms.att', '"noise-lots"]\n\n[arms.att', "unknown scenario 'noise-lots'"),
        ('"noise-20"]\n\n[arms.att', '"cartesian-4"]\n\n[arms.att', "unknown scenario 'cartesian-4'"),
        ('paper_cohort = "paper"', 'paper_cohort = "papers"', "no test cohort 'papers'"),
        ('paper_cohort = "paper"', 'scope = "exam"', "scope"),
        ('"brain-two-step"', '"brain-three-step"', "unknown architecture"),
        ("[arms.image]", "[arms.image]\ndata.fraction = 0.5", "share their data"),
        ("[arms.image]", "[arms]\nimage = 3\n\n[arms.other]", "cannot|not TOML|needs arms"),
        ('"steps", "image"]', '"steps", "images"]', "unknown arms"),
        ("channels = [4, 6], width = 0.1", "channels = [4, 6], widht = 0.1", "no argument widht"),
        ('"31-33"', '"21-23"', "seed 21 is in cohorts paper and test"),
    ],
)
def test_wrong_studies_are_refused_before_anything_is_computed(file: Path, old: str, new: str, message: str) -> None:
    assert old in STUDY
    file.write_text(STUDY.replace(old, new, 1))
    with pytest.raises(Exception, match=message) as raised:
        Study(file, file.parent / "out")
    assert type(raised.value).__module__ == "kstream.errors"


def test_arms_may_be_trained_at_other_noise_and_are_then_compared_with_their_like(file: Path) -> None:
    file.write_text(STUDY.replace("[arms.steps]", "[arms.steps]\ndata.noise = [0.1]"))
    study = Study(file, file.parent / "out")
    arms = [Arm.of(run) for run in study.runs(seeds=[1])]
    assert [arm.noise for arm in arms] == [(0.1, 0.2), (0.1, 0.2), (0.1,)]
    assert [(claim.better.name, claim.worse.name) for claim in claims(arms)] == [("attention", "image")]


def test_the_shipped_study_has_every_row_of_the_papers_tables_and_every_claim() -> None:
    study = Study(STUDIES / "brain.toml", Path("nowhere"))
    runs = study.runs(seeds=[1])
    methods = [method_of(each.experiment) for each in runs]
    assert set(TABLE_2["noise-10"]) < set(methods)
    assert {each.experiment.loss.form for each in runs if each.arm.startswith("seranet-4")} == set(TABLE_1["noise-10"])
    found = claims([Arm.of(each) for each in runs])
    assert sum(claim.where == "table 1" for claim in found) == 2
    assert sum(claim.where == "table 2" for claim in found) == 4 + 5
    assert sum(claim.where == "figure 2" for claim in found) == 6
    assert len(study.first.experiment.cohorts["train"].seeds) == 17
    assert len(study.first.experiment.cohorts["paper"].seeds) == 3


def test_a_claim_is_reproduced_contradicted_or_undecided_by_test_and_interval(file: Path) -> None:
    study = Study(file, file.parent / "out")
    wanted = claims([Arm.of(run) for run in study.runs(seeds=[1])])
    rng = np.random.default_rng(4)
    base = 0.6 + 0.05 * rng.random(24)
    dice = {
        ("attention", "noise-10"): base + 0.02,
        ("steps", "noise-10"): base + 0.01 * rng.random(24),
        ("image", "noise-10"): base + 0.02 + 0.01 * rng.standard_normal(24),
        ("attention", "noise-20"): base,
        ("steps", "noise-20"): base + 0.01 + 0.001 * rng.random(24),
        ("image", "noise-20"): base - 0.03 * rng.random(24),
    }
    verdicts = {(row["claim"], row["noise"]): row for row in claim_table(study, wanted, dice, [dice, dice])}
    assert verdicts["SERANet-2 > Two-step-2", "10 %"]["verdict"] == "reproduced"
    assert verdicts["SERANet-2 > Two-step-2", "20 %"]["verdict"] == "contradicted"
    loss = "SERANet-2, cross entropy of the last > cross entropy of the last + l2 of the image"
    assert verdicts[loss, "10 %"]["verdict"] == "undecided"
    assert verdicts[loss, "20 %"]["verdict"] == "reproduced"
    assert verdicts[loss, "20 %"]["paper's difference"] == "+0.014"
    luck = {key: values + (0.4 if key[0] == "steps" else 0) for key, values in dice.items()}
    found = claim_table(study, wanted, dice, [dice, luck])
    claimed = [row for row in found if (row["claim"], row["noise"]) == ("SERANet-2 > Two-step-2", "10 %")]
    assert [row["verdict"] for row in claimed] == ["undecided"], "one seed says the contrary"
    assert claimed[0]["by seed"].startswith("+")
    assert " -0." in claimed[0]["by seed"]


@pytest.mark.parametrize("table", [TABLE_1, TABLE_2])
def test_printed_means_are_those_of_the_three_tissues(table: dict[str, dict[str, tuple[float, ...]]]) -> None:
    for rows in table.values():
        for row in rows.values():
            assert np.mean(row[:3]) == pytest.approx(row[3], abs=0.0007)


def test_scenarios_are_percent_of_white_matter() -> None:
    assert [noise_of(name) for name in ("noise-10", "noise-0", "noise-2.5")] == [0.1, 0.0, 0.025]
    for name in ("noise", "noise--5", "full", "noise-nan"):
        with pytest.raises(ConfigError, match="unknown scenario"):
            noise_of(name)


def test_subjects_are_averaged_over_seeds_and_paired_by_name(tmp_path: Path) -> None:
    rows = [
        {"model": arm, "fold": seed, "scenario": "full", "subject": subject, "dice": value}
        for arm, seed, subject, value in [
            ("a", 1, "head-9", 0.5),
            ("a", 2, "head-9", 0.7),
            ("a", 1, "head-10", 0.3),
            ("a", 2, "head-10", float("nan")),
            ("b", 1, "head-10", 0.25),
        ]
    ]
    write_rows(rows, tmp_path / "scores.csv")
    found = arrange(read_rows(tmp_path / "scores.csv"), "dice")
    np.testing.assert_allclose(found["a", "full"], [0.6, 0.3])
    np.testing.assert_allclose(found["b", "full"], [np.nan, 0.25])
    assert arrange(read_rows(tmp_path / "scores.csv"), "hausdorff") == {}
    with pytest.raises(ScanError, match="nothing was scored"):
        write_rows([], tmp_path / "none.csv")
    (tmp_path / "scores.csv").write_text("model,fold\na\n")
    with pytest.raises(RecordingError, match="cut short"):
        read_rows(tmp_path / "scores.csv")
