"""The brain task: what is drawn, what is frozen and taught in every step, scores, and the way to a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kstream.errors import ConfigError, RecordingError
from kstream.models.fourier import channels_to_image
from kstream.models.linet import LINet
from kstream.recon.fourier import to_image
from kstream.simulate.brain.scanner import LABELS
from kstream.training.brain.experiment import BrainExperiment, load_brain_experiment
from kstream.training.brain.heads import HeadExam, build_heads, load_heads, simulate_head
from kstream.training.brain.losses import brain_losses, frozen_parts, steps_of
from kstream.training.brain.recipe import BrainRecipe
from kstream.training.brain.task import (
    BrainTask,
    SliceSampler,
    measured_head,
    predict,
    score_heads,
    summarise,
)
from kstream.training.fit import fit_stages
from kstream.training.recipes import load_recipe

TEXT = """
task = "brain"
name = "tiny"
description = "a test"
seed = 3

[data]
noise = [0.05]
n_centre = 6

[data.protocol]
matrix = [20, 24]
voxel_mm = [9.0, 9.0, 8.0]
n_slices = 4

[cohorts.train]
seeds = "1-2"

[cohorts.validation]
seeds = "11"

[cohorts.test]
seeds = "21"

[network]
architecture = "ARCHITECTURE"
arguments = { ARGUMENTS }

[schedule]
steps = 2
batch = 3
log_every = 1
validate_every = 2
"""

NETWORKS = {
    "brain-seranet-2": "channels = [4, 6], width = 0.1, scaled_memory = true",
    "brain-joint": "channels = [4, 6], width = 0.1",
    "brain-two-step": "channels = [4, 6], width = 0.1",
    "brain-segnetmri": "channels = [4, 6], n_blocks = 2",
    "brain-one-step": "channels = [4, 6]",
    "brain-syn-net": "channels = [4, 6]",
    "brain-li-net": "shape = [24, 20], channels = [4, 6], n_latent = 5",
}


def experiment_file(folder: Path, architecture: str = "brain-seranet-2", more: str = "") -> Path:
    path = folder / "tiny.toml"
    text = TEXT.replace("ARCHITECTURE", architecture).replace("ARGUMENTS", NETWORKS[architecture])
    path.write_text(text + more, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> BrainExperiment:
    return load_brain_experiment(experiment_file(tmp_path_factory.mktemp("experiment")))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, experiment: BrainExperiment) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    made = list(build_heads(experiment, folder, 1))
    assert [done for _, done, _ in made] == [1, 2, 3, 4]
    return folder


@pytest.fixture(scope="module")
def head(cache: Path, experiment: BrainExperiment) -> HeadExam:
    return load_heads(experiment, "validation", cache)[0]


def test_a_cached_head_is_the_scanned_one(head: HeadExam, experiment: BrainExperiment) -> None:
    again = simulate_head(11, experiment.protocol("validation"))
    assert np.array_equal(again.samples, head.samples)
    assert np.array_equal(again.labels, head.labels)
    assert again.white == head.white
    assert head.samples.shape == (4, 24, 20)


def test_heads_of_another_protocol_are_refused(cache: Path, tmp_path: Path) -> None:
    path = experiment_file(tmp_path)
    path.write_text(path.read_text("utf-8").replace("n_slices = 4", "n_slices = 5"), encoding="utf-8")
    with pytest.raises(RecordingError, match="another protocol"):
        load_heads(load_brain_experiment(path), "train", cache)


def test_a_measured_slice_is_the_full_one_without_some_lines(head: HeadExam) -> None:
    lines = np.arange(24) % 3 > 0
    under, full = head.measured(2, lines, 0.1, np.random.default_rng(1))
    assert np.array_equal(under[lines], full[lines])
    assert not under[~lines].any()
    assert np.percentile(np.abs(to_image(under)), 99) == pytest.approx(1, rel=1e-5)
    scale = np.abs(head.samples[2]).max() / np.abs(full).max()
    noise = full * scale - head.samples[2]
    assert noise.real.std() == pytest.approx(0.1 * head.white, rel=0.2)


def test_batches_follow_from_their_number_and_slices_differ_in_their_lines(
    head: HeadExam, experiment: BrainExperiment
) -> None:
    sampler = SliceSampler([head], experiment, 6)
    first, again, other = (sampler.batch(number) for number in (4, 4, 5))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["kspace"], other["kspace"])
    kept = (first["kspace"] != 0).any(dim=(1, 3))
    assert (kept.sum(dim=1) == round(0.3 * 24)).all()
    assert len({tuple(row.tolist()) for row in kept}) > 1
    assert first["labels"].dtype == torch.int64
    assert int(first["labels"].max()) < len(LABELS.names)


def test_validation_heads_are_always_measured_alike(head: HeadExam, experiment: BrainExperiment) -> None:
    first, again = (measured_head(head, experiment, 0.05) for _ in range(2))
    louder = measured_head(head, experiment, 0.2)
    assert all(np.array_equal(a.under, b.under) for a, b in zip(first, again, strict=True))
    assert np.array_equal(first[0].under != 0, louder[0].under != 0)
    assert len({(s.under != 0).any(axis=1).tobytes() for s in first}) == 1  # one scan, one pattern


@pytest.mark.parametrize("architecture", NETWORKS)
def test_every_step_trains_what_it_says_and_leaves_the_rest(architecture: str, cache: Path, tmp_path: Path) -> None:
    recipe = BrainRecipe(experiment_file(tmp_path, architecture))
    stages = recipe.stages(cache)
    assert [stage.name for stage in stages] == (list(steps_of(architecture)) if len(stages) > 1 else [""])
    weights: Path | None = None
    for stage, step in zip(stages, steps_of(architecture), strict=True):
        task = stage.make(weights)
        before = {name: value.clone() for name, value in task.network.state_dict().items()}
        frozen = {id(p) for part in frozen_parts(task.network, step) for p in part.parameters()}
        result = fit_stages([stage], tmp_path / "run")
        if weights is None:
            weights = result.weights
        after = dict(task.network.named_parameters())
        for name, parameter in after.items():
            if id(parameter) in frozen:
                assert torch.equal(parameter, before[name])
                assert not parameter.requires_grad
        batch = task.batch(0)
        loss = sum(task.loss(task.network, batch).values())  # type: ignore[union-attr]
        torch.autograd.backward(loss)  # type: ignore[arg-type]
        learns = [name for name, p in task.network.named_parameters() if p.grad is not None and p.grad.any()]
        assert learns
        assert not any(id(p) in frozen and p.grad is not None for p in task.network.parameters())


def test_all_stages_run_from_one_call_and_the_last_is_evaluated_and_exported(cache: Path, tmp_path: Path) -> None:
    from kstream.serve.store import ModelStore

    path = experiment_file(tmp_path, "brain-two-step")
    recipe = load_recipe(path)
    run = tmp_path / "run"
    records: list[dict[str, Any]] = []
    fit_stages(recipe.stages(cache), run, records.append)
    assert {record["stage"] for record in records} == {"reconstruction", "segmentation"}
    table = recipe.evaluate(cache, run, ())
    assert "| 5 % | 1 |" in table
    assert (run / "evaluation-test.csv").read_text("utf-8").startswith("head,noise,csf,grey_matter,white_matter,mean")
    bundle = tmp_path / "small"
    recipe.export(cache, run, bundle)
    made = ModelStore().segmenter(str(bundle)).segment(np.ones((1, 24, 20), np.complex64))
    assert made.labels.shape == (1, 24, 20)
    assert ModelStore().segmenter(str(bundle)).info.labels == LABELS
    assert "Research use only" in (bundle / "README.md").read_text("utf-8")


def test_a_small_network_learns_a_head(head: HeadExam, experiment: BrainExperiment, tmp_path: Path) -> None:
    """Dice of the training head rises: the task can be learnt from what it is given."""
    task = BrainTask(experiment, [head], [head], "undersampled", experiment.schedule.model_copy(update={"batch": 4}))
    before = task.validate(task.network.eval()).score
    optimiser = torch.optim.Adam(task.network.parameters(), 1e-2)
    task.network.train()
    for number in range(60):
        loss = sum(task.loss(task.network, task.batch(number)).values())  # type: ignore[union-attr]
        optimiser.zero_grad()
        torch.autograd.backward(loss)  # type: ignore[arg-type]
        optimiser.step()
    assert task.validate(task.network.eval()).score > before + 0.15


@pytest.mark.parametrize(
    ("form", "names"), [("last", {"entropy"}), ("all", {"entropy"}), ("last+image", {"entropy", "image"})]
)
def test_losses_of_table_one(form: str, names: set[str], head: HeadExam, experiment: BrainExperiment) -> None:
    task = BrainTask(experiment, [head], [head], "undersampled", experiment.schedule)
    config = experiment.loss.model_copy(update={"form": form})
    batch = task.batch(0)
    parts = brain_losses(task.network, batch, "undersampled", config)
    assert set(parts) == names
    last = brain_losses(task.network, batch, "undersampled", experiment.loss)["entropy"]
    if form == "all":
        assert parts["entropy"] > last  # of t = 0, 1 and 2
    else:
        torch.testing.assert_close(parts["entropy"], last)


def test_the_student_of_li_net_is_held_to_the_code_of_its_teacher(head: HeadExam, experiment: BrainExperiment) -> None:
    torch.manual_seed(1)
    student, teacher = (LINet((24, 20), 4, (4, 6), 5) for _ in range(2))
    batch = SliceSampler([head], experiment, 2).batch(0)
    parts = brain_losses(student, batch, "undersampled", experiment.loss, teacher)
    expected = (student.predict(batch["kspace"]) - teacher.predict(batch["full"])).square().mean()
    torch.testing.assert_close(parts["code"], expected)


def test_scores_are_dice_of_each_class_over_the_whole_head(head: HeadExam, experiment: BrainExperiment) -> None:
    class Oracle(torch.nn.Module):
        """Gives the truth but for grey matter, which it calls white."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.seen = 0

        def forward(self, kspace: torch.Tensor) -> torch.Tensor:
            labels = torch.from_numpy(head.labels[self.seen : self.seen + len(kspace)].astype(np.int64))
            self.seen += len(kspace)
            labels = torch.where(labels == 2, 3, labels)
            return torch.nn.functional.one_hot(labels, 4).movedim(-1, 1).float()

    (score,) = score_heads(experiment, [head], Oracle())
    grey, white = (head.labels == 2).sum(), (head.labels == 3).sum()
    assert score.dice == pytest.approx((1.0, 0.0, 2 * white / (2 * white + grey)))
    assert summarise([score])["dice_grey_matter"] == 0
    assert summarise([score])["mean_dice"] == pytest.approx(np.mean(score.dice))


def test_prediction_goes_slice_by_slice(head: HeadExam, experiment: BrainExperiment) -> None:
    network = BrainTask(experiment, [head], [head], "undersampled", experiment.schedule).network.eval()
    slices = measured_head(head, experiment, 0.05)
    together = predict(network, slices)
    assert together.shape == (4, 24, 20)
    assert np.array_equal(together[3], predict(network, slices[3:])[0])
    image = channels_to_image(torch.from_numpy(np.stack((slices[0].under.real, slices[0].under.imag)))[None])
    np.testing.assert_allclose(image[0, 0].numpy(), to_image(slices[0].under).real, atol=1e-4)


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ('seeds = "11"', 'seeds = "2"', "seed 2 is in cohorts"),
        ("[cohorts.validation]", "[cohorts.other]", "cohorts.validation is missing"),
        ("n_slices = 4", "n_sclices = 4", "refuses the protocol"),
        ("noise = [0.05]", "noise = []", "noise"),
    ],
)
def test_wrong_experiments_are_refused(old: str, new: str, word: str, tmp_path: Path) -> None:
    path = experiment_file(tmp_path)
    path.write_text(path.read_text("utf-8").replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigError, match=word):
        load_brain_experiment(path)
