"""The heart's task: what a batch holds, that it can be learnt, that stages follow each other and go on, and bundles."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from kstream.engines.array_engine import load_array_engine
from kstream.errors import ConfigError, ModelError, RecordingError
from kstream.models.bundle import Bundle
from kstream.models.kmtr_heads import soft_areas
from kstream.output.phenotypes import PHENOTYPES
from kstream.recon.fourier import to_image
from kstream.segment.cine import CineModel
from kstream.training.distributed import World
from kstream.training.fit import Stage, fit, fit_stages
from kstream.training.heart.data import (
    Subject,
    load_subject,
    moved,
    received,
    recipe_of,
    save_subject,
    simulate_subject,
    subject_path,
)
from kstream.training.heart.experiment import HeartExperiment, load_heart_experiment
from kstream.training.heart.judge import case_row
from kstream.training.heart.plan import heart_stages, last_task, stages_of
from kstream.training.heart.recipe import HeartRecipe
from kstream.training.heart.slices import CoordinatesTask, FramesTask, LiNetTask, PointsTask
from kstream.training.heart.subjects import (
    AlignmentTask,
    AnalysisTask,
    ImageMaeTask,
    KGinTask,
    ResNetTask,
    SubjectTask,
    matched,
)
from kstream.training.recipes import Evaluation
from kstream.training.schedule import Schedule
from kstream.training.scores import read_rows

EXPERIMENTS = sorted((Path(__file__).parents[2] / "training" / "experiments").glob("heart-*.toml"))

DISK = {"width": 32, "n_latents": 8, "n_layers": 1, "compand": 0.33}
KMTR = {"width": 33, "n_layers": 2, "n_heads": 3, "n_decoder_layers": 1, "segmentation_width": 8, "feature_size": 2,
        "n_head_features": 8, "compand": 0.33}  # fmt: skip


def experiment(method: str, **changes: object) -> HeartExperiment:
    given: dict[str, object] = {
        "task": "heart", "name": "tiny", "description": "a test", "seed": 3, "method": method,
        "data": {
            "protocol": {"matrix": 16, "n_frames": 5, "n_short_axis": 1, "n_long_axis": 1, "oversampling": 1,
                         "through_samples": 1, "field_of_view_mm": 180.0},
            "views": ["sax0"], "accelerations": [2.0], "queries": 300,
        },
        "cohorts": {"train": {"seeds": "1-3"}, "validation": {"seeds": "11-12"}, "test": {"seeds": "21"}},
        "network": {"arguments": DISK if method == "disk" else KMTR},
        "schedule": {"steps": 2, "batch": 2, "learning_rate": 1e-3, "validate_every": 2},
    }  # fmt: skip
    return HeartExperiment.model_validate({**given, **changes})


@pytest.fixture(scope="module")
def subjects() -> list[Subject]:
    return [simulate_subject(experiment("disk").protocol("train"), seed) for seed in (1, 2, 3)]


@pytest.fixture(scope="module")
def short_axes(subjects: list[Subject]) -> list[Subject]:
    return [subject.of_views((1,)) for subject in subjects]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiment_files_are_valid(path: Path) -> None:
    assert load_heart_experiment(path).name == path.stem


def test_points_of_a_batch_are_samples_of_kspace(short_axes: list[Subject]) -> None:
    """Putting the tokens of a fully sampled batch back on the grid gives the images."""
    full = experiment("disk", data={**experiment("disk").data.model_dump(), "accelerations": (1.0,)})
    task = PointsTask(full, short_axes, short_axes)
    task.network.eval()
    batch = task.make_batch(short_axes[:1], 1.0, np.random.default_rng(0))
    grid = np.zeros((5, 16, 16), np.complex64)
    y, x, t = np.rint(batch["coordinates"][0].numpy() * (16, 16, 5)).astype(int).T
    grid[t, y, x] = batch["values"][0].numpy() @ [1, 1j]
    size = np.sqrt(np.mean(np.abs(short_axes[0].images[0]) ** 2))  # of all samples too (Parseval)
    np.testing.assert_allclose(to_image(grid) * size, short_axes[0].images[0], atol=1e-5)
    labels = batch["labels"][0].reshape(5, 16, 16).numpy()
    np.testing.assert_array_equal(labels, np.where(short_axes[0].labels[0] < 4, short_axes[0].labels[0], 0))


def test_batches_depend_on_seed_and_number_alone(short_axes: list[Subject]) -> None:
    first, second = (PointsTask(experiment("disk"), short_axes, short_axes) for _ in range(2))
    for name, value in first.batch(7).items():
        assert torch.equal(value, second.batch(7)[name])
    assert not torch.equal(first.batch(7)["values"][:, :20], first.batch(8)["values"][:, :20])


def test_images_and_labels_move_together(subjects: list[Subject]) -> None:
    wide = simulate_subject(experiment("disk").protocol("train").__class__(
        matrix=64, n_frames=1, n_short_axis=1, n_long_axis=0, field_of_view_mm=180.0), 4)  # fmt: skip
    config = experiment("disk").data.model_copy(update={"shift_voxels": 6, "rotate_deg": 30.0})
    turned = moved(wide, config, np.random.default_rng(5))
    assert (turned.labels != wide.labels).any()
    for subject in (wide, turned):
        image, labels = np.abs(subject.images[0, 0]), subject.labels[0, 0]
        assert np.median(image[labels == 1]) > 2 * np.median(image[labels == 2])
    assert moved(subjects[0], experiment("disk").data, np.random.default_rng(0)) is subjects[0]


def test_disk_learns_one_slice(short_axes: list[Subject], tmp_path: Path) -> None:
    one = short_axes[:1]
    schedule = {"steps": 100, "batch": 1, "learning_rate": 5e-3, "validate_every": 100, "weight_decay": 0.0}
    task = PointsTask(experiment("disk", schedule=schedule), one, one)
    task.network.eval()
    before = task.validate(task.network).score
    result = fit(task, task.experiment.schedule, tmp_path)
    assert before < 0.4
    assert result.best_score > 0.55


def test_kmtr_runs_through_its_stages_and_goes_on(subjects: list[Subject], tmp_path: Path) -> None:
    short = Schedule(steps=1, validate_every=1)
    stages = {"image": short, "lines": short, "alignment": short}
    heads = ("segmentation", "regression", "classification", "reconstruction")
    network = {"arguments": KMTR, "heads": heads}
    config = experiment(
        "kmtr", stages=stages, network=network,
        data={**experiment("disk").data.model_dump(), "protocol": {
            **experiment("disk").data.protocol, "n_frames": 5, "matrix": 16}},
    )  # fmt: skip
    made = heart_stages(config, subjects, subjects[:2])
    assert [stage.name for stage in made] == ["image", "lines", "alignment", "analysis"]
    first = fit_stages(made[:3], tmp_path)
    aligned = load_file(first.weights)
    result = fit_stages(heart_stages(config, subjects, subjects[:2]), tmp_path)  # stages that are done are passed over
    assert result.weights.parent.name == "analysis"
    key = "lines.tokenize.weight"
    change = (load_file(result.weights)[key] - aligned[key]).abs().max()
    assert 0 < float(change) < 0.01  # it began where the alignment ended
    metrics = (tmp_path / "analysis" / "metrics.jsonl").read_text()
    assert all(name in metrics for name in ("dice", "phenotype_error_over_mean_guess", "auc", "psnr_db"))


def test_a_stage_is_not_gone_on_with_after_another_stage_before(subjects: list[Subject], tmp_path: Path) -> None:
    def stages(learning_rate: float) -> list[Stage]:
        lines = Schedule(steps=1, validate_every=1, learning_rate=learning_rate)
        return heart_stages(experiment("mae", stages={"lines": lines}), subjects, subjects[:2])

    fit_stages(stages(1e-3), tmp_path)
    fit_stages(stages(1e-3), tmp_path)
    shutil.rmtree(tmp_path / "lines")  # so that this stage is trained again, otherwise
    with pytest.raises(ModelError, match="another experiment") as raised:
        fit_stages(stages(1e-2), tmp_path)
    assert "analysis" in raised.value.where


def test_batch_is_part_of_a_run(subjects: list[Subject]) -> None:
    config = experiment("kmtr")
    tasks = [
        ImageMaeTask(config.model_copy(update=change), subjects, subjects).identity()
        for change in (
            {},
            {"schedule": config.schedule.model_copy(update={"batch": 3})},
            {"stages": config.stages.model_copy(update={"masking_ratio": 0.5})},
            {"stages": config.stages.model_copy(update={"form": "decoupled"})},
        )
    ]
    assert len(set(tasks)) == 4


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("kmtr", {"schedule": {"steps": 1, "batch": 1}}, "compares subjects"),
        ("kmtr", {"network": {"arguments": {"width": 32, "n_heads": 3}}}, "arguments|heads|width"),
        ("kmtr", {"network": {"arguments": {"locatet": 8}}}, "no network of kmtr has the argument locatet"),
        ("mean-shape", {"network": {"arguments": {"width": 8}}}, "no network of mean-shape has the argument width"),
        ("kmtr", {"network": {"arguments": {**KMTR, "located": 4}}}, "located tokens need no stages before"),
        ("disk", {"data": {"accelerations": [0.5]}}, "leaves no line"),
        ("disk", {"data": {"accelerations": [1000.0]}}, "leaves no line"),
        ("disk", {"data": {"views": ["sax0", "sax1"]}}, "takes one view"),
    ],
)
def test_settings_that_cannot_work_are_refused_first(
    method: str, changes: dict[str, object], message: str, subjects: list[Subject]
) -> None:
    short = Schedule(steps=1)
    stages = {"image": short, "lines": short, "alignment": short}
    with pytest.raises((ConfigError, ModelError), match=message):
        heart_stages(experiment(method, stages=stages, **changes), subjects, subjects)


def test_areas_are_standardised_by_the_training_subjects(subjects: list[Subject]) -> None:
    network = {"heads": ["segmentation", "regression"], "arguments": {**KMTR, "areas": True}}
    task = AnalysisTask(experiment("kmtr", network=network), subjects, subjects, None)
    shares = []
    for subject in subjects:
        logits = 100.0 * functional.one_hot(torch.from_numpy(task.known_classes(subject.labels)), len(task.classes))
        shares.append(soft_areas(logits.movedim(-1, 1)[None])[0])
    found = torch.stack(shares)
    torch.testing.assert_close(task.network.get_buffer("area_mean"), found.mean(dim=0))
    spread = found.std(dim=0, correction=0).clamp_min(1e-3)
    torch.testing.assert_close(task.network.get_buffer("area_spread"), spread, atol=1e-6, rtol=1e-4)


def test_alignment_is_judged_within_each_acceleration(subjects: list[Subject], tmp_path: Path) -> None:
    eye = torch.eye(3)
    assert matched(eye, eye) == 1.0
    assert matched(eye, eye[[1, 0, 2]]) == pytest.approx(1 / 3)
    short = Schedule(steps=1, validate_every=1)
    stages = {"image": short, "lines": short, "alignment": short}
    made = heart_stages(experiment("kmtr", stages=stages), subjects, subjects)
    task = made[2].make(fit_stages(made[:2], tmp_path).weights)
    task.network.eval()
    assert isinstance(task, AlignmentTask)
    shares = []
    for accelerations in ((1.0,), (3.0,), (1.0, 3.0)):
        data = task.experiment.data.model_copy(update={"accelerations": accelerations})
        task.experiment = task.experiment.model_copy(update={"data": data})
        with torch.no_grad():
            shares.append(task.validate(task.network).score)
    assert shares[2] == pytest.approx((shares[0] + shares[1]) / 2)


def test_held_out_subjects_come_one_at_a_time(short_axes: list[Subject]) -> None:
    assert isinstance(PointsTask(experiment("disk"), short_axes, short_axes).held_out(), Iterator)


@pytest.mark.parametrize("method", ["disk", "kmtr"])
def test_batches_do_not_depend_on_the_gain_of_a_receiver(method: str, subjects: list[Subject]) -> None:
    louder = replace(subjects[0], images=37 * subjects[0].images)
    task = (PointsTask if method == "disk" else ImageMaeTask)(experiment(method), subjects, subjects)
    task.network.eval()
    plain, loud = (task.case(subject, 2.0)["values"] for subject in (subjects[0], louder))
    torch.testing.assert_close(plain, loud)
    assert float(plain.square().sum(dim=-1).mean()) > 0


def test_a_receive_coil_changes_images_but_not_labels(subjects: list[Subject]) -> None:
    data = experiment("disk").data.model_copy(update={"receiver": 0.3})
    even = replace(subjects[0], images=np.ones_like(subjects[0].images))
    seen = received(even, data, np.random.default_rng(1))
    assert seen.labels is even.labels
    np.testing.assert_array_equal(seen.images[:, 0], seen.images[:, 3])  # the same coil for every frame
    assert 0.01 < np.abs(np.diff(seen.images[0, 0], axis=0)).max() < 0.5  # smooth
    assert not np.allclose(seen.images[0], seen.images[1])  # a coil for every view
    assert received(subjects[0], experiment("disk").data, np.random.default_rng(1)) is subjects[0]


def test_coordinates_control_sees_no_measurement(short_axes: list[Subject]) -> None:
    task = CoordinatesTask(experiment("coordinates", network={"arguments": DISK}), short_axes, short_axes)
    batch = task.case(short_axes[0], 2.0)
    assert float(batch["values"].abs().max()) == 0.0
    assert float(batch["coordinates"].max()) > 0.5


def test_mean_shape_is_the_most_frequent_class_at_each_place(short_axes: list[Subject]) -> None:
    task = last_task(experiment("mean-shape"), short_axes[:2] + short_axes[:1], short_axes)
    labels = task.answers(task.network.eval(), task.case(short_axes[2], 2.0), short_axes[2]).labels
    np.testing.assert_array_equal(labels, task.known_classes(short_axes[0].labels))  # two of three
    assert torch.isfinite(sum(task.loss(task.network, task.batch(0)).values()))  # type: ignore[union-attr]


def test_li_net_goes_through_its_steps(subjects: list[Subject], tmp_path: Path) -> None:
    short = Schedule(steps=2, validate_every=2, learning_rate=1e-3)
    data = {**experiment("disk").data.model_dump(), "views": ["4ch", "sax0"]}
    config = experiment("li-net", network={"arguments": {"channels": (4, 8), "n_latent": 8}}, data=data,
                        stages={"labels": short, "full": short})  # fmt: skip
    result = fit_stages(heart_stages(config, subjects, subjects[:2]), tmp_path)
    assert [stage.name for stage in heart_stages(config, subjects, subjects)] == ["labels", "full", "undersampled"]
    last, full = (load_file(tmp_path / name / "best.safetensors") for name in ("undersampled", "full"))
    assert result.weights == tmp_path / "undersampled" / "best.safetensors"
    assert torch.equal(last["decoder.net.0.weight"], full["decoder.net.0.weight"])  # frozen
    assert not torch.equal(last["predictor.net.0.weight"], full["predictor.net.0.weight"])
    task = LiNetTask(config, subjects, subjects, "undersampled", tmp_path / "full" / "best.safetensors")
    parts = task.loss(task.network, task.batch(0))
    assert float(parts["code"].detach()) > 0  # the student sees less than its teacher
    answer = task.answers(task.network.eval(), task.case(subjects[0], 2.0), subjects[0])
    assert answer.labels is not None
    assert answer.labels.shape == subjects[0].labels.shape


def test_kgin_keeps_what_was_measured(subjects: list[Subject]) -> None:
    network = {"arguments": {"width": 16, "n_heads": 2, "n_encoder": 1, "n_decoder": 1, "n_refine": 1,
                             "n_refinements": 1}}  # fmt: skip
    task = KGinTask(experiment("k-gin", network=network), subjects, subjects)
    assert torch.isfinite(task.loss(task.network, task.batch(0)))
    network_in_use = task.network.eval()
    with torch.no_grad():
        answer = task.answers(network_in_use, task.case(subjects[0], 1.0), subjects[0])
    assert answer.image is not None
    truth = np.abs(subjects[0].images)
    np.testing.assert_allclose(answer.image / answer.image.max(), truth / truth.max(), atol=1e-4)
    with pytest.raises(ConfigError, match="companded"):
        KGinTask(experiment("k-gin", network={"arguments": {"compand": 0.3}}), subjects, subjects)


def test_zero_filling_is_perfect_with_all_lines_and_worse_with_few(subjects: list[Subject]) -> None:
    task = last_task(experiment("zero-filled"), subjects, subjects)
    psnr = []
    for acceleration in (1.0, 4.0):
        with torch.no_grad():
            answer = task.answers(task.network, task.case(subjects[0], acceleration), subjects[0])
        psnr.append(case_row(answer, subjects[0], ("background",))["psnr_db"])
    assert psnr[0] > 60 > psnr[1]


def test_nnunet_is_reached_from_an_experiment_and_missed_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="its own package trains it"):
        stages_of(experiment("nnunet"))
    recipe = tiny_recipe(tmp_path, "nnunet-u", "")
    list(recipe.prepare(tmp_path / "cache", 1))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="not installed"):
        recipe.fit(tmp_path / "cache", tmp_path / "run", lambda stages: print, "cpu", World())
    assert not recipe.is_fitted(tmp_path / "run")
    with pytest.raises(ModelError, match="no weights yet"):
        recipe.check_weights(tmp_path / "run")
    assert recipe.facts().keys() == tiny_recipe(tmp_path, "disk", "").facts().keys(), "columns of one table"


def test_mae_baseline_leaves_the_alignment_out(subjects: list[Subject]) -> None:
    config = experiment("mae", stages={"lines": Schedule(steps=1)})
    assert [stage.name for stage in heart_stages(config, subjects, subjects)] == ["lines", "analysis"]
    with pytest.raises(ConfigError, match="schedules of its stages"):
        heart_stages(experiment("kmtr"), subjects, subjects)


@pytest.mark.parametrize("method", ["resnet50", "resnet50u", "resnet50k"])
def test_resnet_sees_what_its_name_says(method: str, subjects: list[Subject]) -> None:
    network = {"arguments": {"width": 2}, "heads": ("regression",)}
    task = ResNetTask(experiment(method, network=network), subjects, subjects)
    batch = task.make_batch(subjects[:2], 4.0, np.random.default_rng(0))
    seen = task._seen(batch)
    assert seen.shape == (2, 2, 10, 16, 16)
    share = float((seen.abs().sum(dim=(1, 4)) > 0).float().mean())
    assert share == 1.0 if method == "resnet50" else share == pytest.approx(0.25, abs=0.02)
    assert torch.isfinite(task.loss(task.network, batch))


def test_baseline_on_frames_scores_and_learns(short_axes: list[Subject]) -> None:
    network = {"arguments": {"channels": (4, 8)}}
    task = FramesTask(experiment("syn-net", network=network), short_axes, short_axes[:1])
    parts = task.loss(task.network, task.batch(0))
    sum(parts.values()).backward()  # type: ignore[union-attr]
    task.network.eval()
    assert 0 <= task.validate(task.network).score <= 1


def test_hidden_patches_are_a_share_of_all(subjects: list[Subject]) -> None:
    task = ImageMaeTask(experiment("kmtr"), subjects, subjects)
    assert isinstance(task, SubjectTask)
    assert float(task.loss(task.network, task.batch(0)).detach()) > 0


def test_cache_files_come_back_and_foreign_ones_are_refused(subjects: list[Subject], tmp_path: Path) -> None:
    save_subject(subjects[0], tmp_path / "heart-1.h5", "recipe")
    back = load_subject(tmp_path / "heart-1.h5", "recipe")
    np.testing.assert_array_equal(back.images, subjects[0].images)
    np.testing.assert_array_equal(back.diseases, subjects[0].diseases)
    with pytest.raises(RecordingError, match="another protocol"):
        load_subject(tmp_path / "heart-1.h5", "other")


def tiny_recipe(folder: Path, method: str, arguments: str) -> HeartRecipe:
    """A recipe of the smallest subjects, whose cache is filled."""
    path = folder / "tiny.toml"
    path.write_text(
        f'task = "heart"\nname = "tiny"\ndescription = "a test"\nmethod = "{method}"\n'
        '[data]\nviews = ["sax0"]\naccelerations = [2.0]\nqueries = 64\n'
        "[data.protocol]\nmatrix = 16\nn_frames = 3\nn_short_axis = 1\nn_long_axis = 0\noversampling = 1\n"
        "field_of_view_mm = 180.0\n"
        '[cohorts.train]\nseeds = "1-2"\n[cohorts.validation]\nseeds = "3-4"\n[cohorts.test]\nseeds = "5-7"\n'
        f"[network]\n{arguments}"
        "[schedule]\nsteps = 2\nvalidate_every = 1\nlearning_rate = 1e-3\nbatch = 2\n"
    )
    recipe = HeartRecipe(path)
    for cohort, settings in recipe.experiment.cohorts.items():
        for seed in settings.seeds:
            made = simulate_subject(recipe.experiment.protocol(cohort), seed)
            known = recipe_of(recipe.experiment, cohort)
            save_subject(made, subject_path(folder / "cache", cohort, seed), known)
    return recipe


def test_a_recipe_trains_evaluates_scores_and_exports_a_bundle_that_streams(tmp_path: Path) -> None:
    cache, run = tmp_path / "cache", tmp_path / "run"
    recipe = tiny_recipe(tmp_path, "disk", "arguments = { width = 32, n_latents = 4, n_layers = 1, compand = 0.33 }\n")
    assert list(recipe.prepare(cache, 1)) == []  # nothing is missing
    fit_stages(recipe.stages(cache), run)
    assert recipe.weights(run).is_file()
    assert "dice_2x" in recipe.evaluate(cache, run, ())
    evaluation = Evaluation(scenarios=("lines-2", "moved-2", "swapped-2"))
    recipe.check(evaluation)
    still, away, swapped = recipe.score(cache, run, evaluation, "cpu")
    assert [row["subject"] for row in still] == [row["subject"] for row in away] == ["5", "6", "7"]
    assert {row["scenario"] for row in away} == {"moved-2"}
    assert [row["dice"] for row in still] != [row["dice"] for row in away]
    assert list(recipe.score(cache, run, evaluation, "cpu"))[1] == away
    area = "LV_wall_area_cm2"
    assert [row[f"true_{area}"] for row in swapped] == [row[f"true_{area}"] for row in still]
    found = [row[f"found_{area}"] for row in still]
    assert [row[f"found_{area}"] for row in swapped] == [*found[1:], found[0]]
    with pytest.raises(ConfigError, match="unknown scenario"):
        recipe.check(Evaluation(scenarios=("2x",)))
    recipe.export(cache, run, tmp_path / "bundle")
    bundle = Bundle.load(tmp_path / "bundle")
    assert CineModel.of(bundle.info, load_array_engine(bundle)).labels.names[3] == "RV cavity"
    told = bundle.info.metrics["test"]
    assert told["area_errors"][area]["mae"] == pytest.approx(
        np.mean([abs(row[f"found_{area}"] - row[f"true_{area}"]) for row in still])
    )
    assert told["dice_swapped"] == pytest.approx(np.mean([row["dice"] for row in swapped]))


def test_a_bundle_of_kmtr_tells_the_errors_of_its_phenotypes(tmp_path: Path) -> None:
    arguments = ('heads = ["segmentation", "regression"]\narguments = { width = 9, n_layers = 1, n_heads = 1, patch = '
                 "[3, 8, 8], n_decoder_layers = 1, segmentation_width = 4, feature_size = 2, n_head_features = 4 }\n"
                 "[stages.lines]\nsteps = 1\n")  # fmt: skip
    recipe = tiny_recipe(tmp_path, "mae", arguments)
    fit_stages(recipe.stages(tmp_path / "cache"), tmp_path / "run")
    recipe.export(tmp_path / "cache", tmp_path / "run", tmp_path / "bundle")
    told = Bundle.load(tmp_path / "bundle").info.metrics["test"]["phenotype_errors"]
    assert set(told) == set(PHENOTYPES)
    rows = read_rows(tmp_path / "run" / "evaluation-test.csv")
    errors = [float(row["found_LVEF_percent"]) - float(row["true_LVEF_percent"]) for row in rows]
    assert told["LVEF_percent"]["mae"] == pytest.approx(np.mean(np.abs(errors)), rel=1e-3)
    assert told["LVEF_percent"]["sd"] == pytest.approx(np.std(errors), rel=1e-3, abs=1e-3)
    assert len(errors) == 3
