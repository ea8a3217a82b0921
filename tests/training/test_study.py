from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from kstream.cli import app
from kstream.errors import ConfigError, ModelError
from kstream.models.breast import HybridUNet, MagnitudeUNet
from kstream.models.gate import GateUNet
from kstream.recon.fourier import to_kspace
from kstream.training import study as studies
from kstream.training.breast.figures import features_of, radial_profile
from kstream.training.breast.scenarios import Score
from kstream.training.breast.study_report import Results, all_scores, compare_family
from kstream.training.curves import Curve, draw_curves, stars
from kstream.training.experiment import load_experiment
from kstream.training.scores import stuck_runs, unequal_seeds
from kstream.training.statistics import Interval
from kstream.training.study import FamilyConfig, Study

STUDY = """
name = "small"
description = "as small as a study gets"
seeds = [1, 2]

[data]
protocol = { matrix = 24, n_slices = 6, n_spokes = 13, n_coils = 3, n_lesions = 2 }
variants = ["radial-uniform-2"]

[cohorts]
train = { seeds = "1-2" }
validation = { seeds = "3" }
test = { seeds = "4-6" }

[network]
patch_depth = 4
patch_stride = 2

[schedule]
steps = 2
validate_every = 2

[evaluation]
scenarios = ["full", "cartesian-2", "cartesian-8", "noise-0", "radial-uniform-2"]

[arms.magnitude]
network.architecture = "breast-magnitude"
network.arguments = { channels = [4, 6] }

[arms.gate]
network.architecture = "breast-gate"
network.arguments = { image_channels = [4, 6], n_features = 3, hidden = 4, window = 3 }
augment = { lines = "wide", lines_probability = 0.7 }

[families.primary]
a = "gate"
b = "magnitude"
scenarios = ["cartesian-2", "cartesian-8"]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(STUDY)
    return path


def run(file: Path, *options: str) -> str:
    folders = ["--cache", str(file.parent / "cache"), "--output", str(file.parent / "out")]
    done = CliRunner().invoke(app, ["study", str(file), "--device", "cpu", "--workers", "1", *folders, *options])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_study_goes_from_data_to_report_in_sittings(file: Path) -> None:
    out = file.parent / "out"
    run(file, "--stage", "data", "--stage", "train", "--seed", "1", "--arm", "gate")
    assert (out / "gate-seed1" / "best.safetensors").is_file()
    assert not (out / "magnitude-seed1").exists()
    [first] = Study(file, out).runs(["gate"], [1])
    assert load_experiment(out / "gate-seed1" / "experiment.toml") == first.experiment
    before = (out / "gate-seed1" / "last.pt").stat().st_mtime_ns
    run(file, "--stage", "train", "--stage", "evaluate")
    assert (out / "gate-seed1" / "last.pt").stat().st_mtime_ns == before
    with (out / "magnitude-seed2" / "scores.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert len(rows) == 5 * 3
    assert {row["model"] for row in rows} == {"magnitude"}
    run(file, "--stage", "report")
    report = out / "report"
    pictures = {path.name for path in report.glob("*.png")}
    kinds = ("cartesian", "noise", "radial-uniform")
    assert pictures == {
        "overlays.png",
        "features-gate.png",
        *(f"{what}-{kind}.png" for what in ("dice", "failures") for kind in kinds),
    }
    page = (report / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(pictures)
    assert "Comparison: primary" in page
    text = (report / "tables.md").read_text()
    assert "McNemar p (Holm)" in text
    assert "breast-gate" in text
    assert (report / "dice_per_patient.csv").is_file()
    assert (report / "noise_dice_per_patient.csv").is_file()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_weights_and_scores_of_a_changed_study_are_refused(file: Path) -> None:
    out = file.parent / "out"
    run(file, "--arm", "magnitude", "--seed", "1", "--stage", "train", "--stage", "evaluate")
    file.write_text(STUDY.replace("as small as", "hardly larger than"))
    assert all_scores(Study(file, out))  # words do not matter
    file.write_text(STUDY.replace('"cartesian-8", "noise-0"', '"cartesian-8", "noise-0", "noise-5"'))
    with pytest.raises(ConfigError, match="other conditions: scenarios") as raised:
        all_scores(Study(file, out))
    assert str(out / "magnitude-seed1" / "scores.csv") in raised.value.hint
    file.write_text(STUDY.replace("[network]", "[loss]\ngamma = 2.0\n\n[network]"))
    with pytest.raises(ConfigError, match="trained by another experiment") as raised:
        studies.train(file.parent / "cache", Study(file, out).runs(), lambda *_: print)
    assert str(out / "magnitude-seed1") in raised.value.hint


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('b = "magnitude"', 'b = "magnitud"', "unknown arms"),
        ('b = "magnitude"', "b = []", "families.primary.b"),
        ('["cartesian-2", "cartesian-8"]', '["cartesian-2", "cartesian-4"]', "unknown scenarios"),
        ('"noise-0"', '"noise-much"', "unknown scenario"),
        ('variants = ["radial-uniform-2"]', "variants = []", "needs data.variants"),
        ('"radial-uniform-2"]\n\n[cohorts', '"radial-spiral-2"]\n\n[cohorts', "unknown variant"),
        ("seeds = [1, 2]", "seeds = []", "seeds"),
        ("steps = 2", "step = 2", "schedule.step"),
        ("[arms.gate]", "[arms.gate]\ndata.frame = 1", "share their data"),
        ("[arms.gate]", '[arms.gate]\ncohorts.train.seeds = "7-8"', "share their data, cohorts and folds"),
        ('"breast-gate"', '"breast-gait"', "unknown architecture"),
        ('test = { seeds = "4-6" }', 'test = { seeds = "3-6" }', "seed 3 is in cohorts"),
    ],
)
def test_wrong_studies_are_refused_before_anything_is_computed(file: Path, old: str, new: str, message: str) -> None:
    assert old in STUDY
    file.write_text(STUDY.replace(old, new))
    with pytest.raises((ConfigError, ModelError), match=message):
        Study(file, file.parent / "out")


def test_unknown_arms_seeds_and_missing_scores_are_named(file: Path) -> None:
    plan = Study(file, file.parent / "out")
    with pytest.raises(ConfigError, match="no arm 'gait'"):
        plan.runs(["gait"])
    with pytest.raises(ConfigError, match="no seed"):
        plan.runs(seeds=[7])
    with pytest.raises(ConfigError, match="no run of this study has scores"):
        all_scores(plan)
    assert [(r.arm, r.seed) for r in plan.runs()] == [("magnitude", 1), ("gate", 1), ("magnitude", 2), ("gate", 2)]
    file.write_text("name = 'x'\ndescription = ''\nseeds = [1]\n")
    with pytest.raises(ConfigError, match="a study needs arms"):
        Study(file, file.parent / "out")


def row(arm: str, fold: int, index: int, dice: float, scenario: str = "full") -> Score:
    return Score(arm, fold, scenario, index, f"p{index}", True, dice, 1, int(dice > 0), 0, 0.0)


def test_seeds_are_averaged_and_exams_are_compared() -> None:
    scores = []
    for index in range(8):
        for fold in (1, 2, 3):
            scores.append(row("a", fold, index, 0.5 + 0.01 * index + 0.05 * fold))
            scores.append(row("b", fold, index, 0.0 if index < 5 and fold < 3 else 0.4))
    results = Results.of(scores)
    assert len(results.dice["a", "full"]) == 8
    assert results.dice["a", "full"][3] == pytest.approx(0.5 + 0.03 + 0.1)
    assert results.failed["b", "full"][0] == pytest.approx(2 / 3)
    dice, failures = compare_family(results, FamilyConfig(a="a", b="b", scenarios=("full", "cartesian-2")))
    assert list(dice) == [("b", "full")]
    assert dice["b", "full"].n == 8
    assert dice["b", "full"].p == pytest.approx(2 / 2**8)
    assert (failures["b", "full"].only_a, failures["b", "full"].only_b) == (0, 5)


def test_arms_with_other_seeds_are_told() -> None:
    scores = [row("a", 1, 0, 0.5), row("a", 2, 0, 0.5), row("b", 1, 0, 0.5)]
    rows = [vars(score) for score in scores]
    assert "a 1, 2; b 1" in unequal_seeds(rows)[0]
    assert unequal_seeds([rows[0], rows[2]]) == []


def test_a_training_that_got_stuck_is_told() -> None:
    scores = [row(arm, seed, i, 0.7 + 0.01 * i) for arm in "ab" for seed in (1, 2, 3) for i in range(3)]
    rows = [vars(score) for score in scores]
    assert stuck_runs(rows, "dice") == []
    stuck = [{**one, "dice": 0.2} if (one["model"], one["fold"]) == ("b", 3) else one for one in rows]
    (told,) = stuck_runs(stuck, "dice")
    assert told.startswith("Attention: b with seed 3 got stuck: its mean dice under full is 0.200")
    assert told.endswith("another seed 0.710.")
    assert stuck_runs(rows, "hausdorff") == []


def test_a_family_may_compare_different_inputs() -> None:
    scores = [row("a", 1, i, 0.6 + 0.01 * i, "radial-uniform-4") for i in range(6)]
    scores += [row("b", 1, i, 0.5, "cg-sense-uniform-4") for i in range(6)]
    family = FamilyConfig(a="a", b="b", scenarios=("radial-uniform-4",), b_scenarios=("cg-sense-uniform-4",))
    dice, _ = compare_family(Results.of(scores), family)
    assert dice["b", "radial-uniform-4"].wins == 6


def test_a_family_of_several_arms_is_corrected_as_one() -> None:
    scores = [row("a", 1, i, 0.6 + 0.01 * i) for i in range(7)]
    scores += [row("b", 1, i, 0.5) for i in range(7)]
    scores += [row("c", 1, i, 0.63) for i in range(7)]
    dice, _ = compare_family(Results.of(scores), FamilyConfig(a="a", b=("b", "c"), scenarios=("full",)))
    assert list(dice) == [("b", "full"), ("c", "full")]
    assert dice["b", "full"].p_holm == pytest.approx(2 * dice["b", "full"].p)
    assert dice["c", "full"].p_holm == dice["c", "full"].p


@pytest.mark.parametrize(
    "network",
    [
        HybridUNet((4, 6), 3, (4, 6)),
        HybridUNet((4, 6), 3, (4, 6), k_residual=True, bridge_magnitude=True),
        GateUNet(3, 4, 3, (4, 6)),
    ],
    ids=["hybrid", "hybrid-extended", "gate"],
)
def test_features_of_a_kspace_stage_are_found(network: torch.nn.Module) -> None:
    image = np.zeros((4, 16, 18), np.complex64)
    image[1:3, 5:9, 6:11] = 2
    features = features_of(network, to_kspace(image))
    assert features.coherent.shape == features.weighted.shape == image.shape
    assert features.profiles.shape == (3, 8)
    assert features.weighted.max() > 0
    np.testing.assert_allclose(features.image, np.abs(image), atol=1e-5)


def test_image_networks_have_no_kspace_stage() -> None:
    with pytest.raises(ModelError, match="no k-space stage"):
        features_of(MagnitudeUNet((4, 6)), np.ones((2, 8, 8), np.complex64))


def test_radial_profiles_average_rings() -> None:
    y, x = np.indices((9, 12))
    distance = np.hypot(y - 4, x - 6)
    profile = radial_profile(np.rint(distance))
    np.testing.assert_allclose(profile, np.arange(4), atol=1e-6)


def test_curves_are_drawn_with_asterisks(tmp_path: Path) -> None:
    points = tuple(Interval(m, m - 0.1, m + 0.1) for m in (0.8, 0.5, 0.2))
    path = draw_curves([Curve("a", (1, 4, 16), points)], tmp_path / "a.png", "x", "y", {4: 0.003})
    assert path.stat().st_size > 5000
    assert [stars(p) for p in (0.0005, 0.005, 0.03, 0.2)] == ["***", "**", "*", ""]
