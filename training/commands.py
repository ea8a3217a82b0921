"""What `kstream train`, `evaluate`, `study` and the export of a run do; the same for the experiments of every task."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from .fit import Report, Stage
    from .recipes import Recipe
    from .study import Run

ExperimentFile = Annotated[Path, typer.Argument(help="experiment (TOML)", metavar="EXPERIMENT")]
CacheFolder = Annotated[Path, typer.Option("--cache", help="exams that went through the pipeline")]
RunFolder = Annotated[Path | None, typer.Option("--run", help="folder of the run [default: runs/NAME]")]
Workers = Annotated[int, typer.Option(min=1, help="processes that simulate exams which the cache lacks")]
DEFAULT_CACHE = Path("cache")


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)


def _progress(console: Console) -> Progress:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)


def run_folder(recipe: Recipe[Any], run: Path | None) -> Path:
    """Where a run is if nothing else is said."""
    return run or Path("runs") / recipe.name


def cache(file: ExperimentFile, folder: CacheFolder = DEFAULT_CACHE, workers: Workers = 2) -> None:
    """Make the exams that the cache lacks: simulate each and stream it through the pipeline."""
    from .recipes import load_recipe

    _prepare(load_recipe(file), folder, workers, _console())


def read(
    dataset: Annotated[
        str, typer.Argument(help="fastmri-breast, fastmri-breast-batch, -synthetic, mama-mia, uk-biobank-cine, acdc")
    ],
    folder: Annotated[Path, typer.Argument(help="where the data set is, as it is published")],
    cache: Annotated[Path, typer.Option(help="folder for the exams")] = DEFAULT_CACHE,
    masks: Annotated[Path | None, typer.Option(help="folder of NAME_mask.nii (fastMRI)")] = None,
) -> None:
    """Read a public data set into the cache, for experiments with [folds], or with data.source (heart)."""
    from .readers.convert import convert

    _show(convert(dataset, folder, cache, masks), _console())


def _prepare(recipe: Recipe[Any], folder: Path, workers: int, console: Console) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread for each of the worker processes
    _show(recipe.prepare(folder, workers), console)


def _show(made: Iterable[tuple[str, int, int]], console: Console) -> None:
    """A bar for things that are made one by one; nothing at all if there is nothing to make."""
    with _progress(console) as progress:
        bar = None
        for what, done, total in made:
            bar = progress.add_task(what, total=total) if bar is None else bar
            progress.update(bar, completed=done, description=what)


def train(
    file: ExperimentFile,
    folder: CacheFolder = DEFAULT_CACHE,
    run: RunFolder = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    workers: Workers = 2,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="curves for TensorBoard in the run's folder")
    ] = False,
) -> None:
    """Train the network of an experiment, or go on with a run that was stopped.

    Exams that the cache lacks are made first. The run's folder gets the best weights, metrics.jsonl and pictures of
    examples. Several GPUs: torchrun --nproc-per-node N -m kstream train EXPERIMENT.
    """
    from ..engines.memory import keep_large_blocks
    from .distributed import joined
    from .logs import Reports, tensorboard_report
    from .recipes import load_recipe

    recipe, console = load_recipe(file), _console()
    target = run_folder(recipe, run)
    if recipe.weights(target).is_file():
        recipe.check_weights(target)
    keep_large_blocks()
    with joined(device) as world:
        if world.is_first:
            _prepare(recipe, folder, workers, console)
        world.wait()
        reports = Reports([tensorboard_report(target)] if tensorboard and world.is_first else [])
        with _progress(console) as progress:

            def bar(stages: Sequence[Stage]) -> Report:
                reports.add(_on_bar(progress, _totals(stages)))
                return reports

            told = recipe.fit(folder, target, bar, _device(device), world)
        if world.is_first:
            console.print(told)


def _on_bar(progress: Progress, totals: dict[str, int], prefix: str = "") -> Callable[[dict[str, Any]], None]:
    """Shows the records of `fit`: a bar for each stage, a line for each validation; `prefix` names the run."""
    bars: dict[str, Any] = {}

    def report(record: dict[str, Any]) -> None:
        stage = record.get("stage", "")
        if stage not in bars:
            bars[stage] = progress.add_task(f"{prefix} {stage}".strip() or "training", total=totals[stage])
        progress.update(bars[stage], completed=record["step"])
        if "loss" in record:
            progress.update(bars[stage], description=f"{prefix} {stage} loss {record['loss']:.3f}".strip())
        else:
            progress.print(f"{prefix} {_validation_line(record)}".strip())

    return report


def _validation_line(record: dict[str, Any]) -> str:
    numbers = {key: value for key, value in record["validation"].items() if isinstance(value, int | float)}
    return f"step {record['step']:>6}  " + "  ".join(f"{key} {value:.4g}" for key, value in numbers.items())


def evaluate(
    file: ExperimentFile,
    folder: CacheFolder = DEFAULT_CACHE,
    run: RunFolder = None,
    cohort: Annotated[list[str] | None, typer.Option(help="a test cohort; may be repeated [default: all]")] = None,
    workers: Workers = 2,
) -> None:
    """Score the best weights of a run, exam by exam, on its test cohorts; tables go into the run's folder."""
    from ..engines.memory import keep_large_blocks
    from .recipes import load_recipe

    keep_large_blocks()
    recipe, console = load_recipe(file), _console()
    target, cohorts = run_folder(recipe, run), recipe.test_cohorts(cohort or ())
    recipe.check_weights(target)
    _prepare(recipe, folder, workers, console)
    print(recipe.evaluate(folder, target, cohorts))


STAGES = ("data", "train", "evaluate", "report")


def study(
    file: Annotated[Path, typer.Argument(help="study (TOML)", metavar="STUDY")],
    stage: Annotated[list[str] | None, typer.Option(help="data, train, evaluate or report; repeatable [all]")] = None,
    arm: Annotated[list[str] | None, typer.Option(help="only this arm; repeatable [all]")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="only this seed; repeatable [all]")] = None,
    folder: CacheFolder = DEFAULT_CACHE,
    output: Annotated[Path | None, typer.Option(help="folder of the study [default: runs/NAME]")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    workers: Workers = 2,
) -> None:
    """Compare networks: make data, train every arm with every seed, score them, write tables and figures.

    Each stage goes on where it was stopped, arm by arm; what is done is kept. So a study can run over many sittings.
    """
    from ..engines.memory import keep_large_blocks
    from ..errors import ConfigError
    from . import study as studies
    from .distributed import joined
    from .experiment import read_experiment

    for name in stage or ():
        if name not in STAGES:
            raise ConfigError(f"unknown stage {name!r}", hint="one of: " + ", ".join(STAGES))
    wanted = [name for name in STAGES if not stage or name in stage]
    console = _console()
    target = output or Path("runs") / str(read_experiment(file).get("name", file.stem))
    plan = studies.Study(file, target)
    runs = plan.runs(arm or (), seed or ())
    device = _device(device)
    keep_large_blocks()
    with joined(device) as world:
        if world.is_first and {"data", "train"} & set(wanted):
            _prepare(plan.first, folder, workers, console)
        world.wait()
        if "train" in wanted:
            with _progress(console) as progress:

                def bar(run: Run, stages: Sequence[Stage]) -> Report:
                    return _on_bar(progress, _totals(stages), run.folder.name)

                studies.train(folder, runs, bar, device, world)
        if "evaluate" in wanted and world.is_first:
            with _progress(console) as progress:
                n_scenarios = len(plan.evaluation.scenarios)
                bars = {run.folder: progress.add_task(run.folder.name, total=n_scenarios) for run in runs}
                studies.evaluate(
                    plan, folder, runs, lambda run, n: progress.update(bars[run.folder], completed=n), device
                )
        if "report" in wanted and world.is_first:
            console.print(f"{plan.recipe_class.write_report(plan, folder)}")


def _device(name: str) -> str:
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def _totals(stages: Sequence[Stage]) -> dict[str, int]:
    """Steps by name of the stage."""
    return {stage.name: stage.schedule.steps for stage in stages}


def export(
    file: ExperimentFile,
    output: Annotated[Path, typer.Argument(help="folder of the bundle; its name is the bundle's")],
    folder: CacheFolder = DEFAULT_CACHE,
    run: RunFolder = None,
) -> None:
    """Evaluate the best weights of a run and write them as a model bundle with card and tables."""
    from ..engines.memory import keep_large_blocks
    from .recipes import load_recipe

    keep_large_blocks()
    recipe = load_recipe(file)
    print(recipe.export(folder, run_folder(recipe, run), output))
